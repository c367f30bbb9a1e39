"""Decodes images and crops them to squares of 8-bit pixels."""

import warnings
from collections.abc import Callable
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from fluvial.data.left_out import image_formats, printable
from fluvial.utils.files import irregular, read_bytes

T = TypeVar("T")
Stored = bytes | Path | np.ndarray  # an undecoded image: encoded bytes, a file, or an array of pixels
Crop = Literal["centre", "random", "pad"]
MAX_UPSAMPLING = 8  # an image that needs a larger factor is taken for a mistake
VAR_MARGIN = 1.125  # the short side before a random crop, as a multiple of the size
PNG = b"\x89PNG\r\n\x1a\n"
PNG_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"eXIf", b"IEND")
ORIENTATION = 0x0112
TURNS = {  # by EXIF's orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class UnreadableImage(ValueError):
    """An image that cannot be used, with its name and the reason."""

    def __init__(self, name: str, reason: str) -> None:
        self.name, self.reason = printable(name), reason
        super().__init__(f"{self.name}: {reason}")


def decode(source: Stored, name: str, use: Callable[[Image.Image], T]) -> T:
    """The value of use(image) for the decoded image; of several frames it is the first.

    Raises UnreadableImage if it cannot be decoded or used.
    """
    try:
        if isinstance(source, np.ndarray):
            return use(from_array(source))
        # opened here, since Pillow would memory-map it, and a mapped file that shrinks kills the process
        with regular(source).open("rb") if isinstance(source, Path) else BytesIO(source) as stream:
            return _decoded(stream, use)
    except UnreadableImage as error:
        raise UnreadableImage(name, error.reason) from error
    except Image.DecompressionBombError as error:
        size = str(error).partition(", could")[0]
        raise UnreadableImage(name, f"{size}: make the image smaller, or cut it into several") from error
    except Exception as error:  # on a damaged file Pillow's decoders raise nearly anything
        raise UnreadableImage(name, f"cannot be decoded ({_told(error)})") from error


def _decoded(stream: BytesIO | BufferedReader, use: Callable[[Image.Image], T]) -> T:
    """The value of use(image); a PNG that Pillow refuses is retried without metadata, such as a long text."""
    if not stream.read(1):
        raise UnreadableImage("", "cannot be decoded (it is empty)")
    stream.seek(0)
    try:
        image = Image.open(stream, formats=image_formats())
        image.load()
    except (ValueError, SyntaxError, OSError):
        stream.seek(0)
        if stream.read(len(PNG)) != PNG:
            raise
        image = Image.open(BytesIO(_bare_png(stream)), formats=["PNG"])
        image.load()
    with image:
        return use(image)


def _bare_png(stream: BytesIO | BufferedReader) -> bytes:
    """The PNG whose signature was read, reduced to the chunks that affect how it looks."""
    parts = [PNG]
    while len(head := stream.read(8)) == 8:
        length, kind = int.from_bytes(head[:4]), head[4:]
        if kind in PNG_CHUNKS:
            parts += [head, stream.read(length + 4)]  # with its checksum
        else:
            stream.seek(length + 4, 1)
    return b"".join(parts)


def _told(error: Exception) -> str:
    """The error's message, without the memory address that Pillow's own has."""
    if isinstance(error, UnidentifiedImageError):
        return "Pillow cannot identify it as an image"
    return str(error) or repr(error)


def regular(path: Path) -> Path:
    """The path of a regular file. Raises UnreadableImage if it is missing, a pipe or a device, which may block."""
    try:
        other = irregular(path)
    except FileNotFoundError:
        what = f"is a link to {path.readlink()}, which is not there" if path.is_symlink() else "is not there"
        raise UnreadableImage(str(path), what) from None
    if other:
        raise UnreadableImage(str(path), f"is {other}, not a file")
    return path


def content(source: Stored) -> bytes:
    """The bytes of an undecoded image; of an array, its dtype, shape and bytes."""
    if isinstance(source, np.ndarray):
        return f"{source.dtype} {source.shape} ".encode() + source.tobytes()
    return read_bytes(regular(source)) if isinstance(source, Path) else source


def from_array(array: np.ndarray) -> Image.Image:
    """The image of an integer array in 0 ... 255: (h, w) or (h, w, c), else (c, h, w), with c of 1, 3 or 4.

    Raises UnreadableImage for other shapes, types and ranges.
    """
    shape = array.shape
    if len(shape) == 3 and shape[2] not in (1, 3, 4) and shape[0] in (1, 3, 4):
        array = np.moveaxis(array, 0, -1)
    if array.size == 0 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise UnreadableImage("", f"numbers of shape {shape}; wanted (h, w), (h, w, c) or (c, h, w), c of 1, 3 or 4")
    if array.dtype.kind not in "iu":
        raise UnreadableImage("", f"numbers of the type {array.dtype}; wanted whole numbers in 0 ... 255")
    if array.min() < 0 or array.max() > 255:
        raise UnreadableImage("", f"numbers from {array.min()} to {array.max()}; wanted whole numbers in 0 ... 255")
    array = np.ascontiguousarray(array, np.uint8)
    return Image.fromarray(array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array)


def kind(image: Image.Image) -> str:
    """The colour mode of the file: "RGB", "grey", "alpha", "palette" or "CMYK", else Pillow's name of the mode."""
    if image.has_transparency_data:
        return "alpha"
    named = {"P": "palette", "L": "grey", "1": "grey"}
    return "grey" if _has_sixteen_bits(image) else named.get(image.mode, image.mode)


def is_rotated(image: Image.Image) -> bool:
    """True if the EXIF orientation rotates or mirrors the image."""
    return _turn(image) is not None


def _turn(image: Image.Image) -> Image.Transpose | None:
    """The transposition that the EXIF orientation asks for; None if there is none, or EXIF data cannot be read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings of damaged EXIF data do not name the file
            return TURNS.get(image.getexif().get(ORIENTATION, 1))
    except Exception:  # damaged EXIF data raise nearly anything
        return None


def _has_sixteen_bits(image: Image.Image) -> bool:
    """True if the image is 16-bit grey, which for a .pgm Pillow opens in its 32-bit mode."""
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM")


def upright(image: Image.Image, channels: int, *, behind: str = "white") -> Image.Image:
    """The image as a viewer shows it, in RGB (3 channels) or grey (1): rotated by EXIF, transparency on white, or on
    the colour `behind`.

    The releases only convert to RGB, which shows the colours of transparent pixels and ignores EXIF.
    """
    turn = _turn(image)  # not ImageOps.exif_transpose, which rewrites EXIF and fails on unusual tags
    if _has_sixteen_bits(image):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if turn is not None:
        image = image.transpose(turn)
    if image.mode in ("I", "F"):
        raise UnreadableImage("", f"32-bit pixels (mode {image.mode}) have no known range; save it with 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("LA") if image.mode == "La" else image  # Pillow converts La to nothing else
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, behind), image)
    if image.mode == "LAB":
        image = image.convert("RGB")
    return image.convert("RGB" if channels == 3 else "L")


def square(image: Image.Image, size: int, crop: Crop, corner: tuple[float, float] = (0.5, 0.5)) -> Image.Image:
    """The image cut or padded to size x size pixels.

    "centre" is `centre_crop`, "random" is `random_crop` at `corner`, "pad" centres it on black. Raises UnreadableImage
    for an image that is too small, or, with "pad", too large.
    """
    if crop == "pad":
        if max(image.size) > size:
            raise UnreadableImage("", f"{image.width} x {image.height} pixels do not fit into {size} x {size}; crop it")
        return _pad(image, size)
    if min(image.size) * MAX_UPSAMPLING < size:
        raise UnreadableImage(
            "",
            f"{image.width} x {image.height} pixels are too few for {size} x {size}: images are upsampled at most "
            f"{MAX_UPSAMPLING}-fold",
        )
    return centre_crop(image, size) if crop == "centre" else random_crop(image, size, corner)


def centre_crop(image: Image.Image, size: int) -> Image.Image:
    """ADM's centre crop: halve by box filter while twice the size or more, bicubic to the short side, crop the middle.

    Source: guided-diffusion, image_datasets.py `center_crop_arr`; SiT and ARFlow use it too.
    """
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def random_crop(image: Image.Image, size: int, corner: tuple[float, float]) -> Image.Image:
    """VAR's random crop: resize the short side to 1.125 times the size, then cut a square at `corner`.

    corner (x, y) is a fraction in [0, 1) of the possible offsets. The filter is bilinear, as in released FlowAR
    (main.py); VAR's own is Lanczos.
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
    """The pixels of an RGB or grey image, channels first."""
    array = np.asarray(image)
    return array[None] if array.ndim == 2 else np.ascontiguousarray(np.moveaxis(array, -1, 0))
