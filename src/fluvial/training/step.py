"""One training step: the gradient of a batch, clipping, AdamW, averages.

Nothing in it waits for the device, but for averages in host memory and a look at each block.
"""

import copy
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fluvial.methods.method import Draws, Objective
from fluvial.training import ema
from fluvial.training.config import TrainConfig
from fluvial.training.distributed import ALONE, World, blocks, checkpoint_activations, parallelise, together_at_last
from fluvial.training.health import Health, gradient_norms, update_sizes
from fluvial.training.optim import OptimConfig, adamw, clip_gradients, learning_rate
from fluvial.utils.precision import Precision
from fluvial.utils.randomness import address, generator

Batches = Callable[[int], tuple[Tensor, Tensor | None]]
"""Latents and labels by step 0, 1, ..."""


@dataclass(frozen=True, kw_only=True)
class Learner:
    """A model in training with its optimizer and averages."""

    model: nn.Module
    """The model itself, whose parameters are trained."""
    wrapped: nn.Module
    """The model as all ranks train it: under DDP or FSDP2 if there are several."""
    optimizer: torch.optim.AdamW
    averages: ema.Tracks
    method: Objective
    part_weights: Float[Tensor, " parts"]
    """Weight in the loss of each part of the error."""
    config: TrainConfig
    optim: OptimConfig
    seed: int
    world: World
    empty: Callable[[], nn.Module]
    """Makes a model of the same shape on the same device, its parameters to be filled."""

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def loss(self, part: "MicroBatch", model: nn.Module | None = None) -> Float[Tensor, ""]:
        """The loss of a micro-batch, in the precision of training; of the wrapped model unless another is given."""
        model = self.wrapped if model is None else model
        return loss_of(errors_in(self.config.precision, self.method, model, part), self.part_weights)

    def averaged(self) -> nn.Module:
        """The first moving average as a frozen model in eval mode. All ranks have to ask for it."""
        return ema.module(self.averages["ema"], self.model, self.empty)


class MicroBatch(NamedTuple):
    """A part of a batch that the model takes at once."""

    latents: Tensor
    labels: Tensor | None
    draws: Draws

    def rows(self, rows: slice) -> "MicroBatch":
        """Some of its examples."""
        return MicroBatch(self.latents[rows], None if self.labels is None else self.labels[rows], self.draws[rows])


class StepMetrics(NamedTuple):
    """Loss, gradient norm and learning rate of one step; the tensors are on the device, and nothing waits for them."""

    loss: Tensor
    grad_norm: Tensor
    """Before clipping."""
    skipped: Tensor
    """True if the gradient was not finite, and the weights were left as they were."""
    lr: float
    parts: list[MicroBatch]
    blocks: dict[str, dict[str, float]]
    """Gradient norm and update size of each block, if asked for."""


def begin(
    model: nn.Module,
    *,
    method: Objective,
    config: TrainConfig,
    optim: OptimConfig,
    seed: int,
    world: World = ALONE,
    empty: Callable[[], nn.Module] | None = None,
) -> Learner:
    """The learner of a method's model, at step 0 and in training mode. `empty` makes a copy by default.

    Raises ValueError if the batch is too small for the ranks, or the model holds more than checkpoints do.
    """
    if others := model.state_dict().keys() - dict(model.named_parameters()).keys():
        raise ValueError(
            f"checkpoints hold the parameters of a model, each under one name, and this one also has "
            f"{', '.join(sorted(others))}: register buffers with persistent=False, and keep no running statistics"
        )
    if config.batch < world.size * config.accumulate:
        raise ValueError(
            f"a batch of {config.batch} is too small for {world.size} ranks with {config.accumulate} micro-batches each"
        )
    checkpoint_activations(model, config.activation_checkpointing)
    for block in blocks(model).values() if config.compile else ():
        block.compile()
    wrapped = parallelise(model, config.parallel, world)
    kept = ("ema", *map(ema.name_of, config.ema_decays), *map(ema.name_of_length, config.ema_lengths))
    return Learner(
        model=model,
        wrapped=wrapped.train(),
        optimizer=adamw(model, optim),
        averages=ema.start(model, kept, config.ema_device or None),
        method=method,
        part_weights=torch.tensor(method.part_weights(model.config), device=next(model.parameters()).device),
        config=config,
        optim=optim,
        seed=seed,
        world=world,
        empty=empty or (lambda: copy.deepcopy(model)),
    )


def step(
    learner: Learner, batches: Batches, health: Health, number: int, *, order: int = 0, blocks_too: bool = False
) -> StepMetrics:
    """Takes step number 0, 1, ...: gradient of a batch, clipping, AdamW, averages. `blocks_too` measures each block."""
    model, config, optim, optimizer = learner.model, learner.config, learner.optim, learner.optimizer
    rate = learning_rate(optim, number, config.steps)
    for group in optimizer.param_groups:
        group["lr"] = rate
    parts = _micro_batches(learner, batches, number, order)
    loss = _backward(learner, parts)
    gradients = gradient_norms(blocks(model)) if blocks_too else {}
    norm = clip_gradients(list(model.parameters()), optim)
    skipped = health.take(optimizer, norm)
    optimizer.step()
    updates = update_sizes(blocks(model), optimizer, rate, optim) if blocks_too else {}
    optimizer.zero_grad(set_to_none=True)
    for name, average in learner.averages.items():
        ema.update(average, model, ema.decay_of(name, config.ema_decay, number + 1, warmup=config.ema_warmup))
    each = {name: {"grad_norm": gradients[name], "update": updates[name]} for name in gradients}
    return StepMetrics(loss, norm, skipped, rate, parts, each)


def _micro_batches(learner: Learner, batches: Batches, number: int, order: int) -> list[MicroBatch]:
    """This rank's part of the step's batch and of its draws, which are the same on any number of ranks."""
    config, seed, world, device = learner.config, learner.seed, learner.world, learner.device
    latents, labels = (None if a is None else a.to(device, non_blocking=True) for a in batches(number))
    assert latents is not None
    orders = (order,) if order else ()
    drawn = learner.method.draws(
        learner.model.config,
        (config.batch, *latents.shape[1:]),
        generator=generator(seed, "train", number, *orders, device=device),
        device=device,
    )
    # dropout knows no generator of its own; its draws are the rank's, so they depend on the number of ranks
    torch.manual_seed(address(seed, "dropout", number, *((world.rank,) if world.rank else ())))
    mine, parts = MicroBatch(latents, labels, drawn[world.share(config.batch)]), config.accumulate
    # as many on every rank, of one row more or less, like the ranks' own
    return [mine.rows(World(i, parts).share(len(latents))) for i in range(parts)]


def _backward(learner: Learner, parts: list[MicroBatch]) -> Tensor:
    """The gradient of the mean loss over the whole batch; returns that of this rank's part, times the ranks.

    Ranks average their gradients, whence the factor; parts count by their rows, so none has to be as large as another.
    """
    value = torch.zeros((), device=parts[0].latents.device)
    for i, part in enumerate(parts):
        share = len(part.latents) / learner.config.batch * learner.world.size
        with together_at_last(learner.wrapped, i == len(parts) - 1):
            each = learner.loss(part) * share
            each.backward()
        value += each.detach()
    return value


def errors_in(precision: Precision, method: Objective, model: nn.Module, part: MicroBatch) -> Float[Tensor, "b parts"]:
    """The errors of a micro-batch, under autocast for bf16."""
    bf16 = precision == "bf16"
    with torch.autocast(part.latents.device.type, torch.bfloat16) if bf16 else nullcontext():
        return method.errors(model, *part)


def loss_of(errors: Float[Tensor, "b parts"], weights: Float[Tensor, " parts"]) -> Float[Tensor, ""]:
    """The mean over examples of their parts' weighted errors: what training minimises and validation reports."""
    return (errors * weights).sum(dim=-1).mean()


def split(batch: MicroBatch, size: int) -> list[MicroBatch]:
    """Micro-batches of this size along the first axis, the last perhaps smaller."""
    return [batch.rows(slice(i, i + size)) for i in range(0, len(batch.latents), size)]
