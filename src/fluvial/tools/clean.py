"""Removes what a run folder can do without: older and damaged checkpoints, snapshots of averages, leftover files."""

import errno
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fluvial.run.folder import RunFolder
from fluvial.tools.runs import in_bytes, record, size
from fluvial.training import log, power_ema
from fluvial.training.checkpoint import CheckpointError, Damaged, complete, damaged, nameless, step_of, verify
from fluvial.training.kept import lowest
from fluvial.utils.atomic import abandoned, check_unlocked, only_one, remove
from fluvial.utils.checks import at_least


@dataclass(frozen=True, kw_only=True)
class Removable:
    """A file or folder that a run can do without, and the reason."""

    path: Path
    why: str
    size: int


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The parts of a run folder to remove, and what stays although it is large or odd."""

    folder: Path
    removable: list[Removable] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Keeping:
    """The parts of a run that stay."""

    keep: int = 1
    """Number of the newest whole checkpoints."""
    keep_every: int | None = None
    """Checkpoints of steps that this divides; None for train.keep_every of the run, 0 for none."""
    snapshots: bool = True
    """The snapshots of averages of finished runs, from which `fluvial ema` makes others; those of others always do."""

    def __post_init__(self) -> None:
        at_least(1, self, "keep")
        if self.keep_every is not None:
            at_least(0, self, "keep_every")


def plan(folder: Path, keeping: Keeping) -> Plan:
    """The removable parts of a run folder, of which nothing is changed. Checkpoints are verified, newest first.

    Nothing of a run that trains, or whose run.json cannot be read, is removable; and no checkpoint where none is whole.
    """
    try:
        check_unlocked(folder)
        return _planned(folder, keeping)
    except (ValueError, OSError) as error:
        return Plan(folder=folder, notes=[f"left as it is: {error}"])


def clean(folder: Path, keeping: Keeping) -> Plan:
    """Removes what `plan` says, with the folder locked meanwhile, and returns what was removed."""
    done = Plan(folder=folder)
    try:
        check_unlocked(folder)
        with only_one(folder):
            planned = _planned(folder, keeping)
            done.notes.extend(planned.notes)
            for each in planned.removable:
                try:
                    _remove(each.path)
                    done.removable.append(each)
                except OSError as error:
                    done.notes.append(f"{each.path.name} cannot be removed ({error.strerror}), and is left")
    except (ValueError, OSError) as error:
        done.notes.append(f"left as it is: {error}")
    return done


def _planned(folder: Path, keeping: Keeping) -> Plan:
    """The removable parts of a folder that nobody trains in. Raises ValueError for a damaged run.json."""
    made, settings = Plan(folder=folder), record(folder)["run"]["train"]
    _plan_checkpoints(made, settings, keeping)
    _plan_snapshots(made, settings["steps"], keeping)
    stored, last = RunFolder(folder).trajectories, max(map(step_of, complete(folder)), default=0)
    if stored.is_dir() and settings["steps"] <= last:
        why = "trajectories of a distillation that is finished; drawn again if it goes on"
        made.removable.append(Removable(path=stored, why=why, size=size(stored)))
    for path in _leftovers(folder):
        made.removable.append(Removable(path=path, why="left by a process that was killed", size=size(path)))
    return made


def _plan_checkpoints(made: Plan, settings: Mapping[str, Any], keeping: Keeping) -> None:
    """Adds the checkpoints older than the newest few whole ones, and damaged ones if there is a whole one."""
    whole, broken, older = list[Path](), dict[Path, str](), list[Path]()
    there = complete(made.folder)
    for folder in reversed(there):
        if len(whole) == keeping.keep:
            older.append(folder)
            continue
        try:
            verify(folder)
            whole.append(folder)
        except Damaged as error:
            broken[folder] = str(error).removeprefix(f"{folder}/")
        except CheckpointError as error:
            made.notes.append(f"{folder.name} is left: {error}")
    broken |= dict.fromkeys(damaged(made.folder), "training found it damaged, and does not read it")
    if not whole:
        if broken:
            made.notes.append(f"no checkpoint is whole: all {len(broken)} stay")
        return
    every = settings.get("keep_every", 0) if keeping.keep_every is None else keeping.keep_every
    best = lowest(log.read(made.folder), list(map(step_of, there))) if settings.get("keep_best") else None
    for folder in reversed(older):
        if (every and step_of(folder) % every == 0) or step_of(folder) == best:
            reason = "of the lowest validation loss" if step_of(folder) == best else f"of every {every:,} steps"
            made.notes.append(f"{folder.name} stays, the checkpoint {reason}")
        else:
            made.removable.append(Removable(path=folder, why="an older checkpoint", size=size(folder)))
    for folder, why in broken.items():
        made.removable.append(Removable(path=folder, why=why, size=size(folder)))


def _plan_snapshots(made: Plan, steps: int, keeping: Keeping) -> None:
    """Adds the snapshots of averages of a finished run, if they need not stay; notes that they do."""
    stored, newest = power_ema.snapshots(made.folder / "ema"), complete(made.folder)[-1:]
    if not stored:
        return
    if keeping.snapshots or not newest or step_of(newest[0]) < steps:
        total = sum(size(path) for path, _, _ in stored)
        made.notes.append(f"{len(stored)} snapshots of averages stay, {in_bytes(total)}, for `fluvial ema`")
        return
    for path, _, _ in stored:
        made.removable.append(Removable(path=path, why="a snapshot of an average", size=size(path)))


def _leftovers(folder: Path) -> list[Path]:
    """Files and folders with temporary names that no process writes any more."""
    found = [path for part in ("*.partial", "*.removed") for path in sorted((folder / "checkpoints").glob(f".{part}"))]
    return found + [path for place in (".", "samples", "ema") for path in abandoned(folder / place)]


def _remove(path: Path) -> None:
    """Removes a file or folder. A checkpoint loses its name first, so that no reader sees half of it."""
    if path.parent.name == "checkpoints" and path.name[0] != ".":
        path = nameless(path)
    remove(path)
    if path.exists():  # a folder of which something could not be removed
        raise PermissionError(errno.EACCES, "some of it could not be removed", str(path))
