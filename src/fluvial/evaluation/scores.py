"""Statistics of samples and of a reference to numbers with error bars, and what to mind about them."""

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

FRECHET_PER_DIMENSION = 10  # samples a dimension, below which the bias of a Frechet distance is worth a warning
FEW, FEW_IN_SPLITS = 1_000, 1_000 * SPLITS  # images below which neighbourhoods, and splits, say little
SVM_IMAGES, SVM_TESTED = 5_000, 1_000  # real images that the SVM of class accuracy learns from, and is tested on
ALIKE = 1e-10  # variance of features over their square, below which nothing but rounding tells images apart
SVM_EACH = 10  # of each class, on average, below which there is no class accuracy

# what a score is called, with Inception's features and with others: their names are not for other features
NAMES = {
    "frechet_distance": "fid",
    "spatial_frechet_distance": "sfid",
    "classifier_score": "inception_score",
    "kernel_distance": "kid",
}


def named(score: str, extractor: str) -> str:
    """The name of a score: FID, sFID, Inception Score and KID are those of the Inception network alone."""
    return NAMES.get(score, score) if extractor == "inception" else score


class Scores(NamedTuple):
    values: dict[str, Estimate]
    bias: dict[str, float]
    """How much of a Frechet distance comes from the small count, about."""
    warnings: list[str]
    real: dict[str, float] = {}  # noqa: RUF012
    """The same scores of other real images: what no honest sampler is better than."""
    real_count: int = 0
    """How many those are: as many as there are samples, if there are."""


def measuring(
    reference: Statistics,
    extractor: str,
    training: Statistics | None = None,
    test: Statistics | None = None,
    device: torch.device | str = "cpu",
) -> Callable[[Statistics], Scores]:
    """A function from the statistics of samples to their scores, beside those of real images.

    `training` and `test` are the two parts of a data set, as far as they are there. What the reference is not stands
    in for samples. An SVM fitted to the training images tells the classes of labelled samples. What is computed of real
    images alone is computed once.
    """
    others, there = test if reference is training else training, reference.to(torch.device(device))

    @cache
    def real(count: int) -> tuple[dict[str, float], int]:
        if others is None:
            return {}, 0
        some = others.first(count)
        found = scores(some.to(torch.device(device)), there, extractor)
        return {name: estimate.value for name, estimate in found.values.items()}, some.n

    @cache
    def accuracy() -> tuple[Callable[[Statistics], Estimate | None], float | None]:
        in_class = class_accuracy(training) if training is not None else lambda statistics: None
        of_test = None if test is None else in_class(test.first(SVM_TESTED))
        return in_class, None if of_test is None else of_test.value

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
    """All scores that these statistics allow. Raises ValueError for images or features that cannot be compared."""
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
    if samples.features.shape[1] != len(reference.pooled.mean):
        raise ValueError(
            f"the samples have {samples.features.shape[1]} features by {extractor}, the reference "
            f"{len(reference.pooled.mean)}; both must be by the same extractor"
        )


def _warnings(samples: Statistics, reference: Statistics, bias: dict[str, float]) -> Iterator[str]:
    n, m, d = samples.n, reference.n, len(samples.pooled.mean)  # m is 0 where published statistics do not say
    for found, what in ((samples, "samples"), (reference, "reference images")):
        if _alike(found):
            yield f"all {what} are alike: they have the same features, and scores of them say nothing"
    if samples.flat:
        yield f"{samples.flat} of {n} samples are of one colour all over, as those of a model that has diverged"
    for count, what in ((n, "samples"), (m, "reference images")):
        if 0 < count <= d:
            yield f"{count} {what} for {d} features: their covariance is singular, and the Frechet distance mostly bias"
    if d < n < FRECHET_PER_DIMENSION * d:
        about = ", ".join(f"{value:.2g} of {name}" for name, value in bias.items())
        yield f"{n} samples for {d} features: about {about} is bias; compare with the same count only"
    if d < m < FRECHET_PER_DIMENSION * d:
        yield f"{m} reference images for {d} features: Frechet distances to them are too large, for all alike"
    for count, what in ((n, "samples"), (len(reference.features), "reference images")):
        if not count:
            yield "the reference has statistics only: no precision, recall, density, coverage and kernel distance"
        elif count < FEW:
            yield f"{count} {what}: precision, recall, density and coverage depend on how many, below {FEW:,} much"
    if samples.classes is not None:
        few = f", too low below {FEW_IN_SPLITS:,}" if n < FEW_IN_SPLITS else ""
        yield f"the score of classes is over {SPLITS} splits of the samples{few}; the ADM suite splits by 5,000"
    if not reference.shape:
        yield "the reference does not say of what size its images were: other sizes give other scores"


def _alike(found: Statistics) -> bool:
    """Whether the features do not vary, but for rounding."""
    spread, size = found.pooled.covariance.trace(), found.pooled.mean.square().sum()
    return bool(spread <= ALIKE * size)


def class_accuracy(real: Statistics) -> Callable[[Statistics], Estimate | None]:
    """A function from statistics to the share that an SVM of the real ones puts in its class.

    None without labels, with one class only, or with too few images a class to learn from.
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
