"""Samples measured against real images: until there are better features, on their pixels."""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional

from fluvial.data import images as data_images
from fluvial.data.images import DataConfig, ImageSet, to_signed
from fluvial.data.latents import is_cache
from fluvial.generate import Generated
from fluvial.metrics.accuracy import class_accuracy
from fluvial.metrics.frechet import Gaussian, fit, frechet_distance
from fluvial.randomness import numpy_generator

REFERENCE = 10_000  # real images of each part that a score looks at, at most
SVM_IMAGES, SVM_TESTED = 5_000, 1_000  # of them, those that the SVM learns from, and is tested on
SIDE = 32  # larger images are averaged to this side: statistics of more pixels are not to be had


def against(real: ImageSet, held_out: ImageSet) -> Callable[[Generated], dict[str, Any]]:
    """A function from samples to their class accuracy and Frechet distance, those of the real images beside them.

    What is computed of the real images alone, such as the SVM, is computed once, when it is first asked for.
    """

    @cache
    def of_real(labelled: bool) -> tuple[Gaussian, float, Callable[..., float] | None, float]:
        x_real, x_held_out = (_features(_pixels(part)) for part in (real, held_out))
        accuracy, reached = None, 0.0
        if labelled and real.labels is not None and held_out.labels is not None:
            accuracy = class_accuracy(x_real[:SVM_IMAGES], real.labels[:SVM_IMAGES])
            reached = accuracy(x_held_out[:SVM_TESTED], held_out.labels[:SVM_TESTED])
        there = fit(x_held_out)
        return there, frechet_distance(fit(x_real), there), accuracy, reached

    def measure(generated: Generated) -> dict[str, Any]:
        there, floor, accuracy, reached = of_real(generated.labels is not None)
        x = _features(generated.images)
        result: dict[str, Any] = {}
        if accuracy is not None:
            result |= {"class_accuracy": accuracy(x, generated.labels), "class_accuracy_real": reached}
        averaged = "" if max(generated.images.shape[2:]) <= SIDE else f", averaged to {SIDE} x {SIDE}"
        return result | {
            "frechet_distance": frechet_distance(fit(x), there),
            "frechet_distance_real": floor,
            "features": f"pixels in [-1, 1]{averaged}",
        }

    return measure


def reference(data: DataConfig, real: ImageSet | None, held_out: ImageSet | None) -> tuple[ImageSet, ImageSet]:
    """Training and held-out images, shuffled where they are more than enough."""
    if real is None or held_out is None:
        if is_cache(data.path or data.name) or is_cache(data.test_path):
            raise ValueError(
                "the run was trained on cached latents, and a score needs images: name them with --data-path"
            )
        real, held_out = (data_images.load(data, split) for split in ("train", "test"))
        if real is None or held_out is None:
            raise ValueError(f"{data.path or data.name} has no held-out images: name some with --test-path")
    real, held_out = (
        part.subset(torch.from_numpy(numpy_generator(0, "reference").permutation(len(part.pixels))[:REFERENCE]))
        if len(part.pixels) > min(REFERENCE, SVM_IMAGES)
        else part
        for part in (real, held_out)
    )
    return real, held_out


def _features(pixels: UInt8[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
    x = to_signed(pixels)
    return (functional.adaptive_avg_pool2d(x, SIDE) if max(x.shape[2:]) > SIDE else x).flatten(1)


def _pixels(images: ImageSet) -> UInt8[Tensor, "n c h w"]:
    return images.rows(torch.arange(len(images.pixels)))
