"""Safetensors files with a checksum in their metadata, written one tensor at a time; checksums of tensors."""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fluvial.utils.files import reading


class Lazy(NamedTuple):
    """A tensor that is computed when it is written or read, so that only one of many is in memory."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    make: Callable[[], Tensor]


# names of dtypes in safetensors; its README describes the layout of a file
DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.float64: "F64", torch.int64: "I64"}
DTYPES[torch.uint8] = "U8"
NO_SHA256 = "0" * 64  # in the place of the checksum while it is computed
HEAD = 128  # bytes of a file in which its checksum stands


def write_tensors(path: Path, tensors: Mapping[str, Tensor | Lazy], metadata: Mapping[str, str] | None = None) -> None:
    """Writes a safetensors file, one tensor after another, with the SHA-256 of its content in its metadata.

    The checksum, which `check_tensors` compares, is of the file with zeros in its place.
    """
    # safetensors' own writers (save_file, serialize_file) take all tensors in memory and the metadata before the data,
    # so neither a lazy tensor nor a checksum of what was written
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
    """Raises ValueError if a file of `write_tensors` has changed since it was written; OSError if it is unreadable."""
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


def tensors_checksum(tensors: Mapping[str, Tensor]) -> str:
    """The SHA-256 of names and float32 values, in the order of the names, so the same for any file format and dtype."""
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
