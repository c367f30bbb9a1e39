"""Images given in Python: tensors, or any map-style dataset of PyTorch."""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from fluvial.data.crop import to_array
from fluvial.data.images import SLOW, ImageSet, checked
from fluvial.utils.progress import Bar

Given = ImageSet | Tensor | tuple[Tensor, Tensor | None] | Dataset[Any]


def image_set(data: Any, what: str = "images") -> ImageSet:  # noqa: ANN401 - whatever was given
    """The images of an ImageSet, a uint8 tensor (n, c, h, w), a pair of that and labels (n,), or a map-style dataset.

    An item of a dataset is an image, or (image, class id): a PIL image, or a uint8 tensor (c, h, w). Names of classes
    are taken from its attribute `classes`, if it has one. Raises ValueError for anything else.
    """
    if isinstance(data, ImageSet):
        return checked(data, what)
    if isinstance(data, Tensor | np.ndarray):
        return checked(ImageSet(data, None, ()), what)  # type: ignore[arg-type] - refused by name
    if isinstance(data, tuple) and len(data) == 2:
        return checked(ImageSet(data[0], data[1], ()), what)
    if isinstance(data, Dataset) and hasattr(data, "__len__"):
        return _of_dataset(data, what)
    raise ValueError(
        f"{what}: got {type(data).__name__}, expected the path of a folder, a uint8 tensor (n, channels, height, "
        f"width), a pair of that and labels (n,), or a torch.utils.data.Dataset with a length"
    )


def is_place(data: Any) -> bool:  # noqa: ANN401 - whatever was given
    """True for the name or path of a data set."""
    return isinstance(data, str | Path)


class Items:
    """The images of a map-style dataset, read whenever they are needed."""

    def __init__(self, dataset: Any, chosen: Sequence[int], shape: tuple[int, int, int], what: str) -> None:  # noqa: ANN401
        self.dataset, self.chosen, self.what = dataset, chosen, what
        self.shape = (len(chosen), *shape)

    def __len__(self) -> int:
        return len(self.chosen)

    def subset(self, kept: Sequence[int]) -> "Items":
        return Items(self.dataset, [self.chosen[i] for i in kept], self.shape[1:], self.what)

    def read(self, indices: Sequence[int], corners: np.ndarray | None = None) -> UInt8[Tensor, "b c h w"]:
        """Pixels of these images. Raises ValueError for one of another shape or type than the first."""
        return torch.stack([_pixels(self.dataset, self.chosen[i], self.what, self.shape[1:])[0] for i in indices])


def _of_dataset(dataset: Any, what: str) -> ImageSet:  # noqa: ANN401
    """The images of a dataset, every item of which is looked at once: for its label, and to find what is wrong."""
    count = len(dataset)
    if count == 0:
        raise ValueError(f"{what}: the data set has no images")
    first, _ = _pixels(dataset, 0, what, None)
    shape = (first.shape[0], first.shape[1], first.shape[2])
    labels = []
    with Bar(count, what="reading the data set") if count > SLOW else nullcontext() as bar:
        for i in range(count):
            labels.append(_pixels(dataset, i, what, shape)[1])
            if bar is not None and i % 1000 == 0:
                bar.show(i)
    if some := sum(label is None for label in labels):
        if some < count:
            raise ValueError(f"{what}: {some} of {count} items have no label, all or none are expected to have one")
        return checked(ImageSet(Items(dataset, range(count), shape, what), None, ()), what)
    names = tuple(map(str, getattr(dataset, "classes", ())))
    return checked(ImageSet(Items(dataset, range(count), shape, what), torch.tensor(labels), names), what)


def _pixels(
    dataset: Any,  # noqa: ANN401
    index: int,
    what: str,
    shape: tuple[int, ...] | None,
) -> tuple[UInt8[Tensor, "c h w"], int | None]:
    """Pixels and class id of one item. Raises ValueError if they are no image and no class id."""
    item = dataset[index]
    image, label = item if isinstance(item, tuple | list) and len(item) == 2 else (item, None)
    if isinstance(image, Image.Image):
        image = torch.from_numpy(to_array(image if image.mode == "L" else image.convert("RGB")))
    if not isinstance(image, Tensor) or image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] not in (1, 3):
        got = f"{image.dtype} of {tuple(image.shape)}" if isinstance(image, Tensor) else type(image).__name__
        raise ValueError(
            f"{what}: item {index} must be a PIL image, or a uint8 tensor (channels, height, width) in 0 ... 255 with "
            f"1 or 3 channels, got {got}; leave out transforms to floats, such as ToTensor"
        )
    if shape is not None and tuple(image.shape) != shape:
        raise ValueError(f"{what}: item {index} is {tuple(image.shape)}, item 0 is {shape}; bring all to one size")
    if isinstance(label, Tensor | np.integer) and label.ndim == 0:
        label = label.item()
    if label is not None and (isinstance(label, bool) or not isinstance(label, int)):
        raise ValueError(f"{what}: the label of item {index} must be a class id, got {label!r:.100}")
    return image, label
