"""Reading files that may be damaged or no regular files, their checksums, and errors that name them."""

import errno
import hashlib
import json
import os
import re
import shutil
import stat
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any

NONBLOCK = getattr(os, "O_NONBLOCK", 0)  # not on Windows, which has no pipes in folders to wait for
# what zipfile raises for damaged archives
ZIP_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, UnicodeError, OverflowError)


def irregular(path: Path) -> str:
    """The kind of what is no regular file, such as "a pipe", which a reader may wait for; "" for a regular file."""
    mode = path.stat().st_mode
    kinds = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFDIR: "a folder"}
    return "" if stat.S_ISREG(mode) else kinds.get(stat.S_IFMT(mode), "a device")


def at_once(path: str, flags: int) -> int:
    """An `opener` for `open` that does not wait for a process at the other end of a pipe."""
    return os.open(path, flags | NONBLOCK, 0o666)


def check_folder(path: Path) -> None:
    """Raises ValueError if a file, or a link that leads nowhere, stands where a folder is to be made."""
    for place in (path, *path.parents):
        if place.is_symlink() and not place.exists():
            raise ValueError(f"{place} is a link to {place.readlink()}, which is not there; choose another name")
        if place.exists() and not place.is_dir():
            raise ValueError(f"{place} is there and is no folder; choose another name")


def make_folder(path: Path) -> None:
    """Makes a folder, with those above it, unless it is there. Raises ValueError as `check_folder` does."""
    check_folder(path)
    path.mkdir(parents=True, exist_ok=True)


def check_room(folder: Path, needed: int, *, what: str, advice: str) -> None:
    """Raises ValueError if the disk of a folder, which need not exist yet, has fewer bytes free than `what` needs."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise ValueError(
            f"{what} need about {needed / 1e6:,.0f} MB, and the disk of {there} has {free / 1e6:,.0f} MB free; "
            f"make room, {advice}"
        )


@contextmanager
def reading(path: Path) -> Iterator[BufferedReader]:
    """A regular file, opened to read. Raises OSError that names it, also where reading fails later."""
    if what := irregular(path):
        raise OSError(errno.EISDIR if what == "a folder" else errno.EINVAL, f"it is {what}, not a file", str(path))
    with named(path), path.open("rb") as file:
        yield file


def read_bytes(path: Path) -> bytes:
    """The content of a file. Raises OSError that names it."""
    with reading(path) as file:
        return file.read()


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Adds the path to errors of the operating system that name none, as those of reading an open file."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def checksum(file: Path) -> str:
    """The SHA-256 of a file."""
    with reading(file) as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def json_checksum(values: Mapping[str, Any]) -> str:
    """The SHA-256 of JSON values, whatever the order of keys and the spaces in a file."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def read_checked(file: Path) -> dict[str, Any]:
    """The values of a JSON file with the SHA-256 of its content, without that.

    Raises ValueError, KeyError, AttributeError or TypeError if it is no such file, or not as it was written.
    """
    values = json.loads(read_bytes(file))
    if values.pop("sha256") != json_checksum(values):
        raise ValueError("its content is not what was written, the SHA-256 is another")
    return values


def check_zip(path: Path, *, unpacked: int) -> list[zipfile.ZipInfo]:
    """The members of a zip archive, whose CRC-32 are compared, as PyTorch does not.

    Raises ValueError that names the file and what is wrong: it is damaged, has two members of one name, or would unpack
    to more than so many bytes.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            names = [member.filename for member in members]
            if len(set(names)) < len(names):
                raise ValueError(f"{path} is refused: it has two members of one name")
            size, unpacks_to = path.stat().st_size, sum(member.file_size for member in members)
            if unpacks_to > unpacked:
                raise ValueError(f"{path} is refused: it has {size:,} bytes and would unpack to {unpacks_to:,}")
            wrong = archive.testzip()
    except (OSError, *ZIP_DAMAGE) as error:
        if getattr(error, "filename", None):  # it cannot be opened; without a name, a place to read at is nonsense
            raise
        raise ValueError(f"{path} is truncated or damaged ({error}); download it again") from error
    if wrong is not None:
        raise ValueError(f"{path} is damaged: the checksum of {wrong} is another; download it again")
    return members


def plain(error: BaseException) -> str:
    """The first line of a library's error, without advice to unpickle what it refuses, which would run code."""
    lines = [line.strip() for line in str(error).splitlines()]
    unsafe = re.compile(r"weights_only|torch\.load|trust|arbitrary code", re.IGNORECASE)
    told = [" ".join(s for s in re.split(r"(?<=[.!?])\s+", line) if not unsafe.search(s)) for line in lines]
    return next(filter(None, told), type(error).__name__)


def brief(error: BaseException) -> str:
    """An error's type and message in at most 300 characters; a repr may quote all of a damaged file."""
    return f"{type(error).__name__}: {error}"[:300]
