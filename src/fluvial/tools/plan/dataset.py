"""Facts about a data set that a plan rests on: images, classes, sizes, colour, and whether mirror images are usual."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor

from fluvial.data import crop
from fluvial.data import images as data_images
from fluvial.data.crop import UnreadableImage
from fluvial.data.images import BUILT_IN, DataConfig, Files, ImageSet, listed
from fluvial.data.inspect import class_sizes
from fluvial.data.latents import Plan as Encoded
from fluvial.data.latents import load, read_manifest
from fluvial.data.manifest import is_cache
from fluvial.utils.places import repository
from fluvial.utils.randomness import numpy_generator

LOOKED_AT = 1000  # images that are decoded, chosen at random
THUMBNAIL = 32
FEWEST = 10  # images that a model is trained on
GREY = 8  # largest difference of two channels of a grey image, out of 255: JPEG rounds
ASYMMETRY = 0.03  # above it images are not mirrored: 0.001 for CIFAR-10, 0.4 for clothes and 1.1 for handwritten digits


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Facts about a data set, from its list of images and from decoding some of them."""

    config: DataConfig
    """The settings that name it."""
    count: int
    """Images, those for validation included if they have no split of their own."""
    class_sizes: Mapping[str, int]
    """Images by class name, in the order of the class ids; {} if they are unlabelled."""
    sides: tuple[int, int]
    """Height and width of the smallest image looked at, each for itself."""
    is_one_size: bool
    """True if all images looked at have the same size."""
    channels: int
    """1 if all images looked at are grey, 3 if they are of colour; those of the latents for a cache."""
    asymmetry: float
    """Share of the variance between images that mirroring their class mean adds: about 0 where mirror images are usual,
    0.4 and more for digits."""
    has_validation: bool
    """True if the data set has validation images of its own."""
    unreadable: tuple[str, ...] = ()
    """Images looked at that cannot be decoded, with the reasons."""
    left_out: str = ""
    """A summary of the files that were not taken for images."""
    encoded: Encoded | None = None
    """What the manifest of a cache of latents says of their making; None for images."""

    @property
    def classes(self) -> int:
        """The classes with images."""
        return sum(size > 0 for size in self.class_sizes.values())


def config_of(place: Path | str) -> DataConfig:
    """The settings that name a place: a built-in set, OWNER/NAME of the hub, or a path."""
    name = str(place)
    is_path = isinstance(place, Path) or Path(name).expanduser().exists()
    named = name in BUILT_IN or (repository(name) is not None and not name.startswith("hub:"))
    return DataConfig(name=name) if named and not is_path else DataConfig(name="", path=name)


def name_of(config: DataConfig) -> str:
    """A short name for a folder, from the place of the data: "photos" of data/photos.parquet."""
    stem = Path(config.path or config.name).expanduser().name.partition(".")[0].rpartition(":")[2]
    words = "".join(c if c.isalnum() else " " for c in stem.lower()).split()
    return "-".join(words) or "images"


def look_at(config: DataConfig, images: ImageSet | None = None, *, has_validation: bool = False) -> Dataset:
    """The facts about the data set that the settings name, or about `images` given in Python.

    Raises ValueError if there is nothing of that name, there are fewer than 10 images, or most cannot be read.
    """
    if images is None and is_cache(config.place):
        return _of_cache(config)
    if images is None:
        images, has_validation = data_images.load(config, "train", scan=False), _has_validation(config)
    assert images is not None
    count = len(images.pixels)
    if count < FEWEST:
        name = config.path or ("the data" if config.name == "given" else config.name)
        raise ValueError(
            f"{name} has {count} image{'s' * (count != 1)}, and a model needs at least {FEWEST} "
            f"(hundreds are better). {images.left_out}".strip()
        )
    chosen = np.sort(numpy_generator(0, "looked at").permutation(count)[:LOOKED_AT]).tolist()
    seen, bad = _looked(images, chosen)
    if len(bad) > len(seen):
        raise ValueError(f"most of the images cannot be read: {listed(bad)}")
    sizes = np.array([one.size for one in seen])
    pixels = np.stack([one.thumbnail for one in seen])
    labels = None if images.labels is None else images.labels.numpy()[[one.number for one in seen]]
    return Dataset(
        config=config,
        count=count,
        class_sizes=class_sizes(images),
        sides=(int(sizes[:, 1].min()), int(sizes[:, 0].min())),
        is_one_size=bool((sizes == sizes[0]).all()),
        channels=1 if int((pixels.max(1).astype(int) - pixels.min(1)).max()) <= GREY else 3,
        asymmetry=asymmetry(pixels.mean(1, dtype=np.float32), labels),
        has_validation=has_validation,
        unreadable=tuple(map(str, bad)),
        left_out=images.left_out,
    )


def asymmetry(pixels: Float[np.ndarray, "n h w"], labels: Int[np.ndarray, " n"] | None) -> float:
    """The squared distance of class means to their mirror images, over the variance inside the classes.

    The distance is estimated without bias, as the product of the differences in two halves of each class. 0 for classes
    with fewer than four images, or without variance.
    """
    ids = np.zeros(len(pixels), int) if labels is None else labels
    distance = variance = 0.0
    for number in np.unique(ids):
        members = pixels[ids == number]
        if len(members) >= 4:
            difference = members - members[:, :, ::-1]
            product = difference[::2].mean(0) * difference[1::2].mean(0)
            distance += len(members) * float(product.sum())
            variance += float(np.square(members - members.mean(0)).sum())
    return distance / variance if variance else 0.0


class _Seen(NamedTuple):
    """Facts about one decoded image."""

    number: int
    size: tuple[int, int]
    thumbnail: UInt8[np.ndarray, "3 t t"]


def _looked(images: ImageSet, chosen: Sequence[int]) -> tuple[list[_Seen], list[UnreadableImage]]:
    """The images of these indices that can be read, and the errors of the others."""

    def see(image: Image.Image, index: int) -> _Seen:
        image = crop.upright(image, 3)
        return _Seen(int(index), image.size, crop.to_array(crop.centre_crop(image, THUMBNAIL)))

    if isinstance(images.pixels, Files):
        found = images.pixels.each(list(map(int, chosen)), see, chosen)
    else:
        rows = images.rows(torch.tensor(chosen))
        found = [see(_picture(row), index) for row, index in zip(rows, chosen, strict=True)]
    return [one for one in found if isinstance(one, _Seen)], [one for one in found if isinstance(one, UnreadableImage)]


def _picture(pixels: UInt8[Tensor, "c h w"]) -> Image.Image:
    return Image.fromarray(pixels[0].numpy() if len(pixels) == 1 else pixels[:3].permute(1, 2, 0).numpy())


def _has_validation(config: DataConfig) -> bool:
    return config.place in BUILT_IN or data_images.opened(config, "test") is not None


def _of_cache(config: DataConfig) -> Dataset:
    """The facts about a cache of latents, from its manifest."""
    folder = Path(config.place).expanduser()
    latents, plan = load(folder), read_manifest(folder).plan
    ids = Counter([] if latents.labels is None else latents.labels.tolist())
    names = latents.class_names or tuple(map(str, range(max(ids, default=-1) + 1)))
    return Dataset(
        config=config,
        count=len(latents.moments),
        class_sizes={name: ids[i] for i, name in enumerate(names)} if ids else {},
        sides=(plan.image_size, plan.image_size),
        is_one_size=True,
        channels=plan.channels,
        asymmetry=0.0 if plan.flip else 1.0,  # without mirror images in the cache there is nothing to flip
        has_validation=False,
        encoded=plan,
    )
