"""Distillation: a model learns to take in a few steps the way that its teacher takes in many.

A trajectory of the teacher has the points x_0, x_1 ... x_N at equal times. At each point but the last the model learns
the slope of the chord to the next one,

    v(x_k, t_k) -> (x_(k+1) - x_k) / (t_(k+1) - t_k)

which is the mean velocity between them. Where it is right, Euler's method in N steps follows the trajectory exactly.
Guidance, solver and steps of the teacher are in its trajectories, so the model needs none of them.

A regression on pairs of noise and image, as in "Knowledge Distillation in Iterative Generative Models" (arXiv
2101.02388), with the points in between.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fluvial.flow.timesteps import grid
from fluvial.methods.method import Distillable, Draws, with_functions


def following(method: Distillable, steps: int) -> Any:  # noqa: ANN401 - an Objective
    """The objective of a method's model that follows trajectories (b, steps + 1, ...), which take the latents' place.

    Nothing is drawn: a step learns from all points of the trajectories of its batch, with their labels.
    """
    times = grid(steps)

    def draws(
        config: Any,  # noqa: ANN401
        shape: Sequence[int],
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str,
    ) -> Draws:
        nothing = torch.zeros(shape[0], device=device)
        return Draws(t=nothing, noise=nothing, drop=nothing > 0)

    def errors(model: nn.Module, points: Tensor, labels: Tensor | None, draws: Draws) -> Float[Tensor, "b parts"]:
        t = times[:-1].to(points).expand(len(points), -1)
        return method.errors_along(model, points[:, :-1], t, labels, slopes(points, times), points[:, -1])

    return with_functions(method, draws=draws, errors=errors)


def slopes(points: Float[Tensor, "b k1 *shape"], times: Float[Tensor, "k1"]) -> Float[Tensor, "b k *shape"]:
    """The slopes of the chords between neighbouring points at these times."""
    each = times.diff().to(points).reshape(1, -1, *(1 for _ in points.shape[2:]))
    return points.diff(dim=1) / each
