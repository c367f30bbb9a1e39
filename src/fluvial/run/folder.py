"""The folder of a run on disk.

runs/digits-arflow/
  run.json        the whole configuration, the recipe, the versions that made it
  log.jsonl       loss, learning rate, gradient norm, images/s, validation loss
  checkpoints/    the newest few: model, moving average, optimizer
  ema/            snapshots of power-function averages, if the run keeps them
  latents/        the cached latents of a run with data.cache
  trajectories/   what a distilled model learns from: the points of its teacher's trajectories
  samples/        grids drawn during training, and what `fluvial sample` writes
  score.json      what `fluvial score` measured
  likelihood.json what `fluvial likelihood` measured, with a picture beside it
"""

import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fluvial
from fluvial.config import Run, fixed_differences, from_json, to_json
from fluvial.training import checkpoint
from fluvial.training.health import check_finite_weights
from fluvial.training.kept import best
from fluvial.training.optim import learning_rate
from fluvial.utils.atomic import write_json
from fluvial.utils.files import brief, check_folder, check_room, json_checksum, make_folder, read_bytes
from fluvial.utils.places import closest
from fluvial.utils.tensors import Lazy

# entries of run.json and their types
RECORD: dict[str, type | tuple[type, ...]] = {"recipe": (str, type(None)), "config": dict, "made_by": dict}
RECORD |= {"imported": dict, "start": str, "ema": dict, "run": dict}


@dataclass(frozen=True)
class RunFolder:
    """A path that knows the files of a run."""

    path: Path

    def __init__(self, path: Path | str) -> None:
        object.__setattr__(self, "path", Path(path))

    def __str__(self) -> str:
        return str(self.path)

    @property
    def file(self) -> Path:
        """run.json, the configuration."""
        return self.path / "run.json"

    @property
    def samples(self) -> Path:
        return self.path / "samples"

    @property
    def latents(self) -> Path:
        return self.path / "latents"

    @property
    def trajectories(self) -> Path:
        return self.path / "trajectories"

    @property
    def averages(self) -> Path:
        return self.path / "ema"

    @property
    def card(self) -> Path:
        return self.path / "score.json"

    def exists(self) -> bool:
        """True if the folder has a run.json."""
        return self.file.exists()

    def run(self) -> Run:
        """The configuration. Raises ValueError if there is none or it cannot be read."""
        try:
            return run_of(self.file)
        except FileNotFoundError as error:
            hint = "" if self.path.exists() else closest(str(self))
            raise ValueError(f"{self} is not a run folder: it has no run.json{hint}") from error

    def record(self) -> dict[str, Any]:
        """The entries of run.json, without its checksum. Raises ValueError if it cannot be read."""
        try:
            record = dict(json.loads(read_bytes(self.file)))
        except (ValueError, TypeError, RecursionError) as error:
            raise ValueError(
                f"{self.file} cannot be read: {brief(error)}; bring back a copy of it, or take another folder"
            ) from error
        return {key: value for key, value in record.items() if key != "sha256"}

    def write(self, record: Mapping[str, Any]) -> None:
        """Writes run.json, with a checksum of itself."""
        write_json(self.file, {**record, "sha256": json_checksum(record)})

    def create(
        self,
        record: Mapping[str, Any],
        tensors: Mapping[str, Tensor | Lazy],
        *,
        step: int = 0,
        seconds: float = 0.0,
    ) -> None:
        """Makes the folder from weights that come from elsewhere. Training goes on from them with a new optimizer."""
        make_folder(self.path)
        checkpoint.write_weights(self.path, step, tensors, {"seconds": seconds})
        self.write(record)

    def weights(self, *, step: int | None = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The averaged weights of the newest checkpoint, or that of `step`, on the CPU, and its description.

        Raises ValueError if the checkpoint is missing or damaged; RuntimeError if it is not finite.
        """

        def load(there: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
            found = checkpoint.load(there, "ema")
            check_finite_weights(found, f"the weights in {there}")
            return found, checkpoint.load_meta(there)

        return checkpoint.read(self.path, load, step=step)

    def taken(self) -> int:
        """The training steps behind the newest checkpoint; 0 without one, or if its weights are from elsewhere."""
        newest = checkpoint.newest(self.path)
        return 0 if newest is None or checkpoint.is_untrained(newest) else checkpoint.step_of(newest)

    def best(self) -> int | None:
        """The step of the checkpoint with the lowest validation loss in the log; None if no checkpoint's step has one.

        It stays on disk if the run keeps it (train.keep_best).
        """
        return best(self.path, [checkpoint.step_of(folder) for folder in checkpoint.complete(self.path)])

    def completed(self, run: Run) -> Run:
        """The run with what was found when it was first started here, where it does not say otherwise."""
        if not self.exists():
            return run
        there = self.run()
        names, digest = run.data.class_names or there.data.class_names, run.data.digest or there.data.digest
        ours, theirs = run.autoencoder, there.autoencoder
        if not ours.shift and ours.statistics == theirs.statistics:
            ours = replace(ours, shift=theirs.shift, scale=theirs.scale)
        ours = replace(ours, hash=ours.hash or theirs.hash)
        found = {"class_names": names, "digest": digest, "names_given": run.data.renames or there.data.names_given}
        return replace(run, autoencoder=ours, data=replace(run.data, **found))

    def check(self, run: Run) -> None:
        """Raises ValueError if the folder holds another run, or files that belong to no run, or cannot be made."""
        check_folder(self.path)
        if self.exists():
            there = self.run()
            fatal = {k: v for k, v in fixed_differences(there, run).items() if not _renamed(k, *v)}
            newest = checkpoint.newest(self.path)
            if newest is not None and checkpoint.is_untrained(newest):
                fatal = {k: v for k, v in fatal.items() if k.startswith("method.") or (k.startswith("auto") and v[0])}
            if set(fatal) == {"data.digest"}:
                other = "start another run from its weights with --from or --out"
                other = "distil into another folder with --out" if there.train.distillation.steps else other
                raise ValueError(
                    f"the images are not those that {self} was trained on: files were added, removed, renamed or "
                    f"changed. Bring them back, or {other}"
                )
            if fatal:
                listed = ", ".join(f"{k} is {old} there and {new} here" for k, (old, new) in fatal.items())
                raise ValueError(f"{self} holds another run: {listed}. Choose another folder with --out, or remove it")
            if run.train.steps < (taken := self.taken()):
                raise ValueError(
                    f"{self} has taken {taken:,} steps, and train.steps {run.train.steps:,} are fewer: to go on, give "
                    f"more; for fewer, draw from an earlier checkpoint with --step, or train anew with --out"
                )
        elif self.path.exists() and any(p.name[0] != "." and p != self.latents for p in self.path.iterdir()):
            raise ValueError(f"{self} is not empty and not a run folder; choose another with --out")

    def check_room(self, run: Run, model: nn.Module) -> None:
        """Raises ValueError if the disk has no room for the checkpoints that are to be there beside what there is."""
        each = checkpoint.BYTES * sum(p.numel() for p in model.parameters())
        count = 1 if checkpoint.newest(self.path) is not None else run.train.keep + 1
        check_room(self.path, each * count, what="the checkpoints", advice="or choose another disk with --out")

    def next_rate(self, run: Run) -> str:
        """The learning rate of a run that goes on to another number of steps, in a line; "" if it is as it was."""
        if not self.exists() or not (taken := self.taken()):
            return ""
        steps, before = run.train.steps, self.run()
        if steps in (before.train.steps, taken):
            return ""
        line = f"goes on from step {taken:,} to {steps:,}"
        old, new = (learning_rate(run.optim, *at) for at in ((taken - 1, before.train.steps), (taken, steps)))
        if run.optim.schedule == "constant":
            return f"{line} at the learning rate {new:.1e}"
        what = "the decay" if run.optim.schedule == "wsd" else "the cosine"
        return f"{line}: the learning rate goes from {old:.1e} to {new:.1e}, as {what} now ends at step {steps:,}" + (
            "" if run.train.distillation.steps else "; for a new run from these weights instead: --out FOLDER"
        )

    def claim(
        self,
        run: Run,
        recipe: str | None,
        start: Path | str | None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        """Writes run.json, or checks that the one there is of the same run."""
        self.check(run)
        there = self.record() if self.exists() else {}
        start = there.get("start") if there else start
        origin: dict[str, Any] = {} if start is None else {"start": str(start)}
        if start is not None and not there and (imported := RunFolder(start).record().get("imported")):
            origin["imported"] = imported  # where the weights are from in the first place
        given = {} if config is None else {"config": dict(config)}
        record = record_of(run, recipe, **given, **origin)
        make_folder(self.path)
        self.write({**record, **there, **given, "run": record["run"]})

    def first_weights(self, start: Path | str | None, *, start_over: bool = False) -> Path | str | None:
        """The run folder whose weights training starts from; None for new weights, or if it goes on from its own.

        Raises ValueError if the folder started from others, or has lost those that it was made of.
        """
        record = self.record() if self.exists() else {}
        if record:
            there = record.get("start")
            if start is not None and str(start) != there:
                raise ValueError(f"{self} holds a run that started from {there or 'new weights'}, not from {start}")
            start = there
        if start_over and (whole := checkpoint.newest_whole(self.path)):
            raise ValueError(f"--start-over is for runs without a whole checkpoint, and {whole} is whole; leave it out")
        none = checkpoint.newest(self.path) is None
        if none and start is None and record.keys() & {"imported", "ema"}:
            raise ValueError(f"the weights that {self} was made of are gone; make it again with fluvial import, or ema")
        return start if none and (start_over or not (self.path / checkpoint.SAVED).exists()) else None


def run_of(file: Path) -> Run:
    """The configuration in a run.json, wherever it is. Raises ValueError if it cannot be read or was edited."""
    try:
        record = json.loads(read_bytes(file))
        if not isinstance(record, dict) or "run" not in record:
            raise ValueError('it has no entry "run", as the run.json of a run has')
        run, told = from_json(record["run"]), record.pop("sha256", None)
        if unknown := record.keys() - RECORD.keys():
            raise ValueError(f"it has the unknown entries {', '.join(sorted(unknown))}")
        if wrong := [key for key, types in RECORD.items() if key in record and not isinstance(record[key], types)]:
            raise ValueError(f"{wrong[0]} is {record[wrong[0]]!r:.100}")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{file} cannot be read: {error!s:.1000}") from error
    if told not in (None, json_checksum(record)):
        raise ValueError(
            f"{file} is not as it was written: damaged, or edited. Settings are changed by options of "
            f'`fluvial train`; to keep an edit, delete the entry "sha256" in it'
        )
    return run


def record_of(run: Run, recipe: str | None = None, **origin: Any) -> dict[str, Any]:  # noqa: ANN401
    """The entries of run.json: the run, the recipe, the versions that made it, and where its weights come from."""
    made_by = {"fluvial": fluvial.__version__, "torch": torch.__version__, "python": platform.python_version()}
    return {"recipe": recipe, "made_by": made_by, **origin, "run": to_json(run)}


def _renamed(key: str, there: Any, here: Any) -> bool:  # noqa: ANN401 - a setting
    """True if the same data has another name: a path in place of the hub's, or class names or a digest it had not."""
    return (key == "data.name" and "" in (there, here)) or (key in ("data.class_names", "data.digest") and not there)
