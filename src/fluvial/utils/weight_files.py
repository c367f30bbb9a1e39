"""Reads weight files of other programs, without running code in them and without copying them into memory."""

import argparse
import pickle
import re
import tarfile
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fluvial.utils import weight_parts as parts
from fluvial.utils.files import check_zip, plain, reading

SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")
SHARED = 2  # largest ratio of the tensors' bytes to the file's: tied weights are stored once
ADVICE = "ask for a safetensors file of it, or save its state_dict alone where it was made"


class WeightFile(NamedTuple):
    """The weights of a file, and what else was found in it."""

    state_dict: dict[str, Tensor]
    part: str
    """The entry of a checkpoint that the weights were taken from, such as "ema"; "" if the file has nothing else."""
    options: dict[str, Any]
    """The training options stored in the checkpoint; {} if there are none."""
    metadata: dict[str, str]
    """The metadata of a safetensors file; {} for other files."""
    dropped: dict[str, str]
    """Entries of the file that were left out, with the reason for each."""


def read(file: Path | str, telltales: Sequence[str] = ()) -> WeightFile:
    """The weights in a safetensors file or a PyTorch checkpoint, memory-mapped where the format allows it.

    In a checkpoint the weights are found by `parts.find`. It may store its options as an argparse.Namespace, the only
    class that is unpickled besides tensors. Raises ValueError if the file is missing, damaged, holds other classes or
    no weights, or if its tensors would take far more memory than the file's size.
    """
    file = weight_file(Path(file))
    as_safetensors = file.suffix == ".safetensors" or _begins(file, 9)[8:] == b"{"
    content, metadata = _safetensors(file) if as_safetensors else (_pickled(file), {})
    if not isinstance(content, Mapping) or not content:
        raise ValueError(f"{file} holds no weights: it is {'empty' if content == {} else f'a {_kind(content)}'}")
    try:
        part = parts.find(content, telltales)
        weights = {name: value.detach() for name, value in part.weights.items()}
        _check_memory(weights, file.stat().st_size)
    except ValueError as error:
        raise ValueError(f"{file} {error}") from error
    options = content.get("args", content.get("hyper_parameters"))
    options = vars(options) if isinstance(options, argparse.Namespace) else options
    return WeightFile(weights, part.name, options if isinstance(options, dict) else {}, metadata, part.dropped)


def weight_file(place: Path) -> Path:
    """The path of the weight file: the path given, or the only weight file in the folder given.

    `fluvial export` writes such folders. Raises ValueError if there is no such file, or the folder is a run folder, a
    diffusers pipeline or a diffusers model.
    """
    if place.is_file():
        return place
    if not place.is_dir():
        raise ValueError(f"{place} is no regular file" if place.exists() else f"the file {place} does not exist")
    if (place / "run.json").exists():
        raise ValueError(f"{place} is a run folder already: sample it, or train it further")
    if (place / "model_index.json").exists():
        raise ValueError(
            f"{place} is a pipeline of diffusers, which DiffusionPipeline.from_pretrained loads; import what "
            f"`fluvial export --to safetensors` wrote of the same run"
        )
    if (place / "config.json").exists() and any(place.glob("diffusion_pytorch_model*")):
        raise ValueError(f"{place} is a model of diffusers; an autoencoder is used as it is: --autoencoder {place}")
    found = sorted(path for path in place.iterdir() if path.suffix in SUFFIXES and path.is_file())
    if len(found) != 1:
        names = ", ".join(path.name for path in found[:5]) or "none"
        raise ValueError(f"{place} is a folder with {len(found)} files of weights ({names}): name the one to import")
    return found[0]


def _safetensors(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file."""
    try:
        with safe_open(file, framework="pt") as opened:
            return {key: opened.get_tensor(key) for key in opened.keys()}, opened.metadata() or {}
    except (OSError, SafetensorError, RuntimeError) as error:
        raise ValueError(f"{file} is truncated, damaged or no safetensors file ({plain(error)})") from error


def _pickled(file: Path) -> Any:  # noqa: ANN401
    """The content of a PyTorch checkpoint, read without running code. Raises ValueError if it holds other classes."""
    as_zip = _begins(file, 2) == b"PK"
    if as_zip:  # PyTorch does not compress, so the content is no larger than the file
        members = check_zip(file, unpacked=file.stat().st_size)
        if any(member.filename.endswith("/constants.pkl") for member in members):
            raise ValueError(f"{file} is TorchScript, a program, and is not run to get its weights; {ADVICE}")
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise ValueError(f"{file} is compressed inside, as PyTorch's own files are not; {ADVICE}")
    elif tarfile.is_tarfile(file):
        raise ValueError(f"{file} is a tar, as PyTorch wrote before 2017, and is not read; {ADVICE}")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch warns of unusual pickle protocols
            return torch.load(file, "cpu", weights_only=True, mmap=as_zip)
    except pickle.UnpicklingError as error:
        if foreign := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise ValueError(
                f"{file} holds {foreign[1]} besides tensors, and reading that may run any code, so it is refused; "
                f"{ADVICE}"
            ) from error
        reason = str(error).partition("WeightsUnpickler error:")[2].strip().partition("\n")[0] or plain(error)
        raise ValueError(f"{file} is damaged, or no file of PyTorch's ({reason})") from error
    except Exception as error:  # unpickling a damaged file raises nearly anything
        reason = f"{type(error).__name__}: {plain(error)}"
        raise ValueError(f"{file} is damaged, or no file of PyTorch's ({reason})") from error


def _check_memory(weights: Mapping[str, Tensor], size: int) -> None:
    """Raises ValueError for tensors that are sparse, empty, not on the CPU, or larger than what the file stores."""
    for name, value in weights.items():
        if value.layout != torch.strided or value.device.type != "cpu":
            raise ValueError(f"is refused: {name} is no plain tensor ({value.layout} on {value.device})")
        if not value.numel():
            raise ValueError(f"is refused: {name} is empty, of the shape {tuple(value.shape)}")
        if value.nbytes > value.untyped_storage().nbytes():
            raise ValueError(f"is refused: {name} has the shape {tuple(value.shape)}, and the file holds fewer numbers")
    if (total := sum(value.nbytes for value in weights.values())) > SHARED * size:
        raise ValueError(f"is refused: its tensors would take {total:,} bytes, and the file has {size:,}")


def _begins(file: Path, count: int) -> bytes:
    """The first bytes of a file."""
    with reading(file) as opened:
        return opened.read(count)


def _kind(value: Any) -> str:  # noqa: ANN401
    return type(value).__name__
