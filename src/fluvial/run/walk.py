"""Walks from one sampled image to another: between their noises on the sphere, and between their label embeddings."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Unpack

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from fluvial.flow.solvers import Solver
from fluvial.run.load import Sampler
from fluvial.run.work import How, Work, begin, check_at_least
from fluvial.sampling import edit
from fluvial.sampling.samples import Samples
from fluvial.sampling.walk import lerp, plane_of_classes, slerp
from fluvial.sampling.walk import plane as plane_of_noise
from fluvial.utils.randomness import normal

Place = str | int | tuple[str | int, int]
"""An image: its index, or its class and index: 3, ("cat", 3), "cat:3"."""


def walk(sampler: Sampler, start: Place, end: Place, frames: int = 24, **how: Unpack[How]) -> Samples:
    """`frames` images from one to another; the first and the last are those that `sample` draws of these indices.

    Without a class, an image is of the class that `sample` gives its index. Raises ValueError for a class or an index
    that there is not.
    """
    check_at_least(2, "frames", frames)
    noise, weights, work = _ends(sampler, (start, end), how)
    shares = torch.linspace(0, 1, frames)
    between = None if weights is None else lerp(weights[0], weights[1], shares)
    return _drawn(work, slerp(noise[0], noise[1], shares), between, walk=[str(start), str(end)], frames=frames)


def plane(sampler: Sampler, corners: Sequence[Place], side: int = 8, **how: Unpack[How]) -> Samples:
    """side x side images between four, row by row; the corners are those that `sample` draws. Raises as `walk`."""
    check_at_least(2, "side", side)
    if len(corners) != 4:
        raise ValueError(f"a plane has 4 corners, got {len(corners)}")
    noise, weights, work = _ends(sampler, corners, how)
    between = None if weights is None else plane_of_classes(weights, side)
    return _drawn(work, plane_of_noise(noise, side), between, corners=[str(corner) for corner in corners], side=side)


def _ends(
    sampler: Sampler, places: Sequence[Place], how: How
) -> tuple[Float[Tensor, "k ..."], Float[Tensor, "k d"] | None, Work]:
    """Noise and weights of classes of the images at these places."""
    known = sampler.run.method.classes
    found = [_class_and_index(sampler, place) for place in places]
    work = begin(sampler, None, {**how, "classes": [ids for ids, _ in found] if known else None})
    noise = normal(work.seed, [index for _, index in found], sampler.run.method.noise_shape)
    if not known:
        return noise, None, work
    return noise, F.one_hot(torch.tensor([ids for ids, _ in found]), known + 1).float(), work


def _class_and_index(sampler: Sampler, place: Place) -> tuple[int, int]:
    """Class id and index of an image; class 0 for a model without classes."""
    name, index = (None, place) if not isinstance(place, tuple) else place
    if isinstance(index, str):
        named, colon, number = index.rpartition(":")
        name, index = (named if colon else None), number
    try:
        index = int(index)
    except ValueError:
        raise ValueError(f"an image is INDEX or CLASS:INDEX, such as 3 or cat:3, got {place!r:.100}") from None
    if isinstance(name, str) and name.isdecimal() and name not in sampler.run.data.class_names:
        name = int(name)
    asked = sampler.asked(None, indices=[index], classes=name)
    if not asked.classes:
        return 0, index
    return asked.classes[index % len(asked.classes)], index


def _drawn(work: Work, noise: Tensor, weights: Tensor | None, **about: object) -> Samples:
    """The images of this noise and these weights of classes."""
    parts = work.by_scale(noise)

    def solvers(solver: Solver, positions: slice) -> Solver | list[Solver]:
        placed = [edit.placed(solver, part[positions]) for part in parts]
        return placed if work.scales else placed[0]

    return replace(work, labels=weights, count=len(noise)).samples(solvers, edit="walk", **about)
