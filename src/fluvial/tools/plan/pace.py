"""The pace of a plan: precisions worth measuring, and the intervals at which training logs, draws and saves."""

import math
from dataclasses import replace
from typing import Any

import torch

from fluvial.config import Run
from fluvial.utils.precision import Precision

FIRST_PICTURE, LOG = 45, 4  # seconds until the first picture, and between lines of the log
PICTURES, SAVES = 0.05, 20  # share of the time for pictures; validations and checkpoints in a run
OVERHEAD = 0.06  # share of the time for validation, checkpoints, and the end
WORTH = 1.15  # bf16 is taken where it is faster by this factor


def usable(minutes: float) -> float:
    """Seconds of training steps in so many minutes; the rest is for pictures, validation and checkpoints."""
    return minutes * 60 * (1 - OVERHEAD - PICTURES)


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


def timed(run: Run, seconds: float, picture: float) -> Run:
    """The run with intervals for steps of so many seconds, and pictures that take as long each.

    Lines of the log every few seconds; twenty validations, each with a checkpoint; a picture within a minute, at twice,
    four times ... as many steps, and then as often as 5 % of the time allows, at most ten times.
    """
    steps = run.train.steps
    pictures = min(10, max(1, int(PICTURES * steps * seconds / max(picture, 1e-6))))
    sample_every = max(1, math.ceil(steps / pictures))
    saves = max(1, math.ceil(steps / SAVES))
    first = min(round_number(FIRST_PICTURE / seconds), sample_every)
    intervals: dict[str, Any] = {
        "log_every": min(round_number(LOG / seconds), max(1, steps // 20)),
        "validate_every": saves,
        "save_every": saves,
        "sample_every": sample_every,
        "first_sample": first if first < 0.75 * sample_every else 0,  # else the regular one comes soon enough
    }
    warmup = min(500, max(1, steps // 20))
    return replace(run, train=replace(run.train, **intervals), optim=replace(run.optim, warmup=warmup))
