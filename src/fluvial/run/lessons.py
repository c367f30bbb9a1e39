"""Lessons of a distillation: its objective, with the trajectories of its teacher or with images."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch

from fluvial.config import Run
from fluvial.methods import method_of
from fluvial.run.inputs import Inputs, batches_in_order, validation_of
from fluvial.run.trajectories import Trajectories
from fluvial.training.distillation import Teacher, ahead_of_itself
from fluvial.training.distributed import World
from fluvial.training.loop import Measure
from fluvial.training.step import Batches
from fluvial.training.validation import validation_losses


class Lessons(NamedTuple):
    """The objective of a distillation and its examples."""

    objective: Any
    """An `Objective` of the model."""
    make: Callable[[World], None]
    """Makes the examples that are not there yet; ranks share the work."""
    batches: Callable[[Callable[[int], slice], int], Batches]
    """From `share` and `order`, as `training/loop.py` has them, to the batches of a rank."""
    validate: Callable[[], Measure | None]
    """Makes the function from a model to its loss on examples that it does not learn from; None without any."""


def from_trajectories(run: Run, source: Trajectories, device: torch.device) -> Lessons:
    """Learning to follow the teacher's trajectories."""
    objective, batch = run.objective, run.train.batch
    return Lessons(
        objective=objective,
        make=source.make,
        batches=partial(source.batches, batch),
        # which have no times of their own
        validate=lambda: validation_losses(
            objective, run.method, lambda step: source.validation(), batch, device, by_part=False
        ),
    )


def from_images(run: Run, inputs: Inputs, teacher: Teacher, device: torch.device) -> Lessons:
    """Learning from noisy images of the data, with the velocities that the teacher has there."""
    inputs = replace(inputs, run=run)
    objective = ahead_of_itself(method_of(run.method), teacher, run.train.distillation.steps)
    return Lessons(
        objective=objective,
        make=lambda world: None,
        batches=lambda share, order: batches_in_order(inputs, device, share, order),
        validate=lambda: validation_of(inputs, device, objective),
    )
