"""A model in the precision of sampling: rounded or compiled, and the sampler that computes with it."""

import copy
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from fluvial.flow.solvers import OnStep, Step
from fluvial.sampling.settings import SampleConfig
from fluvial.training.distributed import blocks
from fluvial.utils.precision import Precision, float32_matmul, matmul_precision


def ready(model: nn.Module, settings: SampleConfig) -> nn.Module:
    """The model as these settings compute it: itself, or a copy that shares the weights it need not change.

    In bf16 the weights are rounded once, just as autocast would at every evaluation: those of linear layers, but for
    what a module computes in float32 whatever autocast says (its `float32`).
    """
    if settings.precision != "bf16" and not settings.compile:
        return model
    model = copy.deepcopy(model, {id(p): p for p in model.parameters()})
    if settings.precision == "bf16":
        kept = {getattr(module, name) for module in model.modules() for name in getattr(module, "float32", ())}
        for layer in model.modules():
            if isinstance(layer, nn.Linear) and layer not in kept:
                for name, p in list(layer.named_parameters(recurse=False)):  # layer.bfloat16() would round the shared
                    setattr(layer, name, nn.Parameter(p.detach().bfloat16(), requires_grad=False))
    for block in blocks(model).values() if settings.compile else ():
        block.compile()
    return model


def computed_in(precision: Precision, sample: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The sampler in this precision; `on_step`, which may decode, is called outside of it."""

    def drawn(model: nn.Module, labels: Tensor | None, *, noise: Tensor, on_step: OnStep | None, **rest: Any) -> Tensor:  # noqa: ANN401
        device, outside = noise.device.type, torch.get_float32_matmul_precision()

        def show(step: Step) -> None:
            assert on_step is not None
            with torch.autocast(device, enabled=False), float32_matmul(outside):
                on_step(step)

        bf16 = torch.autocast(device, torch.bfloat16) if precision == "bf16" else nullcontext()
        with matmul_precision(precision), bf16:
            return sample(model, labels, noise=noise, on_step=on_step and show, **rest)

    return drawn


def dtype_of(model: nn.Module, settings: SampleConfig) -> str:
    weights = str(next(model.parameters()).dtype).removeprefix("torch.")
    return {"fp32": weights, "tf32": "tf32", "bf16": "bfloat16"}[settings.precision]
