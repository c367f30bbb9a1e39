"""AdamW with the releases' parameter groups, the learning rate of a step, and gradient clipping."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from fluvial.utils.checks import as_declared


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    lr: float = 1e-4
    """Peak learning rate."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's decay rates of the first and second moment."""
    weight_decay: float = 0.02
    """AdamW's weight decay on tensors of two or more axes; biases and other vectors have none."""
    warmup: int = 0
    """Steps over which the rate rises linearly from 0."""
    schedule: Literal["constant", "cosine", "wsd"] = "constant"
    """Schedule after the warm-up: the peak rate, half a cosine down to final_lr at the last step, or (wsd) the peak
    rate and a decay to final_lr at the end: by 1 - sqrt, of "Scaling Laws and Compute-Optimal Training Beyond Fixed
    Training Durations" (arXiv 2405.18392), section 3."""
    decay: float = 0.2
    """Share of the steps over which wsd decays."""
    final_lr: float = 0.0
    """Where cosine and wsd end."""
    clip: Literal["none", "value", "norm"] = "value"
    """Clip every entry of the gradient, or its norm over all parameters, to clip_at."""
    clip_at: float = 3.0
    """Bound used by clip."""

    def __post_init__(self) -> None:
        as_declared(self)
        if self.lr <= 0 or self.final_lr < 0 or self.clip_at <= 0:
            raise ValueError(
                f"lr and clip_at must be above 0 and final_lr at least 0, "
                f"got lr={self.lr}, clip_at={self.clip_at}, final_lr={self.final_lr}"
            )
        if not 0 < self.decay <= 1:
            raise ValueError(f"decay must be above 0 and at most 1, a share of the steps, got {self.decay}")
        if not all(0 <= beta < 1 for beta in self.betas) or self.weight_decay < 0 or self.warmup < 0:
            raise ValueError(
                f"betas must be in [0, 1), weight_decay and warmup at least 0, "
                f"got {self.betas}, {self.weight_decay}, {self.warmup}"
            )


def adamw(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """The optimizer over the trainable parameters: tensors of two or more axes decay, the others do not."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)


def learning_rate(config: OptimConfig, step: int, steps: int) -> float:
    """The rate of step 0 ... steps - 1."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    if config.schedule == "constant":
        return config.lr
    start = config.warmup
    if config.schedule == "wsd":
        start = max(start, steps - round(config.decay * steps))
    progress = max(0, step - start) / max(1, steps - start)
    height = 1 - math.sqrt(progress) if config.schedule == "wsd" else 0.5 * (1 + math.cos(math.pi * progress))
    return config.final_lr + (config.lr - config.final_lr) * height


def clip_gradients(parameters: Sequence[Tensor], config: OptimConfig) -> Float[Tensor, ""]:
    """Clips in place and returns the norm of the whole gradient before that."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = nn.utils.get_total_norm(gradients, foreach=True)
    if config.clip == "norm":
        nn.utils.clip_grads_with_norm_(parameters, config.clip_at, norm, foreach=True)
    elif config.clip == "value":
        nn.utils.clip_grad_value_(parameters, config.clip_at, foreach=True)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state by parameter name: "<parameter>/exp_avg" and so on."""
    return {
        f"{name}/{key}": value
        for name, p in model.named_parameters()
        for key, value in optimizer.state.get(p, {}).items()
    }


def begin_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, fields: Iterable[str]) -> dict[str, Tensor]:
    """Gives the optimizer empty state of those fields ("<parameter>/exp_avg" ...), for a checkpoint to be read into.

    A parameter that never had a gradient has no state in either. Raises ValueError for an unknown parameter.
    """
    known = dict(model.named_parameters())
    for key in fields:
        name, _, field = key.rpartition("/")
        if name not in known:
            raise ValueError(f"the checkpoint has optimizer state of {name}, which the model has not")
        p = known[name]
        # AdamW(fused=True) keeps its step count beside the parameter
        optimizer.state[p][field] = torch.zeros((), device=p.device) if field == "step" else torch.zeros_like(p)
    return optimizer_tensors(model, optimizer)
