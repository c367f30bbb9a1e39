"""The classes of samples."""

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor


def labels_for(indices: Sequence[int], classes: Sequence[int]) -> Int[Tensor, "b"] | None:
    """Class ids of these images: image i is of class classes[i mod len(classes)]. None if there are no classes."""
    return torch.tensor([classes[i % len(classes)] for i in indices]) if classes else None
