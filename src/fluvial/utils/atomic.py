"""Atomic writes of files and folders, which are there complete or as they were before, and locks of run folders."""

import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import lock_descriptor

from fluvial.utils.files import NONBLOCK, at_once, make_folder, named

NOTHING_LOST = "what was there before is as it was"
REPLACED = "replaced already:"
TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.(tmp(\..*)?|partial)")  # names of temporary files and folders
TRIES, PAUSE = 3, 0.05  # seconds between tries to lock a run folder, which `check_unlocked` locks for a moment

# A lock of Windows keeps its holder's other handles from writing, too, and neither an open file nor a folder with one
# in it can be renamed there: temporary files are not locked, so those that a killed writer left stay. A folder cannot
# be opened there, so neither flushed.
WINDOWS = os.name == "nt"


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A temporary file with the same ending to write to, which is flushed to disk and becomes `path` at the end.

    If that fails, `path` stays as it was. Raises OSError that names it, such as for a full disk, and ValueError if
    there is something else than a file, such as /dev/null, which a rename would replace.
    """
    path = path.resolve()  # of a link, the file that it points to
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is there and is no file; choose another name")
    replaced: list[str] = []
    with naming(path, replaced), _temporary(path.parent, f".{path.stem}.", f".tmp{path.suffix}") as temporary:
        yield temporary
        flush(temporary)
        os.replace(temporary, path)
        replaced.append(path.name)
        flush(path.parent)


@contextmanager
def atomic_files(folder: Path) -> Iterator[Path]:
    """A temporary folder to write files to, which are flushed to disk and moved to `folder` together at the end.

    If writing fails, those of the same names in `folder` stay as they were. Raises OSError that names the file.
    """
    make_folder(folder)
    replaced: list[str] = []
    with naming(folder, replaced), _temporary(folder, ".files.", ".tmp", is_folder=True) as temporary:
        yield temporary
        files = sorted(temporary.iterdir())
        for file in files:
            flush(file)
        for file in files:
            os.replace(file, folder / file.name)
            replaced.append(file.name)
        flush(folder)


@contextmanager
def atomic_folder(out: Path) -> Iterator[Path]:
    """A temporary folder to fill, which becomes `out` at the end of the block and vanishes if that fails.

    Raises ValueError if there is something at `out` already.
    """
    out = out.resolve()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is there already, and not empty; choose another with --out")
    made = [folder for folder in out.parents if not folder.exists()]
    try:
        make_folder(out.parent)
        with naming(out), _temporary(out.parent, f".{out.name}.", ".partial", is_folder=True) as partial:
            yield partial
            for path in (*partial.rglob("*"), partial):
                flush(path)
            if WINDOWS and out.exists():
                out.rmdir()  # elsewhere an empty folder is replaced
            os.replace(partial, out)
            made = []
            flush(out.parent)
    finally:
        for folder in made:
            with suppress(OSError):
                folder.rmdir()


def write_json(path: Path, values: Mapping[str, Any] | Sequence[Any]) -> None:
    """Writes JSON in an atomic write."""
    write_bytes(path, (json.dumps(values, indent=2) + "\n").encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file in an atomic write."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(content)


def flush(path: Path) -> None:
    """Flushes a file or folder to disk. Raises OSError that names it."""
    if WINDOWS and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDWR if WINDOWS else os.O_RDONLY)  # Windows flushes only what may be written
    try:
        with named(path):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Removes a file, a folder, or a link and not what it points to; what cannot be removed of a folder is left."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Locks a folder for this process. Raises ValueError if another has locked it; a lock ends with its process."""
    make_folder(folder)
    with open(folder / ".lock", "ab", opener=at_once) as file:
        _lock(file.fileno(), folder)
        yield


def check_unlocked(folder: Path) -> None:
    """Raises ValueError if another process has locked the folder with `only_one`; writes nothing."""
    lock = folder / ".lock"
    if not lock.exists():
        return
    # NFS grants the lock only to those that may write
    descriptor = os.open(lock, (os.O_RDWR if os.access(lock, os.W_OK) else os.O_RDONLY) | NONBLOCK)
    try:
        _lock(descriptor, folder)
    finally:
        os.close(descriptor)


def _lock(descriptor: int, folder: Path) -> None:
    """Locks the opened .lock of a folder. Raises ValueError if another process has, OSError if there are no locks."""
    with named(folder / ".lock"):
        for _ in range(TRIES):
            if lock_descriptor(descriptor, blocking=False):
                return
            time.sleep(PAUSE)
    raise ValueError(f"another process is training in {folder}; wait for it, or choose another folder")


@contextmanager
def _temporary(folder: Path, begin: str, end: str, *, is_folder: bool = False) -> Iterator[Path]:
    """A temporary file or folder of a new name, locked while it is in use and removed afterwards.

    Removes what killed writers left under such names.
    """
    for old in [p for p in folder.iterdir() if p.name.startswith(begin) and p.name.endswith(end)]:
        with suppress(OSError):
            _remove_abandoned(old)
    temporary, lock = _new(folder, begin, end, is_folder)
    try:
        yield temporary
    finally:
        remove(temporary)
        if lock is not None:
            os.close(lock)


def _new(folder: Path, begin: str, end: str, is_folder: bool) -> tuple[Path, int | None]:
    """A new temporary file or folder, and the descriptor that locks it; None on Windows."""
    while True:
        temporary = folder / f"{begin}{uuid.uuid4().hex[:8]}{end}"
        temporary.mkdir() if is_folder else temporary.touch()
        if WINDOWS:
            return temporary, None
        with suppress(FileNotFoundError):
            try:
                lock = os.open(temporary, os.O_RDONLY)
            except OSError:
                remove(temporary)
                raise
            with suppress(OSError):  # a file system without locks: nothing is removed there that was left
                lock_descriptor(lock, poll_interval=0.001)
            if temporary.exists():
                return temporary, lock
            os.close(lock)
        # until it was locked, another process took it for abandoned, and removed it


def abandoned(folder: Path) -> list[Path]:
    """The temporary files and folders right in a folder that killed writers left.

    None on Windows, and on a file system without locks, where they cannot be told from those in use.
    """
    if WINDOWS or not folder.is_dir():
        return []
    return [path for path in sorted(folder.iterdir()) if TEMPORARY.fullmatch(path.name) and not _in_use(path)]


def _in_use(path: Path) -> bool:
    """True for a temporary file or folder that the process that made it still has locked, or that cannot be asked."""
    try:
        descriptor = os.open(path, os.O_RDONLY | NONBLOCK)
    except OSError:
        return True
    try:
        return not lock_descriptor(descriptor, blocking=False)
    except OSError:
        return True
    finally:
        os.close(descriptor)


def _remove_abandoned(path: Path) -> None:
    """Removes a temporary file or folder, unless the process that made it still has it locked."""
    if WINDOWS:
        return
    descriptor = os.open(path, os.O_RDONLY | NONBLOCK)
    try:
        if lock_descriptor(descriptor, blocking=False):
            remove(path)
    finally:
        os.close(descriptor)


@contextmanager
def naming(path: Path, replaced: Sequence[str] = ()) -> Iterator[None]:
    """Adds the path to errors of the operating system that do not name it, and says what is there now.

    That is what was there before, but for the files in `replaced`, which is filled meanwhile.
    """
    try:
        yield
    except OSError as error:
        if NOTHING_LOST in str(error) or REPLACED in str(error):
            raise
        kept = f"{REPLACED} {', '.join(replaced)}" if replaced else NOTHING_LOST
        path = _final(path)
        if error.errno is None:  # of a library
            raise OSError(f"{error}; {kept}: {path}") from error
        of = path if error.filename is None else f"{path} ({Path(os.fsdecode(error.filename)).name})"
        raise type(error)(error.errno, f"{error.strerror}; {kept}", str(of)) from error


def _final(path: Path) -> Path:
    """The place that a file in a temporary folder is moved to."""
    *folders, name = path.parts
    moved = (re.sub(r"^\.(.+)\.[0-9a-f]{8}\.partial$", r"\1", part) for part in folders)
    return Path(*(part for part in moved if not re.fullmatch(r"\.files\.[0-9a-f]{8}\.tmp", part)), name)
