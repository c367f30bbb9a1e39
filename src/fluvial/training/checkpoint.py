"""Checkpoints: folders of safetensors shards and a checkpoint.json, written in the background, renamed when complete.

PyTorch's distributed checkpoint writes a shard for each rank, and reads them at any number of ranks. A folder is filled
under a temporary name, flushed to disk, the sizes and SHA-256 of its files noted, and then renamed: a crash or a full
disk leaves the earlier ones as they were. Whoever reads tensors (`load`, `fill`) verifies the files first.

RUN/checkpoints/step-00000500             a complete checkpoint
RUN/checkpoints/damaged-step-00000500     one that training found damaged and renamed; it is never read
RUN/checkpoints/.step-00000500.partial    one that is being written, or was when its process was killed
"""

import json
import logging
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load as read_sharded
from torch.distributed.checkpoint.state_dict_saver import async_save

from fluvial.training.distributed import ALONE, World
from fluvial.training.home import complete, identity, step_of
from fluvial.training.kept import superfluous
from fluvial.utils.atomic import flush, remove
from fluvial.utils.checks import other_weights
from fluvial.utils.files import checksum, json_checksum, read_bytes
from fluvial.utils.tensors import Lazy, write_tensors

T = TypeVar("T")
FORMAT = 3
BYTES = 16  # of a checkpoint for each parameter: weights, average, two moments
SAVED = ".saved"  # in the folder of a run that has had a checkpoint
TRIES = 20  # of a reader whose checkpoint training removes meanwhile: each is a newer one
Tensors = Mapping[str, Tensor]


class CheckpointError(ValueError):
    """A checkpoint is missing, damaged, of another model, or could not be written."""


class Damaged(CheckpointError):
    """A file of a checkpoint is not as it was written."""

    def __init__(self, file: Path, reason: object) -> None:
        super().__init__(f"{file} is damaged ({reason})")


class Saver:
    """Writes checkpoints in the background: training waits for the copy to host memory, and for the one before."""

    def __init__(
        self, run: Path, *, keep: int, keep_every: int = 0, keep_best: bool = False, world: World = ALONE
    ) -> None:
        self.run, self.world = run, world
        self.superfluous = partial(superfluous, run, keep=keep, keep_every=keep_every, keep_best=keep_best)
        self.pending: Future[None] | None = None
        self.step = 0

    def __enter__(self) -> "Saver":
        return self

    def __exit__(self, *_: object) -> None:
        """Waits, also after an error, for what is being written, so that the next training in this process finds it.

        Not with several ranks: a rank that has failed is no longer there to write its part.
        """
        if self.world.size == 1 and self.pending is not None:
            self.pending.exception()

    def save(self, step: int, parts: Mapping[str, Tensors], meta: Mapping[str, Any]) -> None:
        """Begins to write checkpoints/step-<step>. Raises CheckpointError if that, or the one before, cannot be."""
        self.wait()
        self.step, partial = step, _partial(self.run, step)
        error = None
        if self.world.first:
            try:
                _clean(partial)
            except OSError as found:
                error = str(found)
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
        """Publishes the checkpoint once all ranks have written; runs in the thread that wrote."""
        try:
            written.result()
            if self.world.first:
                _publish(self.run, step, meta)
                self.prune()
            done.set_result(None)
        except BaseException as error:
            if self.world.first:
                shutil.rmtree(_partial(self.run, step), ignore_errors=True)
            done.set_exception(error)

    def tidy(self) -> None:
        """Removes what a process left that was killed while it saved or removed checkpoints; the newest is whole."""
        with suppress(OSError):  # the next save tries again
            (self.run / SAVED).touch()
            _clean_up(self.run)
            self.prune()

    def prune(self) -> None:
        """Removes the checkpoints that need not stay, on the main process; one that cannot be removed is left."""
        there = {step_of(folder): folder for folder in complete(self.run)} if self.world.first else {}
        for step in self.superfluous(list(there)):
            try:
                remove(nameless(there[step]))
            except OSError as error:
                print(f"{there[step]} cannot be removed ({error.strerror}), and is left", flush=True)

    def wait(self) -> None:
        """Returns on every rank when the checkpoint that was begun has its name, so that any rank may read it.

        Raises CheckpointError on every rank if it could not be written.
        """
        if self.pending is None:
            return
        pending, self.pending = self.pending, None
        error = None
        try:
            pending.result()
        except (Exception, CheckpointException) as found:
            error = str(_cause(found))
        error = next((found for found in self.world.gather(error) if found is not None), None)
        if error is not None:
            raise _not_written(self.run, self.step, error)


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
    """The checkpoint of the highest step, or None; whether it is damaged is not looked at."""
    return max(complete(run), default=None, key=step_of)


def newest_whole(run: Path) -> Path | None:
    """The newest verified checkpoint, for the training that holds the run's lock; None if there is none.

    Damaged ones are renamed, which is printed, so that they neither shadow nor outlive whole ones. Raises
    CheckpointError for one that cannot be read for another reason, such as its permissions.
    """
    for folder in reversed(complete(run)):
        try:
            verify(folder)
            return folder
        except Damaged as error:
            print(f"{error}: renamed to {_set_aside(folder).name}, which is never read", flush=True)
    return None


def damaged(run: Path) -> list[Path]:
    """The checkpoints that were found damaged and renamed."""
    return sorted((run / "checkpoints").glob("damaged-step-*"))


def read(run: Path, use: Callable[[Path], T], *, step: int | None = None) -> T:
    """The result of `use` on the newest checkpoint of a run, or on that of `step`; for all readers but training.

    If training removes the checkpoint meanwhile, it is done again with the newest one then. Raises CheckpointError if
    there is none; for a damaged one it says which older one is whole.
    """
    for _ in range(TRIES):
        there = complete(run)
        chosen = [folder for folder in there if step in (None, step_of(folder))]
        if not chosen:
            raise _missing(run, step, there)
        try:
            return use(chosen[-1])
        except CheckpointError as error:
            if not chosen[-1].exists():
                continue
            if isinstance(error, Damaged):
                raise CheckpointError(f"{error}. {_older(chosen[-1], there)}") from error
            raise
    raise CheckpointError(f"{run} is training, and removes its checkpoints faster than they can be read; try later")


def verify(folder: Path) -> None:
    """Raises Damaged naming the first file whose size or SHA-256 is not what was noted when it was written.

    Takes about a second for 1.2 GB that are in the page cache (one core, 2-core AMD EPYC).
    """
    meta, own = load_meta(folder), identity(folder.parent.parent)
    files = meta["files"]
    if own and meta.get("run") not in ("", own):
        raise CheckpointError(f"{folder} is of another run, with another model or seed than run.json; move it away")
    for name, noted in files.items():
        file = folder / name
        try:
            size = file.stat().st_size
            if size != noted["bytes"]:
                raise Damaged(file, f"it has {size:,} bytes, and {noted['bytes']:,} were written")
            if checksum(file) != noted["sha256"]:
                raise Damaged(file, "its content is not what was written: the SHA-256 is another")
        except FileNotFoundError as error:
            raise Damaged(file, "it is gone") from error
        except OSError as error:
            raise CheckpointError(f"{file} cannot be read ({error.strerror})") from error
    if foreign := sorted(path.name for path in folder.glob("*.safetensors") if path.name not in files):
        raise Damaged(folder / foreign[0], "it was not written with this checkpoint")


def load(folder: Path, part: str) -> dict[str, Tensor]:
    """The tensors of one part (model, ema, optimizer), whole and on the CPU, after `verify`.

    Raises CheckpointError if the checkpoint is damaged.
    """
    verify(folder)
    sizes = {name: value for name, value in shapes(folder).items() if name.startswith(f"{part}/")}
    tensors = {name: torch.empty(value.size, dtype=value.properties.dtype) for name, value in sizes.items()}
    fill(tensors, folder, verified=True)
    return {name.removeprefix(f"{part}/"): value for name, value in tensors.items()}


def shapes(folder: Path) -> dict[str, Any]:
    """Size, dtype and chunks of each tensor in a checkpoint, by "part/name"."""
    try:
        for name in load_meta(folder)["files"]:
            if not (folder / name).exists():
                raise Damaged(folder / name, "it is gone")
        return dict(HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata)
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be read ({error})") from error
    except Exception as error:  # a damaged header raises nearly anything
        raise Damaged(folder, error) from error


def fill(tensors: Mapping[str, Tensor], folder: Path, world: World = ALONE, *, verified: bool = False) -> None:
    """Reads into these tensors, by "part/name", after `verify`; sharded ones take their part.

    `verified` says that this has been done. Raises CheckpointError if the checkpoint is damaged, or naming the first
    few differences if it is another model's.
    """
    if not verified:
        verify(folder)
    there = {name: torch.empty(value.size, device="meta") for name, value in shapes(folder).items()}
    parts = {name.partition("/")[0] for name in tensors}
    there = {name: value for name, value in there.items() if name.partition("/")[0] in parts}
    if wrong := other_weights(tensors, there):
        raise CheckpointError(f"{folder} holds another model: {wrong}")
    try:
        with warnings.catch_warnings(), _quiet():
            warnings.simplefilter("ignore")
            reader = HuggingFaceStorageReader(str(folder))
            alone = world.size == 1
            read_sharded(dict(tensors), storage_reader=reader, process_group=world.saving, no_dist=alone)
    except (Exception, CheckpointException) as error:
        cause = _cause(error)
        if isinstance(cause, OSError):
            raise CheckpointError(f"{folder} cannot be read ({cause})") from error
        raise Damaged(folder, cause) from error


def load_meta(folder: Path) -> dict[str, Any]:
    """checkpoint.json: format, step, seconds of training, size and SHA-256 of the files, and what the trainer added.

    Raises Damaged if it is not as it was written, which its own SHA-256 tells.
    """
    file = folder / "checkpoint.json"
    try:
        meta = json.loads(read_bytes(file))
        written, told = meta["format"], meta.pop("sha256", None)
        intact = written != FORMAT or (told == json_checksum(meta) and meta["step"] == step_of(folder))
    except FileNotFoundError as error:
        raise Damaged(file, "it is gone") from error
    except (IsADirectoryError, NotADirectoryError) as error:
        raise Damaged(file, "it is no file") from error
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Damaged(file, f"not the JSON that was written: {type(error).__name__}") from error
    if not intact:
        raise Damaged(file, "its content is not what was written, or of another step than its folder")
    if written != FORMAT:
        raise CheckpointError(f"{file} has format {written!r}, this version of fluvial reads {FORMAT}")
    return meta


def is_untrained(folder: Path) -> bool:
    """True if a checkpoint holds only weights to start from; False for a damaged one."""
    try:
        return bool(load_meta(folder).get("weights_only"))
    except Damaged:
        return False


def _publish(run: Path, step: int, meta: Mapping[str, Any]) -> None:
    """Gives a complete folder its name."""
    partial, final = _partial(run, step), run / "checkpoints" / f"step-{step:08d}"
    paths = sorted(partial.iterdir())
    files = {path.name: {"bytes": path.stat().st_size, "sha256": checksum(path)} for path in paths}
    description = {"format": FORMAT, "step": step, "run": identity(run), **meta, "files": files}
    text = json.dumps({**description, "sha256": json_checksum(description)}, indent=2)
    (partial / "checkpoint.json").write_bytes(text.encode() + b"\n")
    for path in (*partial.iterdir(), partial):
        flush(path)
    if os.path.lexists(final):
        remove(nameless(final))
    partial.rename(final)
    flush(final.parent)
    (run / SAVED).touch()


def nameless(checkpoint: Path) -> Path:
    """Takes a checkpoint its name, so that no reader sees half of it while it is removed; returns where it is now."""
    gone = checkpoint.with_name(f".{checkpoint.name}.removed")
    remove(gone)
    return checkpoint.rename(gone)


def _set_aside(folder: Path) -> Path:
    """Renames a damaged checkpoint, and returns its new name."""
    number, aside = 1, folder.with_name(f"damaged-{folder.name}")
    while aside.exists():
        number += 1
        aside = folder.with_name(f"damaged-{folder.name}-{number}")
    folder.rename(aside)
    return aside


def _clean(partial: Path) -> None:
    """An empty folder, and no others that were left by a run killed while saving or removing."""
    partial.parent.mkdir(exist_ok=True)  # not its parents: a run that was renamed must not come back without run.json
    _clean_up(partial.parent.parent)
    partial.mkdir()


def _clean_up(run: Path) -> None:
    for left_over in (*(run / "checkpoints").glob(".*.partial"), *(run / "checkpoints").glob(".*.removed")):
        remove(left_over)


def _partial(run: Path, step: int) -> Path:
    return run / "checkpoints" / f".step-{step:08d}.partial"


def _not_written(run: Path, step: int, error: object) -> CheckpointError:
    last = newest(run)
    return CheckpointError(
        f"cannot write the checkpoint of step {step} to {run / 'checkpoints'}: {error}. "
        f"{f'The last one is {last}' if last else 'There is none yet'}; once that is mended, the same command goes on"
    )


def _missing(run: Path, step: int | None, there: list[Path]) -> CheckpointError:
    if step is not None and there:
        steps = ", ".join(str(step_of(folder)) for folder in there)
        return CheckpointError(f"{run} has no checkpoint of step {step}; there are those of {steps}")
    if aside := damaged(run):
        return CheckpointError(
            f"{run} has no whole checkpoint: {', '.join(path.name for path in aside)} were found damaged by training"
        )
    return CheckpointError(f"{run} has no checkpoint yet; train it first")


def _older(folder: Path, there: list[Path]) -> str:
    """Which other checkpoint is whole, and how to read it."""
    for other in reversed(there):
        if other != folder:
            try:
                verify(other)
            except CheckpointError:
                continue
            return (
                f"The newest whole checkpoint is {other.name}: --step {step_of(other)} reads it, and `fluvial train` "
                f"goes on from it"
            )
    return "No other checkpoint is whole"


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the tracebacks that PyTorch's checkpoints log before they raise."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _cause(error: BaseException) -> BaseException:
    """The error of a rank itself, without the traceback that PyTorch puts around it."""
    if isinstance(error, CheckpointException) and error.failures:
        return next(iter(error.failures.values()))[0]
    return error
