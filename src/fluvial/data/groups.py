"""Draws ARFlow's training examples: sequences of different images of one class (released dataset/cache_loader.py)."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from fluvial.utils.randomness import numpy_generator

SmallClasses = Literal["error", "repeat"]


def index_by_class(labels: Int[Tensor, "n"] | None, count: int) -> list[tuple[int, np.ndarray]]:
    """Pairs (class id, indices of its images) of all classes with images; unlabelled images are one class, -1."""
    if labels is None:
        return [(-1, np.arange(count))]
    values = labels.numpy()
    order = np.argsort(values, kind="stable")
    ids, starts = np.unique(values[order], return_index=True)
    return [(int(i), part) for i, part in zip(ids, np.split(order, starts[1:]), strict=True)]


def check_sizes(
    index: list[tuple[int, np.ndarray]], images: int, rule: SmallClasses, class_names: Sequence[str] = ()
) -> None:
    """Raises ValueError naming the classes with fewer than `images` images, unless the rule is "repeat"."""
    small = [(i, len(members)) for i, members in index if len(members) < images]
    if small and rule == "error":
        named = ", ".join(f"{class_names[i] if 0 <= i < len(class_names) else i} ({n})" for i, n in small[:10])
        more = f" and {len(small) - 10} more" if len(small) > 10 else ""
        raise ValueError(
            f"a sequence needs {images} different images of one class, but these classes have fewer: {named}{more}. "
            f"Add images, shorten the sequence (method.images_per_sequence), or repeat images (data.small_classes)"
        )


def draw_groups(
    index: list[tuple[int, np.ndarray]], seed: int, step: int, batch: int, images: int
) -> tuple[Int[Tensor, "b s"], Int[Tensor, "b"]]:
    """Image indices and class ids of the `batch` sequences of this step, a function of (seed, step) alone.

    A class is drawn uniformly over classes, then distinct images of it. If the class has too few images, they are
    repeated, with counts that differ by at most one.
    """
    rng = numpy_generator(seed, "groups", step)
    chosen = rng.integers(len(index), size=batch)
    rows = []
    for c in chosen:
        members = index[c][1]
        rounds = -(-images // len(members))
        parts = [rng.permutation(members) for _ in range(rounds - 1)]
        parts.append(rng.choice(members, images - (rounds - 1) * len(members), replace=False))
        rows.append(np.concatenate(parts))
    return torch.from_numpy(np.stack(rows)), torch.tensor([index[c][0] for c in chosen])
