"""Scores of samples against a reference set, from their statistics, with standard errors and warnings."""

import math
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import NamedTuple

import torch

from fluvial.evaluation.statistics import Statistics
from fluvial.metrics import Estimate, share
from fluvial.metrics.accuracy import classifier
from fluvial.metrics.classifier_score import SPLITS, classifier_score
from fluvial.metrics.frechet import frechet, frechet_bias
from fluvial.metrics.kid import kernel_distance
from fluvial.metrics.precision import DENSITY_K, overlap

FRECHET_PER_DIMENSION = 10  # samples per feature, below which the bias of a Frechet distance gets a warning
FEW, FEW_IN_SPLITS = 1_000, 1_000 * SPLITS  # images below which neighbourhoods and splits are unreliable
SVM_IMAGES, SVM_TESTED = 5_000, 1_000  # real images that the SVM of class accuracy is trained and tested on
ALIKE = 1e-10  # variance of features over their square, below which images differ only by rounding
SVM_EACH = 10  # images per class, on average, below which there is no class accuracy

# these names are used for Inception's features only
NAMES = {
    "frechet_distance": "fid",
    "spatial_frechet_distance": "sfid",
    "classifier_score": "inception_score",
    "kernel_distance": "kid",
}


def named(score: str, extractor: str) -> str:
    """The name of a score: FID, sFID, Inception Score and KID with Inception's features, generic names with others."""
    return NAMES.get(score, score) if extractor == "inception" else score


class Scores(NamedTuple):
    """Scores with standard errors, their bias, warnings, and the real baseline."""

    values: dict[str, Estimate]
    bias: dict[str, float]
    """The approximate part of each Frechet distance that is due to the small count."""
    warnings: list[str]
    real: dict[str, float] = {}  # noqa: RUF012
    """The real baseline: the same scores of real images that are not the reference set."""
    real_count: int = 0
    """The number of images in the real baseline: as many as samples, if available."""


def measuring(
    reference: Statistics,
    extractor: str,
    training: Statistics | None = None,
    test: Statistics | None = None,
    device: torch.device | str = "cpu",
) -> Callable[[Statistics], Scores]:
    """A function from the statistics of samples to their scores, with those of a real baseline.

    `training` and `test` are the two parts of a data set, None if missing; the part that is not the reference set
    is the real baseline. Class accuracy of labelled samples is by an SVM fitted to the training images.
    Whatever depends on real images only is computed once.
    """
    baseline, there = test if reference is training else training, reference.to(torch.device(device))

    @cache
    def real(count: int) -> tuple[dict[str, float], int]:
        if baseline is None:
            return {}, 0
        part = baseline.first(count)
        found = scores(part.to(torch.device(device)), there, extractor)
        return {name: estimate.value for name, estimate in found.values.items()}, part.n

    @cache
    def accuracy() -> tuple[Callable[[Statistics], Estimate | None], float | None]:
        in_class = class_accuracy(training) if training is not None else lambda statistics: None
        on_test = None if test is None else in_class(test.first(SVM_TESTED))
        return in_class, None if on_test is None else on_test.value

    def measure(samples: Statistics) -> Scores:
        found = scores(samples.to(torch.device(device)), there, extractor)
        beside, count = real(samples.n)
        if samples.labels is not None:
            in_class, of_real = accuracy()
            if (share := in_class(samples)) is not None:
                found = found._replace(values={"class_accuracy": share, **found.values})
                beside = beside if of_real is None else {**beside, "class_accuracy": of_real}
        return found._replace(real=beside, real_count=count)

    return measure


def scores(samples: Statistics, reference: Statistics, extractor: str) -> Scores:
    """All scores that can be computed from these statistics. Raises ValueError for features of different extractors."""
    _check(samples, reference, extractor)
    name = partial(named, extractor=extractor)
    values: dict[str, Estimate] = {}
    bias: dict[str, float] = {}
    for what, here, there, features in (
        ("frechet_distance", samples.pooled, reference.pooled, samples.features),
        ("spatial_frechet_distance", samples.spatial, reference.spatial, samples.spatial_features),
    ):
        if here is not None and there is not None:
            values[name(what)] = frechet(here, there, samples.n, features)
            if samples.n > len(here.mean):
                bias[name(what)] = frechet_bias(here, samples.n)
    if samples.classes is not None and samples.n >= 2 * SPLITS:
        values[name("classifier_score")] = classifier_score(samples.classes)
    if min(len(samples.features), len(reference.features)) > DENSITY_K:
        values[name("kernel_distance")] = kernel_distance(samples.features, reference.features)
        values |= overlap(samples.features, reference.features)._asdict()
    warnings = list(_warnings(samples, reference, bias))
    warnings += [f"{name} is not finite" for name, found in values.items() if not math.isfinite(found.value)]
    return Scores(values, bias, warnings)


def _check(samples: Statistics, reference: Statistics, extractor: str) -> None:
    """Raises ValueError if samples and reference have different numbers of features."""
    if samples.features.shape[1] != len(reference.pooled.mean):
        raise ValueError(
            f"the samples have {samples.features.shape[1]} features by {extractor}, the reference "
            f"{len(reference.pooled.mean)}; both must be by the same extractor"
        )


def _warnings(samples: Statistics, reference: Statistics, bias: dict[str, float]) -> Iterator[str]:
    """Warnings about too few images, identical images, missing statistics and unknown sizes."""
    n, m, d = samples.n, reference.n, len(samples.pooled.mean)  # m is 0 for published statistics, which do not tell it
    for found, what in ((samples, "samples"), (reference, "reference images")):
        if _alike(found):
            yield f"all {what} have the same features: their scores are meaningless"
    if samples.flat:
        yield f"{samples.flat} of {n} samples are a single colour, as if the model had diverged"
    for count, what in ((n, "samples"), (m, "reference images")):
        if 0 < count <= d:
            yield f"{count} {what} for {d} features: their covariance is singular, and the Frechet distance mostly bias"
    if d < n < FRECHET_PER_DIMENSION * d:
        about = ", ".join(f"{value:.2g} of {name}" for name, value in bias.items())
        yield f"{n} samples for {d} features: about {about} is bias; compare with the same count only"
    if d < m < FRECHET_PER_DIMENSION * d:
        yield f"{m} reference images for {d} features: Frechet distances to them are too large, for every model"
    for count, what in ((n, "samples"), (len(reference.features), "reference images")):
        if not count:
            yield "the reference has statistics only: no precision, recall, density, coverage or kernel distance"
        elif count < FEW:
            yield f"{count} {what}: precision, recall, density and coverage depend on the count, strongly below {FEW:,}"
    if samples.classes is not None:
        few = f", too low below {FEW_IN_SPLITS:,}" if n < FEW_IN_SPLITS else ""
        yield f"the classifier score is over {SPLITS} splits of the samples{few}; the ADM suite uses splits of 5,000"
    if not reference.shape:
        yield "the size of the reference images is unknown: other sizes give other scores"


def _alike(found: Statistics) -> bool:
    """True if all features are equal, up to rounding."""
    spread, size = found.pooled.covariance.trace(), found.pooled.mean.square().sum()
    return bool(spread <= ALIKE * size)


def class_accuracy(real: Statistics) -> Callable[[Statistics], Estimate | None]:
    """A function from statistics of samples to their class accuracy, by an SVM fitted to the real features.

    It returns None without labels, for a single class, or with too few real images per class.
    """
    labels = None if real.labels is None else real.labels[:SVM_IMAGES]
    if labels is None or not 2 <= len(labels.unique()) <= len(labels) / SVM_EACH:
        return lambda statistics: None
    in_class = classifier(real.features[: len(labels)], labels)

    def accuracy(statistics: Statistics) -> Estimate | None:
        if statistics.labels is None:
            return None
        return share(in_class(statistics.features, statistics.labels))

    return accuracy
