"""Images in .npz files as the ADM suite has them and `fluvial sample` writes."""

import hashlib
import struct
import zipfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from fluvial.data.labels import Classes
from fluvial.evaluation import archive
from fluvial.evaluation.images import Images
from fluvial.sampling import RECORD, SAMPLES, WEIGHTS
from fluvial.utils.files import brief, checksum, named, read_checked


def open_npz(path: Path, *, grey: bool = False) -> Images:
    """The images arr_0 (n, h, w, c), with the labels arr_1 if present; read in batches, as files may have 10 GB."""
    expected = "expected images as in the ADM suite: arr_0 of shape (n, height, width, channels)"
    with archive.opened(path) as file:
        names = archive.names(file)
        if "arr_0" not in names:
            found = (
                "only statistics, which can be a --reference"
                if "mu" in names
                else ", ".join(sorted(names)) or "no array"
            )
            raise ValueError(f"{path} has no arr_0 but {found}; {expected}")
        images = archive.array(file, "arr_0")
        shape, dtype = images.shape, images.dtype
        if len(shape) != 4 or shape[-1] not in (1, 3) or 0 in shape:
            raise ValueError(f"{path}: arr_0 has the shape {shape}; {expected} with 1 or 3 channels")
        if dtype != np.uint8 and not np.issubdtype(dtype, np.floating):
            raise ValueError(f"{path}: arr_0 is {dtype}; expected pixels as uint8 in 0 ... 255 or floats in [0, 1]")
        if images.by_columns:
            raise ValueError(f"{path}: arr_0 is in Fortran order; save it again with numpy.ascontiguousarray")
        labels = _labels(file, shape[0], path) if "arr_1" in names else None
        archive.verify(file, images)
    with named(path):
        opened, at = _content(images, path)
    step = int(np.prod(shape[1:])) * dtype.itemsize

    def read(wanted: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        rows = []
        for i in wanted:
            with named(path):
                opened.seek(at + i * step)
                content = opened.read(step)
            if len(content) < step:
                raise ValueError(f"{path} is cut short: it ends in image {i} of {shape[0]}")
            rows.append(np.frombuffer(content, dtype).reshape(shape[1:]))
        pixels = np.stack(rows) if dtype == np.uint8 else _rounded(np.stack(rows), path)
        if grey and (pixels != pixels[..., :1]).any():
            raise ValueError(f"{path}: the images are coloured and cannot be read as grey")
        pixels = pixels[..., :1] if grey else pixels
        part = torch.from_numpy(np.ascontiguousarray(np.moveaxis(pixels, -1, 1)))
        return part, None if labels is None else labels[torch.tensor(wanted)]

    about: dict[str, Any] = {"cut": "as they are", "rounding": None, "labels": None}
    if dtype != np.uint8:
        about["rounding"] = "to the nearest of 256 levels"
    content = cache(lambda: checksum(path))
    record = path.with_name(RECORD)
    if path.name == SAMPLES and record.exists():
        about |= _record(record, path, content())
    grey = about.pop("grey", False) or grey  # grey samples are stored with three channels, which evaluators expect

    def digest(wanted: Sequence[int]) -> str:
        rows = "" if len(wanted) == shape[0] else f"{list(wanted)}"
        return hashlib.sha256(f"{content()} {grey} {rows}".encode()).hexdigest()

    return Images(str(path), shape[0], read, digest, about, None if labels is None else Classes((), (), False))


def _record(record: Path, path: Path, content: str) -> dict[str, Any]:
    """The sampling record that `fluvial sample` wrote beside the samples; `content` is the hash of their file."""
    try:
        about = read_checked(record)
        told = about.pop("file_sha256")
        for name in ("set", WEIGHTS):  # the plan and parts of images in parts, and their model
            about.pop(name, None)
        if not isinstance(about["sampling"], dict):
            raise ValueError(f"sampling is {about['sampling']!r}")
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise ValueError(f"{record} cannot be read: {brief(error)}; sample again, or move it away") from error
    if told != content:
        raise ValueError(
            f"{record} belongs to another {path.name} than the one beside it: one of them is damaged or was replaced; "
            f"sample again, or move it away to score the images without it"
        )
    return about


def _labels(file: zipfile.ZipFile, count: int, path: Path) -> Int[Tensor, "n"]:
    """The labels arr_1, checked to be one class id per image."""
    found = archive.array(file, "arr_1")
    if not np.issubdtype(found.dtype, np.integer):
        raise ValueError(f"{path}: arr_1 must be a class id for each image, got {found.dtype}")
    if found.shape != (count,):
        raise ValueError(f"{path}: arr_1 must be a class id for each of {count} images, got {found.shape}")
    ids = archive.read(file, "arr_1").astype(np.int64)
    if count and ids.min() < 0:
        raise ValueError(f"{path}: arr_1 must be class ids from 0 on, got {ids.min()}")
    return torch.from_numpy(ids)


def _content(found: archive.Array, path: Path) -> tuple[Any, int]:
    """An open file and the offset in it at which the content of the verified array begins."""
    if found.member.compress_type != zipfile.ZIP_STORED:
        return zipfile.ZipFile(path).open(found.member), found.start
    plain = path.open("rb")  # seeks directly, where zipfile would read the member up to the row
    plain.seek(found.member.header_offset + 26)
    name_length, extra_length = struct.unpack("<HH", plain.read(4))  # from the local header, 30 bytes long
    return plain, found.member.header_offset + 30 + name_length + extra_length + found.start


def _rounded(pixels: np.ndarray, path: Path) -> np.ndarray:
    """Floats in [0, 1] as uint8 in 0 ... 255."""
    low, high = float(pixels.min()), float(pixels.max())
    if not (low >= 0 and high <= 1):  # NaN too
        raise ValueError(
            f"{path}: pixels run from {low:.4g} to {high:.4g}; floats must be in [0, 1] ([-1, 1] by (x + 1) / 2): "
            "clipping would change the images and their score"
        )
    return np.round(pixels * 255).astype(np.uint8)
