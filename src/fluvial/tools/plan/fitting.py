"""Fits a run to a machine and a time: the network, the batch, the precision, and micro-batches that fit into memory."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from fluvial.config import Run
from fluvial.methods import Config, method_of
from fluvial.run.inputs import open_autoencoder
from fluvial.tools import estimate
from fluvial.tools.plan import network, pace
from fluvial.tools.plan.draft import applied, part_of
from fluvial.training.config import TrainConfig
from fluvial.training.validation import EXAMPLES
from fluvial.utils import pictures
from fluvial.utils.devices import seconds_of

MINUTES = 30.0
MOST_MINUTES, MOST_STEPS, MOST_EPOCHS = 1_000_000, 1_000_000_000, 1_000_000  # beyond any training
Size = Literal["small", "base", "large"]
Speed = Callable[[Run, torch.device], float]
"""Measures the seconds of a training step of a run."""
STEPS, BATCHES = 8000, (32, 256)  # steps wanted at least, for which the batch is chosen between these
COMPILED = 600.0  # seconds of training from which compiling is tried
MEMORY = 0.6  # share of the memory that training may fill


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The length of training: one of the three."""

    minutes: float | None = None
    steps: int | None = None
    epochs: float | None = None

    @classmethod
    def of(cls, minutes: float | None, steps: int | None, epochs: float | None) -> "Budget":
        """The budget of what was given. Raises ValueError if that is more than one, or not above 0."""
        asked = {"minutes": minutes, "steps": steps, "epochs": epochs}
        given = {name: value for name, value in asked.items() if value is not None}
        for name, value in given.items():
            if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
                raise ValueError(f"{name} must be a number above 0, got {value!r}")
        most = {"minutes": MOST_MINUTES, "steps": MOST_STEPS, "epochs": MOST_EPOCHS}
        for name, value in given.items():
            if value > most[name]:
                raise ValueError(f"{name} must be at most {most[name]:,}, got {value:g}")
        if len(given) > 1:
            listed = ", ".join(f"{name} {value:g}" for name, value in given.items())
            raise ValueError(f"give one of minutes, steps and epochs, got {listed}")
        return cls(**(given or {"minutes": MINUTES}))

    @property
    def seconds(self) -> float:
        """Seconds of training steps, about, by which the network is chosen; 0 if the number of steps is given."""
        return pace.TRAINING * 60 * (self.minutes or 0)

    def flops(self, rate: float, images: int, tokens: int) -> float:
        """Training FLOPs in the time, or for so many images a network in proportion to their tokens."""
        if self.minutes is not None:
            return rate * self.seconds
        seen = images * self.epochs if self.epochs else (self.steps or 1) * BATCHES[1]
        return 6 * (seen * tokens) ** 2 / network.TOKENS_A_PARAMETER

    def seen(self, run: Run, rate: float, images: int) -> float:
        """The number of images that training sees."""
        if self.minutes is not None:
            return rate * self.seconds / flops_an_image(run)
        return float(images * self.epochs if self.epochs else (self.steps or 1) * BATCHES[1])

    def steps_of(self, run: Run, seconds: float, images: int, costs: pace.Costs) -> int:
        """The steps of a run whose steps take so many seconds, beside validations and pictures."""
        if self.steps is not None:
            return self.steps
        if self.epochs is not None:
            return max(1, math.ceil(self.epochs * images / run.images_per_step))
        steps = max(1, int(pace.usable(self.minutes or 0, costs) / seconds))
        return int(float(f"{steps:.3g}")) if steps >= 1000 else steps


def rate_of(draft: Run, device: torch.device, speed: Speed) -> float:
    """FLOP/s of training a small network on the data's latents, by which the network is chosen."""
    depth, width = (12, 384) if device.type == "cuda" else (4, 128)
    run = _of_network(draft, depth, width, {})
    batch = max(1, 64 // (run.method.images_per_sequence or 1))
    run = replace(run, train=replace(run.train, batch=batch))
    return flops_an_image(run) * run.images_per_step / speed(run, device)


def _of_network(run: Run, depth: int, width: int, given: Mapping[str, Any]) -> Run:
    """The run with a network of this depth and width, and the learning rate for it."""
    old: Any = run.method
    method: Any = method_of(old)
    shape = {"size": old.size, "channels": old.channels, "classes": old.classes, "patch": old.patch}
    config = part_of(method.proportioned(depth=depth, width=width, **shape), "method", given)
    return replace(run, method=config, optim=replace(run.optim, lr=network.learning_rate(config.width)))


def sized(
    draft: Run,
    budget: Budget,
    rate: float,
    count: int,
    size: Size | None,
    given: Mapping[str, Any],
    base: Run | None,
) -> Run:
    """The run with its network, and a batch for enough steps in the time.

    A network that is too large for an epoch in the time gives way to the next smaller one, unless its size was given.
    """
    if base is not None:
        run = replace(draft, optim=replace(draft.optim, lr=network.learning_rate(base.method.width, trained=True)))
    else:
        tokens = method_of(draft.method).tokens(draft.method)
        best = network.SIZES[size] if size else network.layers(budget.flops(rate, count, tokens))
        rungs = [best] if size else list(network.LADDER[network.LADDER.index(best) :: -1])
        tried = (_of_network(draft, *rung, given) for rung in rungs)
        run = next((run for run in tried if budget.seen(run, rate, count) >= count), None)
        run = run or _of_network(draft, *rungs[-1], given)
    wanted = 2 ** math.floor(math.log2(max(1.0, budget.seen(run, rate, count) / STEPS)))
    images = min(max(BATCHES[0], wanted), BATCHES[1], max(BATCHES[0], count // 4))
    batch = max(1, images // (run.method.images_per_sequence or 1))
    return replace(run, train=replace(run.train, batch=given.get("train.batch", batch)))


def flops_an_image(run: Run) -> float:
    """Training FLOPs of one image."""
    return _flops_of(run.method) / (run.method.images_per_sequence or 1)


@cache
def _flops_of(method: Config) -> int:
    """Training FLOPs of one example, which take a fraction of a second to count."""
    return estimate.flops(Run(method=method, train=TrainConfig(batch=1))).total


def measured(run: Run, rate: float, device: torch.device, speed: Speed) -> float:
    """Seconds of a step of the run; steps of more than a second at this FLOP/s are measured on a part of the batch."""
    part = min(run.train.batch, max(1, round(rate / flops_an_image(run) / (run.method.images_per_sequence or 1))))
    trial = replace(run, train=replace(run.train, batch=part, accumulate=1))
    return speed(trial, device) * run.train.batch / part


def quickest(
    run: Run, measure: Callable[[Run], float], device: torch.device, given: Mapping[str, Any]
) -> tuple[Run, float]:
    """The run in the precision whose steps take the least time, and their seconds, as measured without compiling."""
    run = applied(run, {path: value for path, value in given.items() if path.startswith(("train.", "optim."))})
    asked = [given["train.precision"]] if "train.precision" in given else pace.precisions(device)
    trials = {name: replace(run, train=replace(run.train, precision=name, compile=False)) for name in asked}
    seconds = {name: measure(trial) for name, trial in trials.items()}
    best = min(seconds, key=lambda name: seconds[name])
    if seconds[asked[0]] < pace.WORTH * seconds[best]:
        best = asked[0]
    return replace(run, train=replace(run.train, precision=best)), seconds[best]


def compiled(
    run: Run,
    seconds: float,
    training: float,
    measure: Callable[[Run], float],
    device: torch.device,
    given: Mapping[str, Any],
) -> tuple[Run, float]:
    """The run and the seconds of its steps, compiled if that is measured to be worth it for `training` seconds.

    It is tried on a GPU and for long training alone: on a CPU core, compiling took 44 s and made the steps of a network
    of width 128 only 1.1 to 1.2 times as fast.
    """
    if "train.compile" in given or device.type != "cuda" or training < COMPILED:
        return run, seconds
    trial = replace(run, train=replace(run.train, compile=True))
    taken = measure(trial)
    return (trial, taken) if seconds > pace.WORTH * taken else (run, seconds)


def accumulated(run: Run, device: torch.device, given: Mapping[str, Any]) -> tuple[Run, int]:
    """The run with micro-batches that fit into memory, and the bytes of a step at its peak.

    Raises ValueError if one example does not fit.
    """
    limit = MEMORY * available_memory(device)
    fixed = "train.accumulate" in given or not limit
    for parts in (parts for parts in range(1, run.train.batch + 1) if run.train.batch % parts == 0):
        run = run if fixed else replace(run, train=replace(run.train, accumulate=parts))
        needed = estimate.memory(run, device="cuda" if device.type == "cuda" else "cpu").total
        if fixed or needed < limit:
            return run, needed
    raise ValueError(
        f"a training step needs more than the {limit / 1e9:.1f} GB that may be used of {device}, for one example at a "
        f"time; choose a smaller model with --size small"
    )


def autoencoder_seconds(run: Run, device: torch.device) -> tuple[float, float]:
    """Measured seconds of encoding an image, 0 where none are encoded, and of decoding a latent; 0 and 0 for pixels."""
    if run.autoencoder.name == "pixels":
        return 0.0, 0.0
    autoencoder = open_autoencoder(run.autoencoder).to(device)

    def of_one(call: Callable[[Tensor], Any], *shape: int) -> float:
        two = torch.zeros(2, *shape, device=device)
        return min(seconds_of(lambda: call(two), device) for _ in range(2)) / 2

    encoding = of_one(autoencoder.moments, run.data.channels, run.data.size, run.data.size) if run.data.cache else 0.0
    return encoding, of_one(autoencoder.decode, run.method.channels, *run.method.size)


def available_memory(device: torch.device) -> int:
    """Bytes that are free on a device; 0 if that is not known."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    info = Path("/proc/meminfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable")), 0)


def costs_of(run: Run, seconds: float, rate: float, decoding: float) -> pace.Costs:
    """Estimated seconds of a validation, whose evaluations take a third of a training step's, and of a picture."""
    images = EXAMPLES * (run.method.images_per_sequence or 1)
    return pace.Costs(images * seconds / run.images_per_step / 3, picture_seconds(run, rate, decoding))


def picture_seconds(run: Run, rate: float, decoding: float) -> float:
    """Estimated seconds of a grid of samples, each decoded in so many.

    A step takes two evaluations with guidance, and an evaluation a third of the FLOPs of training.
    """
    side = run.data.size or min(run.method.size)
    each = run.sample.each_steps
    evaluations = sum(each) / len(each) * (1 if run.sample.guidance.is_off else 2)
    return pictures.preview(side) * (evaluations * flops_an_image(run) / 3 / rate + decoding)
