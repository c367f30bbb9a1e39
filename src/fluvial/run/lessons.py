"""Lessons of a distillation: its objective, with the trajectories of its teacher or with images."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

from fluvial.config import Run
from fluvial.methods import method_of
from fluvial.run.inputs import Inputs, batches_in_order, validation_of
from fluvial.run.trajectories import Trajectories
from fluvial.training.distillation import Teacher, ahead_of_itself
from fluvial.training.distributed import World
from fluvial.training.loop import Measure
from fluvial.training.step import Batches, MicroBatch, loss_of, split


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
    return Lessons(
        objective=run.objective,
        make=source.make,
        batches=partial(source.batches, run.train.batch),
        validate=lambda: _on_trajectories(run, source, device),
    )


def _on_trajectories(run: Run, source: Trajectories, device: torch.device) -> Measure:
    """A function from a model to its loss on trajectories that it does not learn from."""
    objective = run.objective
    points, labels = (None if part is None else part.to(device) for part in source.validation())
    assert points is not None
    whole_batch = MicroBatch(points, labels, objective.draws(run.method, points.shape, device=device))
    weights = torch.tensor(objective.part_weights(run.method), device=device)

    @torch.no_grad()
    def measure(model: nn.Module) -> dict[str, Any]:
        errors = torch.cat([objective.errors(model, *part) for part in split(whole_batch, run.train.batch)])
        return {"held_out_loss": float(loss_of(errors, weights))}

    return measure


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
