"""What of a folder is not taken for an image is named, and only that."""

import io
import json
import os

import numpy as np
import pytest
from PIL import Image

import fluvial
from fluvial.autoencoders import AutoencoderConfig
from fluvial.cli import main
from fluvial.config import Run
from fluvial.data.images import DataConfig, load
from fluvial.data.left_out import LeftOut, image_endings, image_formats, printable
from fluvial.methods import sit
from fluvial.run.inputs import encode, open_autoencoder
from fluvial.training.config import TrainConfig


def encoded(i, form="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(i).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(buffer, form)
    return buffer.getvalue()


def fill(folder, *names):
    for i, name in enumerate(names):
        file = os.path.join(folder, name)
        os.makedirs(os.path.dirname(file), exist_ok=True)
        with open(file, "wb") as opened:
            opened.write(encoded(i))
    return folder


def opened(folder, **options):
    return load(DataConfig(path=str(folder), **options), "train")


@pytest.mark.filterwarnings("ignore:IM image format")
def test_every_ending_that_pillow_decodes_is_taken(tmp_path):
    """The oracle writes with Pillow what it can write, and asks Pillow whether it reads it again."""
    Image.init()
    image, readable = Image.new("RGB", (8, 8)), set()
    for ending, form in Image.registered_extensions().items():
        buffer = io.BytesIO()
        try:
            image.save(buffer, form)
            with Image.open(buffer) as again:
                again.load()
        except Exception:  # one that Pillow cannot write, or not read
            continue
        readable.add(ending)
    assert {".jfif", ".jpe", ".apng", ".j2k", ".mpo", ".tga", ".qoi", ".pnm", ".dib"} <= readable
    assert readable - image_endings() <= {".eps", ".ps"}  # drawings, which Ghostscript would run
    assert not {".pdf", ".h5", ".mpg", ".wmf"} & image_endings() and "EPS" not in image_formats()
    names = [f"{i:02d}{ending.upper() if i % 2 else ending}" for i, ending in enumerate(sorted(readable))]
    fill(tmp_path, *names)
    assert len(opened(tmp_path).pixels) == len(set(readable) - {".eps", ".ps"})


def test_what_is_left_out_is_counted_and_named(tmp_path):
    fill(tmp_path, "a/0.jfif", "a/1.JPG", "b/2.png", "b/photo.png.jpg")
    fill(tmp_path, "a/x.heic", "a/y.HEIC", "b/z.jxl", "b/notes.txt", "b/IMG_0001", "a/._0.jfif", "a/.DS_Store")
    fill(tmp_path, "a/@eaDir/0.jfif/SYNOPHOTO_THUMB_S.jpg", ".thumbnails/0.png", "__MACOSX/a/._1.jpg", "a/Thumbs.db")
    fill(tmp_path, ".git/objects/ab")
    images = opened(tmp_path)
    assert len(images.pixels) == 4 and images.class_names == ("a", "b")
    assert images.left_out.startswith("11 files left out: ")
    for part in (
        "2 .heic, which Pillow does not open here: convert them (a/x.heic, a/y.HEIC)",
        "1 .jxl, which Pillow does not open here: convert them (b/z.jxl)",
        "1 .txt (b/notes.txt)",
        "1 .db (a/Thumbs.db)",
        "1 without an ending (b/IMG_0001)",
        "2 hidden (a/.DS_Store, a/._0.jfif)",
        "1 in @eaDir (a/@eaDir/0.jfif/SYNOPHOTO_THUMB_S.jpg)",
        "1 in .thumbnails (.thumbnails/0.png)",
        "1 in __MACOSX (__MACOSX/a/._1.jpg)",
    ):
        assert part in images.left_out
    assert opened(fill(tmp_path / "plain", "0.png")).left_out == ""


def test_many_names_are_cut_short():
    left_out = LeftOut()
    for i in range(1200):
        left_out.add(".txt", f"{i}.txt")
    assert str(left_out) == "1,200 files left out: 1,200 .txt (0.txt, 1.txt, 2.txt, ...)"


def test_thumbnails_beside_folders_of_splits_are_no_class(tmp_path):
    fill(tmp_path, "train/a/0.png", "train/b/1.png", "val/a/2.png", "@eaDir/x.jpg", "._train.png")
    assert len(opened(tmp_path).pixels) == 2 and len(load(DataConfig(path=str(tmp_path)), "test").pixels) == 1


def test_a_folder_without_images_says_what_it_has(tmp_path):
    fill(tmp_path, "a.heic", "b.heic")
    with pytest.raises(ValueError, match=r"no images: .* 2 files left out: 2 .heic, which Pillow does not open here"):
        opened(tmp_path)


def test_links_back_are_named_and_not_followed(tmp_path):
    data = fill(tmp_path / "data", "a/0.png", "b/1.png")
    fill(tmp_path, "other/2.png")
    (data / "a" / "up").symlink_to(tmp_path)  # beyond the folder itself
    (data / "c").symlink_to(data / "a")
    images = opened(data)
    assert len(images.pixels) == 2 and images.class_names == ("a", "b")
    assert "2 link to a folder already read (a/up, c)" in images.left_out
    (data / "d").symlink_to(tmp_path / "other")
    assert opened(data).class_names == ("a", "b", "d")


def test_a_folder_that_cannot_be_listed_is_an_error(tmp_path, monkeypatch):
    fill(tmp_path, "a/0.png", "b/1.png")
    scandir = os.scandir

    def closed(folder):
        if str(folder).endswith("b"):
            raise PermissionError(13, "Permission denied", str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", closed)
    with pytest.raises(ValueError, match="the folder .*b cannot be listed: Permission denied"):
        opened(tmp_path)


def test_pipes_devices_and_broken_links_are_unreadable_images(tmp_path):
    fill(tmp_path, "0.png", "dir.png/1.png")
    os.rename(tmp_path / "dir.png" / "1.png", tmp_path / "1.png")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    (tmp_path / "gone.png").symlink_to("nowhere")
    with pytest.raises(ValueError, match="3 unreadable images: .*gone.png: is a link to nowhere.*pipe.png: is a pipe"):
        opened(tmp_path)
    images = opened(tmp_path, unreadable="skip")
    assert len(images.pixels) == 2 and len(images.skipped) == 3


@pytest.fixture
def odd(tmp_path):
    """A folder of which a class and an image have names that are not UTF-8, and one name has a line break."""
    folder = os.fsencode(tmp_path / "odd")
    for name in (b"caf\xe9/0.png", b"caf\xe9/l\xe9.png", b"tea/1\n.png", b"tea/\xff.png", b"tea/\xe9.txt"):
        os.makedirs(os.path.dirname(os.path.join(folder, name)), exist_ok=True)
        with open(os.path.join(folder, name), "wb") as file:
            file.write(encoded(len(name)))
    return tmp_path / "odd"


def test_names_that_are_not_utf8_are_read_and_can_be_printed(odd, capsys):
    images = opened(odd)
    assert len(images.pixels) == 4 and images.class_names == ("caf\\xe9", "tea") and len(images.digest) == 16
    assert images.left_out == "1 file left out: 1 .txt (tea/\\xe9.txt)"
    with open(os.path.join(os.fsencode(odd), b"tea/1\n.png"), "wb"):
        pass
    skipped = opened(odd, unreadable="skip").skipped
    assert [error.name for error in skipped] == [f"{odd}/tea/1\\n.png"]
    json.dumps([str(error) for error in skipped], ensure_ascii=False).encode()
    assert main(["data", "inspect", str(odd), "--sheet", str(odd.parent / "sheet.png")]) == 0
    assert "caf\\xe9" in (printed := capsys.readouterr().out) and "tea/1\\n.png" in printed


def test_names_are_printable_whatever_they_are():
    assert printable("häuser/猫.png") == "häuser/猫.png"
    assert printable(os.fsdecode(b"caf\xe9")) == "caf\\xe9" and printable("a\x1b[31m\r") == "a\\x1b[31m\\r"


def small(path, **data):
    return Run(
        method=sit.Config(size=(8, 8), channels=3, classes=2, patch=4, depth=1, width=16, heads=2),
        data=DataConfig(path=str(path), **data),
        train=TrainConfig(steps=1, batch=2, log_every=1, save_every=1, validate_every=0, sample_every=0),
    )


@pytest.mark.parametrize("cache", [False, True])
def test_training_names_what_it_leaves_out_once(tmp_path, capsys, cache):
    fill(tmp_path / "data", "train/a/0.png", "train/b/1.png", "train/b/2.heic", "val/a/3.png", "val/b/4.png", "val/b/5")
    fluvial.train(small(tmp_path / "data", cache=cache), tmp_path / "run", device="cpu")
    printed = capsys.readouterr().out
    assert printed.count("1 file left out: 1 .heic, which Pillow does not open here: convert them (b/2.heic)") == 1
    assert printed.count("1 file left out: 1 without an ending (b/5)") == 1


def test_encoding_names_what_it_leaves_out(tmp_path, capsys):
    data = fill(tmp_path / "data", "0.png", "1.png", "2.heic")
    (data / "3.png").write_bytes(b"")
    command = ["encode", str(data), "--autoencoder", "pixels", "--image-size", "8", "--out", str(tmp_path / "latents")]
    assert main([*command, "--unreadable", "skip", "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert "1 file left out: 1 .heic" in printed and "left out: " in printed and "3.png" in printed
    said = []
    encode(
        DataConfig(path=str(data), size=8, unreadable="skip"),
        open_autoencoder(AutoencoderConfig()),
        tmp_path / "b",
        tell=said.append,
    )
    assert said == ["1 file left out: 1 .heic, which Pillow does not open here: convert them (2.heic)"]
    run = small(tmp_path / "b", size=8)
    fluvial.train(
        Run(method=sit.Config(**{**vars(run.method), "classes": 0}), data=run.data, train=run.train),
        tmp_path / "run",
        device="cpu",
    )
    assert "left out when the latents were made: 1 unreadable image: " in capsys.readouterr().out
