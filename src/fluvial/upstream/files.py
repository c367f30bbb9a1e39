"""Files of weights that others wrote: read without running anything in them, and without copying them into memory."""

import argparse
import pickle
import re
import shlex
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

PARTS = ("ema", "model_ema", "model")  # of a trainer's checkpoint: the moving average, else the weights themselves
RESAVE = (
    "import torch; c = torch.load({file!r}, weights_only=False); a = c.get('args'); "
    "torch.save(dict(ema=next((c[k] for k in ('ema', 'model_ema', 'model') if c.get(k)), c), "
    "args=dict((k, getattr(a, k)) for k in ('path_type', 'prediction') if hasattr(a, k))), 'weights.pt')"
)
WRAPPERS = ("module.", "_orig_mod.")  # what DDP and torch.compile put in front of every name


class WeightFile(NamedTuple):
    state_dict: dict[str, Tensor]
    part: str
    """Which of a trainer's parts these weights are; "" if the file has nothing else."""
    options: dict[str, Any]
    """The trainer's options, if the file has them."""
    metadata: dict[str, str]
    """Of a safetensors file."""


def read(file: Path | str) -> WeightFile:
    """The weights in a safetensors file or PyTorch's own, mapped into memory; of PyTorch's zip files no more than that.

    A trainer's checkpoint may carry its options as an argparse.Namespace: the one class that is read besides tensors.
    Raises ValueError if the file is missing, damaged, needs more than that, or holds no weights.
    """
    file = Path(file)
    if not file.is_file():
        raise ValueError(f"the file {file} does not exist" if not file.exists() else f"{file} is a folder, not a file")
    as_safetensors = file.suffix == ".safetensors" or _begins(file, 9)[8:] == b"{"
    content, metadata = _safetensors(file) if as_safetensors else (_pickled(file), {})
    part = next((name for name in PARTS if isinstance(content, dict) and isinstance(content.get(name), dict)), "")
    weights = content[part] if part else content
    if not isinstance(weights, dict) or not weights:
        raise ValueError(f"{file} holds no weights, but {'nothing' if weights == {} else f'a {_kind(weights)}'}")
    if odd := [key for key, value in weights.items() if not isinstance(key, str) or not isinstance(value, Tensor)]:
        raise ValueError(
            f"{file} holds no weights: {odd[0]!r} is a {_kind(weights[odd[0]])} and no tensor. Expected are names and "
            f"tensors, or a checkpoint with them under {', '.join(PARTS)}"
        )
    while wrapper := next((w for w in WRAPPERS if all(key.startswith(w) for key in weights)), ""):
        weights = {key.removeprefix(wrapper): value for key, value in weights.items()}
    options = content.get("args") if part else None
    options = vars(options) if isinstance(options, argparse.Namespace) else options
    return WeightFile(dict(weights), part, options if isinstance(options, dict) else {}, metadata)


def _safetensors(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(file, framework="pt") as opened:
            return {key: opened.get_tensor(key) for key in opened.keys()}, opened.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{file} is truncated, damaged or no safetensors file ({error})") from error


def _pickled(file: Path) -> Any:  # noqa: ANN401
    begins_as_zip = _begins(file, 2) == b"PK"
    if begins_as_zip and not zipfile.is_zipfile(file):
        raise ValueError(f"{file} is truncated: it begins as PyTorch's files do, and has no end; download it again")
    try:
        if begins_as_zip and (part := zipfile.ZipFile(file).testzip()):  # PyTorch does not look at the checksums
            raise zipfile.BadZipFile(f"the checksum of {part} is another; download it again")
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(file, "cpu", weights_only=True, mmap=begins_as_zip)
    except pickle.UnpicklingError as error:
        if foreign := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise ValueError(
                f"{file} holds {foreign[1]} besides tensors, and reading that may run any code, so it is refused. If "
                f"you trust the file, save its weights alone, which runs that code: "
                f"python -c {shlex.quote(RESAVE.format(file=str(file.resolve())))}"
            ) from error
        reason = str(error).partition("WeightsUnpickler error:")[2].strip() or str(error)
        raise ValueError(f"{file} is damaged, or no file of PyTorch's ({reason.splitlines()[0]})") from error
    except Exception as error:  # unpickling a damaged file raises nearly anything
        raise ValueError(f"{file} is damaged, or no file of PyTorch's ({type(error).__name__}: {error})") from error


def _begins(file: Path, count: int) -> bytes:
    with file.open("rb") as opened:
        return opened.read(count)


def _kind(value: Any) -> str:  # noqa: ANN401
    return type(value).__name__
