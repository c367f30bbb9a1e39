"""Run folders and how far each is, read without PyTorch, so that listing many of them takes a moment."""

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from fluvial.training.home import complete, identity, step_of
from fluvial.utils.atomic import check_unlocked
from fluvial.utils.files import json_checksum, read_bytes, reading

T = TypeVar("T")
State = Literal["running", "stopped", "finished", "weights", "damaged"]
DEPTH = 3  # levels below a folder at which runs are looked for: runs/compare-digits/SiT is two below runs
TAIL = 2**20  # bytes at the end of a log among which the last losses are looked for
LARGE = 1e300  # numbers of a log are below
TRIES = 3  # of reading the newest checkpoint, which training may remove meanwhile


@dataclass(frozen=True, kw_only=True)
class Listed:
    """A run as a list shows it. Numbers that are not known are None, texts empty."""

    folder: Path
    state: State
    """running: a process trains in it; weights: made by `fluvial import` or `ema`, and not trained."""
    why: str = ""
    """The reason, in one line, of a damaged one."""
    method: str = ""
    data: str = ""
    step: int = 0
    """Steps in the newest checkpoint, or in the log of a running one."""
    steps: int | None = None
    seconds: float | None = None
    """Wall-clock seconds of training in the newest checkpoint."""
    loss: float | None = None
    validation: float | None = None
    score: str = ""
    """Name and value of the first score in score.json."""
    size: int = 0
    """Bytes on disk."""
    changed: float = 0.0
    """Unix time of the last line of the log; of run.json without one."""


def find(folder: Path) -> list[Path]:
    """The run folders at most `DEPTH` levels below a folder, in order of their paths, or the folder itself.

    Of several paths to one, by links, the shortest. A link is followed to a run, but not to a folder of runs, which may
    lie anywhere, as above this one.
    """
    found: dict[Path, Path] = {}
    for path in sorted(_walk(folder, DEPTH), key=lambda path: len(path.parts)):
        found.setdefault(path.resolve(), path)
    return sorted(found.values())


def _walk(folder: Path, depth: int) -> Iterator[Path]:
    if is_run(folder):
        yield folder
    elif depth:
        try:
            below = sorted((e.name, e.is_symlink()) for e in os.scandir(folder) if e.name[0] != "." and e.is_dir())
        except OSError:  # it may not be listed
            return
        for name, is_link in below:
            yield from _walk(folder / name, 0 if is_link else depth - 1)


def _method(settings: Mapping[str, Any]) -> str:
    """The method of a run, and the number of steps that it was distilled to."""
    steps = settings.get("train", {}).get("distillation", {}).get("steps", 0)
    name = settings.get("method", {}).get("name", "")
    return f"{name}, {steps} step{'s' * (steps > 1)}" if steps else name


def is_run(folder: Path) -> bool:
    """True for a folder with a run.json, or with checkpoints of a run that has lost it."""
    try:
        return (folder / "run.json").exists() or (folder / ".saved").exists() or bool(complete(folder))
    except OSError:
        return False


def look(folder: Path) -> Listed:
    """A run as it is on disk. Nothing in the folder makes this fail: what is damaged is named in the result."""
    faults: list[str] = []
    known = _tried(faults, {}, lambda: record(folder))
    settings = known.get("run", {})
    last = _tried(faults, {}, lambda: _last_values(folder / "log.jsonl"))
    step, meta = _tried(faults, (0, {}), lambda: _newest(folder))
    steps = settings.get("train", {}).get("steps")
    made = bool(meta.get("weights_only")) and bool(known.keys() & {"imported", "ema"})
    state: State = "damaged" if faults else "weights" if made else "stopped"
    if state == "stopped" and steps is not None and step >= steps:
        state = "finished"
    if is_running(folder):
        state, step = "running", max(step, int(last.get("step", 0)))
    return Listed(
        folder=folder,
        state=state,
        why=" ".join(faults[0].split())[:300] if state == "damaged" else "",
        method=_method(settings),
        data=_data(settings),
        step=step,
        steps=steps,
        seconds=_number(meta.get("seconds")),
        loss=last.get("loss"),
        validation=last.get("held_out_loss"),
        score=_score(folder / "score.json"),
        size=size(folder),
        changed=last.get("time") or _changed(folder),
    )


def record(folder: Path) -> dict[str, Any]:
    """The entries of run.json; its settings are not checked as `RunFolder.run` does.

    Raises ValueError if it is missing, not as it was written, or says no method, data or steps.
    """
    file = folder / "run.json"
    try:
        found = json.loads(read_bytes(file))
        told = found.pop("sha256", None)
        train, method = found["run"]["train"], found["run"]["method"]
        whole = type(train["steps"]) is int and isinstance(method["name"], str) and isinstance(_data(found["run"]), str)
    except FileNotFoundError as error:
        raise ValueError(f"{file.name} is gone") from error
    except OSError as error:
        raise ValueError(f"{file.name} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{file.name} is not the file of a run ({type(error).__name__}: {error})") from error
    if not whole:
        raise ValueError(f"{file.name} is not the file of a run: steps, method or data are of another type")
    if told not in (None, json_checksum(found)):
        raise ValueError(f"{file.name} is not as it was written: damaged, or edited")
    return found


def is_running(folder: Path) -> bool:
    """True if a process trains in the folder. False where there are no locks."""
    try:
        check_unlocked(folder)
    except ValueError:
        return True
    except OSError:
        return False
    return False


def size(path: Path) -> int:
    """Bytes of a file, or of all files in a folder; links and what cannot be read count nothing."""
    try:
        if path.is_symlink() or not path.is_dir():
            return 0 if path.is_symlink() else path.stat().st_size
        with os.scandir(path) as entries:
            return sum(_size_of(entry) for entry in entries)
    except OSError:
        return 0


def _size_of(entry: "os.DirEntry[str]") -> int:
    if entry.is_dir(follow_symlinks=False):
        return size(Path(entry.path))
    return entry.stat(follow_symlinks=False).st_size if entry.is_file(follow_symlinks=False) else 0


def _tried(faults: list[str], default: T, read: Callable[[], T]) -> T:
    """The result of `read`, or the default and the reason among the faults."""
    try:
        return read()
    except (OSError, ValueError) as error:
        faults.append(str(error))
        return default


def _newest(folder: Path) -> tuple[int, dict[str, Any]]:
    """Step and description of the newest checkpoint; (0, {}) if there was none yet. Raises ValueError if damaged."""
    for _ in range(TRIES):
        there = complete(folder)
        if not there:
            if (folder / ".saved").exists():
                aside = any((folder / "checkpoints").glob("damaged-step-*"))
                raise ValueError(f"no checkpoint is whole{': training found them damaged' if aside else ''}")
            return 0, {}
        try:
            return step_of(there[-1]), description(there[-1])
        except ValueError:
            if there[-1].exists():
                raise
    return 0, {}


def description(checkpoint: Path) -> dict[str, Any]:
    """The checkpoint.json of a checkpoint, after a look at the sizes of its files.

    Raises ValueError if one is missing or of another size, or the checkpoint is of another run; `checkpoint.verify`
    compares contents, too.
    """
    try:
        meta = json.loads(read_bytes(checkpoint / "checkpoint.json"))
        if (told := meta.pop("sha256", None)) is not None and told != json_checksum(meta):
            raise ValueError("checkpoint.json is not as it was written")
        for name, noted in meta["files"].items():
            if (checkpoint / name).stat().st_size != noted["bytes"]:
                raise ValueError(f"{name} has another size than was written")
        if (own := identity(checkpoint.parent.parent)) and meta.get("run") not in ("", own):
            raise ValueError("it is of another run, with another model or seed than run.json")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = f"{Path(error.filename).name}: {error.strerror}" if isinstance(error, OSError) else str(error)
        reason = f"checkpoint.json is damaged: {reason}" if isinstance(error, KeyError | TypeError) else reason
        raise ValueError(f"{checkpoint.name}: {reason}") from error
    return meta


def _last_values(log: Path) -> dict[str, Any]:
    """The last step, time, loss and validation loss in the end of a log; nothing without a log."""
    if not log.exists():
        return {}
    with reading(log) as file:
        start = max(0, file.seek(0, os.SEEK_END) - TAIL)
        file.seek(start)
        lines = file.read().split(b"\n")[1 if start else 0 :]
    found: dict[str, Any] = {}
    missing = {"time", "loss", "held_out_loss", "step"}
    for line in reversed(lines):
        if not any(b'"%s"' % key.encode() in line for key in missing):
            continue
        row = _row(line)
        if "rolled_back_to" in row:
            row["step"] = row["rolled_back_to"]
        found |= {key: value for key in missing if (value := _number(row.get(key))) is not None}
        missing -= found.keys()
    return found


def _row(line: bytes) -> dict[str, Any]:
    """A line of the log; nothing for one that is no row."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return row if isinstance(row, dict) else {}


def _score(card: Path) -> str:
    if not card.exists():
        return ""
    try:
        for name, found in json.loads(read_bytes(card))["scores"].items():
            return f"{name.replace('_', ' ')} {found['value']:.4g}"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return "unreadable"
    return ""


def _data(settings: dict[str, Any]) -> str:
    data = settings.get("data", {})
    return data.get("path") or data.get("name") or ""


def _number(value: Any) -> float | None:  # noqa: ANN401 - whatever stands in a file
    fits = type(value) in (int, float) and (value != value or abs(value) < LARGE)  # NaN is what a loss may have become
    return float(value) if fits else None


def _changed(folder: Path) -> float:
    for path in (folder / "run.json", folder):
        try:
            return path.stat().st_mtime
        except OSError:
            continue
    return time.time()


def in_bytes(count: int) -> str:
    """Bytes in words, such as 12.3 MB."""
    value, units = float(count), iter(("B", "kB", "MB", "GB"))
    for unit in units:
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:,.3g} TB"
