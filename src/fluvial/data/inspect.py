"""Inspects a data set: counts, image sizes, colour modes, classes and unreadable images."""

from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int, UInt8
from PIL import Image
from torch import Tensor

from fluvial.data import crop
from fluvial.data.crop import UnreadableImage
from fluvial.data.groups import index_by_class
from fluvial.data.images import Files, ImageSet
from fluvial.utils.progress import Bar

MANY = 100_000  # below this number of class ids, those without images are listed too
SHEET, THUMBNAIL = 100, 64  # images on the contact sheet, and their side


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """The result of `inspect`."""

    count: int
    """The number of images, readable or not."""
    looked_at: int
    """The number of images that were decoded."""
    sizes: Int[np.ndarray, "m 2"]
    """(width, height) of the readable images as stored."""
    kinds: dict[str, int]
    """Counts by colour mode (RGB, grey, palette, alpha, CMYK), of images rotated by EXIF, and of images with several
    frames, of which only the first is used."""
    unreadable: tuple[UnreadableImage, ...]
    """The images that cannot be decoded, with the reasons."""
    left_out: str
    """A summary of the files that were not taken for images; "" if there are none."""
    class_sizes: dict[str, int]
    """The number of images by class name, in the order of the ids; {} for unlabelled images."""
    sheet: UInt8[Tensor, "k 3 t t"]
    """Thumbnails of some of the images, spread evenly over the data set."""

    def small_classes(self, images_per_sequence: int) -> dict[str, int]:
        """The classes with too few images for an ARFlow sequence, without empty classes, which are never drawn."""
        return {name: n for name, n in self.class_sizes.items() if 0 < n < images_per_sequence}


class _Seen(NamedTuple):
    """Facts about one decoded image."""

    size: tuple[int, int]
    kind: str
    rotated: bool
    animated: bool


def inspect(images: ImageSet, *, most: int | None = None) -> Inspection:
    """Counts, sizes and faults of a data set, from decoding every image, or `most` of them spread evenly."""
    count = len(images.pixels)
    looked_at = np.unique(np.linspace(0, count - 1, min(count, most or count)).round().astype(int))
    on_sheet = np.unique(np.linspace(0, len(looked_at) - 1, min(len(looked_at), SHEET)).round().astype(int))
    seen, bad = [], []
    with Bar(len(looked_at), what="reading images") as bar:
        for part in np.array_split(looked_at, -(-len(looked_at) // 256)):
            for result in _look(images, part.tolist()):
                (bad if isinstance(result, UnreadableImage) else seen).append(result)
            bar.show(len(seen) + len(bad))
    kinds = Counter(s.kind for s in seen) + Counter({"turned by EXIF": sum(s.rotated for s in seen)})
    kinds += Counter({"of several frames": sum(s.animated for s in seen)})
    return Inspection(
        count=count,
        looked_at=len(looked_at),
        sizes=np.array([s.size for s in seen], dtype=int).reshape(-1, 2),
        kinds=dict(kinds.most_common()),
        unreadable=tuple(bad),
        left_out=images.left_out,
        class_sizes=class_sizes(images),
        sheet=_sheet(images, looked_at[on_sheet].tolist()),
    )


def class_sizes(images: ImageSet) -> dict[str, int]:
    """The number of images by class name, including classes without images."""
    if images.labels is None:
        return {}
    sizes = {i: len(members) for i, members in index_by_class(images.labels, len(images.labels))}
    if images.class_names:
        named = {name: sizes.get(i, 0) for i, name in enumerate(images.class_names)}
        return named | {str(i): n for i, n in sizes.items() if i < 0}  # not a class; training refuses them
    ids = range(max(sizes) + 1) if 0 <= min(sizes) and max(sizes) < MANY else sizes
    return {str(i): sizes.get(i, 0) for i in ids}


def _look(images: ImageSet, indices: list[int]) -> list[_Seen | UnreadableImage]:
    if isinstance(images.pixels, Tensor):
        _, c, h, w = images.pixels.shape
        return [_Seen((w, h), {1: "grey", 3: "RGB"}.get(c, f"{c} channels"), False, False)] * len(indices)
    assert isinstance(images.pixels, Files)
    return images.pixels.each(indices, _see)


def _see(image: Image.Image) -> _Seen:
    crop.upright(image, 3)  # raises if the image cannot be used
    return _Seen(image.size, crop.kind(image), crop.is_rotated(image), getattr(image, "is_animated", False))


def _sheet(images: ImageSet, indices: list[int]) -> UInt8[Tensor, "k 3 t t"]:
    def thumbnail(image: Image.Image) -> np.ndarray:
        image = crop.upright(image, 3)
        return crop.to_array(crop.centre_crop(image, THUMBNAIL))

    if isinstance(images.pixels, Tensor):
        chosen = images.pixels[indices]
        pictures = (Image.fromarray(p[0].numpy() if len(p) == 1 else p.permute(1, 2, 0).numpy()) for p in chosen)
        found = [thumbnail(picture) for picture in pictures]
    else:
        assert isinstance(images.pixels, Files)
        found = [r for r in images.pixels.each(indices, thumbnail) if isinstance(r, np.ndarray)]
    return torch.from_numpy(np.stack(found)) if found else torch.zeros(0, 3, THUMBNAIL, THUMBNAIL, dtype=torch.uint8)
