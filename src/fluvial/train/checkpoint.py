"""Checkpoints: a folder of safetensors files and a checkpoint.json, written whole or not at all.

A folder is filled under a temporary name, flushed to disk and then renamed, so that whatever is called
`checkpoints/step-...` is complete, and a crash or a full disk leaves the earlier ones as they were.
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from fluvial.checks import other_weights
from fluvial.files import Lazy, write_tensors

FORMAT = 1
Tensors = Mapping[str, Tensor]


class CheckpointError(ValueError):
    """A checkpoint is missing, damaged, of another model, or could not be written."""


def save(
    run: Path, step: int, parts: Mapping[str, Mapping[str, Tensor | Lazy]], meta: Mapping[str, Any], *, keep: int
) -> Path:
    """Writes checkpoints/step-<step> with one safetensors file for each part; older ones beyond `keep` are removed.

    Raises CheckpointError, with what is already there untouched, if it cannot be written.
    """
    final = run / "checkpoints" / f"step-{step:08d}"
    partial = final.with_name(f".{final.name}.partial")
    try:
        for left_over in final.parent.glob(".*.partial"):  # of a run that was killed while saving
            shutil.rmtree(left_over)
        partial.mkdir(parents=True)
        for name, tensors in parts.items():
            write_tensors(partial / f"{name}.safetensors", tensors)
        (partial / "checkpoint.json").write_text(json.dumps({"format": FORMAT, "step": step, **meta}, indent=2) + "\n")
        for path in (*partial.iterdir(), partial):
            _flush(path)
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        _flush(final.parent)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        last = newest(run)
        raise CheckpointError(
            f"cannot write the checkpoint of step {step} to {final}: {error}. "
            f"{f'The last good one is {last}' if last else 'There is none yet'}; make room and repeat the command"
        ) from error
    for old in _all(run)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def newest(run: Path) -> Path | None:
    """The checkpoint of the highest step, or None."""
    return _all(run)[-1] if _all(run) else None


def load(folder: Path, part: str) -> dict[str, Tensor]:
    """The tensors of one part, on the CPU.

    Raises CheckpointError if the file is missing, cut short or not safetensors.
    """
    file = folder / f"{part}.safetensors"
    try:
        with safe_open(file, framework="pt") as opened:
            return {key: opened.get_tensor(key) for key in opened.keys()}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{file} is missing, truncated or damaged ({error}). Remove {folder} to fall back on an earlier checkpoint"
        ) from error


def load_meta(folder: Path) -> dict[str, Any]:
    """checkpoint.json: format, step, seconds of training, and what the trainer put there."""
    file = folder / "checkpoint.json"
    try:
        meta = json.loads(file.read_text())
        written = meta["format"]
        if written == FORMAT and not {"step", "seconds"} <= meta.keys():
            raise KeyError("step, seconds")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{file} is missing or damaged ({error}). Remove {folder} to fall back on an earlier checkpoint"
        ) from error
    if written != FORMAT:
        raise CheckpointError(f"{file} has format {written}, this version of fluvial reads {FORMAT}")
    return meta


def fill(module: nn.Module, tensors: Tensors, source: Path) -> None:
    """Loads tensors into the module in place.

    Raises CheckpointError naming the first few differences if they are another model's.
    """
    if wrong := other_weights(module.state_dict(), tensors):
        raise CheckpointError(f"{source} holds another model: {wrong}")
    module.load_state_dict(dict(tensors))


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state by parameter name: "<parameter>/exp_avg" and so on."""
    return {
        f"{name}/{key}": value
        for name, p in model.named_parameters()
        for key, value in optimizer.state.get(p, {}).items()
    }


def fill_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Tensors, source: Path) -> None:
    """The inverse of `optimizer_tensors`; a parameter that never had a gradient has no state in either.

    Raises CheckpointError if the state is of another parameter.
    """
    parameters = dict(model.named_parameters())
    for key, value in tensors.items():
        name, _, field = key.rpartition("/")
        p = parameters.get(name)
        if p is None or (field != "step" and value.shape != p.shape):
            ours = "none" if p is None else tuple(p.shape)
            raise CheckpointError(f"{source} has optimizer state of {name} {tuple(value.shape)}, the model has {ours}")
        optimizer.state[p][field] = value.to(p.device)  # the step count too: AdamW(fused=True) keeps it there


def _all(run: Path) -> list[Path]:
    return sorted((run / "checkpoints").glob("step-*"))


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
