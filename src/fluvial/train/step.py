"""One training step: the gradient of a batch, clipping, AdamW, averages.

Nothing in it waits for the device, but for averages in host memory and a look at each block.
"""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fluvial.randomness import address, generator
from fluvial.train import ema
from fluvial.train.config import TrainConfig
from fluvial.train.distributed import ALONE, World, blocks, parallelise, recompute, together_at_last
from fluvial.train.health import Health, gradient_norms, update_sizes
from fluvial.train.optim import OptimConfig, adamw, clip_gradients, learning_rate

Batch = Callable[[int], tuple[Tensor, Tensor | None]]


@dataclass(frozen=True, kw_only=True)
class Learner:
    """A model in training, and what a step of it needs."""

    bare: nn.Module
    model: nn.Module
    """The same as it is trained on all ranks."""
    parameters: list[nn.Parameter]
    optimizer: torch.optim.AdamW
    averages: ema.Tracks
    loss: Callable[..., Tensor]
    draws: Callable[..., dict[str, Tensor]]
    config: TrainConfig
    optim: OptimConfig
    seed: int
    world: World


class Taken(NamedTuple):
    """A step as it was taken; its tensors are on the device, and nothing has waited for them."""

    loss: Tensor
    norm: Tensor
    """Of the gradient, before clipping."""
    bad: Tensor
    """Whether the gradient was not finite, and the step skipped."""
    lr: float
    parts: list[dict[str, Any]]
    """The micro-batches."""
    blocks: dict[str, dict[str, float]]
    """Gradient norm and update size of each block, if asked for."""


def begin(
    model: nn.Module,
    *,
    loss: Callable[..., Tensor],
    draws: Callable[..., dict[str, Tensor]],
    config: TrainConfig,
    optim: OptimConfig,
    seed: int,
    world: World = ALONE,
) -> Learner:
    """The model made ready for `step`, in training mode. Raises ValueError if the batch is too small for the ranks."""
    if config.batch < world.size * config.accumulate:
        raise ValueError(
            f"a batch of {config.batch} is too small for {world.size} ranks with {config.accumulate} micro-batches each"
        )
    recompute(model, config.recompute)
    for block in blocks(model).values() if config.compile else ():
        block.compile()
    wrapped = parallelise(model, config.parallel, world)
    kept = ("ema", *map(ema.name_of, config.ema_decays), *map(ema.name_of_length, config.ema_lengths))
    return Learner(
        bare=model,
        model=wrapped.train(),
        parameters=list(model.parameters()),
        optimizer=adamw(model, optim),
        averages=ema.start(model, kept, config.ema_device or None),
        loss=loss,
        draws=draws,
        config=config,
        optim=optim,
        seed=seed,
        world=world,
    )


def step(learner: Learner, batch: Batch, health: Health, number: int, *, order: int = 0, looks: bool = False) -> Taken:
    """Takes step number 0, 1, ...: gradient of a batch, clipping, AdamW, averages. `looks` measures each block."""
    bare, config, optim, optimizer = learner.bare, learner.config, learner.optim, learner.optimizer
    rate = learning_rate(optim, number, config.steps)
    for group in optimizer.param_groups:
        group["lr"] = rate
    parts = _micro_batches(learner, batch, number, order)
    value = _backward(learner.model, learner.loss, parts, config, learner.world)
    gradients = gradient_norms(blocks(bare)) if looks else {}
    norm = clip_gradients(learner.parameters, optim)
    bad = health.take(optimizer, norm)
    optimizer.step()
    updates = update_sizes(blocks(bare), optimizer, rate, optim) if looks else {}
    optimizer.zero_grad(set_to_none=True)
    for name, average in learner.averages.items():
        ema.update(average, bare, ema.decay_of(name, config.ema_decay, number + 1))
    each = {name: {"grad_norm": gradients[name], "update": updates[name]} for name in gradients}
    return Taken(value, norm, bad, rate, parts, each)


def _micro_batches(learner: Learner, batch: Batch, number: int, order: int) -> list[dict[str, Any]]:
    """This rank's part of the step's batch and of what chance decides for it, which no number of ranks changes."""
    config, seed, world, device = learner.config, learner.seed, learner.world, learner.parameters[0].device
    latents, labels = (None if a is None else a.to(device, non_blocking=True) for a in batch(number))
    assert latents is not None
    orders = (order,) if order else ()
    chance = learner.draws(
        (config.batch, *latents.shape[1:]),
        generator=generator(seed, "train", number, *orders, device=device),
        device=device,
    )
    rows = world.share(config.batch)
    # dropout knows no generator of its own; its draws are the rank's, so they depend on the number of ranks
    torch.manual_seed(address(seed, "dropout", number, *((world.rank,) if world.rank else ())))
    mine = {"latents": latents, "labels": labels, **{name: value[rows] for name, value in chance.items()}}
    parts = config.accumulate  # as many on every rank, of one row more or less, like the ranks' own
    return [_rows(mine, World(i, parts).share(len(latents))) for i in range(parts)]


def _backward(
    model: nn.Module, loss: Callable[..., Tensor], parts: list[dict[str, Any]], config: TrainConfig, world: World
) -> Tensor:
    """The gradient of the mean loss over the whole batch; returns that of this rank's part, times the ranks.

    Ranks average their gradients, whence the factor; parts count by their rows, so none has to be as large as another.
    """
    value = torch.zeros((), device=parts[0]["latents"].device)
    for i, part in enumerate(parts):
        share = len(part["latents"]) / config.batch * world.size
        with together_at_last(model, i == len(parts) - 1):
            each = loss_of(model, loss, part, config) * share
            each.backward()
        value += each.detach()
    return value


def loss_of(model: nn.Module, loss: Callable[..., Tensor], part: dict[str, Any], config: TrainConfig) -> Tensor:
    bf16 = config.precision == "bf16"
    with torch.autocast(part["latents"].device.type, torch.bfloat16) if bf16 else nullcontext():
        return loss(model, **part)


def split(tensors: Mapping[str, Tensor | None], size: int) -> list[dict[str, Any]]:
    """Micro-batches of this size along the first axis, the last perhaps smaller; None stays None."""
    count = len(next(value for value in tensors.values() if value is not None))
    return [_rows(tensors, slice(i, i + size)) for i in range(0, count, size)]


def _rows(tensors: Mapping[str, Tensor | None], rows: slice) -> dict[str, Any]:
    return {name: None if value is None else value[rows] for name, value in tensors.items()}
