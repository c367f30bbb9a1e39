"""Exponential moving averages of the weights, which samples are drawn from: sharded as the weights are."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from fluvial.training import power_ema
from fluvial.training.distributed import whole

Tracks = dict[str, list[Tensor]]
"""This rank's part of each average, by name: tensors in the order of the model's parameters."""


def name_of(decay: float) -> str:
    """The name in checkpoints of a further average of this decay; the first is called ema."""
    return f"ema-{decay:g}"


def name_of_length(length: float) -> str:
    """The name in checkpoints of the power-function average of this length."""
    return f"power-{length:.3f}"


def decay_of(name: str, first: float, step: int, *, warmup: bool = False) -> float:
    """The decay of the average of that name in step 1, 2 ...; `first` is that of the one called ema.

    With `warmup` it is at most (1 + step) / (10 + step), as in TensorFlow's ExponentialMovingAverage with num_updates;
    but for power-function averages, which begin short by themselves.
    """
    kind, _, number = name.partition("-")
    if kind == "power":
        return power_ema.decay(step, power_ema.exponent(float(number)))
    return min(float(number or first), (1 + step) / (10 + step) if warmup else 1.0)


def start(model: nn.Module, names: Sequence[str], device: torch.device | str | None = None) -> Tracks:
    """Averages that begin as the weights; `device` is where they live, with the weights by default."""
    return {name: [_local(p).detach().clone().to(device or p.device) for p in model.parameters()] for name in names}


@torch.no_grad()
def update(average: Sequence[Tensor], model: nn.Module, decay: float) -> None:
    """average <- decay average + (1 - decay) weights, in place."""
    weights = [_local(p).to(a.device) for a, p in zip(average, model.parameters(), strict=True)]
    get_ema_multi_avg_fn(decay)(list(average), weights, None)  # all tensors in one call


def tensors(average: Sequence[Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The average by parameter name, for a checkpoint; sharded where the weights are."""
    return {name: _as(p, part) for (name, p), part in zip(model.named_parameters(), average, strict=True)}


def fill(average: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Copies values, sharded as those of `tensors`, into the average."""
    for part, value in zip(average, values, strict=True):
        part.copy_(_local(value))


def module(average: Sequence[Tensor], model: nn.Module, replica: Callable[[], nn.Module]) -> nn.Module:
    """A frozen model in eval mode with these weights; all ranks have to ask for it. `replica` makes an empty one."""
    device = next(model.parameters()).device
    averaged = replica()
    state = {name: whole(value).to(device) for name, value in tensors(average, model).items()}
    averaged.load_state_dict(state, assign=True)
    return averaged.requires_grad_(False).eval()


def _local(p: Tensor) -> Tensor:
    return p.to_local() if isinstance(p, DTensor) else p


def _as(p: Tensor, part: Tensor) -> Tensor:
    """This rank's part as a tensor that is sharded like p."""
    if not isinstance(p, DTensor):
        return part
    part = part.to(p.to_local().device)
    return DTensor.from_local(part, p.device_mesh, p.placements, shape=p.shape, stride=p.stride(), run_check=False)
