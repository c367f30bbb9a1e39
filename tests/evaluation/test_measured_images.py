"""What can be measured: .npz of the ADM suite, folders, parts of data sets, and what is refused."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from fluvial.data.images import DataConfig
from fluvial.evaluation.opening import open_images
from fluvial.utils.files import checksum, json_checksum


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (7, 4, 4, 3), dtype=np.uint8)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_npz_is_read_row_by_row(tmp_path, pixels, save):
    save(tmp_path / "a.npz", pixels, np.arange(7))
    images = open_images(str(tmp_path / "a.npz"))
    assert images.n == 7 and images.about["labels"] is None
    read, labels = images.read([5, 6, 2])  # backwards too
    assert torch.equal(read, torch.from_numpy(pixels[[5, 6, 2]]).permute(0, 3, 1, 2)) and labels.tolist() == [5, 6, 2]
    again = open_images(str(tmp_path / "a.npz"))
    assert images.digest(range(7)) == again.digest(range(7)) != images.digest(range(6))


def test_floats_in_0_to_1_are_rounded_to_nearest(tmp_path, pixels):
    np.savez(tmp_path / "a.npz", (pixels / 255).astype(np.float32))
    images = open_images(str(tmp_path / "a.npz"))
    assert torch.equal(images.read(range(7))[0], torch.from_numpy(pixels).permute(0, 3, 1, 2))
    assert images.about["rounding"] == "to the nearest of 256 levels"


@pytest.mark.parametrize(("arrays", "says"), [
    ({"arr_0": np.zeros((2, 4, 4, 3), np.float32) - 0.5}, r"run from -0\.5 to -0\.5; floats must be in \[0, 1\]"),
    ({"arr_0": np.full((2, 4, 4, 3), 1.5)}, "clipping would change the images and their score"),
    ({"arr_0": np.full((2, 4, 4, 3), np.nan)}, "run from nan to nan"),
    ({"arr_0": np.zeros((2, 3, 4, 4), np.uint8)}, r"arr_0 has the shape \(2, 3, 4, 4\).*height, width, channels"),
    ({"arr_0": np.zeros((2, 4, 4, 3), np.int64)}, "arr_0 is int64; expected pixels as uint8"),
    ({"arr_0": np.zeros((2, 4, 4, 3), object)}, "must be a plain array"),
    ({"arr_0": np.asfortranarray(np.zeros((2, 4, 4, 3), np.uint8))}, "is in Fortran order"),
    ({"arr_0": np.zeros((2, 4, 4, 3), np.uint8), "arr_1": np.array(["a", "b"])}, "arr_1 must be a class id .* got <U1"),
    ({"arr_0": np.zeros((2, 4, 4, 3), np.uint8), "arr_1": np.zeros((2, 10), np.int64)}, "arr_1 must be a class id"),
    ({"images": np.zeros((2, 4, 4, 3), np.uint8)}, "has no arr_0 but images"),
    ({"mu": np.zeros(4), "sigma": np.eye(4)}, "only statistics, which can be a --reference"),
])  # fmt: skip
def test_another_layout_is_refused(tmp_path, arrays, says):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match=says):
        open_images(str(tmp_path / "a.npz")).read([0, 1])


def test_what_is_no_npz_and_what_is_cut_short_is_refused(tmp_path, pixels):
    (tmp_path / "a.npz").write_text("no")
    with pytest.raises(ValueError, match="cannot be read as .npz"):
        open_images(str(tmp_path / "a.npz"))
    with pytest.raises(ValueError, match="cannot be read as .npz"):
        open_images(str(tmp_path / "none.npz"))
    np.savez(tmp_path / "b.npz", pixels)
    content = (tmp_path / "b.npz").read_bytes()
    (tmp_path / "b.npz").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError):
        open_images(str(tmp_path / "b.npz")).read(range(7))


def test_what_sample_wrote_of_grey_images_is_grey_again(tmp_path, pixels):
    grey = np.repeat(pixels[..., :1], 3, axis=-1)
    np.savez(tmp_path / "samples.npz", grey)
    told = {"cut": "as they are", "labels": "all classes in turn", "sampling": {"solver": "heun"}, "grey": True}
    told["file_sha256"] = checksum(tmp_path / "samples.npz")
    (tmp_path / "samples.json").write_text(json.dumps({**told, "sha256": json_checksum(told)}))
    images = open_images(str(tmp_path))  # the folder will do
    assert images.read([3])[0].shape == (1, 1, 4, 4) and images.about["sampling"] == {"solver": "heun"}
    assert "grey" not in images.about
    (tmp_path / "samples.json").write_text(json.dumps({**told, "grey": False, "sha256": json_checksum(told)}))
    with pytest.raises(ValueError, match="samples.json cannot be read: .*its content is not what was written"):
        open_images(str(tmp_path))
    (tmp_path / "samples.json").write_text(json.dumps({**told, "sha256": json_checksum(told)}))
    np.savez(tmp_path / "samples.npz", pixels)
    with pytest.raises(ValueError, match="samples.json belongs to another samples.npz"):
        open_images(str(tmp_path))
    (tmp_path / "samples.json").write_text("{}")
    with pytest.raises(ValueError, match="samples.json cannot be read"):
        open_images(str(tmp_path))
    (tmp_path / "samples.json").unlink()
    with pytest.raises(ValueError, match="the images are coloured and cannot be read as grey"):
        open_images(str(tmp_path), DataConfig(channels=1)).read([3])


def test_folders_and_parts_of_data_sets(tmp_path, pixels):
    for part, images in (("train", pixels[:5]), ("val", pixels[5:])):
        (tmp_path / part).mkdir()
        for i, image in enumerate(images):
            Image.fromarray(image).save(tmp_path / part / f"{i}.png")
    assert (open_images(str(tmp_path)).n, open_images(str(tmp_path / "val")).n) == (5, 2)
    with pytest.raises(ValueError, match="choose digits:train or digits:test"):
        open_images("digits")
    assert (open_images("digits:train").n, open_images("digits:test").n) == (1257, 540)
    Image.new("RGB", (5, 4)).save(tmp_path / "val" / "wide.png")
    with pytest.raises(ValueError, match="5 x 4 pixels where the first image has 4 x 4"):
        open_images(str(tmp_path / "val")).read(range(3))
    assert open_images(str(tmp_path / "val"), DataConfig(size=2)).read([0])[0].shape == (1, 3, 2, 2)


def test_files_beside_the_images_are_named(tmp_path, pixels, capsys):
    Image.fromarray(pixels[0]).save(tmp_path / "a.png")
    (tmp_path / "b.heic").touch()
    assert open_images(str(tmp_path)).n == 1
    assert "b.heic" in capsys.readouterr().err


def test_some_of_them_are_always_the_same_in_their_order(pixels, tmp_path):
    np.savez(tmp_path / "a.npz", pixels, np.arange(7))
    images = open_images(str(tmp_path / "a.npz"))
    some = images.some(3)
    read, labels = some.read(range(3))
    assert some.n == 3 and labels.tolist() == sorted(labels.tolist())
    assert torch.equal(read, torch.from_numpy(pixels[labels]).permute(0, 3, 1, 2))
    assert images.some(3).read([1])[1] == labels[1]
    assert some.digest(range(3)) == images.digest(labels.tolist()) != images.digest(range(7))
    assert images.some(7) is images


def test_the_digest_is_of_the_content(tmp_path, pixels):
    """Wherever the files lie; and of large sets, which are not decoded, of the files and how they are cut."""
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        for i, image in enumerate(pixels):
            Image.fromarray(image).save(tmp_path / folder / f"{i}.png")

    def digest(folder, of=range(7)):
        return open_images(str(tmp_path / folder)).digest(of)

    first = digest("a")
    assert first == digest("b") and digest("a", [1, 2]) == digest("b", [1, 2]) != digest("b", [1, 3])
    Image.fromarray(255 - pixels[3]).save(tmp_path / "b" / "3.png")
    assert first != digest("b")


def test_the_digest_holds_labels_and_grey(tmp_path, pixels):
    from fluvial.data.images import digits
    from fluvial.evaluation.opening import of_set

    data = digits("test")
    with_labels, without = of_set(data, "a", DataConfig()), of_set(data._replace(labels=None), "a", DataConfig())
    assert with_labels.digest(range(540)) != without.digest(range(540))
    np.savez(tmp_path / "a.npz", np.repeat(pixels[..., :1], 3, axis=-1))
    name = str(tmp_path / "a.npz")
    assert open_images(name).digest(range(7)) != open_images(name, DataConfig(channels=1)).digest(range(7))
