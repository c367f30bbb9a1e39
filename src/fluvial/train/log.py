"""The log of a run: lines of JSON, and TensorBoard, Weights & Biases or trackio beside them."""

import json
import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from fluvial.extras import require

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
