"""Samples measured against real images: until there are better features, on their pixels."""

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
from fluvial.metrics.frechet import fit, frechet_distance
from fluvial.randomness import numpy_generator

REFERENCE = 10_000  # real images of each part that a score looks at, at most
SVM_IMAGES, SVM_TESTED = 5_000, 1_000  # of them, those that the SVM learns from, and is tested on
SIDE = 32  # larger images are averaged to this side: statistics of more pixels are not to be had


def measure(generated: Generated, real: ImageSet, held_out: ImageSet) -> dict[str, Any]:
    """Class accuracy and Frechet distance of samples, and of the real images beside them; on what features."""
    x_real, x_held_out, x = (_features(pixels) for pixels in (_pixels(real), _pixels(held_out), generated.images))
    averaged = "" if max(generated.images.shape[2:]) <= SIDE else f", averaged to {SIDE} x {SIDE}"
    result: dict[str, Any] = {}
    if generated.labels is not None and real.labels is not None and held_out.labels is not None:
        accuracy = class_accuracy(x_real[:SVM_IMAGES], real.labels[:SVM_IMAGES])
        result["class_accuracy"] = accuracy(x, generated.labels)
        result["class_accuracy_real"] = accuracy(x_held_out[:SVM_TESTED], held_out.labels[:SVM_TESTED])
    return result | {
        "frechet_distance": frechet_distance(fit(x), fit(x_held_out)),
        "frechet_distance_real": frechet_distance(fit(x_real), fit(x_held_out)),
        "features": f"pixels in [-1, 1]{averaged}",
    }


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
