"""Files of weights that others wrote: read without running anything in them, and without copying them into memory."""

import argparse
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fluvial.files import plain

# of a trainer's checkpoint: the moving average, else the weights themselves; Lightning's are under state_dict
PARTS = ("ema", "model_ema", "ema_model", "ema_state_dict", "model", "model_state_dict", "state_dict")
ADVICE = "ask for a safetensors file of it, or save its state_dict alone where it was made"
# what DDP, torch.compile, activation checkpointing and FSDP put into names, anywhere
WRAPPERS = frozenset(("module", "_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"))
NETWORKS = ("ema_model", "model_ema", "ema", "model", "net", "network")  # how modules of Lightning call theirs
COUNTERS = frozenset(("n_averaged", "num_updates", "decay"))  # of moving averages, beside the weights


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
    file = weight_file(Path(file))
    as_safetensors = file.suffix == ".safetensors" or _begins(file, 9)[8:] == b"{"
    content, metadata = _safetensors(file) if as_safetensors else (_pickled(file), {})
    there = [name for name in PARTS if isinstance(content, dict) and isinstance(content.get(name), dict)]
    part = next((name for name in there if content[name]), "")
    weights = content[part] if part else content
    if there and not part:
        weights = {}
    if not isinstance(weights, dict) or not weights:
        raise ValueError(f"{file} holds no weights, but {'nothing' if weights == {} else f'a {_kind(weights)}'}")
    weights = {key: value for key, value in weights.items() if key not in COUNTERS}
    if odd := [key for key, value in weights.items() if not isinstance(key, str) or not isinstance(value, Tensor)]:
        raise ValueError(
            f"{file} holds no weights: {odd[0]!r} is a {_kind(weights[odd[0]])} and no tensor. Expected are names and "
            f"tensors, or a checkpoint with them under {', '.join(PARTS)}"
        )
    _check_storage(weights, file)
    weights, network = _unwrapped(weights, file)
    options = content.get("args") if part else None
    options = vars(options) if isinstance(options, argparse.Namespace) else options
    empty = f" ({', '.join(name for name in there if not content[name])} is empty)" if part and part != there[0] else ""
    told = ", ".join(name for name in (part, network) if name) + empty
    return WeightFile(weights, told, options if isinstance(options, dict) else {}, metadata)


def weight_file(place: Path) -> Path:
    """The file of weights at a place: itself, or the only one in a folder, as `fluvial export` writes it.

    Raises ValueError if there is none, or the folder is a run or a pipeline of diffusers.
    """
    if place.is_file():
        return place
    if not place.is_dir():
        raise ValueError(f"the file {place} does not exist")
    if (place / "run.json").exists():
        raise ValueError(f"{place} is a run folder already: sample it, or train it further")
    if (place / "model_index.json").exists():
        raise ValueError(
            f"{place} is a pipeline of diffusers, which DiffusionPipeline.from_pretrained loads; import what "
            f"`fluvial export --to safetensors` wrote of the same run"
        )
    found = sorted(p for p in place.iterdir() if p.suffix in (".safetensors", ".pt", ".pth", ".ckpt"))
    if len(found) != 1:
        names = ", ".join(path.name for path in found[:5]) or "none"
        raise ValueError(f"{place} is a folder with {len(found)} files of weights ({names}): name the one to import")
    return found[0]


def _unwrapped(weights: Mapping[str, Tensor], file: Path) -> tuple[dict[str, Tensor], str]:
    """Weights by the names of the bare network, and what it is called in a module of Lightning; "" if it is alone.

    Raises ValueError if two tensors would have one name.
    """
    names = {key: ".".join(part for part in key.split(".") if part not in WRAPPERS) for key in weights}
    first = {name.partition(".")[0] for name in names.values()}
    network = next((known for known in NETWORKS if known in first), "") if first <= {*NETWORKS} else ""
    found: dict[str, Tensor] = {}
    for key, name in names.items():
        if network and not name.startswith(f"{network}."):
            continue
        name = name.removeprefix(f"{network}.") if network else name
        if name in found:
            raise ValueError(f"{file} has two tensors that are called {name} without their wrappers, such as {key}")
        found[name] = weights[key]
    return found, network


def _check_storage(weights: Mapping[str, Tensor], file: Path) -> None:
    """Raises ValueError for a tensor that claims more numbers than are stored, which would fill the memory."""
    for key, value in weights.items():
        if not value.is_meta and value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise ValueError(f"{file}: {key} is {tuple(value.shape)}, and holds fewer numbers than that; {ADVICE}")


def _safetensors(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(file, framework="pt") as opened:
            return {key: opened.get_tensor(key) for key in opened.keys()}, opened.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{file} is truncated, damaged or no safetensors file ({error})") from error
    except (MemoryError, OverflowError, TypeError, ValueError, KeyError) as error:
        raise ValueError(f"{file} is damaged, or has tensors of an unknown type ({plain(error)})") from error


def _pickled(file: Path) -> Any:  # noqa: ANN401
    begins_as_zip = _begins(file, 2) == b"PK"
    if begins_as_zip and not zipfile.is_zipfile(file):
        raise ValueError(f"{file} is truncated: it begins as PyTorch's files do, and has no end; download it again")
    try:
        if begins_as_zip:
            _check_zip(file)
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(file, "cpu", weights_only=True, mmap=begins_as_zip)
    except pickle.UnpicklingError as error:
        if foreign := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise ValueError(
                f"{file} holds {foreign[1]} besides tensors, and reading that may run any code, so it is refused; "
                f"{ADVICE}"
            ) from error
        reason = str(error).partition("WeightsUnpickler error:")[2].strip() or plain(error)
        raise ValueError(f"{file} is damaged, or no file of PyTorch's ({reason.splitlines()[0]})") from error
    except Exception as error:  # unpickling a damaged file raises nearly anything
        raise ValueError(
            f"{file} is damaged, or no file of PyTorch's ({type(error).__name__}: {plain(error)})"
        ) from error


def _check_zip(file: Path) -> None:
    """Raises zipfile.BadZipFile for a bomb, and for a changed byte, since PyTorch does not look at the checksums."""
    with zipfile.ZipFile(file) as archive:
        stored = sum(member.file_size for member in archive.infolist())
        if stored > file.stat().st_size:
            raise zipfile.BadZipFile(
                f"it has {file.stat().st_size:,} bytes and would unpack to {stored:,}; PyTorch's own are not compressed"
            )
        if part := archive.testzip():
            raise zipfile.BadZipFile(f"the checksum of {part} is another; download it again")


def _begins(file: Path, count: int) -> bytes:
    with file.open("rb") as opened:
        return opened.read(count)


def _kind(value: Any) -> str:  # noqa: ANN401
    return type(value).__name__
