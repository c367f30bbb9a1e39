"""Divides a data set without validation images: a share of every class, the same images every time."""

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from fluvial.utils.randomness import numpy_generator


def divided(count: int, labels: Int[Tensor, "n"] | None, share: float) -> tuple[Int[Tensor, "k"], Int[Tensor, "m"]]:
    """The indices of the training images, and of those for validation, which are this share of them.

    Of the images in shuffled order, sorted by class, every k-th is for validation, so each class gives its share to
    within one image; the only image of a class stays in training. At least one image is held out if two share a class.
    """
    order = numpy_generator(0, "validation").permutation(count)
    classes = np.zeros(count, int) if labels is None else labels.numpy()
    order = order[np.argsort(classes[order], kind="stable")]
    ids, sizes = np.unique(classes, return_counts=True)
    order = order[np.isin(classes[order], ids[sizes > 1])]
    wanted = min(len(order), max(1, round(count * share)))
    held_out = order[((np.arange(wanted) + 0.5) * len(order) / wanted).astype(int)] if wanted else order
    kept = np.setdiff1d(np.arange(count), held_out)
    return torch.from_numpy(kept), torch.from_numpy(np.sort(held_out))
