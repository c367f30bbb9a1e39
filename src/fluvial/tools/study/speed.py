"""The speed of a run, measured in a short trial: how long a training step takes, and how many images it draws."""

import math
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

import fluvial
from fluvial.config import Run
from fluvial.sampling.settings import SampleConfig
from fluvial.tools import estimate
from fluvial.tools.study.study import Speed, quiet
from fluvial.training.log import rows_of
from fluvial.training.rows import series

TRIAL = 10.0  # seconds of training of which the last half is timed
FEWEST = 20  # steps of a trial
DRAWN = 50  # images that are drawn to measure the speed of sampling


def seconds_of_training(run: Run, device: torch.device | str | None = None) -> tuple[float, fluvial.Sampler]:
    """Seconds of a training step, with its images, in a short trial, and the sampler of that."""
    rough, sampler = _trial(run, FEWEST, device)
    steps = 2 * math.ceil(TRIAL / 2 / rough)
    return _trial(run, steps, device) if steps > FEWEST else (rough, sampler)


def _trial(run: Run, steps: int, device: torch.device | str | None) -> tuple[float, fluvial.Sampler]:
    """Takes so many steps; returns the seconds of a step in their last half."""
    trial = quiet(run, steps=steps, log_every=steps // 2, save_every=steps, keep_every=0, ema_every=0)
    with TemporaryDirectory() as folder:
        sampler = fluvial.train(trial, Path(folder) / "trial", device=device)
        _, speeds = series(rows_of(Path(folder) / "trial"), "images_per_second")
    return run.images_per_step / float(speeds[-1]), sampler


def speed_of(
    run: Run, samplings: Mapping[str, SampleConfig], device: torch.device | str | None = None
) -> tuple[Speed, fluvial.Sampler]:
    """Measures how fast a run trains and draws; returns the sampler of the trial, too."""
    seconds, sampler = seconds_of_training(run, device)
    drawn = {}
    for name, settings in samplings.items():
        sampler.sample(1, settings=settings)  # initialises
        drawn[name] = round(DRAWN / sum(sampler.sample(DRAWN, settings=settings).seconds.values()), 2)
    speed = Speed(
        seconds=seconds,
        flops=estimate.flops(run).total,
        parameters=sum(estimate.parameters(run).values()),
        sampling=drawn,
    )
    return speed, sampler
