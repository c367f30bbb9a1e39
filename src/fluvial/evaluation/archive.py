"""Checked reading of .npz files: damage, decompression bombs and pickles raise a ValueError naming the array."""

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
END = 22 + 2**16  # bytes of a zip's end record with the longest comment
HEADER = 2**16  # largest array header, in bytes
LARGEST = 2**30  # largest array that is read at once, in bytes: labels, mean and covariance
VERSIONS = ((1, 0), (2, 0), (3, 0))  # of numpy's format; 3.0 allows field names outside Latin-1


class Array(NamedTuple):
    """The header of an array in an archive; its content is not read yet."""

    member: zipfile.ZipInfo
    shape: tuple[int, ...]
    dtype: np.dtype
    by_columns: bool
    """Fortran order."""
    start: int
    """Offset of the content in the member, in bytes."""


@contextmanager
def opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """Opens an .npz archive. Errors inside the block become a ValueError that names the file."""
    try:
        if path.exists() and not path.is_file():
            raise ValueError("it is not a file")
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if (count := _count(path)) != len(members):
                raise ValueError(f"it is damaged: of its {count} arrays {len(members)} are found")
            if len({member.filename for member in members}) < len(members):
                raise ValueError("it has two arrays of one name")
            for member in members:
                archive.open(member).close()  # compares its name in the directory with its local header's
            yield archive
    except ValueError as error:
        raise ValueError(str(error) if str(path) in str(error) else f"{path}: {error}") from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read as .npz: {error}") from error
    except ZIP_DAMAGE as error:
        raise ValueError(f"{path} cannot be read as .npz: {error}; copy it again, or make it again") from error


def _count(path: Path) -> int:
    """The number of members according to the zip's end record; damage can hide members from zipfile in a comment."""
    with reading(path) as file:
        file.seek(-min(path.stat().st_size, END), os.SEEK_END)
        tail = file.read()
    at = tail.rfind(b"PK\x05\x06")
    return int.from_bytes(tail[at + 10 : at + 12], "little")


def names(archive: zipfile.ZipFile) -> set[str]:
    """The names of the arrays in the archive."""
    return {name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")}


def array(archive: zipfile.ZipFile, name: str) -> Array:
    """Reads the header of an array and checks it against the size of its member.

    Raises ValueError if it is not a numpy array, holds objects, or its size does not match the header.
    """
    member = archive.getinfo(f"{name}.npy")
    with archive.open(member) as file:
        first = BytesIO(file.read(HEADER))  # bounded, whatever length the header claims
    try:
        if (version := np.lib.format.read_magic(first)) not in VERSIONS:
            raise ValueError(f"version {version}")
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, by_columns, dtype = header(first, max_header_size=HEADER)
    except Exception as error:  # a damaged header raises nearly anything, MemoryError too
        raise ValueError(f"{name} is not a numpy array: {str(error)[:100] or type(error).__name__}") from error
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
    """Reads an array to its end, so that zipfile checks its CRC-32: 1 to 2 GB/s if it is stored uncompressed.

    Raises ValueError or zipfile.BadZipFile if it is damaged.
    """
    left = found.member.file_size
    with archive.open(found.member) as file:
        while content := file.read(CHUNK):
            left -= len(content)
    if left:
        raise ValueError(f"{found.member.filename} is cut short by {left:,} bytes")


def read(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """Reads and verifies an array. Raises ValueError above 1 GB uncompressed."""
    found = array(archive, name)
    if found.member.file_size > LARGEST:
        raise ValueError(f"{name} would take {found.member.file_size:,} bytes; at most {LARGEST:,} are read")
    with archive.open(found.member) as file:
        content: Any = file.read()  # to the end, where zipfile checks the CRC-32
    values = np.frombuffer(content, found.dtype, offset=found.start)
    return values.reshape(found.shape, order="F" if found.by_columns else "C")
