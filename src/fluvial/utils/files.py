"""Atomic writes of files and folders: they are there whole, or as they were before."""

import difflib
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import stat
import uuid
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from io import BufferedReader
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor


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
    with naming(path, replaced), _held(path.parent, f".{path.stem}.", f".tmp{path.suffix}") as temporary:
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
    folder.mkdir(parents=True, exist_ok=True)
    replaced: list[str] = []
    with naming(folder, replaced), _held(folder, ".files.", ".tmp", is_folder=True) as temporary:
        yield temporary
        files = sorted(temporary.iterdir())
        for file in files:
            flush(file)
        for file in files:
            os.replace(file, folder / file.name)
            replaced.append(file.name)
        flush(folder)


@contextmanager
def _held(folder: Path, begin: str, end: str, *, is_folder: bool = False) -> Iterator[Path]:
    """Something temporary of a new name, locked while it is in use and removed afterwards.

    Removes what killed writers left under such names.
    """
    for old in [p for p in folder.iterdir() if p.name.startswith(begin) and p.name.endswith(end)]:
        with suppress(OSError), _locked(old):  # what another process writes now is locked
            remove(old)
    temporary, lock = _new(folder, begin, end, is_folder)
    try:
        yield temporary
    finally:
        remove(temporary)
        os.close(lock)


def _new(folder: Path, begin: str, end: str, is_folder: bool) -> tuple[Path, int]:
    """Something temporary, and the descriptor that locks it."""
    while True:
        temporary = folder / f"{begin}{uuid.uuid4().hex[:8]}{end}"
        temporary.mkdir() if is_folder else temporary.touch()
        with suppress(FileNotFoundError):
            try:
                lock = os.open(temporary, os.O_RDONLY)
            except OSError:
                remove(temporary)
                raise
            with suppress(OSError):  # a file system without locks: nothing is removed there that was left
                fcntl.flock(lock, fcntl.LOCK_EX)
            if temporary.exists():
                return temporary, lock
            os.close(lock)
        # until it was locked, another process took it for left over, and removed it


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Removes a file, a folder, or a link and not what it points to; what cannot be removed of a folder is left."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def naming(path: Path, replaced: Sequence[str] = ()) -> Iterator[None]:
    """Names the path in errors of the operating system that say nothing of it, and says what is there now.

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
    """Where a file in a temporary folder is going to be."""
    moved = re.sub(r"/\.files\.[0-9a-f]{8}\.tmp/", "/", str(path))
    return Path(re.sub(r"/\.([^/]+)\.[0-9a-f]{8}\.partial/", r"/\1/", moved))


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Names the path in errors of the operating system that name none, as those of reading an open file."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def flush(path: Path) -> None:
    """Flushes a file or folder to disk. Raises OSError that names it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with named(path):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def irregular(path: Path) -> str:
    """What is there if it is no regular file, such as "a pipe", whose reading may never end; of a file, nothing."""
    mode = path.stat().st_mode
    kinds = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFDIR: "a folder"}
    return "" if stat.S_ISREG(mode) else kinds.get(stat.S_IFMT(mode), "a device")


def at_once(path: str, flags: int) -> int:
    """Opens a file, as an `opener`; a pipe without a process at its other end is not waited for."""
    return os.open(path, flags | os.O_NONBLOCK, 0o666)


@contextmanager
def reading(path: Path) -> Iterator[BufferedReader]:
    """A regular file to read from. Raises OSError that names it, also where reading fails later."""
    if what := irregular(path):
        raise OSError(errno.EISDIR if what == "a folder" else errno.EINVAL, f"it is {what}, not a file", str(path))
    with named(path), path.open("rb") as file:
        yield file


def read_bytes(path: Path) -> bytes:
    """The content of a file. Raises OSError that names it."""
    with reading(path) as file:
        return file.read()


def write_json(path: Path, values: Mapping[str, Any] | Sequence[Any]) -> None:
    """Writes JSON in an atomic write."""
    write_bytes(path, (json.dumps(values, indent=2) + "\n").encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file in an atomic write."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(content)


class Lazy(NamedTuple):
    """A tensor that is made when its turn to be written comes, so that only one of many is in memory."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    make: Callable[[], Tensor]


# names of the safetensors format; see its README for the layout of a file
DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.float64: "F64", torch.int64: "I64"}

# what zipfile raises for damaged archives
ZIP_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, UnicodeError, OverflowError)
NOTHING_LOST = "what was there before is as it was"
REPLACED = "replaced already:"
NO_SHA256 = "0" * 64  # in the place of the checksum while it is computed
HEAD = 128  # bytes of a file in which its checksum stands


def write_tensors(path: Path, tensors: Mapping[str, Tensor | Lazy], metadata: Mapping[str, str] | None = None) -> None:
    """Writes a safetensors file, one tensor after another: safetensors' own writer wants all of them in memory.

    Its metadata holds the SHA-256 of the rest of the file, which `check_tensors` looks at.
    """
    about = {"sha256": NO_SHA256, "format": "pt"} | {k: v for k, v in (metadata or {}).items() if k != "sha256"}
    header: dict[str, Any] = {"__metadata__": about}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.dtype.itemsize * torch.Size(tensor.shape).numel()
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # so that the data begin at a multiple of eight bytes
    start = len(text).to_bytes(8, "little") + text
    digest = hashlib.sha256(start)
    with path.open("wb") as file:
        file.write(start)
        for name, tensor in tensors.items():
            value = tensor.make() if isinstance(tensor, Lazy) else tensor.detach()
            assert (tuple(value.shape), value.dtype) == (tuple(tensor.shape), tensor.dtype), name
            content = value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
            digest.update(content)
            file.write(content)
        file.seek(start.index(NO_SHA256.encode()))
        file.write(digest.hexdigest().encode())


def check_tensors(path: Path) -> None:
    """Raises ValueError if a file of `write_tensors` is not as it was written; OSError if it cannot be read."""
    with reading(path) as file:
        first = file.read(HEAD)
        found = re.match(rb'.{8}\{"__metadata__": \{"sha256": "([0-9a-f]{64})"', first, re.DOTALL)
        if found is None:
            raise ValueError(f"{path} carries no checksum: it is damaged, or not written by this version of fluvial")
        digest = hashlib.sha256(first[: found.start(1)] + NO_SHA256.encode() + first[found.end(1) :])
        while content := file.read(2**20):
            digest.update(content)
    if digest.hexdigest() != found[1].decode():
        raise ValueError(f"{path} is damaged: its content is not what was written, the SHA-256 is another")


HUB = "hub:"  # before the name of a repository on the Hugging Face hub
PART = r"[A-Za-z0-9][\w.-]*"  # of the name of a repository
LISTED = 10_000  # names in a folder among which the closest is looked for


def missing(place: str, known: Iterable[str] = ()) -> str:
    """What to say of images or weights that are not at a path, with the closest path or known name there is."""
    return f"{place} does not exist{closest(place, known)} (of the Hugging Face hub it would be {HUB}OWNER/NAME)"


def closest(place: str, known: Iterable[str] = ()) -> str:
    """What to add to "PLACE does not exist": the closest path or known name, or where a link points; or nothing."""
    path = Path(place).expanduser()
    if path.is_symlink():
        return f": it is a link to {path.readlink()}"
    if not path.parents:  # the root, or the folder that we are in
        return ""
    there = next((parent for parent in path.parents if parent.is_dir()), Path("."))
    wanted, *rest = path.relative_to(there).parts or ("",)
    try:
        names = [entry.name for entry in islice(there.iterdir(), LISTED)]
    except OSError:  # a folder that may not be listed
        names = []
    close = difflib.get_close_matches(wanted, [*names, *known], n=1)
    if not close:
        return ""
    whole = Path(there, close[0], *rest)
    return f"; did you mean {whole if whole.exists() else there / close[0]}?"


def repository(name: str) -> str | None:
    """The name on the hub that is meant by hub:OWNER/NAME or, where a hub is usual, OWNER/NAME; None for a path.

    A name without hub: is a path if it has another form, or its first part is a folder here. Raises ValueError for a
    name with hub: that has another form, or is a folder here, which libraries of the hub would read in its place.
    """
    if name.startswith(HUB):
        found = name.removeprefix(HUB)
        if not re.fullmatch(rf"{PART}(/{PART})*", found):
            raise ValueError(f"{name!r} names nothing on the Hugging Face hub, expected {HUB}OWNER/NAME")
        if (here := Path(*found.split("/")[:2])).exists():
            raise ValueError(
                f"{name} is on the Hugging Face hub, but there is also {here} here, which would be read in its place: "
                f"name that as a path, without {HUB}, or start from another folder"
            )
        return found
    is_name = re.fullmatch(rf"{PART}/{PART}", name) and not Path(name.partition("/")[0]).is_dir()
    return name if is_name else None


def plain(error: BaseException) -> str:
    """What a library's error says first, in one line, without advice to unpickle what it refuses, which runs code."""
    lines = [line.strip() for line in str(error).splitlines()]
    unsafe = re.compile(r"weights_only|torch\.load|trust|arbitrary code", re.IGNORECASE)
    told = [" ".join(s for s in re.split(r"(?<=[.!?])\s+", line) if not unsafe.search(s)) for line in lines]
    return next(filter(None, told), type(error).__name__)


def brief(error: BaseException) -> str:
    """An error's type and message in at most 300 characters; a repr may quote all of a damaged file."""
    return f"{type(error).__name__}: {error}"[:300]


def checksum(file: Path) -> str:
    """The SHA-256 of a file."""
    with reading(file) as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def json_checksum(values: Mapping[str, Any]) -> str:
    """The SHA-256 of JSON values, whatever their order in a file and its spaces."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def tensors_checksum(tensors: Mapping[str, Tensor]) -> str:
    """The SHA-256 of names and float32 values, in the order of the names: whatever the file, its format and dtype."""
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def is_held(folder: Path) -> bool:
    """Whether another process holds the folder: see `only_one`."""
    if not (folder / ".lock").exists():
        return False
    with open(folder / ".lock", opener=at_once) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Holds a folder for this process. Raises ValueError if another holds it; a lock ends with its process."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w", opener=at_once) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"another process is training in {folder}; wait for it, or choose another folder"
            ) from None
        yield


@contextmanager
def atomic_folder(out: Path) -> Iterator[Path]:
    """A folder to fill, which becomes `out` at the end of the block and vanishes if that fails.

    Raises ValueError if there is something at `out` already.
    """
    out = out.resolve()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is there already, and not empty; choose another with --out")
    made = [folder for folder in out.parents if not folder.exists()]
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with naming(out), _held(out.parent, f".{out.name}.", ".partial", is_folder=True) as partial:
            yield partial
            for path in (*partial.rglob("*"), partial):
                flush(path)
            os.replace(partial, out)  # an empty folder is replaced
            made = []
            flush(out.parent)
    finally:
        for folder in made:
            with suppress(OSError):
                folder.rmdir()


def check_zip(path: Path, *, unpacked: int) -> list[zipfile.ZipInfo]:
    """The members of a zip archive, after comparing the CRC-32 of each, which PyTorch does not.

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
