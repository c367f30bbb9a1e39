"""The loss on examples that training never sees, at fixed times and noises: the curve that shows overfitting."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fluvial.methods.method import Method
from fluvial.training.step import Batches, MicroBatch, loss_of, split
from fluvial.utils.randomness import generator

EXAMPLES = 256
BUCKETS = 10  # of t, from noise to data


def validation_losses(
    method: Method,
    config: Any,  # noqa: ANN401
    batches: Batches,
    micro_batch: int,
    device: torch.device,
    *,
    by_part: bool = True,
) -> Callable[[nn.Module], dict[str, Any]]:
    """A function from a model to its validation loss, and with `by_part` also by tenth of t, and by scale if there are.

    The loss is that of the examples of batches(0), `micro_batch` at a time. Examples, times and noises are the same at
    every call, whatever the run's seed.
    """
    latents, labels = (None if a is None else a.to(device) for a in batches(0))
    assert latents is not None

    @torch.no_grad()
    def losses(model: nn.Module) -> dict[str, Any]:
        draws = method.draws(config, latents.shape, generator=generator(0, "held-out", device=device), device=device)
        parts = split(MicroBatch(latents, labels, draws), micro_batch)
        errors = torch.cat([method.errors(model, *part) for part in parts])
        weights = torch.tensor(method.part_weights(config), device=device)
        found: dict[str, Any] = {"held_out_loss": float(loss_of(errors, weights))}
        if by_part:
            found["held_out_by_time"] = by_time(errors, draws.t)
        if by_part and method.scales(config):
            found["held_out_by_scale"] = errors.mean(dim=0).tolist()
        return found

    return losses


def by_time(error: Tensor, t: Tensor) -> list[float | None]:
    """The mean error of each tenth of t in [0, 1], from noise to data; None where no time fell.

    An example has a time for each of its parts, or one for all.
    """
    t = t.reshape(len(error), -1).expand(error.shape) if t.numel() < error.numel() else t
    bucket = (t.flatten() * BUCKETS).long().clamp(0, BUCKETS - 1)
    count = torch.bincount(bucket, minlength=BUCKETS)
    total = torch.bincount(bucket, weights=error.flatten().double(), minlength=BUCKETS)
    return [float(s / n) if n else None for s, n in zip(total, count, strict=True)]
