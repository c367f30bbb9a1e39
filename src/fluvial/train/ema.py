"""The exponential moving average of the weights, which is what samples are drawn from."""

import copy

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


def start(model: nn.Module) -> nn.Module:
    """A frozen copy of the model, in eval mode."""
    return copy.deepcopy(model).requires_grad_(False).eval()


@torch.no_grad()
def update(ema: nn.Module, model: nn.Module, decay: float) -> None:
    """ema <- decay ema + (1 - decay) model, over all parameters in place."""
    get_ema_multi_avg_fn(decay)(list(ema.parameters()), list(model.parameters()), 0)
