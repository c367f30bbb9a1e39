"""Converts pixels in 0 ... 255 to floats in [-1, 1], and back."""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor


def to_signed(pixels: UInt8[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Pixels in 0 ... 255 as float32 in [-1, 1]."""
    return pixels.float() / 127.5 - 1


def to_uint8(images: Float[Tensor, "..."]) -> UInt8[Tensor, "..."]:
    """Images in [-1, 1] as pixels in 0 ... 255, rounded to nearest and clamped: the inverse of `to_signed`."""
    return (images.float() * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)
