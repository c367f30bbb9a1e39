"""The log of a run: lines of JSON, and TensorBoard, Weights & Biases or trackio beside them; read back, too."""

import json
import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from fluvial.extras import require
from fluvial.train.distributed import World

Row = dict[str, Any]
EVENTS = ("skipped", "rolled_back_to")
KNOWN = ("loss", "held_out_loss", "score", "blocks", *EVENTS)
LogTo = Literal["tensorboard", "wandb", "trackio"]


class Log:
    """Appends to log.jsonl. Lines after the step that training resumes from are dropped: they come again."""

    def __init__(self, run: Path, to: Sequence[LogTo] = (), last_step: int = 0) -> None:
        self.path = run / "log.jsonl"
        self.others = [_WRITERS[name](run) for name in to]
        if self.path.exists():
            kept = [line for line in self.path.read_text().splitlines() if _step_of(line) <= last_step]
            temporary = self.path.with_suffix(".tmp")
            temporary.write_text("".join(line + "\n" for line in kept))
            os.replace(temporary, self.path)

    def write(self, step: int, **values: Any) -> None:  # noqa: ANN401
        """A line of values at this step; numbers in it go to the other writers under their path."""
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, **values, "time": round(time.time(), 3)}) + "\n")
        numbers = dict(_numbers(values))
        for write in self.others:
            write(numbers, step)


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

    def leave_out(self) -> None:
        """What was done since a line was written, such as evaluation and pictures, does not count as training."""
        if not self.images:
            self.mark = time.perf_counter()

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


def _step_of(line: str) -> int | float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError):
        return math.inf  # a line cut short by a crash


def read(folder: Path | str) -> list[Row]:
    """The lines of a run's log.jsonl, in the order they were written; what is not known is passed through.

    A last line cut short is left out, and so is what a roll-back undid: the measurements of later steps before it.
    Raises ValueError if there is no log, nothing in it, or it is not a run's.
    """
    path = Path(folder) / "log.jsonl"
    if not path.is_file():
        raise ValueError(
            f"{folder} has no log.jsonl; expected a folder that `fluvial train` wrote, such as runs/digits-arflow"
        )
    lines = [line for line in path.read_text(errors="replace").splitlines() if line.strip()]
    rows: list[Row] = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except ValueError as error:
            if number == len(lines):
                break
            raise ValueError(f"line {number} of {path} is not JSON ({error}); expected a run's log") from error
        if not isinstance(row, dict) or type(row.get("step")) is not int:
            raise ValueError(f"line {number} of {path} has no step: {line[:60]!r}; expected the log of a run")
        if "rolled_back_to" in row:
            rows = [r for r in rows if r["step"] <= row["rolled_back_to"] or any(key in r for key in EVENTS)]
        rows.append(row)
    if not rows:
        raise ValueError(f"{path} is empty: the run has not come to its first line (train.log_every); try again later")
    if not any(key in row for row in rows for key in KNOWN):
        raise ValueError(f"{path} has none of {', '.join(KNOWN)}; expected the log of a run, got {sorted(rows[0])}")
    return rows


def series(rows: Sequence[Row], key: str, part: str | int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of one quantity, in float64; `part` is a name or place inside it. What is null is left out."""
    found = [(row["step"], value) for row in rows if (value := _value(row.get(key), part)) is not None]
    steps, values = zip(*found, strict=True) if found else ((), ())
    return np.array(steps, dtype=np.float64), np.array(values, dtype=np.float64)


def _value(value: Any, part: str | int | None) -> float | None:  # noqa: ANN401 - whatever stands in the log
    if part is not None:
        if isinstance(part, str):
            value = value.get(part) if isinstance(value, dict) else None
        else:
            value = value[part] if isinstance(value, list) and part < len(value) else None
    return float(value) if isinstance(value, int | float) else None
