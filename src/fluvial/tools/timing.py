"""Times calls on a device, and makes training steps to be timed, on random latents of a run's shape."""

from collections.abc import Callable, Mapping
from itertools import count

import torch
from torch import nn

from fluvial.config import Run
from fluvial.methods import method_of
from fluvial.tools import estimate
from fluvial.training.health import Health
from fluvial.training.step import begin, step
from fluvial.utils.devices import seconds_of
from fluvial.utils.precision import matmul_precision

MEASURED = 3.0  # seconds of training steps that are timed, after one that is not
Call = Callable[[], Mapping[str, int]]  # one training step or batch; returns NFE by branch for samples, {} for a step


def training_call(run: Run, device: torch.device) -> tuple[Call, int]:
    """A function that takes a training step, and its number of images."""
    learner = begin(
        model_of(run, device),
        method=run.objective,
        config=run.train,
        optim=run.optim,
        seed=run.seed,
    )
    labels = torch.randint(run.method.classes, (run.train.batch,), device=device) if run.method.classes else None
    batch = torch.randn(estimate.batch_shape(run), device=device), labels
    health, numbers = Health(device), count()

    def call() -> Mapping[str, int]:
        step(learner, lambda number: batch, health, next(numbers))
        return {}

    return call, run.images_per_step


def model_of(run: Run, device: torch.device) -> nn.Module:
    """The model, with zero-initialised weights replaced by noise: products with zeros would be cheaper."""
    with device:
        model = method_of(run.method).Model(run.method)
    for p in model.parameters():
        if not bool(p.any()):
            nn.init.normal_(p, std=0.02)
    return model


def seconds_a_step(run: Run, device: torch.device) -> float:
    """The mean seconds of a training step on random latents of the run's shape.

    The mean, as slow steps count in the length of a run: on a machine that is shared they are many.
    """
    with torch.random.fork_rng([device] if device.type == "cuda" else []), matmul_precision(run.train.precision):
        call, _ = training_call(run, device)
        call()
        taken = [seconds_of(call, device)]
        while sum(taken) < MEASURED:
            taken.append(seconds_of(call, device))
    return sum(taken) / len(taken)
