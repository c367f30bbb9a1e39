"""Arrays in an .npz, verified before they are used: a flipped bit, a bomb or a pickle is refused by name."""

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

CHUNK = 2**22
HEADER = 2**16  # bytes of an array's header at most
DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, UnicodeError, OverflowError)


class Array(NamedTuple):
    """An array in an archive, its header read and nothing of its content."""

    member: zipfile.ZipInfo
    shape: tuple[int, ...]
    dtype: np.dtype
    start: int
    """Bytes of the member before the content."""


@contextmanager
def opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """The archive. Raises ValueError that names it for whatever is found to be wrong inside the block."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if len(set(names)) < len(names):
                raise ValueError("it has two arrays of one name")
            yield archive
    except ValueError as error:
        raise ValueError(str(error) if str(path) in str(error) else f"{path}: {error}") from error
    except (OSError, *DAMAGE) as error:
        raise ValueError(f"{path} cannot be read as .npz: {error}") from error


def names(archive: zipfile.ZipFile) -> set[str]:
    """Names of the arrays."""
    return {name.removesuffix(".npy") for name in archive.namelist()}


def array(archive: zipfile.ZipFile, name: str) -> Array:
    """The header of an array, checked against the size of its member: what it claims is there.

    Raises ValueError for anything but a plain array in C order.
    """
    member = archive.getinfo(f"{name}.npy")
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, by_columns, dtype = header(file, max_header_size=HEADER)
        start = file.tell()
    if by_columns or dtype.hasobject:
        raise ValueError(f"{name} must be a plain array in C order, got {dtype}, Fortran order {by_columns}")
    if (size := start + prod(shape) * dtype.itemsize) != member.file_size:
        raise ValueError(
            f"{name} is damaged: its header says {dtype} of {shape}, {size:,} bytes, and it has {member.file_size:,}"
        )
    return Array(member, shape, dtype, start)


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
    """A whole array, verified."""
    found = array(archive, name)
    with archive.open(found.member) as file:
        content: Any = file.read()  # to the end, where the CRC-32 is compared
    return np.frombuffer(content, found.dtype, offset=found.start).reshape(found.shape)
