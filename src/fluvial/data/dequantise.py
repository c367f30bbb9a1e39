"""Dequantisation: 256 levels of a pixel as a continuous value, so that a density can be compared with probabilities.

Level k of a pixel stands for the values that are rounded to it (see `data/pixels.py`): in levels the interval from
k - 1/2 to k + 1/2, in the model's range [-1, 1] one of length 1 / 127.5. With uniform noise u in it, by Jensen,

    log P(k) = log E_u p(x(k + u)) 127.5^-d >= E_u log p(x(k + u)) - d log 127.5

for an image of d numbers: the bits per dimension below are an upper bound of -log2 P(k) / d (arXiv 1511.01844). They
fall below 8, the bits of a uniform guess, by what the model knows.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from fluvial.utils.randomness import numpy_generator

LEVELS = 127.5  # of a pixel to a unit of the model's range


def dequantised(pixels: UInt8[Tensor, "b c h w"], indices: Sequence[int], *, seed: int = 0) -> Float[Tensor, "b c h w"]:
    """Pixels as values in the model's range, each with noise within its level; that of image i depends on (seed, i)."""
    shape = tuple(pixels.shape[1:])
    noise = [numpy_generator(seed, "dequantise", i).random(shape, dtype="float32") - 0.5 for i in indices]
    return (pixels.float() + torch.stack([torch.from_numpy(n) for n in noise]).to(pixels.device)) / LEVELS - 1


def bits_per_dim(nats: Float[Tensor, "n"], numbers: int) -> Float[Tensor, "n"]:
    """Bits per dimension of images of so many numbers, from log densities in the model's range in nats."""
    return -nats / (numbers * math.log(2)) + math.log2(LEVELS)
