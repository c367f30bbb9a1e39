"""Arrays in an .npz, verified before they are used: a flipped bit, a bomb or a pickle is refused by name."""

import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fluvial.utils.files import ZIP_DAMAGE, reading

CHUNK = 2**22
END = 22 + 2**16  # bytes of the end of a zip with the longest comment
HEADER = 2**16  # bytes of an array's header at most
LARGEST = 2**30  # bytes of an array that is read whole: labels, mean and covariance
VERSIONS = ((1, 0), (2, 0), (3, 0))  # of numpy's format; in 3.0 names of fields may be outside Latin-1


class Array(NamedTuple):
    """An array in an archive, its header read and nothing of its content."""

    member: zipfile.ZipInfo
    shape: tuple[int, ...]
    dtype: np.dtype
    by_columns: bool
    """Fortran order."""
    start: int
    """Bytes of the member before the content."""


@contextmanager
def opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """The archive. Raises ValueError that names it for whatever is found to be wrong inside the block."""
    try:
        if path.exists() and not path.is_file():
            raise ValueError("it is no file")
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if (count := _count(path)) != len(members):
                raise ValueError(f"it is damaged: of its {count} arrays {len(members)} are found")
            if len({member.filename for member in members}) < len(members):
                raise ValueError("it has two arrays of one name")
            for member in members:
                archive.open(member).close()  # compares its name in the directory with that before its content
            yield archive
    except ValueError as error:
        raise ValueError(str(error) if str(path) in str(error) else f"{path}: {error}") from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read as .npz: {error}") from error
    except ZIP_DAMAGE as error:
        raise ValueError(f"{path} cannot be read as .npz: {error}; copy it again, or make it again") from error


def _count(path: Path) -> int:
    """How many members the end of a zip says that it has; zipfile misses those that damage hides in a comment."""
    with reading(path) as file:
        file.seek(-min(path.stat().st_size, END), os.SEEK_END)
        tail = file.read()
    at = tail.rfind(b"PK\x05\x06")
    return int.from_bytes(tail[at + 10 : at + 12], "little")


def names(archive: zipfile.ZipFile) -> set[str]:
    """Names of the arrays."""
    return {name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")}


def array(archive: zipfile.ZipFile, name: str) -> Array:
    """The header of an array, checked against the size of its member: what it claims is there.

    Raises ValueError for what is no array, or an array of objects.
    """
    member = archive.getinfo(f"{name}.npy")
    with archive.open(member) as file:
        first = BytesIO(file.read(HEADER))  # no more, however long a header it claims to have
    try:
        if (version := np.lib.format.read_magic(first)) not in VERSIONS:
            raise ValueError(f"version {version}")
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, by_columns, dtype = header(first, max_header_size=HEADER)
    except Exception as error:  # a damaged header raises nearly anything, MemoryError too
        raise ValueError(f"{name} is no array of numpy's: {str(error)[:100] or type(error).__name__}") from error
    start = first.tell()
    if dtype.hasobject:
        raise ValueError(f"{name} must be a plain array, got {dtype}: objects may run any code when they are read")
    if not all(type(side) is int and side >= 0 for side in shape):
        raise ValueError(f"{name} is damaged: its header says that its shape is {shape}")
    if (size := start + prod(shape) * dtype.itemsize) != member.file_size:
        raise ValueError(
            f"{name} is damaged: its header says {dtype} of {shape}, {size:,} bytes, and it has {member.file_size:,}"
        )
    return Array(member, shape, dtype, by_columns, start)


def verify(archive: zipfile.ZipFile, found: Array) -> None:
    """Reads the array through, so that zipfile compares its CRC-32: 1 to 2 GB/s where it is stored uncompressed.

    Raises ValueError or zipfile.BadZipFile if it is not as it was written.
    """
    left = found.member.file_size
    with archive.open(found.member) as file:
        while content := file.read(CHUNK):
            left -= len(content)
    if left:
        raise ValueError(f"{found.member.filename} is cut short by {left:,} bytes")


def read(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """A whole array, verified. Raises ValueError for one above 1 GB, however small it is in the file."""
    found = array(archive, name)
    if found.member.file_size > LARGEST:
        raise ValueError(f"{name} would take {found.member.file_size:,} bytes; at most {LARGEST:,} are read")
    with archive.open(found.member) as file:
        content: Any = file.read()  # to the end, where the CRC-32 is compared
    values = np.frombuffer(content, found.dtype, offset=found.start)
    return values.reshape(found.shape, order="F" if found.by_columns else "C")
