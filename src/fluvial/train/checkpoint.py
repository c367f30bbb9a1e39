"""Checkpoints: a folder of safetensors shards and a checkpoint.json, written in the background, whole or not at all.

PyTorch's distributed checkpoint writes a shard for each rank, and reads them at any number of ranks. A folder is filled
under a temporary name, flushed to disk, its files' checksums noted, and then renamed: whatever is called
`checkpoints/step-...` is complete, and a crash or a full disk leaves the earlier ones as they were.
"""

import json
import os
import shutil
import warnings
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load as read_sharded
from torch.distributed.checkpoint.state_dict_saver import async_save

from fluvial.checks import other_weights
from fluvial.files import Lazy, checksum, write_tensors
from fluvial.train.distributed import ALONE, World

FORMAT = 2
Tensors = Mapping[str, Tensor]


class CheckpointError(ValueError):
    """A checkpoint is missing, damaged, of another model, or could not be written."""


class Saver:
    """Writes checkpoints in the background: training waits for the copy to host memory, and for the one before."""

    def __init__(self, run: Path, *, keep: int, keep_every: int = 0, world: World = ALONE) -> None:
        self.run, self.keep, self.keep_every, self.world = run, keep, keep_every, world
        self.pending: Future[None] | None = None
        self.step = 0

    def save(self, step: int, parts: Mapping[str, Tensors], meta: Mapping[str, Any]) -> None:
        """Begins to write checkpoints/step-<step>. Raises CheckpointError if that, or the one before, cannot be."""
        self.wait()
        self.step, partial = step, _partial(self.run, step)
        error = None
        if self.world.first:
            try:
                _clean(partial)
            except OSError as found:
                error = found
        error = self.world.broadcast(error)
        if error is not None:
            raise _not_written(self.run, step, error)
        tensors = {f"{part}/{name}": value.detach() for part, each in parts.items() for name, value in each.items()}
        # one process is no reason to warn; the warning comes from another thread, where no context reaches
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        written = async_save(
            tensors,
            storage_writer=HuggingFaceStorageWriter(str(partial), save_distributed=True),
            process_group=self.world.saving,
            no_dist=self.world.size == 1,
        )
        assert isinstance(written, Future)
        self.pending = done = Future[None]()
        written.add_done_callback(lambda future: self._finish(future, step, dict(meta), done))

    def _finish(self, written: Future[Any], step: int, meta: dict[str, Any], done: Future[None]) -> None:
        """What is left once all ranks have written, in the thread that wrote."""
        try:
            written.result()
            if self.world.first:
                _publish(self.run, step, meta)
                _prune(self.run, self.keep, self.keep_every)
            done.set_result(None)
        except BaseException as error:
            done.set_exception(error)

    def wait(self) -> None:
        """Returns when what was begun is on disk. Raises CheckpointError if it could not be written."""
        if self.pending is None:
            return
        pending, self.pending = self.pending, None
        try:
            pending.result()
        except (Exception, CheckpointException) as error:
            if self.world.first:
                shutil.rmtree(_partial(self.run, self.step), ignore_errors=True)
            raise _not_written(self.run, self.step, _cause(error)) from error


def write_weights(run: Path, step: int, tensors: Mapping[str, Tensor | Lazy], meta: Mapping[str, Any]) -> None:
    """A checkpoint of nothing but weights to sample and to start from, written one tensor after another.

    Raises CheckpointError if it cannot be written.
    """
    partial = _partial(run, step)
    try:
        _clean(partial)
        write_tensors(partial / "weights.safetensors", {f"ema/{name}": value for name, value in tensors.items()})
        _publish(run, step, {"seconds": 0.0, "weights_only": True, **meta})
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise _not_written(run, step, error) from error


def newest(run: Path) -> Path | None:
    """The checkpoint of the highest step, or None."""
    return _all(run)[-1] if _all(run) else None


def newest_whole(run: Path) -> Path | None:
    """The newest checkpoint whose files have the checksums that were noted; those that have not are named in print."""
    for folder in reversed(_all(run)):
        try:
            verify(folder)
            return folder
        except CheckpointError as error:
            print(f"left aside: {error}", flush=True)
    return None


def verify(folder: Path) -> None:
    """Raises CheckpointError naming the first file that is not as it was written."""
    for name, expected in load_meta(folder)["files"].items():
        file = folder / name
        if not file.exists() or checksum(file) != expected:
            raise _damaged(file, "its checksum is another" if file.exists() else "it is gone")


def load(folder: Path, part: str) -> dict[str, Tensor]:
    """The tensors of one part (model, ema, optimizer), whole and on the CPU.

    Raises CheckpointError if the checkpoint is damaged.
    """
    sizes = {name: value for name, value in shapes(folder).items() if name.startswith(f"{part}/")}
    tensors = {name: torch.empty(value.size, dtype=value.properties.dtype) for name, value in sizes.items()}
    fill(tensors, folder)
    return {name.removeprefix(f"{part}/"): value for name, value in tensors.items()}


def shapes(folder: Path) -> dict[str, Any]:
    """What is in a checkpoint, by "part/name": size, dtype and chunks of each tensor."""
    try:
        for name in load_meta(folder)["files"]:
            if not (folder / name).exists():
                raise _damaged(folder / name, "it is gone")
        return dict(HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata)
    except CheckpointError:
        raise
    except Exception as error:  # a damaged header raises nearly anything
        raise _damaged(folder, error) from error


def fill(tensors: Mapping[str, Tensor], folder: Path, world: World = ALONE) -> None:
    """Reads into these tensors, by "part/name"; sharded ones take their part.

    Raises CheckpointError naming the first few differences if the checkpoint's are of another model.
    """
    there = {name: torch.empty(value.size, device="meta") for name, value in shapes(folder).items()}
    parts = {name.partition("/")[0] for name in tensors}
    there = {name: value for name, value in there.items() if name.partition("/")[0] in parts}
    if wrong := other_weights(tensors, there):
        raise CheckpointError(f"{folder} holds another model: {wrong}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            reader = HuggingFaceStorageReader(str(folder))
            alone = world.size == 1
            read_sharded(dict(tensors), storage_reader=reader, process_group=world.saving, no_dist=alone)
    except (Exception, CheckpointException) as error:
        raise _damaged(folder, _cause(error)) from error


def load_meta(folder: Path) -> dict[str, Any]:
    """checkpoint.json: format, step, seconds of training, checksums of the files, and what the trainer put there."""
    file = folder / "checkpoint.json"
    try:
        meta = json.loads(file.read_text())
        written = meta["format"]
        if written == FORMAT and not {"step", "seconds", "files"} <= meta.keys():
            raise KeyError("step, seconds, files")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{file} is missing or damaged ({error}). Remove {folder} to fall back on an earlier checkpoint"
        ) from error
    if written != FORMAT:
        raise CheckpointError(f"{file} has format {written}, this version of fluvial reads {FORMAT}")
    return meta


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state by parameter name: "<parameter>/exp_avg" and so on."""
    return {
        f"{name}/{key}": value
        for name, p in model.named_parameters()
        for key, value in optimizer.state.get(p, {}).items()
    }


def begin_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, fields: Iterable[str]) -> dict[str, Tensor]:
    """Gives the optimizer empty state of those fields ("<parameter>/exp_avg" ...), for a checkpoint to be read into.

    A parameter that never had a gradient has no state in either. Raises CheckpointError for an unknown parameter.
    """
    known = dict(model.named_parameters())
    for key in fields:
        name, _, field = key.rpartition("/")
        if name not in known:
            raise CheckpointError(f"the checkpoint has optimizer state of {name}, which the model has not")
        p = known[name]
        # AdamW(fused=True) keeps its step count beside the parameter
        optimizer.state[p][field] = torch.zeros((), device=p.device) if field == "step" else torch.zeros_like(p)
    return optimizer_tensors(model, optimizer)


def _publish(run: Path, step: int, meta: Mapping[str, Any]) -> None:
    """Gives a complete folder its name."""
    partial, final = _partial(run, step), run / "checkpoints" / f"step-{step:08d}"
    files = {path.name: checksum(path) for path in sorted(partial.iterdir())}
    description = {"format": FORMAT, "step": step, **meta, "files": files}
    (partial / "checkpoint.json").write_text(json.dumps(description, indent=2) + "\n")
    for path in (*partial.iterdir(), partial):
        _flush(path)
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)
    _flush(final.parent)


def _prune(run: Path, keep: int, keep_every: int) -> None:
    """Removes all but the newest few, and every n-th step's."""
    for old in _all(run)[:-keep]:
        if not keep_every or int(old.name.removeprefix("step-")) % keep_every:
            shutil.rmtree(old, ignore_errors=True)


def _clean(partial: Path) -> None:
    """An empty folder, and no others that were left by a run killed while saving."""
    for left_over in partial.parent.glob(".*.partial"):
        shutil.rmtree(left_over)
    partial.mkdir(parents=True)


def _partial(run: Path, step: int) -> Path:
    return run / "checkpoints" / f".step-{step:08d}.partial"


def _not_written(run: Path, step: int, error: BaseException) -> CheckpointError:
    last = newest(run)
    return CheckpointError(
        f"cannot write the checkpoint of step {step} to {run / 'checkpoints'}: {error}. "
        f"{f'The last good one is {last}' if last else 'There is none yet'}; make room and repeat the command"
    )


def _cause(error: BaseException) -> BaseException:
    """What went wrong on a rank, in place of the text with a traceback that PyTorch makes of it."""
    if isinstance(error, CheckpointException) and error.failures:
        return next(iter(error.failures.values()))[0]
    return error


def _damaged(file: Path, error: object) -> CheckpointError:
    folder = file if file.is_dir() else file.parent
    return CheckpointError(f"{file} is damaged ({error}). Remove {folder} to fall back on an earlier checkpoint")


def _all(run: Path) -> list[Path]:
    return sorted((run / "checkpoints").glob("step-*"))


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
