"""Random numbers as a function of (seed, address): a draw does not depend on what was drawn before it.

Training asks for a generator by (seed, step, stream), so that resuming needs no saved generator state. Sampling asks
for normals by (seed, image, step), so that image i is the same whatever the batch it is drawn in.
"""

import hashlib

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor


def generator(seed: int, *path: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A new torch generator seeded by (seed, *path).

    Torch's CPU generator uses only the low 32 bits of its seed, so two of n addresses coincide with a chance of about
    n^2 / 2^33. That is harmless for training steps; sampling noise comes from `normal`, which cannot collide.
    """
    return torch.Generator(device).manual_seed(address(seed, *path))


def numpy_generator(seed: int, *path: int | str) -> np.random.Generator:
    """A new numpy generator for (seed, *path): Philox, with the hash of both as its key."""
    return np.random.Generator(np.random.Philox(key=address(seed, *path)))


def normal(seed: int, images: range | list[int], shape: tuple[int, ...], step: int = 0) -> Float[Tensor, "b ..."]:
    """Standard normal float32 draws on the CPU, one row of `shape` for each image index.

    The counter-based Philox generator is keyed by (seed, image) and its counter starts at (step, 0), so distinct
    addresses give disjoint streams by construction. Step 0 is the initial noise, step k the k-th stochastic step.
    """
    bits = np.random.Philox(key=0)  # one for all, as making one takes longer than the draws of a small image
    draws, start = np.random.Generator(bits), bits.state
    rows = np.empty((len(images), *shape), dtype=np.float32)
    start["state"]["counter"] = np.array([0, 0, 0, step], dtype=np.uint64)
    for row, image in zip(rows, images, strict=True):
        start["state"]["key"] = np.array([seed % 2**64, image], dtype=np.uint64)
        bits.state = start
        draws.standard_normal(dtype=np.float32, out=row)
    return torch.from_numpy(rows)


def address(*path: int | str) -> int:
    """The hash of a path as a 63-bit integer, to seed a generator with."""
    return int.from_bytes(hashlib.blake2b(repr(path).encode(), digest_size=8).digest(), "big") >> 1
