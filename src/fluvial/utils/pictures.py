"""Writes image grids as PNG, trajectories as GIF, and the .npz file that evaluation suites read."""

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from fluvial.utils.atomic import atomic_file, write_bytes
from fluvial.utils.files import make_folder

MIN_SIDE = 48  # smaller images are upsampled by a whole factor (nearest) to about this side

LARGE = 64  # pixels of a side above which fewer images are drawn, as they take long to decode


def preview(side: int) -> int:
    """The number of images in the grids drawn during training, of images of that side."""
    return 100 if side <= LARGE else 16


def grid(images: UInt8[Tensor, "n c h w"], columns: int = 10, gap: int = 1) -> Image.Image:
    """A grid of the images, row by row, with white gaps; small images are upsampled by a whole factor."""
    n, c, h, w = images.shape
    if c not in (1, 3):
        raise ValueError(f"a picture needs 1 or 3 channels, got {c}")
    columns = min(columns, n)
    rows = -(-n // columns)
    sheet = torch.full((c, rows * (h + gap) + gap, columns * (w + gap) + gap), 255, dtype=torch.uint8)
    for i, image in enumerate(images):
        top, left = gap + i // columns * (h + gap), gap + i % columns * (w + gap)
        sheet[:, top : top + h, left : left + w] = image
    factor = max(1, MIN_SIDE // max(h, w))
    array = sheet.permute(1, 2, 0).numpy()
    picture = Image.fromarray(array[:, :, 0] if c == 1 else array)
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)


def save_grid(images: UInt8[Tensor, "n c h w"], path: Path, columns: int = 10) -> Path:
    """Writes a grid of the images as PNG; returns the path."""
    return _save(grid(images, columns), path)


def save_strip(stages: Sequence[UInt8[Tensor, "n c h w"]], path: Path, rows: int = 10) -> Path:
    """Writes a PNG with one row per image and one column per stage, such as FlowAR's scales, coarse to fine."""
    images = torch.stack(list(stages), dim=1)[:rows].flatten(0, 1)
    return save_grid(images, path, columns=len(stages))


def save_labelled_rows(rows: Mapping[str, UInt8[Tensor, "n c h w"]], path: Path) -> Path:
    """Writes a PNG with one row of images per name, each row labelled by its name on the left."""
    return _save(labelled_rows(rows), path)


def labelled_rows(rows: Mapping[str, UInt8[Tensor, "n c h w"]], top: Sequence[str] = ()) -> Image.Image:
    """A picture with one row of images per name, each labelled on the left, and the columns, if named, on top."""
    sheets = {name: grid(images, columns=len(images)).convert("RGB") for name, images in rows.items()}
    font = ImageFont.load_default(16)
    left = 16 + max(int(font.getlength(name)) for name in sheets)
    width, height = max(s.width for s in sheets.values()), sum(s.height for s in sheets.values())
    above = 24 if top else 0
    each = width / max(1, len(top))
    wide = max((font.getlength(name) for name in top), default=0.0) + 8
    if wide > each:  # the images are too small for what is written above them
        sheets = {
            name: sheet.resize((int(wide * len(top)), int(sheet.height * wide / each)), Image.Resampling.NEAREST)
            for name, sheet in sheets.items()
        }
        width, height, each = int(wide * len(top)), sum(s.height for s in sheets.values()), wide
    picture = Image.new("RGB", (left + width, above + height), "white")
    draw = ImageDraw.Draw(picture)
    for i, name in enumerate(top):
        draw.text((left + (i + 0.5) * each, above / 2), name, fill="black", font=font, anchor="mm")
    down = above
    for name, sheet in sheets.items():
        picture.paste(sheet, (left, down))
        draw.text((8, down + sheet.height // 2), name, fill="black", font=font, anchor="lm")
        down += sheet.height
    return picture


def save_gif(frames: Sequence[UInt8[Tensor, "n c h w"]], path: Path, columns: int = 10) -> Path:
    """A looping GIF of grids, one frame per step."""
    return _write(gif(frames, columns), path)


def gif(frames: Sequence[UInt8[Tensor, "n c h w"]], columns: int = 10, milliseconds: int = 80, hold: int = 12) -> bytes:
    """The content of a looping GIF of grids, one frame a step; the last one stays for `hold` frames."""
    pictures = [grid(frame, columns).convert("L" if frame.shape[1] == 1 else "RGB") for frame in frames]
    durations = [milliseconds] * (len(pictures) - 1) + [milliseconds * hold]
    return encoded(pictures[0], "gif", save_all=True, append_images=pictures[1:], duration=durations, loop=0)


def encoded(picture: Image.Image, form: str, **options: Any) -> bytes:  # noqa: ANN401 - any of the format's
    """The content of a file of this format, such as "png"."""
    content = BytesIO()  # writing to a file, Pillow does not notice short writes, as on a full disk
    picture.save(content, form, **options)
    return content.getvalue()


def _save(picture: Image.Image, path: Path) -> Path:
    """Writes the picture atomically, in the format of the path's suffix; returns the path."""
    return _write(encoded(picture, path.suffix[1:]), path)


def _write(content: bytes, path: Path) -> Path:
    make_folder(path.parent)
    write_bytes(path, content)
    return path


def save_npz(images: UInt8[Tensor, "n c h w"], labels: Tensor | None, path: Path) -> Path:
    """Writes images in the .npz layout of the ADM evaluation suite; returns the path.

    arr_0 is (n, h, w, c) uint8, arr_1 the labels if there are any. Grey images are repeated to three channels, which
    evaluation suites expect.
    """
    array = images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images
    arrays = [array.permute(0, 2, 3, 1).numpy()] + ([] if labels is None else [labels.numpy()])
    make_folder(path.parent)
    with atomic_file(path) as temporary:
        np.savez(temporary, *arrays)
    return path


def save_captioned(images: UInt8[Tensor, "n c h w"], captions: Sequence[str], path: Path, columns: int) -> Path:
    """Writes a PNG grid of the images with a line of text below each; returns the path."""
    font, line = ImageFont.load_default(12), 16
    tiles = [grid(image[None], columns=1).convert("RGB") for image in images]
    width = max(tiles[0].width, 4 + max(int(font.getlength(text)) for text in captions))
    rows = -(-len(tiles) // columns)
    picture = Image.new("RGB", (columns * width, rows * (tiles[0].height + line)), "white")
    for i, (tile, text) in enumerate(zip(tiles, captions, strict=True)):
        left, top = i % columns * width, i // columns * (tile.height + line)
        picture.paste(tile, (left, top))
        ImageDraw.Draw(picture).text((left + 2, top + tile.height), text, fill="black", font=font)
    return _save(picture, path)
