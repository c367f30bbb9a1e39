"""Run folders for tests of what reads them: settings, a log and checkpoints of one tensor, without training."""

import json
from dataclasses import replace
from pathlib import Path

import torch

from fluvial import recipes
from fluvial.run.folder import RunFolder, record_of
from fluvial.training import checkpoint


def run_folder(path: Path, *at: int, recipe: str = "digits-sit", log=(), **train) -> Path:
    """A folder of a run of a recipe with checkpoints at these steps."""
    run = recipes.get(recipe)
    path.mkdir(parents=True)
    RunFolder(path).write(record_of(replace(run, train=replace(run.train, **train)), recipe))
    for step in at:
        trained = {"seconds": step / 2, "weights_only": False}
        checkpoint.write_weights(path, step, {"w": torch.full((100,), float(step))}, trained)
    if log:
        (path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in log))
    return path


def rows(count: int = 8) -> list[dict]:
    """A line of the log every 50 steps, the validation loss at every second."""
    made = []
    for i in range(1, count + 1):
        made.append({"step": 50 * i, "loss": 1 + 1 / i, "lr": 1e-3, "grad_norm": 0.5, "images_per_second": 50.0})
        made[-1]["time"] = 1e9 + i
        if i % 2 == 0:
            made.append({"step": 50 * i, "held_out_loss": 1.5 + 1 / i, "time": 1e9 + i})
    return made
