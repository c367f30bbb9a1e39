"""The model of a run, and its learner: model, optimizer and averages at step 0."""

from typing import Any

import torch
from torch import nn

from fluvial.config import Run
from fluvial.methods import empty_model, method_of
from fluvial.training import distributed
from fluvial.training.distributed import whole
from fluvial.training.health import check_finite_weights
from fluvial.training.step import Learner, begin


def build(run: Run, device: torch.device | str = "cpu") -> nn.Module:
    """The run's model with the initial weights of its seed."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(run.seed)
        return method_of(run.method).Model(run.method).to(device)


def learner_of(run: Run, model: nn.Module, world: distributed.World, objective: Any = None) -> Learner:  # noqa: ANN401 - an Objective
    """The learner of a run at step 0, of the run's objective by default."""
    return begin(
        model,
        method=objective or run.objective,
        config=run.train,
        optim=run.optim,
        seed=run.seed,
        world=world,
        empty=lambda: empty_model(run.method).to(next(model.parameters()).device),
    )


def check_trained(folder: object, model: nn.Module, average: nn.Module) -> None:
    """Raises RuntimeError if weights that training has ended with are not finite. All ranks have to ask for it."""
    weights = {name: whole(p.detach()) for name, p in model.named_parameters()}
    check_finite_weights(weights, f"the weights that training in {folder} ended with")
    check_finite_weights(average.state_dict(), f"the averaged weights that training in {folder} ended with")
