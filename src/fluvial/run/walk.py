"""Walks from one sampled image to another: between their noises on the sphere, and between their label embeddings."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypedDict, Unpack

import torch
from torch import Tensor
from torch.nn import functional as F

from fluvial.config import Run
from fluvial.data.labels import class_ids, ids_of_words
from fluvial.flow.guidance import Guidance
from fluvial.flow.solvers import OnStep
from fluvial.nn.layers import LabelEmbedding, Labels
from fluvial.run.load import Sampler
from fluvial.sampling.generate import generate
from fluvial.sampling.given import indices_of
from fluvial.sampling.labels import labels_for
from fluvial.sampling.samples import Samples
from fluvial.sampling.settings import AnySolver, SampleConfig
from fluvial.sampling.walk import arcs, lerp, plane_of_classes, slerp
from fluvial.sampling.walk import plane as plane_of_noise
from fluvial.sampling.work import check_at_least
from fluvial.utils.randomness import normal

Place = str | int | tuple[str | int, int]
"""An image: its index, or its class and index: 3, ("cat", 3), "cat:3"."""

MOST = 1024  # images of a walk: all are held at once, for one picture
FRAMES, SIDE = 24, 8  # by default


class How(TypedDict, total=False):
    """The arguments of walks that `Sampler.sample` takes too."""

    seed: int
    settings: SampleConfig | None
    """Sampling settings; the run's own by default, of which steps or nfe, guidance and solver replace some."""
    steps: int | Sequence[int] | None
    guidance: float | Guidance | None
    solver: AnySolver | None
    nfe: int | None


def walk(sampler: Sampler, start: Place, end: Place, frames: int = FRAMES, **how: Unpack[How]) -> Samples:
    """`frames` images from one to another; the first and the last are those that `sample` draws of these indices.

    Without a class, an image is of the class that `sample` gives its index. All noise is between that of both images:
    that of the steps of a stochastic solver too. Raises ValueError for a class or an index that there is not.
    """
    _check_count("frames", frames, MOST)
    shares = torch.linspace(0, 1, frames)

    def between(way: Callable[..., Tensor], ends: Tensor) -> Tensor:
        return way(ends[0], ends[1], shares)

    record = {"walk": [str(start), str(end)], "frames": frames}
    return _drawn(sampler, (start, end), partial(between, slerp), partial(between, lerp), record, how)


def plane(sampler: Sampler, corners: Sequence[Place], side: int = SIDE, **how: Unpack[How]) -> Samples:
    """side x side images between four, row by row; the corners are those that `sample` draws. Raises as `walk`."""
    _check_count("side", side, math.isqrt(MOST))
    if len(corners) != 4:
        raise ValueError(f"a plane has 4 corners, got {len(corners)}")
    mix = partial(plane_of_noise, side=side), partial(plane_of_classes, side=side)
    return _drawn(sampler, corners, *mix, {"corners": [str(corner) for corner in corners], "side": side}, how)


def between_seeds(
    sampler: Sampler,
    seeds: Sequence[int],
    at: tuple[float, float],
    count: int | None = None,
    *,
    indices: Sequence[int] | None = None,
    classes: int | str | Sequence[int | str] | None = None,
    on_step: OnStep | None = None,
    **how: Unpack[How],
) -> Samples:
    """The images that `sample` draws, with noise between that of four seeds, at a place (x, y) in the square of them.

    The seeds are those at (0, 0), (1, 0), (0, 1) and (1, 1), where the images are those of the seed; between them
    noises are mixed on the sphere, image by image. Raises ValueError for a place outside the square, or as `sample`.
    """
    rest: dict[str, Any] = dict(how)
    if rest.pop("seed", 0):
        raise ValueError("seeds stand in place of a seed: leave it out")
    if len(seeds) != 4:
        raise ValueError(f"a square has 4 seeds, got {len(seeds)}")
    if not all(0 <= share <= 1 for share in at):
        raise ValueError(f"a place in the square has two coordinates from 0 to 1, got {tuple(at)}")
    settings, shape = sampler.settings(**rest), sampler.run.method.noise_shape
    asked = [sampler.asked(count, indices=indices, classes=classes, seed=seed) for seed in seeds].pop()
    across, down = (torch.tensor([share]) for share in at)

    def noise(images: Sequence[int], step: int) -> Tensor:
        a, b, c, d = (normal(seed, list(images), shape, step=step) for seed in seeds)
        return arcs(arcs(a, b, across)[:, 0], arcs(c, d, across)[:, 0], down)[:, 0]

    found = generate(
        *sampler.computing(settings),
        sampler.autoencoder.decode,
        settings,
        indices=asked.indices,
        labels=labels_for(asked.indices, asked.classes),
        noise=noise,
        on_step=on_step,
    )
    chosen = None if classes is None else asked.classes
    about = sampler.provenance(seed=seeds[0], settings=settings, classes=chosen, evaluations=found.nfe)
    return replace(found, about={**about, "edit": {"edit": "walk", "seeds": list(seeds), "at": list(at)}})


def _check_count(name: str, value: int, most: int) -> None:
    check_at_least(2, name, value)
    if value > most:
        raise ValueError(f"{name} must be at most {most:,}, got {value:,}")


def image_of(run: Run, place: Place) -> tuple[int, int]:
    """Class id and index of an image; class 0 for a run without classes. Raises ValueError for what is no image."""
    try:
        name, index = place if isinstance(place, tuple) else (None, place)
        if isinstance(index, str):
            named, colon, number = index.rpartition(":")
            name, index = (named if colon else None), number
        index = int(index)
    except (ValueError, TypeError):
        raise ValueError(f"an image is INDEX or CLASS:INDEX, such as 3 or cat:3, got {place!r:.100}") from None
    indices_of(None, [index])
    names, known = run.data.class_names, run.method.classes
    if name is None:
        return (index % known if known else 0), index
    if not known:
        raise ValueError(f"the run is one without classes, give INDEX alone, got {place!r:.100}")
    ids = ids_of_words([name], names, known) if isinstance(name, str) else class_ids([name], names, known)
    return ids[0], index


def class_id(run: Run, word: str) -> int:
    """The id of a class that was given as a text, by name or id. Raises ValueError for none of the run's."""
    return ids_of_words([word], run.data.class_names, run.method.classes)[0]


Mix = Callable[[Tensor], Tensor]  # from values of the ends (k, ...) to those of all images (n, ...)


def _drawn(
    sampler: Sampler, places: Sequence[Place], noises: Mix, weights: Mix, record: dict[str, Any], how: How
) -> Samples:
    """The images between these, whose noise and weights of classes are mixed so."""
    rest: dict[str, Any] = dict(how)
    seed = rest.pop("seed", 0)
    settings = sampler.settings(**rest)
    ids, indices = zip(*(image_of(sampler.run, place) for place in places), strict=True)
    sampler.asked(None, indices=indices, seed=seed)
    labels, shape = _labels(sampler, ids, weights), sampler.run.method.noise_shape

    def noise(images: Sequence[int], step: int) -> Tensor:
        return noises(normal(seed, list(indices), shape, step=step))[list(images)]

    drawn = generate(
        *sampler.computing(settings),
        sampler.autoencoder.decode,
        settings,
        indices=range(len(weights(torch.zeros(len(ids), 1)))),
        labels=labels,
        noise=noise,
    )
    chosen = None if labels is None else ids
    about = sampler.provenance(seed=seed, settings=settings, classes=chosen, evaluations=drawn.nfe)
    return replace(drawn, about={**about, "edit": {"edit": "walk", **record}})


def _labels(sampler: Sampler, ids: Sequence[int], weights: Mix) -> Labels | None:
    """Class ids of all images if they are of one class, else weights of the classes of the ends.

    Raises ValueError for several classes and a model that takes only ids.
    """
    known = sampler.run.method.classes
    mixed = weights(F.one_hot(torch.tensor(ids), known + 1).float())
    if not known:
        return None
    if len(set(ids)) == 1:
        return torch.full((len(mixed),), ids[0])
    if not any(isinstance(module, LabelEmbedding) for module in sampler.model.modules()):
        raise ValueError(
            "the model embeds no weights of classes, as LabelEmbedding of fluvial.nn.layers does: a walk "
            f"stays in one class, got the ids {', '.join(map(str, ids))}"
        )
    return mixed
