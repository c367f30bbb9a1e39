"""Where images come from. So far: scikit-learn's handwritten digits, which need no download."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

Split = Literal["train", "test"]


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    name: str = "digits"
    """Data set: "digits" is built in (1,797 real handwritten digits, 8 x 8, 10 classes)."""
    flip: bool = False
    """Flip half of the training images horizontally. Not for digits or text."""
    small_classes: Literal["error", "repeat"] = "error"
    """Classes with fewer images than an ARFlow sequence: refuse to train, or repeat their images."""


class ImageSet(NamedTuple):
    """pixels (n, c, h, w) in 0 ... 255, labels (n,) or None where there are none, and the names of the classes."""

    pixels: UInt8[Tensor, "n c h w"]
    labels: Int[Tensor, "n"] | None
    class_names: tuple[str, ...]


def load(config: DataConfig, split: Split) -> ImageSet:
    """The images of one split."""
    if config.name == "digits":
        return digits(split)
    if config.name == "given":
        raise ValueError("this run was trained on images given to it in Python; pass them again")
    raise ValueError(
        f"data set {config.name!r} cannot be read by this version of fluvial, which has 'digits' built in; for other "
        f"images call fluvial.experiment.train with an ImageSet of your own"
    )


def digits(split: Split) -> ImageSet:
    """The UCI handwritten digits that ship with scikit-learn: 1,257 to train on, 540 to test with.

    The split is stratified and fixed. Grey levels 0 ... 16 become 0 ... 255.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    grey, labels = (torch.from_numpy(a) for a in load_digits(return_X_y=True))
    parts = train_test_split(range(len(labels)), test_size=0.3, stratify=labels, random_state=0)
    chosen = parts[0 if split == "train" else 1]
    pixels = (grey[chosen] * (255 / 16)).round().to(torch.uint8).reshape(-1, 1, 8, 8)
    return ImageSet(pixels, labels[chosen].long(), tuple("0123456789"))


def to_signed(pixels: UInt8[Tensor, "..."]) -> Float[Tensor, "..."]:
    """0 ... 255 to [-1, 1] in float32."""
    return pixels.float() / 127.5 - 1


def to_uint8(images: Float[Tensor, "..."]) -> UInt8[Tensor, "..."]:
    """[-1, 1] to 0 ... 255, rounded to nearest and clamped: the inverse of `to_signed`."""
    return (images.float() * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)
