import torch

from fluvial.data.images import digits, to_signed
from fluvial.metrics.accuracy import class_accuracy


def test_real_digits_are_recognised_and_wrong_labels_are_not():
    (real, y, *_), (other, z, *_) = digits("train"), digits("test")
    accuracy = class_accuracy(to_signed(real).flatten(1), y)
    held_out = to_signed(other).flatten(1)
    assert accuracy(held_out, z) > 0.98
    assert accuracy(held_out, (z + 1) % 10) < 0.02
    noise = torch.randn(500, 64, generator=torch.Generator().manual_seed(0))
    assert accuracy(noise, torch.arange(500) % 10) < 0.3
