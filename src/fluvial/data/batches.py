"""Training batches as a pure function of (seed, step), so that resuming needs no loader state."""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from fluvial.data.groups import SmallClasses, check_sizes, draw_groups, index_by_class
from fluvial.data.images import ImageSet, to_signed
from fluvial.randomness import numpy_generator

Batch = tuple[Float[Tensor, "b ..."], Int[Tensor, "b"] | None]


def batches(
    images: ImageSet,
    encode: Callable[[Tensor], Tensor],
    *,
    batch: int,
    seed: int,
    images_per_sequence: int | None = None,
    flip: bool = False,
    small_classes: SmallClasses = "error",
) -> Callable[[int], Batch]:
    """A function from the step to (latents, labels) of that step.

    Without images_per_sequence latents are (b, c, h, w), every image once an epoch in shuffled order; with it they are
    (b, s, c, h, w), sequences of one class. `encode` turns images in [-1, 1] into latents.
    """
    count = len(images.pixels)
    if count == 0:
        raise ValueError("the data set has no images")
    index = index_by_class(images.labels, count)
    if images_per_sequence is not None:
        check_sizes(index, images_per_sequence, small_classes, images.class_names)

    def at(step: int) -> Batch:
        if images_per_sequence is None:
            chosen = shuffled(count, seed, step, batch)
            labels = None if images.labels is None else images.labels[chosen]
        else:
            groups, labels = draw_groups(index, seed, step, batch, images_per_sequence)
            chosen, labels = groups.flatten(), None if images.labels is None else labels
        pixels = images.pixels[chosen]
        if flip:
            flipped = torch.from_numpy(numpy_generator(seed, "flip", step).random(len(chosen)) < 0.5)
            pixels = torch.where(flipped[:, None, None, None], pixels.flip(-1), pixels)
        latents = encode(to_signed(pixels))
        return latents if images_per_sequence is None else latents.unflatten(0, (batch, -1)), labels

    return at


def shuffled(count: int, seed: int, step: int, batch: int) -> Int[Tensor, "b"]:
    """The indices of this step: epoch after epoch, each in its own order, batches running on across the ends."""
    start, stop = step * batch, (step + 1) * batch
    epochs = range(start // count, -(-stop // count))
    order = np.concatenate([_permutation(count, seed, epoch) for epoch in epochs])
    return torch.from_numpy(order[start - epochs.start * count : stop - epochs.start * count])


@lru_cache(maxsize=2)
def _permutation(count: int, seed: int, epoch: int) -> np.ndarray:
    return numpy_generator(seed, "epoch", epoch).permutation(count)
