"""The images whose likelihood is measured: a part of a run's own data, or images from anywhere."""

from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from fluvial.data.images import DataConfig
from fluvial.data.labels import Classes
from fluvial.data.manifest import is_cache
from fluvial.evaluation.against import real_images
from fluvial.evaluation.images import Images
from fluvial.evaluation.opening import open_images
from fluvial.run.inputs import encoder, open_inputs
from fluvial.run.load import Sampler
from fluvial.utils.randomness import numpy_generator

Labels = Literal["own", "none"]


class Chosen(NamedTuple):
    """Some images of a set, and where they stand in it."""

    name: str
    indices: list[int]
    images: UInt8[Tensor, "n c H W"] | Float[Tensor, "n c h w"]
    """Pixels, or latents of a run on cached latents."""
    labels: Int[Tensor, "n"] | None


def images_of(sampler: Sampler, which: str, count: int, *, labels: Labels = "own") -> Chosen:
    """A fixed random choice of `count` images of "test" or "train", the parts of the run's own data, or of a place.

    Places are those of `open_images`; their images are cropped as those of the run. `labels` "none" leaves labels out.
    Raises ValueError for a part that the run does not have, or images without labels of a model with classes.
    """
    data = sampler.run.data
    own = which in ("test", "train")
    if own and any(is_cache(place) for place in (data.path or data.name, data.test_path)):
        found = _latents_of(sampler, which, count)
    else:
        images = _own(sampler, which) if own else _elsewhere(sampler, which)
        indices = _choice(images.n, count)
        found = Chosen(images.name, indices, *images.read(indices))
    if labels == "none" or not sampler.run.method.classes:
        return found._replace(labels=None)
    if found.labels is None:
        raise ValueError(
            f"{found.name} has no labels of the model's classes: give --labels none for the density without a class"
        )
    return found


def _choice(total: int, count: int) -> list[int]:
    return np.sort(numpy_generator(0, "likelihood").permutation(total)[:count]).tolist()


def _own(sampler: Sampler, which: str) -> Images:
    """The training or validation images of the run."""
    real = real_images(sampler.run.data, labelled=sampler.run.method.classes > 0)
    if which == "train":
        return real.training
    if real.test is None:
        raise ValueError("the run has no validation images: name images, or train for its training images")
    return real.test


def _elsewhere(sampler: Sampler, place: str) -> Images:
    """Images from anywhere, as the run takes them."""
    run = sampler.run
    grey = 1 in (sampler.autoencoder.image_channels, run.method.channels)
    like = DataConfig(size=sampler.side, channels=1 if grey else 3)
    classes = Classes(run.data.class_names, run.data.class_names, False) if run.method.classes else None
    return open_images(place, like, classes)


def _latents_of(sampler: Sampler, which: str, count: int) -> Chosen:
    """Latents of a run on cached latents, at the mean of the autoencoder."""
    inputs = open_inputs(sampler.run, autoencoder=sampler.autoencoder)
    part = inputs.train if which == "train" else inputs.held_out
    if part is None:
        raise ValueError("the run has no validation images: name images, or train for its training images")
    indices = _choice(len(part[0]), count)
    chosen = torch.tensor(indices)
    with torch.no_grad():
        latents = encoder(inputs.autoencoder, part)(part.rows(chosen))
    return Chosen(f"{which} latents of the run", indices, latents, None if part.labels is None else part.labels[chosen])
