"""The settings of a distillation, and its length."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import count
from math import gcd
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fluvial.config import Run
from fluvial.flow.guidance import GuidanceWeight
from fluvial.methods import method_of
from fluvial.run.learner import build, learner_of
from fluvial.sampling.settings import Euler, SampleConfig
from fluvial.training.config import Distillation
from fluvial.training.distributed import ALONE
from fluvial.training.health import Health
from fluvial.training.optim import OptimConfig
from fluvial.training.step import step
from fluvial.utils.devices import seconds_of

TRAJECTORIES, UPDATES = 10_000, 5_000  # by default
FEWEST = 64  # trajectories in all
SHARE, TRAINING = 0.25, 0.93  # of the minutes, for trajectories; of what is left, for training steps alone
TRIED, FEWEST_TRIED = 10, 16  # training steps that are timed, and trajectories at least
LONG_ENOUGH = 1.0  # seconds, to time a batch
POINTS = 128  # that the network is evaluated at in a training step, at least, by default


def draft(teacher: Run, described: str, steps: int, given: Mapping[str, Any]) -> Run:
    """The run of a distillation to so many steps, with the options that were given, and its length by default.

    `described` are the teacher's folder, step and weights.
    """
    drawn = teacher.sample
    method: Any = method_of(teacher.method)
    config = method.follower(replace(teacher.method, label_drop=0.0), steps)
    each = (config.images_per_sequence or 1) if given["images"] else steps  # points of an example
    trajectories = TRAJECTORIES if given["trajectories"] is None else given["trajectories"]
    distillation = Distillation(
        steps=steps,
        trajectories=0 if given["images"] else trajectories,
        images=given["images"],
        teacher=f"{described}{'' if drawn.guidance.is_off else f', with {drawn.guidance.told}'}",
    )
    batch = given["batch"] or max(1, max(POINTS, teacher.images_per_step) // each)
    return replace(
        teacher,
        seed=teacher.seed if given["seed"] is None else given["seed"],
        method=config,
        optim=OptimConfig(
            lr=teacher.optim.lr if given["lr"] is None else given["lr"],
            weight_decay=0.0,
            warmup=20,
            schedule="wsd",
            decay=0.6,
            clip="norm",
            clip_at=1.0,
        ),
        sample=SampleConfig(solver=Euler(), steps=steps, batch=drawn.batch, precision=drawn.precision),
        train=replace(
            teacher.train,
            steps=given["updates"] or UPDATES,
            batch=batch,
            accumulate=gcd(batch, teacher.train.accumulate),
            guidance=GuidanceWeight(),
            distillation=distillation,
            ema_decay=0.999,
            ema_warmup=True,
            ema_decays=(),
            ema_lengths=(),
            score_every=0,
            keep_best=False,
            first_sample=0,
        ),
    )


class Trial(NamedTuple):
    """A batch and a trajectory that are timed to plan a distillation."""

    batch: tuple[Tensor, Tensor | None]
    """Examples of a training step."""
    objective: Any
    """An `Objective` of the model."""
    seconds: float
    """Those of a trajectory; 0 without any."""


def planned(run: Run, model: nn.Module, trial: Trial, end: float, given: Mapping[str, Any]) -> Run:
    """The run with as many trajectories and training steps as fit before `end`, by the speed of a few of both.

    `model` is the one that it begins with, and `end` a time by the clock of `time.perf_counter`.
    """
    device, train, known = next(model.parameters()).device, run.train, run.train.distillation
    batch, objective, each = trial
    alone = replace(run, train=replace(train, batch=len(batch[0]), accumulate=1, parallel="ddp"))
    learner = learner_of(alone, model, ALONE, objective)
    numbers, health = count(), Health(device)

    def call() -> None:
        step(learner, lambda number: batch, health, next(numbers))

    call()
    of_step = seconds_of(call, device, TRIED)
    left = max(0.0, end - time.perf_counter())
    drawn = known.trajectories
    if each and given["trajectories"] is None:
        drawn = max(FEWEST, min(TRAJECTORIES, int(SHARE * left / each)))
    if not drawn:
        of_step += train.batch * each
    updates = max(1, int(TRAINING * (left - drawn * each) / of_step))
    distillation = replace(known, trajectories=drawn)
    return replace(run, train=replace(train, steps=given["updates"] or updates, distillation=distillation))


def with_intervals(run: Run) -> Run:
    """The run with ten checkpoints, validation losses and pictures on its way."""
    every = -(-run.train.steps // 10)
    train = replace(run.train, save_every=every, validate_every=every, sample_every=every, log_every=min(100, every))
    return replace(run, train=train)


def seconds_each(draw: Callable[[Sequence[int]], Any], most: int, device: torch.device) -> float:
    """Seconds of a trajectory, drawn in a batch that takes a second, or is of `most`: more at once are faster."""
    at_once = min(FEWEST_TRIED, most)
    while True:
        seconds = seconds_of(partial(draw, range(at_once)), device)
        if seconds > LONG_ENOUGH or at_once == most:
            return seconds / at_once
        at_once = min(4 * at_once, most)


def student(run: Run, teacher: nn.Module) -> nn.Module:
    """The teacher's copy, of which only the part that is distilled has gradients."""
    method: Any = method_of(run.method)
    model = build(run, next(teacher.parameters()).device)
    model.load_state_dict(teacher.state_dict())
    model.requires_grad_(False)
    method.followed(model).requires_grad_(True)
    return model
