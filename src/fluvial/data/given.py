"""Images given in Python: tensors, or any map-style dataset of PyTorch."""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, UInt8
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from fluvial.data.crop import UnreadableImage, kind, to_array, upright
from fluvial.data.images import SLOW, ImageReader, ImageSet
from fluvial.utils.progress import Bar

Given = ImageSet | Tensor | tuple[Tensor, Tensor | None] | Dataset[Any]


def image_set(data: Any, what: str = "images") -> ImageSet:  # noqa: ANN401 - whatever was given
    """The images of an ImageSet, a uint8 tensor (n, c, h, w), a pair of that and labels (n,), or a map-style dataset.

    An item of a dataset is an image, or (image, class id): a PIL image, which is read as one of a file is, or a uint8
    tensor (c, h, w). Items are read again at every use, so a dataset may augment them; a run then resumes bit for bit
    only if item i is always the same. Names of classes are taken from its attribute `classes`, if it has one. Raises
    ValueError for anything else.
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


def image_sets(data: Any, validation: Any) -> tuple[ImageSet | None, ImageSet | None]:  # noqa: ANN401
    """Training and validation images given in place of a run's own, as for `image_set`; None for those not given.

    Raises ValueError for validation images without training images.
    """
    if data is None and validation is not None:
        raise ValueError("validation images were given without training images: give both, or neither")
    images = None if data is None else image_set(data)
    return images, None if validation is None else image_set(validation, "validation images")


def checked(images: Any, what: str = "images") -> ImageSet:  # noqa: ANN401 - whatever was given
    """A data set given in Python, with labels as int64. Raises ValueError if it is not as described here.

    Nothing is guessed: pixels are uint8 (n, c, h, w) in 0 ... 255, labels are one integer from 0 per image.
    """
    if not isinstance(images, ImageSet):
        raise ValueError(f"{what}: got {type(images).__name__}, expected ImageSet(pixels, labels, class_names)")
    pixels, labels, names = images.pixels, images.labels, images.class_names
    if not isinstance(names, tuple | list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{what}: class_names must be a tuple of the names, () for none, got {names!r}")
    if len(set(names)) < len(names):
        raise ValueError(f"{what}: class_names must differ, got {names!r}")
    if not isinstance(pixels, ImageReader):
        _check_pixels(pixels, what)
    if len(pixels) == 0:
        raise ValueError(f"{what}: the data set has no images")
    if labels is not None:
        labels = _whole_labels(labels, len(pixels), names, what)
    return images._replace(labels=labels, class_names=tuple(names))


def _check_pixels(pixels: Any, what: str) -> None:  # noqa: ANN401 - whatever was given
    """Raises ValueError unless pixels are uint8 (n, c, h, w); it names a line of code that converts them, if any."""
    expected = f"{what}: pixels must be a uint8 tensor (n, channels, height, width) in 0 ... 255"
    if isinstance(pixels, np.ndarray):
        raise ValueError(f"{expected}, got a numpy array: torch.from_numpy(pixels) makes it a tensor")
    if not isinstance(pixels, Tensor):
        raise ValueError(f"{expected}, got {type(pixels).__name__}")
    got = f"got {str(pixels.dtype).removeprefix('torch.')} of {tuple(pixels.shape)}"
    if pixels.dtype != torch.uint8:
        if pixels.numel() == 0 or pixels.is_complex():
            raise ValueError(f"{expected}, {got}")
        low, high = float(pixels.min()), float(pixels.max())
        line = "bring them to 0 ... 255 and convert them with .round().to(torch.uint8)"
        if 0 <= low and 1 < high <= 255:
            line = "pixels.round().to(torch.uint8)" if pixels.is_floating_point() else "pixels.to(torch.uint8)"
        elif 0 <= low and high <= 1:
            line = "(pixels * 255).round().to(torch.uint8) if they are in [0, 1]"
        elif -1 <= low and high <= 1:
            line = "fluvial.data.pixels.to_uint8(pixels) if they are in [-1, 1]"
        raise ValueError(f"{expected}, {got} from {low:g} to {high:g}: {line}")
    if pixels.ndim == 3:
        raise ValueError(f"{expected}, {got}: pixels[:, None] if they are grey")
    if pixels.ndim != 4 or 0 in pixels.shape[1:]:
        raise ValueError(f"{expected}, {got}")
    if pixels.shape[1] not in (1, 3, 4) and pixels.shape[3] in (1, 3, 4):
        raise ValueError(f"{expected}, {got}, channels last: pixels.permute(0, 3, 1, 2)")
    if pixels.device.type != "cpu":
        raise ValueError(f"{expected} in main memory, got them on {pixels.device}: pixels.cpu()")


def _whole_labels(labels: Any, count: int, names: Sequence[str], what: str) -> Int[Tensor, "n"]:  # noqa: ANN401
    """The labels as int64. Raises ValueError unless they are class ids, one per image."""
    expected = f"{what}: labels must be a tensor of {count} whole numbers from 0, or None"
    if not isinstance(labels, Tensor):
        raise ValueError(f"{expected}, got {type(labels).__name__}: torch.as_tensor(labels) makes it a tensor")
    got = f"got {str(labels.dtype).removeprefix('torch.')} of {tuple(labels.shape)}"
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(f"{expected}, {got}: labels.long() if they are class ids")
    if labels.ndim == 2 and labels.shape[1] > 1 and len(labels) == count:
        raise ValueError(f"{expected}, {got}: labels.argmax(1) if they are one-hot")
    if labels.shape != (count,):
        raise ValueError(f"{expected}, {got}")
    labels = labels.cpu().long()
    low, high = int(labels.min()), int(labels.max())
    if low < 0:
        raise ValueError(f"{expected}, got {low}")
    if names and high >= len(names):
        raise ValueError(f"{what}: labels run from {low} to {high}, but there are {len(names)} class names")
    return labels


def is_place(data: Any) -> bool:  # noqa: ANN401 - whatever was given
    """True for the name or path of a data set."""
    return isinstance(data, str | Path)


class Items(ImageReader):
    """The images of a map-style dataset, read whenever they are needed."""

    def __init__(self, dataset: Any, chosen: Sequence[int], shape: tuple[int, int, int], what: str) -> None:  # noqa: ANN401
        self.dataset, self.chosen, self.what = dataset, chosen, what
        self.of_one = shape

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(n, c, h, w)."""
        return (len(self.chosen), *self.of_one)

    def __len__(self) -> int:
        return len(self.chosen)

    def subset(self, kept: Sequence[int]) -> "Items":
        return Items(self.dataset, [self.chosen[i] for i in kept], self.of_one, self.what)

    def read(self, indices: Sequence[int], corners: np.ndarray | None = None) -> UInt8[Tensor, "b c h w"]:
        """Pixels of these images. Raises ValueError for one of another shape or type than the first."""
        return torch.stack([_pixels(self.dataset, self.chosen[i], self.what, self.of_one)[0] for i in indices])


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
        grey = kind(image) == "grey" or image.mode in ("LA", "La")
        try:
            image = torch.tensor(to_array(upright(image, 1 if grey else 3)))
        except UnreadableImage as error:
            raise ValueError(f"{what}: item {index}: {error.reason}") from error
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
