"""The loss on examples that training never sees, at fixed times and noises: the curve that shows overfitting."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fluvial.inputs import Inputs, batches_of
from fluvial.methods import method_of
from fluvial.randomness import generator
from fluvial.train.step import MicroBatch, loss_of, split

EXAMPLES = 256
BUCKETS = 10  # of t, from noise to data


def held_out_losses(inputs: Inputs, device: torch.device) -> Callable[[nn.Module], dict[str, Any]] | None:
    """A function from a model to its held-out loss, by time and for FlowAR by scale; None without held-out examples.

    The examples, times and noises are the same every time, whatever the run's seed.
    """
    if inputs.held_out is None:
        return None
    run, config = inputs.run, inputs.run.method
    method = method_of(config)
    batch = batches_of(inputs, inputs.held_out, EXAMPLES, device, seed=0, small_classes="repeat")(0)

    @torch.no_grad()
    def losses(model: nn.Module) -> dict[str, Any]:
        latents, labels = (None if a is None else a.to(device) for a in batch)
        assert latents is not None
        draws = method.draws(config, latents.shape, generator=generator(0, "held-out", device=device), device=device)
        parts = split(MicroBatch(latents, labels, draws), run.train.batch // run.train.accumulate)
        errors = torch.cat([method.errors(model, *part) for part in parts])
        weights = torch.tensor(method.part_weights(config), device=device)
        found = {"held_out_loss": float(loss_of(errors, weights)), "held_out_by_time": by_time(errors, draws.t)}
        if method.scales(config):
            found["held_out_by_scale"] = errors.mean(dim=0).tolist()
        return found

    return losses


def by_time(error: Tensor, t: Tensor) -> list[float | None]:
    """The mean error of each tenth of t in [0, 1], from noise to data; None where no time fell."""
    bucket = (t.flatten() * BUCKETS).long().clamp(0, BUCKETS - 1)
    count = torch.bincount(bucket, minlength=BUCKETS)
    total = torch.bincount(bucket, weights=error.flatten().double(), minlength=BUCKETS)
    return [float(s / n) if n else None for s, n in zip(total, count, strict=True)]
