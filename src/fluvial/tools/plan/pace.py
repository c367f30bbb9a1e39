"""The pace of a plan: precisions worth measuring, and the intervals at which training logs, draws and saves."""

import math
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from fluvial.config import Run
from fluvial.utils.precision import Precision

FIRST_PICTURE, LOG = 45, 4  # seconds until the first picture, and between lines of the log
PICTURES, VALIDATIONS, END = 0.05, 0.04, 0.01  # shares of the time for pictures, validations, and the end
SAVES = 20  # validations and checkpoints in a run at most; two at least
EARLY = 120.0  # seconds of a run from which it has pictures before the first regular one
ROUNDED = 1.5  # factor by which rounding the step of the first picture brings it forward, about
EARLIEST_REGULAR = 0.75  # of the time until the first regular picture: before it there are early ones
TRAINING = 0.89  # share of the time that is left for steps of training, about, in a run that is not short
WORTH = 1.15  # bf16 is taken where it is faster by this factor


class Costs(NamedTuple):
    """Seconds of one validation, and of one picture."""

    validation: float
    picture: float


class Measures(NamedTuple):
    """The validations and regular pictures of a run, the seconds until the first picture, and the time for all."""

    validations: int
    pictures: int
    first: float
    """0 for no picture before the first regular one."""
    seconds: float


def measures(total: float, costs: Costs) -> Measures:
    """The measures of a run of so many seconds.

    As many validations as 4 % of the time allow, from 2 to 20; as many pictures as 5 % allow, from 1 to 10. In runs of
    2 minutes or more there are pictures after 45 seconds and at twice, four times ... as many before the first of them.
    """
    validations = min(SAVES, max(2, int(VALIDATIONS * total / max(costs.validation, 1e-6))))
    pictures = min(10, max(1, int(PICTURES * total / max(costs.picture, 1e-6))))
    before = EARLIEST_REGULAR * total / pictures
    first = FIRST_PICTURE if total >= EARLY else 0.0
    early = max(0, math.ceil(math.log2(ROUNDED * before / first))) if first else 0
    seconds = validations * costs.validation + (pictures + early) * costs.picture + END * total
    return Measures(validations, pictures, first, seconds)


def usable(minutes: float, costs: Costs) -> float:
    """Seconds of training steps in so many minutes; the rest, at most a half, is for validation and pictures."""
    return max(minutes * 60 - measures(minutes * 60, costs).seconds, minutes * 30)


def precisions(device: torch.device) -> tuple[Precision, ...]:
    """The precisions worth measuring on a device: bf16 as well where its processor computes in it."""
    if device.type == "cuda":
        return "tf32", "bf16"
    has_bf16 = device.type == "cpu" and "AVX512" in torch.backends.cpu.get_cpu_capability()
    return ("fp32", "bf16") if has_bf16 else ("fp32",)


def round_number(value: float) -> int:
    """The largest of 1, 2, 5, 10, 20, 50, ... up to the value; at least 1."""
    power = 10 ** math.floor(math.log10(max(1.0, value)))
    return max(factor * power for factor in (1, 2, 5) if factor * power <= max(1.0, value))


def timed(run: Run, seconds: float, costs: Costs) -> Run:
    """The run with intervals for steps of so many seconds, by `measures`; with every validation is a checkpoint."""
    steps = run.train.steps
    chosen = measures(steps * seconds, costs)
    saves, sample_every = (max(1, math.ceil(steps / count)) for count in (chosen.validations, chosen.pictures))
    first = round_number(chosen.first / seconds) if chosen.first else 0
    intervals: dict[str, Any] = {
        "log_every": min(round_number(LOG / seconds), max(1, steps // 20)),
        "validate_every": saves,
        "save_every": saves,
        "sample_every": sample_every,
        "first_sample": first if first < EARLIEST_REGULAR * sample_every else 0,
    }
    warmup = min(500, max(1, steps // 20))
    return replace(run, train=replace(run.train, **intervals), optim=replace(run.optim, warmup=warmup))
