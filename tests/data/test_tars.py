"""Webdataset tars: the oracle is the list of files that was put into them."""

import io
import os
import tarfile

import datasets
import pytest
import torch
from PIL import Image

from fluvial.data.images import DataConfig, load


def encoded(i, form="PNG"):
    """An image that says which one it is in every pixel, to the errors of JPEG."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (10 * i, 10 * i, 10 * i)).save(buffer, form)
    return buffer.getvalue()


FORMS = {"png": "PNG", "jpg": "JPEG", "jpeg": "JPEG", "webp": "WEBP"}


def archive(path, *names, mode="w"):
    """A tar of these files: an image for a number with an image's ending, a label for one with .cls."""
    with tarfile.open(path, mode) as tar:
        for name in names:
            stem, _, ending = os.path.basename(name).partition(".")
            form = FORMS.get(ending.lower().rpartition(".")[2]) if stem.isdigit() else None
            content = encoded(int(stem), form) if form else b"%d" % (int(stem) % 2) if ending == "cls" else b"?"
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def opened(path, **options):
    return load(DataConfig(path=str(path), **options), "train")


def numbers(images):
    pixels = images.rows(torch.arange(len(images.pixels))).float().mean((1, 2, 3)) / 10
    assert (pixels - pixels.round()).abs().max() < 0.3
    return pixels.round().int().tolist()


@pytest.mark.parametrize("second", ["png", "jpeg", "JPG", "webp"])
@pytest.mark.parametrize("at", [1, 3, 8])
def test_images_of_a_second_kind_are_taken_too(tmp_path, second, at):
    """`datasets` refuses them among the first five samples, and drops them after."""
    names = [f"{i:02d}.{part}" for i in range(12) for part in ("jpg" if i < at else second, "cls")]
    images = opened(archive(tmp_path / "a.tar", *names))
    assert numbers(images) == list(range(12)) and images.labels.tolist() == [0, 1] * 6 and images.left_out == ""


def test_every_tar_may_have_its_own_kind(tmp_path):
    for number, ending in enumerate(("jpg", "png", "webp")):
        names = [f"{i:02d}.{ending}" for i in range(number * 4, number * 4 + 4)]
        archive(tmp_path / f"train-{number}.tar", *names)
    archive(tmp_path / "test-0.tar", "20.jpeg", "21.png")
    assert numbers(opened(tmp_path)) == list(range(12)) == numbers(opened(tmp_path / "train-*.tar"))
    assert numbers(load(DataConfig(path=str(tmp_path)), "test")) == [20, 21]


def test_a_compressed_tar_is_read_like_a_plain_one(tmp_path):
    """Also with the labels behind all images, and in folders."""
    names = [*(f"x/{i}.{'png' if i % 3 else 'jpg'}" for i in range(9)), *(f"x/{i}.cls" for i in range(9))]
    for name, mode in (("a.tar", "w"), ("a.tar.gz", "w:gz"), ("a.tgz", "w:gz")):
        images = opened(archive(tmp_path / name, *names, mode=mode))
        assert numbers(images) == list(range(9)) and images.labels.tolist() == [i % 2 for i in range(9)]
    whole = (tmp_path / "a.tgz").read_bytes()
    (tmp_path / "cut.tgz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="cut.tgz is cut short"):
        opened(tmp_path / "cut.tgz")


def test_what_is_left_out_of_a_tar_is_named(tmp_path):
    names = ["1.png", "1.cls", "1.json", "2.heic", "2.cls", "@eaDir/1.png", "._1.png", "3.jpg", "3.cls", "README"]
    path = archive(tmp_path / "a.tar", *names[:-1])
    with tarfile.open(path, "a") as tar:
        tar.addfile(tarfile.TarInfo("README"))
        link = tarfile.TarInfo("4.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
        tar.addfile(tarfile.TarInfo("1.png"))
    images = opened(path)
    assert numbers(images) == [1, 3] and images.labels.tolist() == [1, 1]
    assert images.left_out.startswith("7 files left out: ")
    for part in (
        "1 .heic, which Pillow does not open here: convert them (2.heic)",
        "1 .cls (2.cls)",
        "1 in @eaDir (@eaDir/1.png)",
        "1 hidden (._1.png)",
        "1 without an ending (README)",
        "1 no plain files, but links or devices (4.png)",
        "1 a second time in the archive (1.png)",
    ):
        assert part in images.left_out
    assert opened(path).left_out == images.left_out  # from the copy that was made
    with pytest.raises(ValueError, match=r"has no images. 1 file left out: 1 .heic"):
        opened(archive(tmp_path / "b.tar", "2.heic"))


def test_of_several_images_of_a_sample_one_is_chosen(tmp_path):
    names = [f"{i}.{ending}" for i in range(3) for ending in ("mask.png", "jpg")]
    images = opened(archive(tmp_path / "a.tar", *names))
    assert numbers(images) == [0, 1, 2]
    assert "3 .mask.png, beside the image of their sample (0.mask.png, 1.mask.png, 2.mask.png)" in images.left_out
    path = archive(tmp_path / "b.tar", "0.jpg", "0.png", "1.jpg", "1.png", "2.jpg")
    with pytest.raises(ValueError, match=r"the sample 0 has several images, .jpg, .png: choose one with data.image_c"):
        opened(path)
    images = opened(path, image_column="png")
    assert numbers(images) == [0, 1] and "3 .jpg, not the .png that was chosen" in images.left_out
    with pytest.raises(ValueError, match="has no column 'gif', only jpg, png; set data.image_column"):
        opened(path, image_column="gif")


def test_names_that_lead_elsewhere_or_are_not_utf8_are_only_names(tmp_path):
    odd = os.fsdecode(b"caf\xe9/5.png")
    path = archive(tmp_path / "a.tar", "/etc/1.png", "../../2.png", "./3.png", odd)
    assert numbers(opened(path)) == [1, 2, 3, 5] and not (tmp_path.parent / "2.png").exists()
    ((name, _),) = load(DataConfig(path=str(path)), "train", scan=False).pixels.source.read([3])
    assert "caf\\xe9" in name


def blocks(path):
    whole = bytearray(path.read_bytes())
    return whole, whole.index(b"0005.png")


def test_a_tar_that_is_damaged_in_the_middle_is_an_error(tmp_path):
    """`tarfile` takes a header with a wrong checksum for the end."""
    path = archive(tmp_path / "a.tar", *(f"{i:04d}.png" for i in range(9)))
    whole, header = blocks(path)
    whole[header + 2] ^= 1
    path.write_bytes(whole)
    with tarfile.open(path) as tar:
        assert len(tar.getnames()) == 5
    with pytest.raises(ValueError, match=f"a.tar is damaged after byte {header:,}, or another archive was put behind"):
        opened(path)


def test_two_tars_in_one_file_are_an_error(tmp_path):
    one, two = (archive(tmp_path / f"{i}.tar", f"{i}.png").read_bytes() for i in range(2))
    (tmp_path / "both.tar").write_bytes(one + two)
    with pytest.raises(ValueError, match="another archive was put behind its end"):
        opened(tmp_path / "both.tar")


def labelled(path, *labels, ending="cls"):
    with tarfile.open(path, "w") as tar:
        for i, label in enumerate(labels):
            for name, content in ((f"{i}.png", encoded(i)), (f"{i}.{ending}", label)):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return path


def test_labels_are_whole_numbers_or_names(tmp_path):
    images = opened(labelled(tmp_path / "n.tar", b"3\n", b" 0", b"3"))
    assert images.labels.tolist() == [3, 0, 3] and images.class_names == ()
    images = opened(labelled(tmp_path / "w.tar", b"dog", b"cat", b"dog", ending="label"))
    assert images.labels.tolist() == [1, 0, 1] and images.class_names == ("cat", "dog")
    images = opened(labelled(tmp_path / "t.tar", b"dog", b"cat", ending="txt"))
    assert images.labels is None  # a text is no class, unless it is chosen
    assert opened(tmp_path / "t.tar", label_column="txt").labels.tolist() == [1, 0]
    assert opened(tmp_path / "n.tar", label_column="none").labels is None
    with pytest.raises(ValueError, match="0.cls is no label: it is not text"):
        opened(labelled(tmp_path / "b.tar", b"\xff\xfe"))
    with pytest.raises(ValueError, match="0.cls has 2,000 bytes, too many for a label"):
        opened(labelled(tmp_path / "l.tar", b"9" * 2000))
    with pytest.raises(ValueError, match="1 images have no label, the first is image 1"):
        opened(archive(tmp_path / "m.tar", "0.png", "0.cls", "1.png"))


def test_a_changed_tar_is_read_anew(tmp_path):
    path = tmp_path / "a.tar"
    assert numbers(opened(archive(path, "1.png", "2.png"))) == [1, 2]
    assert numbers(opened(archive(path, "3.png", "4.png"))) == [3, 4]


def test_files_of_two_kinds_are_an_error(tmp_path):
    archive(tmp_path / "a.tar", "1.png")
    rows = {"image": [{"bytes": encoded(2), "path": None}]}
    datasets.Dataset.from_dict(rows, features=datasets.Features({"image": datasets.Image()})).to_parquet(
        tmp_path / "b.parquet"
    )
    for place in (tmp_path, tmp_path / "*.*"):
        with pytest.raises(ValueError, match="are files of several kinds: parquet, webdataset"):
            opened(place)


def test_a_pipe_that_is_called_a_tar_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "a.tar")
    for place in (tmp_path, tmp_path / "a.tar"):
        with pytest.raises(ValueError, match="a.tar: is a pipe, not a file"):
            opened(place)
