"""The log of a run: lines of JSON, and TensorBoard, Weights & Biases or trackio beside them; read back, too."""

import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from fluvial.training.distributed import World
from fluvial.training.rows import EVENTS, HUGE, Row, standing
from fluvial.utils.atomic import atomic_file, flush, naming
from fluvial.utils.checks import LARGEST
from fluvial.utils.extras import require
from fluvial.utils.files import at_once, read_bytes

KNOWN = ("loss", "held_out_loss", "score", "blocks", *EVENTS)
LogTo = Literal["tensorboard", "wandb", "trackio"]


class Log:
    """Appends to log.jsonl. Rows after the step that training resumes from are dropped: they come again."""

    def __init__(self, run: Path, to: Sequence[LogTo] = (), last_step: int = 0) -> None:
        self.path = run / "log.jsonl"
        self.others = [_WRITERS[name](run) for name in to]
        self.resumed: set[str] = set()
        """Names of the values that are logged of the step that training resumes from."""
        if self.path.exists():
            rows, foreign, _ = _parsed(self.path)
            if foreign:
                aside = run / "log-unreadable.txt"
                with open(aside, "ab", opener=at_once) as file:
                    file.write(b"".join(line + b"\n" for _, line in foreign))
                print(f"{_told(self.path, foreign)}: moved to {aside.name}, and training goes on", flush=True)
            with atomic_file(self.path) as temporary:
                temporary.write_bytes(b"".join(line + b"\n" for row, line in rows if row["step"] <= last_step))
            self.resumed = {name for row, _ in rows if row["step"] == last_step for name in row}

    def write(self, step: int, **values: Any) -> None:  # noqa: ANN401
        """A row of values at this step; numbers in it go to the other writers under their path."""
        try:
            with naming(self.path), open(self.path, "ab", opener=at_once) as file:
                file.write(json.dumps({"step": step, **values, "time": round(time.time(), 3)}).encode() + b"\n")
        except FileNotFoundError:
            return  # the folder is gone: the loop notices and saves elsewhere
        numbers = dict(_numbers(values))
        for write in self.others:
            write(numbers, step)

    def sync(self) -> None:
        """Flushes the rows to disk, so that a checkpoint never outlives those of its step."""
        if self.path.exists():
            flush(self.path)


class Meter:
    """The mean loss and the speed since the last line of the log, all ranks together."""

    def __init__(self, device: torch.device, world: World) -> None:
        self.world, self.begun = world, time.perf_counter()
        self.loss = torch.zeros((), device=device)
        self.good = torch.zeros((), device=device)
        self.restart()

    def restart(self) -> None:
        self.loss.zero_()
        self.good.zero_()
        self.images, self.mark = 0, time.perf_counter()

    def add(self, value: Tensor, bad: Tensor, images: int) -> None:
        """A step's loss on this rank, which counts unless the step was skipped."""
        self.loss += torch.where(bad, 0.0, value)
        self.good += ~bad
        self.images += images

    def read(self) -> tuple[float, float]:
        """Mean loss and images/s; begins anew."""
        if self.world.size > 1:
            dist.all_reduce(self.loss)
            self.loss /= self.world.size
        good = float(self.good)
        found = float(self.loss) / good if good else math.nan, self.images / (time.perf_counter() - self.mark)
        self.restart()
        return found

    def so_far(self) -> tuple[float, float]:
        """Sum of the losses of all ranks' steps since the last line, and their number, for a checkpoint."""
        loss = self.loss.clone()
        if self.world.size > 1:
            dist.all_reduce(loss)
            loss /= self.world.size
        return float(loss), float(self.good)

    def go_on(self, loss: float, good: float) -> None:
        """Counts the steps that `so_far` counted, too."""
        self.loss += loss
        self.good += good

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves out what is done inside, such as validation and pictures, from the speed of training."""
        if self.loss.device.type == "cuda":
            torch.cuda.synchronize(self.loss.device)  # steps that are still queued are training
        started = time.perf_counter()
        yield
        self.mark += time.perf_counter() - started

    def elapsed(self) -> float:
        """Seconds since the start of this process's training."""
        return time.perf_counter() - self.begun


def _numbers(values: Any, path: str = "") -> list[tuple[str, float]]:  # noqa: ANN401
    """Finite numbers in nested values, as ("held_out_by_time/3", number)."""
    if isinstance(values, (int, float)):
        return [(path, float(values))] if math.isfinite(values) else []
    parts = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    return [found for key, value in parts for found in _numbers(value, f"{path}/{key}" if path else str(key))]


def _tensorboard(run: Path) -> Any:  # noqa: ANN401
    require("tensorboard", extra="tensorboard", why="train.log_to tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(run / "tensorboard"))

    def write(numbers: dict[str, float], step: int) -> None:
        for name, value in numbers.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    return write


def _tracker(library: str) -> Any:  # noqa: ANN401
    """Weights & Biases, or trackio, which has the same interface."""

    def start(run: Path) -> Any:  # noqa: ANN401
        module = require(library, extra=library, why=f"train.log_to {library}")
        options = {"dir": str(run)} if library == "wandb" else {}
        module.init(project="fluvial", name=run.name, resume="allow", **options)
        return lambda numbers, step: module.log(numbers, step=step)

    return start


_WRITERS = {"tensorboard": _tensorboard, "wandb": _tracker("wandb"), "trackio": _tracker("trackio")}


def _is_count(value: Any) -> bool:  # noqa: ANN401 - whatever stands in the log
    return type(value) is int and 0 <= value < LARGEST


def _is_finite(value: Any) -> bool:  # noqa: ANN401
    return type(value) in (int, float) and abs(value) < (LARGEST if type(value) is int else HUGE)


def _is_number(value: Any) -> bool:  # noqa: ANN401
    """True for a number, NaN and infinity included, as in a training that diverged."""
    return _is_finite(value) or (type(value) is float and not math.isfinite(value))


def _is_list(value: Any) -> bool:  # noqa: ANN401
    return isinstance(value, list) and all(part is None or _is_number(part) for part in value)


def _is_object(value: Any) -> bool:  # noqa: ANN401
    """True for a mapping with names whose numbers are numbers."""
    return isinstance(value, dict) and all(_is_number(v) for v in value.values() if isinstance(v, int | float))


def _is_text(value: Any) -> bool:  # noqa: ANN401
    return isinstance(value, str)


_KINDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    **dict.fromkeys(("loss", "held_out_loss", "lr", "grad_norm", "images_per_second"), ("a number", _is_number)),
    "closer_to_training": ("a number", _is_number),
    "rises_since": ("a whole number", _is_count),
    "time": ("a finite number", _is_finite),
    **dict.fromkeys(EVENTS, ("a whole number", _is_count)),
    **dict.fromkeys(("score", "blocks"), ("an object of numbers", _is_object)),
    **dict.fromkeys(("held_out_by_time", "held_out_by_scale"), ("a list of numbers", _is_list)),
    "first_non_finite": ("a text", _is_text),
}


def _odd(row: Row) -> dict[str, str]:
    """The fault of values that are not of the type of their key; those of measurements may be null."""
    return {
        key: f"{key} is {value!r:.40}, expected {kind}"
        for key, value in row.items()
        if key in _KINDS and not (value is None and key not in EVENTS)
        for kind, fits in (_KINDS[key],)
        if not fits(value)
    }


def _parsed(path: Path) -> tuple[list[tuple[Row, bytes]], list[tuple[int, bytes]], list[tuple[int, str]]]:
    """Rows with their lines, the numbers and text of lines that are no rows, and what values are left out of which.

    A row is a JSON object with a whole number as its step. A last line cut short by a crash is nowhere.
    """
    rows, foreign, left_out = [], [], []
    lines = read_bytes(path).split(b"\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode())
            if not isinstance(row, dict) or not _is_count(row.get("step")):
                raise ValueError("no step")
            odd = _odd(row)
            left_out += [(number, text) for text in odd.values()]
            rows.append(({key: value for key, value in row.items() if key not in odd}, line))
        except (ValueError, RecursionError):
            if number < len(lines):  # the last line has no end
                foreign.append((number, line))
    return rows, foreign, left_out


def _told(path: Path, foreign: Sequence[tuple[int, bytes]]) -> str:
    number, line = foreign[0]
    more = _more(foreign)
    return f"line {number}{more} of {path} is not a row of a run's log, a JSON object with a step: {line[:40]!r}"


def _more(those: Sequence[Any]) -> str:
    return f" and {len(those) - 1} more" if len(those) > 1 else ""


def last_step(run: Path) -> int:
    """The highest step that a run has logged, or 0."""
    path = run / "log.jsonl"
    return max((row["step"] for row, _ in _parsed(path)[0]), default=0) if path.is_file() else 0


def read(folder: Path | str) -> list[Row]:
    """The rows of a run's log.jsonl, in the order they were written; what is not known is passed through.

    A last line cut short is left out, and so are lines that are no rows and values of another kind than their key's,
    which a warning names, and what a roll-back undid: the measurements of later steps before it. Raises ValueError if
    there is no log, or no row of a run in it.
    """
    path = Path(folder) / "log.jsonl"
    if not path.is_file():
        raise ValueError(
            f"{folder} has no log.jsonl; expected a folder that `fluvial train` wrote, such as runs/digits-arflow"
        )
    found, foreign, left_out = _parsed(path)
    if foreign and not found:
        raise ValueError(f"{_told(path, foreign)}; expected the log of a run")
    if foreign:
        print(f"{_told(path, foreign)}: left out", file=sys.stderr)
    if left_out:
        number, text = left_out[0]
        print(f"line {number} of {path}: {text}; this value{_more(left_out)} left out", file=sys.stderr)
    rows = standing(row for row, _ in found)
    if not rows:
        raise ValueError(f"{path} is empty: the run has not come to its first line (train.log_every); try again later")
    if not any(key in row for row in rows for key in KNOWN):
        raise ValueError(f"{path} has none of {', '.join(KNOWN)}; expected the log of a run, got {sorted(rows[0])}")
    return rows


def rows_of(run: Path) -> list[Row]:
    """The rows that `read` returns, for training itself: nothing is printed, and there are none without a log."""
    path = run / "log.jsonl"
    return standing(row for row, _ in _parsed(path)[0]) if path.is_file() else []


def validated(rows: Iterable[Row]) -> dict[int, float]:
    """The validation losses by step, those that are finite."""
    losses = {row["step"]: row["held_out_loss"] for row in rows if row.get("held_out_loss") is not None}
    return {step: float(loss) for step, loss in losses.items() if math.isfinite(loss)}
