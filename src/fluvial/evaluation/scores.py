"""Statistics of samples and of a reference to numbers with error bars, and what to mind about them."""

from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import NamedTuple

from fluvial.evaluation.statistics import Statistics
from fluvial.metrics import Estimate, share
from fluvial.metrics.accuracy import classifier
from fluvial.metrics.classifier_score import SPLITS, classifier_score
from fluvial.metrics.frechet import frechet_bias, frechet_distance, frechet_error
from fluvial.metrics.kid import kernel_distance
from fluvial.metrics.precision import DENSITY_K, overlap

FRECHET_PER_DIMENSION = 10  # samples a dimension, below which the bias of a Frechet distance is worth a warning
NEIGHBOURS, CLASSIFIED = 1_000, 1_000 * SPLITS  # samples, below which neighbourhoods and splits say little
SVM_IMAGES, SVM_TESTED = 5_000, 1_000  # real images that the SVM of class accuracy learns from, and is tested on

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
    """The same scores of as many other real images: what no honest sampler is better than."""


def measuring(
    reference: Statistics, extractor: str, training: Statistics | None = None, test: Statistics | None = None
) -> Callable[[Statistics], Scores]:
    """A function from the statistics of samples to their scores, beside those of real images.

    `training` and `test` are the two parts of a data set, as far as they are there. What the reference is not stands
    in for samples. An SVM fitted to the training images tells the classes of labelled samples. What is computed of real
    images alone is computed once.
    """
    others = test if reference is training else training

    @cache
    def real(count: int) -> dict[str, float]:
        if others is None:
            return {}
        found = scores(others.first(count), reference, extractor)
        return {name: estimate.value for name, estimate in found.values.items()}

    @cache
    def accuracy() -> tuple[Callable[[Statistics], Estimate | None], float | None]:
        in_class = class_accuracy(training) if training is not None else lambda statistics: None
        of_test = None if test is None else in_class(test.first(SVM_TESTED))
        return in_class, None if of_test is None else of_test.value

    def measure(samples: Statistics) -> Scores:
        found = scores(samples, reference, extractor)
        beside = dict(real(samples.n))
        if samples.labels is not None:
            in_class, of_real = accuracy()
            if (share := in_class(samples)) is not None:
                found = found._replace(values={"class_accuracy": share, **found.values})
                beside |= {} if of_real is None else {"class_accuracy": of_real}
        return found._replace(real=beside)

    return measure


def scores(samples: Statistics, reference: Statistics, extractor: str) -> Scores:
    """All scores that these statistics allow. Raises ValueError for images or features that cannot be compared."""
    _check(samples, reference, extractor)
    name = partial(named, extractor=extractor)
    values: dict[str, Estimate] = {}
    here, there = samples.pooled, reference.pooled
    error = frechet_error(here, there, samples.n, samples.features)
    values[name("frechet_distance")] = Estimate(frechet_distance(here, there), error)
    bias = {name("frechet_distance"): frechet_bias(here, samples.n)}
    if samples.spatial is not None and reference.spatial is not None:
        pair = samples.spatial, reference.spatial
        error = frechet_error(*pair, samples.n)  # no spatial features are kept
        values[name("spatial_frechet_distance")] = Estimate(frechet_distance(*pair), error)
        bias[name("spatial_frechet_distance")] = frechet_bias(samples.spatial, samples.n)
    if samples.classes is not None and samples.n >= 2 * SPLITS:
        values[name("classifier_score")] = classifier_score(samples.classes)
    if min(len(samples.features), len(reference.features)) > DENSITY_K:
        values[name("kernel_distance")] = kernel_distance(samples.features, reference.features)
        values |= overlap(samples.features, reference.features)._asdict()
    return Scores(values, bias, list(_warnings(samples, reference, bias)))


def _check(samples: Statistics, reference: Statistics, extractor: str) -> None:
    if reference.shape and samples.shape != reference.shape:
        raise ValueError(
            f"the samples are images of {samples.shape} (channels, height, width), the reference of {reference.shape}: "
            f"resizing changes every score, by more than models differ; take a reference of the samples' size "
            f"(--size crops the images of a data set, --channels 1 reads them as grey)"
        )
    if samples.features.shape[1] != len(reference.pooled.mean):
        raise ValueError(
            f"the samples have {samples.features.shape[1]} features by {extractor}, the reference "
            f"{len(reference.pooled.mean)}; both must be by the same extractor"
        )


def _warnings(samples: Statistics, reference: Statistics, bias: dict[str, float]) -> Iterator[str]:
    for what, statistics in (("samples", samples), ("reference images", reference)):
        n, d = statistics.n, len(samples.pooled.mean)
        if not n:
            continue  # published statistics do not say of how many
        if n <= d:
            yield f"{n} {what} for {d} features: their covariance is singular, and the Frechet distance mostly bias"
        elif n < FRECHET_PER_DIMENSION * d and what == "samples":
            about = ", ".join(f"{value:.3g} of {name}" for name, value in bias.items())
            yield f"{n} samples for {d} features: about {about} is bias; compare with the same count only"
        elif n < FRECHET_PER_DIMENSION * d:
            yield f"{n} reference images for {d} features: Frechet distances to them are too large, for all alike"
        if n < NEIGHBOURS:
            yield f"{n} {what}: precision, recall, density and coverage depend on how many, below {NEIGHBOURS} much"
    if samples.classes is not None and samples.n < CLASSIFIED:
        yield f"{samples.n} samples in {SPLITS} splits: the score of their classes is too low below {CLASSIFIED}"
    if not reference.shape:
        yield "the reference does not say of what resolution its images were"


def class_accuracy(real: Statistics) -> Callable[[Statistics], Estimate | None]:
    """A function from statistics to the share that an SVM of the real ones puts in its class; None without labels."""
    if real.labels is None:
        return lambda statistics: None
    in_class = classifier(real.features[:SVM_IMAGES], real.labels[:SVM_IMAGES])

    def accuracy(statistics: Statistics) -> Estimate | None:
        if statistics.labels is None:
            return None
        return share(in_class(statistics.features, statistics.labels))

    return accuracy
