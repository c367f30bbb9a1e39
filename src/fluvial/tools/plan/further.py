"""More training of a run: the steps of so many more minutes, or of so many epochs in all."""

import math
import statistics
from pathlib import Path

from fluvial.config import Run
from fluvial.data import images as data_images
from fluvial.data.images import DataConfig
from fluvial.data.manifest import is_cache, read_manifest
from fluvial.run.folder import RunFolder
from fluvial.tools.plan import pace
from fluvial.training import log

LINES = 20  # of the log, whose speeds count


def steps_in(folder: RunFolder, run: Run, minutes: float) -> int:
    """The total of steps after so many more minutes, at the speed of the last lines of the log.

    Raises ValueError unless the minutes are above 0, and for a run without a log.
    """
    if not 0 < minutes < math.inf:
        raise ValueError(f"--minutes must be above 0, got {minutes:g}")
    there = (folder.path / "log.jsonl").exists()
    speeds = log.series(log.read(folder.path), "images_per_second")[1][-LINES:].tolist() if there else []
    if not speeds:
        raise ValueError(f"{folder} has no log that tells its speed; give the total of --steps instead of --minutes")
    seconds = run.images_per_step / statistics.median(speeds)
    return folder.taken() + max(1, int(pace.usable(minutes) / seconds))


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
