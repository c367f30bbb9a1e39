"""Feature statistics of images, accumulated batch by batch on any number of ranks, in constant memory."""

import json
from collections.abc import Sequence
from functools import reduce
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fluvial.evaluation.images import Images
from fluvial.metrics.classifier_score import Classified, classified, splits
from fluvial.metrics.features import Extractor, Features
from fluvial.metrics.frechet import Gaussian, Moments, fit, merged, moments
from fluvial.training.distributed import ALONE, World
from fluvial.utils.atomic import atomic_file
from fluvial.utils.files import brief, make_folder
from fluvial.utils.progress import Bar
from fluvial.utils.randomness import numpy_generator
from fluvial.utils.tensors import check_tensors, write_tensors

KEPT = 50_000  # features kept for metrics that need single features: neighbours, kernels, standard errors
SPATIAL = 5_000  # spatial features kept, for a standard error
BATCH = 250  # images in a batch of the extractor
SLOW = 2_000  # images in pixels from which on a progress bar is shown
FORMAT = "fluvial statistics 2"


class Statistics(NamedTuple):
    """Feature statistics of a set of images: all that the scores are computed from."""

    n: int
    shape: tuple[int, ...]
    """(channels, height, width) of the images."""
    pooled: Gaussian
    spatial: Gaussian | None
    """Gaussian of Inception's spatial features, for sFID."""
    classes: Classified | None
    features: Float[Tensor, "m d"]
    """Pooled features of the first images in a random order, float32."""
    labels: Int[Tensor, "m"] | None
    spatial_features: Float[Tensor, "l e"] | None = None
    """Spatial features of fewer of them, for the error of sFID."""
    flat: int = 0
    """Number of images of a single colour, such as black ones; 0 for statistics that were loaded."""

    def first(self, count: int) -> "Statistics":
        """The statistics of `count` images, from the features that were kept."""
        if count >= self.n:
            return self
        features = self.features[:count]
        labels = None if self.labels is None else self.labels[:count]
        return Statistics(len(features), self.shape, fit(features), None, None, features, labels)

    def to(self, device: torch.device) -> "Statistics":
        """The statistics with their tensors on a device."""

        def moved(gaussian: Gaussian | None) -> Gaussian | None:
            return None if gaussian is None else Gaussian(*(part.to(device) for part in gaussian))

        pooled, features = moved(self.pooled), self.features.to(device)
        assert pooled is not None
        spatial_features = None if self.spatial_features is None else self.spatial_features.to(device)
        return self._replace(
            pooled=pooled, spatial=moved(self.spatial), features=features, spatial_features=spatial_features
        )


def kept_order(count: int) -> Int[Tensor, "n"]:
    """A fixed random order of the images: the features of the first ones are kept."""
    return torch.from_numpy(numpy_generator(0, "kept").permutation(count))


class _Sums(NamedTuple):
    """Running sums over the images so far, on the extractor's device."""

    pooled: Moments
    spatial: Moments | None
    classes: Classified | None

    @staticmethod
    def of(found: Features, split: Tensor, before: "_Sums | None") -> "_Sums":
        """The sums of a batch added to those before it."""
        pooled, spatial, counted = (None, None, None) if before is None else before
        classes = None if found.logits is None else classified(found.logits, split.to(found.logits.device))
        return _Sums(
            moments(found.pooled, pooled),
            None if found.spatial is None else moments(found.spatial, spatial),
            classes if classes is None or counted is None else _added(classes, counted),
        )

    def plus(self, other: "_Sums") -> "_Sums":
        """The sums over both sets of images."""
        spatial, classes = None, None
        if self.spatial is not None and other.spatial is not None:
            spatial = merged(self.spatial, other.spatial)
        if self.classes is not None and other.classes is not None:
            classes = _added(self.classes, other.classes)
        return _Sums(merged(self.pooled, other.pooled), spatial, classes)

    def cpu(self) -> "_Sums":
        """The sums on the CPU, where ranks exchange them."""

        def moved(m: Moments) -> Moments:
            return Moments(m.n, m.mean.cpu(), m.scatter.cpu())

        classes = None if self.classes is None else Classified(*(part.cpu() for part in self.classes))
        return _Sums(moved(self.pooled), None if self.spatial is None else moved(self.spatial), classes)


def _added(a: Classified, b: Classified) -> Classified:
    """The sums of class probabilities over both sets of images."""
    return Classified(*(x + y for x, y in zip(a, b, strict=True)))


class _Rows(NamedTuple):
    """Features and labels kept for single images, with their places in `kept_order`."""

    places: Tensor
    features: Tensor
    labels: Tensor | None
    spatial: Tensor | None

    @staticmethod
    def joined(parts: "Sequence[_Rows]") -> "_Rows":
        """The rows of all parts, one after the other."""
        labels = [part.labels for part in parts if part.labels is not None]
        spatial = [part.spatial for part in parts if part.spatial is not None]
        return _Rows(
            torch.cat([part.places for part in parts]),
            torch.cat([part.features for part in parts]),
            torch.cat(labels) if labels else None,
            torch.cat(spatial) if spatial else None,
        )


@torch.no_grad()
def statistics(
    images: Images,
    extractor: Extractor,
    *,
    shape: tuple[int, ...] = (),
    batch: int = BATCH,
    kept: int = KEPT,
    quiet: bool = False,
    world: World = ALONE,
) -> Statistics:
    """Computes the statistics of all images, shared among the ranks; every rank returns them.

    Batches are the same on any number of ranks. `quiet` shows no progress, as inside training. Raises ValueError for
    images of several sizes or of another size than the reference's `shape`, for fewer than two images, and for features
    that are not finite.
    """
    if images.n < 2:
        raise ValueError(f"{images.name} has {images.n} images; statistics need at least 2")
    place, split = kept_order(images.n).argsort(), splits(images.n)
    mine = range(0, images.n, batch)[world.rank :: world.size]  # rank 0, which makes the card, always has some
    sums: _Sums | None = None
    rows: list[_Rows] = []
    flat = 0
    what, mute = _progress(images, extractor)
    with Bar(images.n, what=what, quiet=quiet or mute or not world.first) as bar:
        for start in mine:
            here = slice(start, min(start + batch, images.n))
            pixels, labels = images.read(range(here.start, here.stop))
            shape = _check_shape(images.name, tuple(pixels.shape[1:]), shape, first=not rows)
            found = extractor.extract(pixels)
            for features in (found.pooled, found.spatial):
                _check_finite(features, start, images, extractor)
            rows.append(_kept(found, labels, place[here], kept))
            flat += int((pixels == pixels[:, :, :1, :1]).flatten(1).all(dim=1).sum())
            sums = _Sums.of(found, split[here], sums)
            bar.show(images.n if start == mine[-1] else here.stop)
    part = None if sums is None else (sums.cpu(), _Rows.joined(rows), shape, flat)
    return _merged_ranks(world.gather(part), images)


def _progress(images: Images, extractor: Extractor) -> tuple[str, bool]:
    """The name of what is done, and True if it is over too soon for a progress bar."""
    if "drawn" in images.about.get("sampling", {}):
        return f"sampling {images.n:,} images", False
    return f"{extractor.name} of {images.name}", extractor.name == "pixels" and images.n < SLOW


def _check_shape(name: str, found: tuple[int, ...], expected: tuple[int, ...], *, first: bool) -> tuple[int, ...]:
    """The shape found. Raises ValueError if it is not the expected one."""
    if not expected or found == expected:
        return found
    if not first:
        raise ValueError(f"{name}: images of {found} (channels, height, width) after images of {expected}")
    raise ValueError(
        f"{name} has images of {found} (channels, height, width), the reference of {expected}: resizing changes every "
        f"score by more than models differ; use a reference of the same size (--size crops the images of a data set, "
        f"--channels 1 reads them as grey)"
    )


def _kept(found: Features, labels: Tensor | None, places: Tensor, kept: int) -> _Rows:
    """The rows of a batch to keep: those with a place below `kept`."""
    keep = places < kept
    spatial = None if found.spatial is None else found.spatial.cpu()[places < SPATIAL]
    return _Rows(places[keep], found.pooled.cpu()[keep], None if labels is None else labels[keep], spatial)


def _check_finite(features: Tensor | None, start: int, images: Images, extractor: Extractor) -> None:
    """Raises ValueError naming the first image whose features are not finite."""
    bad = [] if features is None else (~torch.isfinite(features)).any(dim=1).nonzero()
    if len(bad):
        first = start + int(bad[0][0])
        raise ValueError(
            f"{extractor.name} gives features that are not finite, first for image {first} of {images.name}"
        )


def _merged_ranks(parts: Sequence[tuple[_Sums, _Rows, tuple[int, ...], int] | None], images: Images) -> Statistics:
    """The statistics from the results of all ranks; None for a rank without images."""
    sums, rows, shapes, flat = zip(*(part for part in parts if part is not None), strict=True)
    for shape in shapes[1:]:
        _check_shape(images.name, shape, shapes[0], first=False)
    total, kept = reduce(_Sums.plus, sums), _Rows.joined(rows)
    order = kept.places.argsort()
    return Statistics(
        images.n,
        shapes[0],
        total.pooled.gaussian,
        None if total.spatial is None else total.spatial.gaussian,
        total.classes,
        kept.features[order],
        None if kept.labels is None else kept.labels[order],
        kept.spatial,
        sum(flat),
    )


def save(statistics: Statistics, path: Path, about: dict[str, str]) -> None:
    """Writes statistics to a safetensors file, with `about` in its metadata."""
    s = statistics
    tensors = {"mean": s.pooled.mean, "covariance": s.pooled.covariance, "features": s.features}
    if s.spatial is not None:
        tensors |= {"spatial.mean": s.spatial.mean, "spatial.covariance": s.spatial.covariance}
    if s.labels is not None:
        tensors["labels"] = s.labels
    metadata = {"made": FORMAT, "count": str(s.n), "shape": json.dumps(s.shape), **about}
    make_folder(path.parent)
    with atomic_file(path) as temporary:
        write_tensors(temporary, tensors, metadata)


def load(path: Path) -> tuple[Statistics, dict[str, str]]:
    """Reads statistics that `save` wrote, and their metadata. Raises ValueError for another or damaged file."""
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is not a file")
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
            if about.get("made") != FORMAT:
                raise ValueError(
                    f"{path} does not hold statistics of this version ({FORMAT}); write them again with --keep"
                )
            check_tensors(path)
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        return _statistics(tensors, int(about["count"]), json.loads(about["shape"]), path), about
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        if str(path) in str(error):
            raise
        raise ValueError(
            f"{path} does not hold complete statistics ({brief(error)}); write them again with --keep"
        ) from error


def _statistics(t: dict[str, Tensor], count: int, shape: Any, path: Path) -> Statistics:  # noqa: ANN401 - of JSON
    """The statistics in these tensors. Raises ValueError for inconsistent ones, KeyError for missing ones."""
    features, labels, spatial = t["features"], t.get("labels"), None
    pooled = gaussian(t["mean"], t["covariance"], f"{path}: mean and covariance")
    if "spatial.mean" in t:
        spatial = gaussian(
            t["spatial.mean"], t["spatial.covariance"], f"{path}: mean and covariance of spatial features"
        )
    if not (isinstance(shape, list) and len(shape) == 3 and all(type(side) is int and side > 0 for side in shape)):
        raise ValueError(f"{path}: the shape of an image must be (channels, height, width), got {shape}")
    if features.ndim != 2 or features.shape[1] != len(pooled.mean) or not torch.isfinite(features).all():
        raise ValueError(f"{path}: features must be rows of {len(pooled.mean)} finite numbers, got {features.shape}")
    if count < max(2, len(features)):
        raise ValueError(f"{path} has features of {len(features)} images but a count of {count}")
    if labels is not None and (labels.shape != features.shape[:1] or labels.dtype != torch.long):
        raise ValueError(f"{path}: labels must be a class id for each row of features, got {tuple(labels.shape)}")
    return Statistics(count, tuple(shape), pooled, spatial, None, features, labels)


def gaussian(mean: Tensor, covariance: Tensor, name: str) -> Gaussian:
    """The Gaussian with a mean and covariance that were read. Raises ValueError unless they are valid."""
    d = mean.numel()
    if mean.shape != (d,) or covariance.shape != (d, d) or not d:
        raise ValueError(f"{name} must be (d,) and (d, d), got {tuple(mean.shape)} and {tuple(covariance.shape)}")
    if not (mean.dtype == covariance.dtype == torch.float64):
        raise ValueError(f"{name} must be float64, got {mean.dtype} and {covariance.dtype}")
    if not (torch.isfinite(mean).all() and torch.isfinite(covariance).all()):
        raise ValueError(f"{name} are not finite")
    variances = covariance.diagonal()
    if not torch.allclose(covariance, covariance.T, rtol=1e-3, atol=1e-6 * float(variances.abs().max())):
        raise ValueError(f"{name} are not a mean and covariance: the latter is not symmetric")
    if variances.min() < -1e-6 * variances.abs().max():
        raise ValueError(f"{name} are not a mean and covariance: a variance is {float(variances.min()):.3g}")
    return Gaussian(mean, covariance)
