"""Files and folders that are written whole or not at all."""

import fcntl
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary name to write to, which is flushed to disk and becomes `path` at the end of the block."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Flushes a file or folder to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Writes JSON, whole or not at all."""
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(values, indent=2) + "\n")


class Lazy(NamedTuple):
    """A tensor that is made when its turn to be written comes, so that only one of many is in memory."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    make: Callable[[], Tensor]


# names of the safetensors format; see its README for the layout of a file
DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.float64: "F64", torch.int64: "I64"}

NO_SHA256 = "0" * 64  # in the place of the checksum while it is computed
HEAD = 128  # bytes of a file in which its checksum stands


def write_tensors(path: Path, tensors: Mapping[str, Tensor | Lazy], metadata: Mapping[str, str] | None = None) -> None:
    """Writes a safetensors file, one tensor after another: safetensors' own writer wants all of them in memory.

    Its metadata holds the SHA-256 of the rest of the file, which `check_tensors` looks at.
    """
    header: dict[str, Any] = {"__metadata__": {"sha256": NO_SHA256, "format": "pt", **(metadata or {})}}
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
    with path.open("rb") as file:
        first = file.read(HEAD)
        found = re.match(rb'.{8}\{"__metadata__": \{"sha256": "([0-9a-f]{64})"', first, re.DOTALL)
        if found is None:
            raise ValueError(f"{path} carries no checksum: it is damaged, or not written by this version of fluvial")
        digest = hashlib.sha256(first[: found.start(1)] + NO_SHA256.encode() + first[found.end(1) :])
        while content := file.read(2**20):
            digest.update(content)
    if digest.hexdigest() != found[1].decode():
        raise ValueError(f"{path} is damaged: its content is not what was written, the SHA-256 is another")


def checksum(file: Path) -> str:
    """The SHA-256 of a file."""
    with file.open("rb") as opened:
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


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Holds a folder for this process. Raises ValueError if another holds it; a lock ends with its process."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"another process is training in {folder}; wait for it, or choose another folder"
            ) from None
        yield


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A folder to fill, which becomes `out` at the end of the block and vanishes if that fails.

    Raises ValueError if there is something at `out` already.
    """
    out = out.resolve()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is there already, and not empty; choose another with --out")
    partial = out.with_name(f".{out.name}.{uuid.uuid4().hex[:8]}.partial")
    made = [folder for folder in out.parents if not folder.exists()]
    try:
        partial.mkdir(parents=True)
        yield partial
        if out.exists():
            out.rmdir()
        partial.rename(out)
        made = []
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        for folder in made:
            folder.rmdir()
