"""A budget as training steps: speeds are measured alone, before the first run begins, so that other work beside the
runs changes nothing."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

import fluvial
from fluvial.config import Run
from fluvial.run.load import Sampler
from fluvial.sampling.settings import SampleConfig
from fluvial.tools import estimate
from fluvial.tools.timing import seconds_a_step
from fluvial.training.rows import series
from fluvial.utils.devices import device_of

TRIAL = 10.0  # seconds of training of which the last half is timed
FEWEST = 40  # steps of a trial
DRAWN = 50  # images that are drawn to measure the speed of sampling
LARGEST_STEPS = 10**9


@dataclass(frozen=True, kw_only=True)
class Speed:
    """How fast a run trains, and draws."""

    seconds: float
    """Of a training step, with its batch of images."""
    flops: int
    """Model FLOPs of a training step."""
    parameters: int
    sampling: Mapping[str, float]
    """Images/s, by the name of the sampling."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What a run may spend in training; one of them is given."""

    seconds: float | int | None = None
    """Seconds on this machine."""
    images: float | int | None = None
    """Images seen, each counted as often as it was seen."""
    flops: float | int | None = None
    """Model FLOPs of training."""

    def __post_init__(self) -> None:
        given = self.given
        if len(given) != 1:
            raise ValueError(f"a budget is one of seconds, images and flops, got {', '.join(given) or 'none of them'}")
        for name, value in given.items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
                raise ValueError(f"{name} must be a number above 0, got {value!r:.80}")

    @property
    def given(self) -> dict[str, float | int]:
        """The one that is given, by its name."""
        return {name: value for name, value in vars(self).items() if value is not None}

    @property
    def told(self) -> str:
        """The budget in words."""
        ((name, value),) = self.given.items()
        return f"{value:,g} {dict(seconds='seconds of training', images='images seen', flops='training FLOPs')[name]}"

    def steps(self, run: Run, speed: Speed) -> int:
        """The training steps of a run, at least one."""
        ((name, value),) = self.given.items()
        each = {"seconds": speed.seconds, "images": run.images_per_step, "flops": speed.flops}[name]
        return min(LARGEST_STEPS, max(1, round(value / each)))


def quiet(run: Run, **training: Any) -> Run:  # noqa: ANN401
    """The run without validation, pictures and scores during training, and with these settings of training."""
    return replace(run, train=replace(run.train, validate_every=0, sample_every=0, score_every=0, **training))


def seconds_of_training(run: Run, device: torch.device | str | None = None) -> tuple[float, Sampler]:
    """Seconds of a training step, with its images, in a short trial, and the sampler of that."""
    steps = max(FEWEST, 2 * math.ceil(TRIAL / 2 / seconds_a_step(run, device_of(device))))
    trial = quiet(run, steps=steps, log_every=steps // 2, save_every=steps, keep_every=0, ema_every=0)
    with TemporaryDirectory() as folder:
        sampler = fluvial.train(trial, Path(folder) / "trial", device=device)
        lines = (Path(folder) / "trial" / "log.jsonl").read_text("utf-8").splitlines()
        _, speeds = series([json.loads(line) for line in lines], "images_per_second")
    return run.images_per_step / float(speeds[-1]), sampler


def speed_of(run: Run, samplings: Mapping[str, SampleConfig], device: torch.device | str | None = None) -> Speed:
    """Measures how fast a run trains and draws."""
    seconds, sampler = seconds_of_training(run, device)
    drawn = {}
    for name, settings in samplings.items():
        sampler.sample(1, settings=settings)  # initialises
        drawn[name] = round(DRAWN / sum(sampler.sample(DRAWN, settings=settings).seconds.values()), 2)
    return Speed(
        seconds=seconds,
        flops=estimate.flops(run).total,
        parameters=sum(estimate.parameters(run).values()),
        sampling=drawn,
    )
