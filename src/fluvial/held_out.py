"""The loss on examples that training never sees, at fixed times and noises: the curve that shows overfitting."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fluvial.inputs import Inputs, batches_of
from fluvial.methods import method_of
from fluvial.randomness import generator
from fluvial.train.step import split

EXAMPLES = 256
BUCKETS = 10  # of t, from noise to data


def held_out_losses(inputs: Inputs, device: torch.device) -> Callable[[nn.Module], dict[str, Any]] | None:
    """A function from a model to its held-out loss, by time and for FlowAR by scale; None without held-out examples.

    The examples, times and noises are the same every time, whatever the run's seed.
    """
    if inputs.held_out is None:
        return None
    run, method = inputs.run, method_of(inputs.run.method)
    batch = batches_of(inputs, inputs.held_out, EXAMPLES, device, seed=0, small_classes="repeat")(0)
    errors, draws = partial(method.errors, config=run.method), partial(method.draws, run.method)

    @torch.no_grad()
    def losses(model: nn.Module) -> dict[str, Any]:
        latents, labels = (None if a is None else a.to(device) for a in batch)
        assert latents is not None
        chance = draws(latents.shape, generator=generator(0, "held-out", device=device), device=device)
        parts = split({"latents": latents, "labels": labels, **chance}, run.train.batch // run.train.accumulate)
        values = [method.loss(model, config=run.method, **part) * len(part["t"]) for part in parts]
        found: dict[str, Any] = {"held_out_loss": float(sum(values)) / EXAMPLES}
        error = torch.cat([errors(model, **part) for part in parts])
        found["held_out_by_time"] = by_time(error, chance["t"])
        if hasattr(run.method, "maps"):
            found["held_out_by_scale"] = error.mean(dim=0).tolist()
        return found

    return losses


def by_time(error: Tensor, t: Tensor) -> list[float | None]:
    """The mean error of each tenth of t in [0, 1], from noise to data; None where no time fell."""
    bucket = (t.flatten() * BUCKETS).long().clamp(0, BUCKETS - 1)
    count = torch.bincount(bucket, minlength=BUCKETS)
    total = torch.bincount(bucket, weights=error.flatten().double(), minlength=BUCKETS)
    return [float(s / n) if n else None for s, n in zip(total, count, strict=True)]
