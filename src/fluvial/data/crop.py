"""From whatever an image file holds to a square of 8-bit pixels."""

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
Stored = bytes | Path | np.ndarray  # an image as it is stored: encoded, in a file, or as plain numbers
Crop = Literal["centre", "random", "pad"]
ENLARGED = 8  # an image that would have to grow more than this is taken for a mistake
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
    """An image that cannot be used: its name, and why."""

    def __init__(self, name: str, reason: str) -> None:
        self.name, self.reason = printable(name), reason
        super().__init__(f"{self.name}: {reason}")


def decode(source: Stored, name: str, use: Callable[[Image.Image], T]) -> T:
    """What `use` makes of the decoded image, of several frames the first.

    Raises UnreadableImage for one that cannot be decoded or used.
    """
    try:
        if isinstance(source, np.ndarray):
            return use(from_array(source))
        # a file is opened here, since one that Pillow opens is mapped into memory: it ends the process if it shrinks
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
    """A PNG that Pillow refuses is tried once more without what is not of the image, such as a large text."""
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
    """The PNG whose signature was read, with only the chunks that say what the image looks like."""
    parts = [PNG]
    while len(head := stream.read(8)) == 8:
        length, kind = int.from_bytes(head[:4]), head[4:]
        if kind in PNG_CHUNKS:
            parts += [head, stream.read(length + 4)]  # with its checksum
        else:
            stream.seek(length + 4, 1)
    return b"".join(parts)


def _told(error: Exception) -> str:
    """The error in words, without the address of an object of ours."""
    if isinstance(error, UnidentifiedImageError):
        return "Pillow cannot identify it as an image"
    return str(error) or repr(error)


def regular(path: Path) -> Path:
    """The path of a regular file. Raises UnreadableImage for a pipe or a device, whose reading may never end."""
    try:
        other = irregular(path)
    except FileNotFoundError:
        what = f"is a link to {path.readlink()}, which is not there" if path.is_symlink() else "is not there"
        raise UnreadableImage(str(path), what) from None
    if other:
        raise UnreadableImage(str(path), f"is {other}, not a file")
    return path


def content(source: Stored) -> bytes:
    """The bytes of the file, or those of the numbers with their shape."""
    if isinstance(source, np.ndarray):
        return f"{source.dtype} {source.shape} ".encode() + source.tobytes()
    return read_bytes(regular(source)) if isinstance(source, Path) else source


def from_array(array: np.ndarray) -> Image.Image:
    """The image of numbers in 0 ... 255: (h, w) or (h, w, c), else (c, h, w), with c of 1, 3 or 4.

    Whole numbers of any type are taken for 0 ... 255, and refused if they are not in it. Raises UnreadableImage.
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
    """How the file stores its pixels: "RGB", "grey", "alpha", "palette" or "CMYK", or Pillow's name of a rare mode."""
    if image.has_transparency_data:
        return "alpha"
    named = {"P": "palette", "L": "grey", "1": "grey"}
    return "grey" if _has_sixteen_bits(image) else named.get(image.mode, image.mode)


def is_rotated(image: Image.Image) -> bool:
    """Whether the EXIF data ask for the image to be turned or mirrored."""
    return _turn(image) is not None


def _turn(image: Image.Image) -> Image.Transpose | None:
    """How EXIF wants the image turned. Of EXIF data that cannot be read nothing is known, and nothing is turned."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of damaged EXIF data, by no name
            return TURNS.get(image.getexif().get(ORIENTATION, 1))
    except Exception:  # as for decoders: nearly anything
        return None


def _has_sixteen_bits(image: Image.Image) -> bool:
    """Whether the image is grey with 16 bits. Pillow has no other mode than that of 32 for those of a .pgm."""
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM")


def upright(image: Image.Image, channels: int) -> Image.Image:
    """The image as a viewer shows it, in RGB (3 channels) or grey (1): turned as EXIF says, transparency on white.

    The releases convert to RGB only, which shows what lies under transparent pixels and leaves EXIF aside.
    """
    turn = _turn(image)  # the rest of EXIF stays behind: Pillow's own turning writes it anew, which odd tags prevent
    if _has_sixteen_bits(image):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if turn is not None:
        image = image.transpose(turn)
    if image.mode in ("I", "F"):
        raise UnreadableImage("", f"32-bit pixels (mode {image.mode}) have no known range; save it with 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("LA") if image.mode == "La" else image  # the only conversion that there is of it
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    if image.mode == "LAB":
        image = image.convert("RGB")
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
