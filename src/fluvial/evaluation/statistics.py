"""Images to what scores need of them, a batch at a time and on many ranks: memory does not grow with their count."""

import json
from functools import reduce
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fluvial.evaluation.images import Images
from fluvial.files import write_tensors
from fluvial.metrics.classifier_score import Classified, classified, splits
from fluvial.metrics.features import Extractor
from fluvial.metrics.frechet import Gaussian, Moments, fit, merged, moments
from fluvial.progress import Bar
from fluvial.randomness import numpy_generator
from fluvial.train.distributed import ALONE, World

KEPT = 50_000  # features that are kept for what needs each of them: neighbours, kernels, error bars
BATCH = 250  # images that an extractor sees at a time
SLOW = 2_000  # images that take long enough to show how far it is
FORMAT = "fluvial statistics 1"


class Statistics(NamedTuple):
    """Everything that scores are made of."""

    n: int
    shape: tuple[int, ...]
    """(channels, height, width) of the images."""
    pooled: Gaussian
    spatial: Gaussian | None
    """Of Inception's spatial features, for sFID."""
    classes: Classified | None
    features: Float[Tensor, "m d"]
    """Of the first images in a random order, float32."""
    labels: Int[Tensor, "m"] | None

    def first(self, count: int) -> "Statistics":
        """The statistics of so many images, of the features that were kept."""
        if count >= self.n:
            return self
        features = self.features[:count]
        labels = None if self.labels is None else self.labels[:count]
        return Statistics(len(features), self.shape, fit(features), None, None, features, labels)


def kept_order(count: int) -> Int[Tensor, "n"]:
    """Features are kept of these images, in this order, as many as there is room for."""
    return torch.from_numpy(numpy_generator(0, "kept").permutation(count))


class _Part(NamedTuple):
    """What one rank has seen, or all of them."""

    pooled: Moments
    spatial: Moments | None
    classes: Classified | None
    indices: Tensor
    features: Tensor
    labels: Tensor | None

    def plus(self, other: "_Part") -> "_Part":
        spatial = None if self.spatial is None or other.spatial is None else merged(self.spatial, other.spatial)
        classes = None
        if self.classes is not None and other.classes is not None:
            classes = Classified(*(a + b for a, b in zip(self.classes, other.classes, strict=True)))
        return self._replace(pooled=merged(self.pooled, other.pooled), spatial=spatial, classes=classes)


@torch.no_grad()
def statistics(
    images: Images,
    extractor: Extractor,
    *,
    batch: int = BATCH,
    kept: int = KEPT,
    world: World = ALONE,
) -> Statistics:
    """The statistics of all images, on every rank.

    Batches are the same on any number of ranks. Raises ValueError for images of several sizes, for fewer than two, and
    for features that are not finite.
    """
    if images.n < 2:
        raise ValueError(f"{images.name} has {images.n} images; statistics need at least 2")
    starts = range(0, images.n, batch)
    place = torch.empty(images.n, dtype=torch.long)  # of each image in the order that features are kept in
    place[kept_order(images.n)] = torch.arange(images.n)
    split = splits(images.n)
    total: _Part | None = None
    chosen: list[tuple[Tensor, Tensor, Tensor | None]] = []
    shape: tuple[int, ...] = ()
    mine = starts[world.share(len(starts))]
    with Bar(len(mine), what=f"{extractor.name} of {images.name}", quiet=not world.first or images.n < SLOW) as bar:
        for done, start in enumerate(mine):
            rows = range(start, min(start + batch, images.n))
            pixels, labels = images.read(rows)
            if shape and tuple(pixels.shape[1:]) != shape:
                raise ValueError(f"{images.name}: images of {tuple(pixels.shape[1:])} after images of {shape}")
            shape = tuple(pixels.shape[1:])
            part = _of_batch(images, extractor, pixels, labels, rows, split, place, kept)
            chosen.append((part.indices, part.features, part.labels))
            total = part if total is None else total.plus(part)
            bar.show(done + 1)
    if total is not None:
        indices, features, labels = zip(*chosen, strict=True)
        given = [part for part in labels if part is not None]
        total = total._replace(
            indices=torch.cat(indices), features=torch.cat(features), labels=torch.cat(given) if given else None
        )
    return _whole(world.gather((total, shape)), images.n)


def _of_batch(
    images: Images,
    extractor: Extractor,
    pixels: Tensor,
    labels: Tensor | None,
    rows: range,
    split: Tensor,
    place: Tensor,
    kept: int,
) -> _Part:
    found = extractor.extract(pixels)
    if not torch.isfinite(found.pooled).all():
        first = rows.start + int((~torch.isfinite(found.pooled)).any(dim=1).nonzero()[0, 0])
        raise ValueError(
            f"{extractor.name} gives features that are not finite, first for image {first} of {images.name}"
        )
    here = slice(rows.start, rows.stop)
    keep = place[here] < kept
    return _Part(
        moments(found.pooled),
        None if found.spatial is None else moments(found.spatial),
        None if found.logits is None else classified(found.logits, split[here].to(found.logits.device)),
        place[here][keep],
        found.pooled[keep.to(found.pooled.device)].float().cpu(),
        None if labels is None else labels[keep],
    )


def _whole(parts: list[tuple[_Part | None, tuple[int, ...]]], count: int) -> Statistics:
    """All ranks' parts in one, the features in their random order."""
    seen = [part for part, _ in parts if part is not None]
    total = reduce(_Part.plus, seen)
    order = torch.cat([part.indices for part in seen]).argsort()
    given = [part.labels for part in seen if part.labels is not None]
    return Statistics(
        count,
        next(shape for _, shape in parts if shape),
        _on_cpu(total.pooled.gaussian),
        None if total.spatial is None else _on_cpu(total.spatial.gaussian),
        None if total.classes is None else Classified(*(part.cpu() for part in total.classes)),
        torch.cat([part.features for part in seen])[order],
        torch.cat(given)[order] if given else None,
    )


def _on_cpu(gaussian: Gaussian) -> Gaussian:
    return Gaussian(gaussian.mean.cpu(), gaussian.covariance.cpu())


def save(statistics: Statistics, path: Path, about: dict[str, str]) -> None:
    """Writes a safetensors file; `about` goes into its metadata."""
    s = statistics
    tensors = {"mean": s.pooled.mean, "covariance": s.pooled.covariance, "features": s.features}
    if s.spatial is not None:
        tensors |= {"spatial.mean": s.spatial.mean, "spatial.covariance": s.spatial.covariance}
    if s.labels is not None:
        tensors["labels"] = s.labels
    metadata = {"made": FORMAT, "count": str(s.n), "shape": json.dumps(s.shape), **about}
    temporary = path.with_name(f".{path.name}.tmp")
    write_tensors(temporary, tensors, metadata)
    temporary.replace(path)


def load(path: Path) -> tuple[Statistics, dict[str, str]]:
    """What `save` wrote, and its metadata. Raises ValueError for another file."""
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
            if about.get("made") != FORMAT:
                raise ValueError(f"{path} holds no statistics that this version reads ({FORMAT})")
            t = {name: file.get_tensor(name) for name in file.keys()}
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    spatial = Gaussian(t["spatial.mean"], t["spatial.covariance"]) if "spatial.mean" in t else None
    pooled = Gaussian(t["mean"], t["covariance"])
    shape = tuple(json.loads(about["shape"]))
    return Statistics(int(about["count"]), shape, pooled, spatial, None, t["features"], t.get("labels")), about
