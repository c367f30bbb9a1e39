"""From whatever an image file holds to a square of 8-bit pixels."""

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import IO, Literal, TypeVar

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

T = TypeVar("T")
Crop = Literal["centre", "random", "pad"]
ENLARGED = 8  # an image that would have to grow more than this is taken for a mistake
VAR_MARGIN = 1.125  # the short side before a random crop, as a multiple of the size


class UnreadableImage(ValueError):
    """An image that cannot be used: its name, and why."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.name, self.reason = name, reason


def decode(source: bytes | Path, name: str, use: Callable[[Image.Image], T]) -> T:
    """What `use` makes of the decoded image. Raises UnreadableImage for one that cannot be decoded or used."""
    stream: IO[bytes] | Path = BytesIO(source) if isinstance(source, bytes) else source
    try:
        with Image.open(stream) as image:
            image.load()
            return use(image)
    except UnreadableImage as error:
        raise UnreadableImage(name, error.reason) from error
    except Exception as error:  # on a damaged file Pillow's decoders raise nearly anything
        raise UnreadableImage(name, f"cannot be decoded ({error})") from error


def kind(image: Image.Image) -> str:
    """How the file stores its pixels: "RGB", "grey", "alpha", "palette" or "CMYK", or Pillow's name of a rare mode."""
    if image.has_transparency_data:
        return "alpha"
    named = {"P": "palette", "L": "grey", "1": "grey"}
    return "grey" if image.mode.startswith("I;16") else named.get(image.mode, image.mode)


def is_rotated(image: Image.Image) -> bool:
    """Whether the EXIF data ask for the image to be turned or mirrored."""
    return image.getexif().get(0x0112, 1) not in (0, 1)


def upright(image: Image.Image, channels: int) -> Image.Image:
    """The image as a viewer shows it, in RGB (3 channels) or grey (1): turned as EXIF says, transparency on white.

    The releases convert to RGB only, which shows what lies under transparent pixels and leaves EXIF aside.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise UnreadableImage("", f"32-bit pixels (mode {image.mode}) have no known range; save it with 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB" if channels == 3 else "L")


def square(image: Image.Image, size: int, crop: Crop, corner: tuple[float, float] = (0.5, 0.5)) -> Image.Image:
    """The image cut or padded to size x size pixels.

    "centre" is `centre_crop`, "random" is `random_crop` at `corner`, "pad" puts it in the middle of black.
    Raises UnreadableImage for an image too small, or, with "pad", too large.
    """
    if crop == "pad":
        if max(image.size) > size:
            raise UnreadableImage("", f"{image.width} x {image.height} pixels do not fit into {size} x {size}; crop it")
        return _pad(image, size)
    if min(image.size) * ENLARGED < size:
        raise UnreadableImage(
            "", f"{image.width} x {image.height} pixels are too few for {size} x {size}: more than {ENLARGED}-fold"
        )
    return centre_crop(image, size) if crop == "centre" else random_crop(image, size, corner)


def centre_crop(image: Image.Image, size: int) -> Image.Image:
    """Halved with a box filter while twice the size or more, then bicubic to the short side, then the middle.

    What ADM does (guided-diffusion, image_datasets.py `center_crop_arr`), and SiT and ARFlow after it.
    """
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def random_crop(image: Image.Image, size: int, corner: tuple[float, float]) -> Image.Image:
    """The short side to 1.125 times the size, then the square whose corner is this share (x, y) of the way along.

    VAR's augmentation with the bilinear filter of released FlowAR (main.py); VAR's own filter is Lanczos.
    """
    short = round(VAR_MARGIN * size)
    scale = short / min(image.size)
    width, height = (max(short, int(side * scale)) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (int(c * (side - size + 1)) for c, side in zip(corner, image.size, strict=True))
    return image.crop((left, top, left + size, top + size))


def _pad(image: Image.Image, size: int) -> Image.Image:
    canvas = Image.new(image.mode, (size, size))
    canvas.paste(image, ((size - image.width) // 2, (size - image.height) // 2))
    return canvas


def to_array(image: Image.Image) -> UInt8[np.ndarray, "c h w"]:
    """RGB or grey pixels, channels first."""
    array = np.asarray(image)
    return array[None] if array.ndim == 2 else np.ascontiguousarray(np.moveaxis(array, -1, 0))
