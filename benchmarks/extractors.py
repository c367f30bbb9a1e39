"""Feature extractors compared: their numbers for real images, and whether these get worse as the images do.

    python benchmarks/extractors.py EXTRACTOR [EXTRACTOR ...] [--train data/cifar10-train.parquet]
                                    [--test data/cifar10-test.parquet] [--channels 3] [--count 1000]

The reference are COUNT test images, as many of each class. Against it are measured as many training images, as many
other test images, and the training images blurred (a Gaussian of 0.5 and 1 pixels), with noise (of a standard
deviation of 0.05 and 0.1, black being 0 and white 1), and of nine, eight and five of the ten classes. Class accuracy is
by an SVM fitted to the features of the reference. Under each table stands what is not in the expected order.
"""

import argparse
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from classifiers import read
from torch import Tensor
from torch.nn import functional

from fluvial.data.images import DataConfig, ImageSet
from fluvial.evaluation.opening import of_set
from fluvial.evaluation.scores import class_accuracy, scores
from fluvial.evaluation.statistics import Statistics, statistics
from fluvial.metrics import Estimate
from fluvial.metrics.features import Extractor, extractor
from metrics import markdown

BLURS, NOISES, KEPT = (0.5, 1), (0.05, 0.1), (9, 8, 5)
WORSE = {"frechet_distance": 1, "kernel_distance": 1, "class_accuracy": -1, "classifier_score": -1}  # when it grows


class Step(NamedTuple):
    """Images, as bad as `level` says: 0 for real ones; those of the families get worse one after the other."""

    family: Literal["", "blur", "noise", "classes"]
    name: str
    images: ImageSet


def balanced(images: ImageSet, count: int, classes: int = 10, skip: int = 0) -> ImageSet:
    """`count` images, as many of each of the first `classes` classes up to one, after the first `skip` such images."""
    assert images.labels is not None
    ends = [[n // classes + (label < n % classes) for n in (skip, skip + count)] for label in range(classes)]
    places = [(images.labels == label).nonzero()[:, 0] for label in range(classes)]
    chosen = torch.cat([place[start:end] for place, (start, end) in zip(places, ends, strict=True)])
    if len(chosen) < count:
        raise SystemExit(f"there are {len(chosen)} images of {classes} classes, of the same number each, not {count}")
    return ImageSet(images.rows(chosen), images.labels[chosen], ())


def blurred(pixels: Tensor, sigma: float) -> Tensor:
    """uint8 (n, c, h, w), after a Gaussian blur of this many pixels."""
    reach = int(3 * sigma + 0.5)
    kernel = torch.exp(-torch.arange(-reach, reach + 1).square() / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).outer(kernel / kernel.sum()).expand(pixels.shape[1], 1, -1, -1)
    padded = functional.pad(pixels.float(), (reach,) * 4, mode="reflect")
    return functional.conv2d(padded, kernel, groups=pixels.shape[1]).round().byte()


def noisy(pixels: Tensor, std: float) -> Tensor:
    """uint8 (n, c, h, w), with normal noise of this part of the range from black to white."""
    noise = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(0))
    return (pixels + 255 * std * noise).round().clamp(0, 255).byte()


def steps(train: ImageSet, test: ImageSet, count: int) -> Iterator[Step]:
    """The sets to measure against the first `count` test images."""
    real = balanced(train, count)
    assert isinstance(real.pixels, Tensor)
    yield Step("", "training images", real)
    yield Step("", "other test images", balanced(test, count, skip=count))
    for sigma in BLURS:
        yield Step("blur", f"blur, {sigma} pixels", real._replace(pixels=blurred(real.pixels, sigma)))
    for std in NOISES:
        yield Step("noise", f"noise, {std}", real._replace(pixels=noisy(real.pixels, std)))
    for classes in KEPT:
        yield Step("classes", f"{classes} of 10 classes", balanced(train, count, classes))


def of(images: ImageSet, name: str, look: Extractor) -> Statistics:
    return statistics(of_set(images, name, DataConfig()), look)


def measured(look: Extractor, reference: ImageSet, worse: Sequence[Step]) -> list[dict[str, Estimate]]:
    """The scores of each set."""
    there = of(reference, "reference", look)
    in_class, found = class_accuracy(there), []
    for step in worse:
        here = of(step.images, step.name, look)
        values = scores(here, there, look.name).values
        if (share := in_class(here)) is not None:
            values["class_accuracy"] = share
        found.append({name: values[name] for name in WORSE if name in values})
    return found


def disordered(worse: Sequence[Step], found: Sequence[dict[str, Estimate]]) -> Iterator[str]:
    """Sentences on numbers that do not get worse from a set to the next, worse one of its family."""
    for family in ("blur", "noise", "classes"):
        chain = [0, *(place for place, step in enumerate(worse) if step.family == family)]
        for name, sign in WORSE.items():
            if name not in found[0] or (family == "classes" and name == "class_accuracy"):  # which need not fall
                continue
            for a, b in pairwise(chain):
                before, after = found[a][name].value, found[b][name].value
                if sign * (after - before) <= 0:
                    told = f"{before:.3g} of {worse[a].name}, {after:.3g} of {worse[b].name}"
                    yield f"{name.replace('_', ' ')}: {told}"


def table(worse: Sequence[Step], found: Sequence[dict[str, Estimate]]) -> str:
    """The scores with their standard errors."""
    rows = [
        [step.name, *(f"{e.value:.3g} ± {e.error:.1g}" for e in values.values())]
        for step, values in zip(worse, found, strict=True)
    ]
    return markdown(["", *(name.replace("_", " ") for name in found[0])], rows)


def main(argv: Sequence[str] | None = None) -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("extractors", nargs="+", help="as for `fluvial score --extractor`")
    options.add_argument("--train", default="data/cifar10-train.parquet", help="labelled images")
    options.add_argument("--test", default="data/cifar10-test.parquet", help="labelled images")
    options.add_argument("--channels", type=int, choices=(1, 3), default=3, help="1 for grey images")
    options.add_argument("--count", type=int, default=1000, help="images of each set")
    given = options.parse_args(argv)
    train, test = (read(path, given.channels) for path in (given.train, given.test))
    reference, worse = balanced(test, given.count), list(steps(train, test, given.count))
    for name in given.extractors:
        look = extractor(name)
        found = measured(look, reference, worse)
        print(f"\n{look.name} (SHA-256 {look.hash[:12] or 'none'}), {given.count:,} images each\n")
        print(table(worse, found) + "\n")
        for line in disordered(worse, found):
            print(f"not in order: {line}")


if __name__ == "__main__":
    main()
