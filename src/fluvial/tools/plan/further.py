"""More training of a run: the steps of so many more minutes, or of so many epochs in all."""

import math
from pathlib import Path

import numpy as np

from fluvial.config import Run
from fluvial.data import images as data_images
from fluvial.data.images import DataConfig
from fluvial.data.manifest import is_cache, read_manifest
from fluvial.run.folder import RunFolder
from fluvial.training import log
from fluvial.training.rows import series

LINES = 40  # of the log, whose times count
PAUSE = 20  # a wait of so many times the median is a time without training


def steps_in(folder: RunFolder, run: Run, minutes: float) -> int:
    """The total of steps after so many more minutes, at the speed of the last lines of the log.

    Raises ValueError unless the minutes are above 0, and for a run without a log.
    """
    if not 0 < minutes < math.inf:
        raise ValueError(f"--minutes must be above 0, got {minutes:g}")
    seconds = _seconds_a_step(folder)
    if seconds is None:
        raise ValueError(f"{folder} has no log that tells its speed; give the total of --steps instead of --minutes")
    if (steps := int(minutes * 60 / seconds)) < 1:
        raise ValueError(f"--minutes {minutes:g} is too short: a step takes {seconds:.2g} s, measuring included")
    return folder.taken() + steps


def _seconds_a_step(folder: RunFolder) -> float | None:
    """Seconds a step in the last lines of the log, with validations and pictures; None if it has no two lines."""
    there = (folder.path / "log.jsonl").exists()
    steps, times = series(log.read(folder.path), "time") if there else (np.zeros(0), np.zeros(0))
    steps, times = steps[-LINES:], times[-LINES:]
    if len(steps) < 2 or steps[-1] <= steps[0]:
        return None
    waits = np.diff(times)
    waits = waits.clip(0, PAUSE * max(1e-3, float(np.median(waits[waits > 0])) if (waits > 0).any() else 0.0))
    return float(waits.sum() / (steps[-1] - steps[0]))


def steps_of_epochs(run: Run, epochs: float) -> int:
    """The steps in which training sees every image so many times. Raises ValueError unless they are above 0."""
    if not 0 < epochs < math.inf:
        raise ValueError(f"--epochs must be above 0, got {epochs:g}")
    return max(1, math.ceil(epochs * images_of(run.data) / run.images_per_step))


def images_of(data: DataConfig) -> int:
    """The number of training images that the settings name."""
    if is_cache(data.place):
        manifest = read_manifest(Path(data.place).expanduser())
        return round((manifest.plan.images - len(manifest.skipped)) * (1 - data.validation))
    images = data_images.load(data, "train", scan=False)
    assert images is not None
    return len(images.pixels)
