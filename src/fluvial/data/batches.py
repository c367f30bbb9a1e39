"""Training batches as a pure function of (seed, step), so that resuming needs no loader state."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from typing import TypeVar, cast

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from fluvial.data.division import divided
from fluvial.data.groups import SmallClasses, check_sizes, draw_groups, index_by_class
from fluvial.data.images import DataConfig, ImageSet
from fluvial.data.labels import Classes, aligned, named
from fluvial.data.latents import LatentSet
from fluvial.utils.randomness import generator, numpy_generator

T = TypeVar("T")
Examples = ImageSet | LatentSet
Train = TypeVar("Train", bound=Examples)
Test = TypeVar("Test", bound=Examples)
Batch = tuple[Float[Tensor, "b ..."], Int[Tensor, "b"] | None]


def batches(
    examples: Examples,
    encode: Callable[[Tensor, torch.Generator, tuple[slice, int]], Tensor],
    *,
    batch: int,
    seed: int,
    images_per_sequence: int | None = None,
    flip: bool = False,
    small_classes: SmallClasses = "error",
    share: Callable[[int], slice] = lambda count: slice(0, count),
    device: torch.device | str = "cpu",
) -> Callable[[int], Batch]:
    """A function from the step to the batch (latents, labels) of that step.

    Without images_per_sequence latents are (b, c, h, w), every image once per epoch in shuffled order; with it they are
    (b, s, c, h, w), sequences of images of one class. `encode` maps rows of `examples` on `device` (pixels in 0 ... 255
    or cached moments, which give the same batches) to latents, with draws from the generator. `share` maps the batch
    size to the rows that this rank reads; their content does not depend on how the batch is divided.
    """
    count = len(examples[0])
    if count == 0:
        raise ValueError("the data set has no images")
    index = index_by_class(examples.labels, count)
    if images_per_sequence is not None:
        check_sizes(index, images_per_sequence, small_classes, examples.class_names)

    images, rows, on_gpu = images_per_sequence or 1, share(batch), torch.device(device).type == "cuda"
    mine = slice(rows.start * images, rows.stop * images)

    def read(step: int) -> tuple[Tensor, Int[Tensor, "b"] | None]:
        if images_per_sequence is None:
            chosen = shuffled(count, seed, step, batch)
            labels = None if examples.labels is None else examples.labels[chosen]
        else:
            groups, labels = draw_groups(index, seed, step, batch, images_per_sequence)
            chosen, labels = groups.flatten(), None if examples.labels is None else labels
        flipped = torch.from_numpy(numpy_generator(seed, "flip", step).random(len(chosen)) < 0.5) if flip else None
        corners = numpy_generator(seed, "crop", step).random((len(chosen), 2))
        labels = None if labels is None else labels[share(batch)]
        found = examples.rows(chosen[mine], None if flipped is None else flipped[mine], corners[mine])
        if on_gpu:  # copies from pinned memory are asynchronous
            found, labels = found.pin_memory(), None if labels is None else labels.pin_memory()
        return found, labels

    read_at = ahead(read) if on_gpu or not isinstance(examples[0], Tensor) else read

    def at(step: int) -> Batch:
        rows, labels = read_at(step)
        rows = rows.to(device, non_blocking=True)
        latents = encode(rows, generator(seed, "posterior", step, device=device), (mine, batch * images))
        return latents if images_per_sequence is None else latents.unflatten(0, (-1, images)), labels

    return at


def ahead(make: Callable[[int], T]) -> Callable[[int], T]:
    """A prefetching version of `make`: if steps are consecutive, a thread computes the next one's value in advance."""
    thread = ThreadPoolExecutor(1, thread_name_prefix="ahead")
    waiting: dict[int, Future[T]] = {}
    last = -2

    def at(step: int) -> T:
        nonlocal last
        wanted = waiting.pop(step, None) or thread.submit(make, step)
        waiting.clear()
        if step == last + 1:
            waiting[step + 1] = thread.submit(make, step + 1)
        last = step
        return wanted.result()

    return at


def shuffled(count: int, seed: int, step: int, batch: int) -> Int[Tensor, "b"]:
    """The image indices of a step: each epoch has its own random order, and batches run on from one to the next."""
    start, stop = step * batch, (step + 1) * batch
    epochs = range(start // count, -(-stop // count))
    order = np.concatenate([_permutation(count, seed, epoch) for epoch in epochs])
    return torch.from_numpy(order[start - epochs.start * count : stop - epochs.start * count])


@lru_cache(maxsize=2)
def _permutation(count: int, seed: int, epoch: int) -> np.ndarray:
    return numpy_generator(seed, "epoch", epoch).permutation(count)


def in_two(examples: Train, share: float) -> tuple[Train, Train]:
    """The examples in two parts: those for training, and this share of them for validation."""
    kept, held_out = divided(len(examples[0]), examples.labels, share)
    return cast(Train, examples.subset(kept)), cast(Train, examples.subset(held_out))


def with_same_classes(train: Train, test: Test | None, given: DataConfig) -> tuple[Train, Test | None]:
    """Training and validation examples with the same class ids and names, where both are labelled.

    The names are those of `given`, else those of the training examples. Raises ValueError with both lists if the
    validation examples have classes of other names, and the user gave none.
    """
    own = train.class_names
    if train.labels is None:
        return train, test
    labels, names = named(train.labels, own, given.class_names, "the training images")
    train = train._replace(labels=labels, class_names=names)
    if test is not None and test.labels is not None:
        found = aligned(test.labels, test.class_names, Classes(own, names, given.renames))
        test = test._replace(labels=found, class_names=names)
    return train, test
