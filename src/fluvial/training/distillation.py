"""Distillation: a model learns to take in a few steps the way that its teacher takes in many.

The times of the N steps are equal, 0, 1 / N, ... 1. From a point x at time t the model learns the mean velocity up to
the end of the step that t lies in, so that Euler's method in N steps arrives where the teacher does. Guidance, solver
and steps of the teacher are in what it learns, so the model needs none of them.

**From trajectories** of the teacher, `following`. At each point but the last the slope of the chord to the next one
is the mean velocity:

    v(x_k, t_k) -> (x_(k+1) - x_k) / (t_(k+1) - t_k)

A regression on pairs of noise and image, as in "Knowledge Distillation in Iterative Generative Models" (arXiv
2101.02388), with the points in between.

**From images**, `ahead_of_itself`. At a point between noise and an image the teacher takes one short step of Euler's
method, and the model itself tells the rest:

    (end - t) v(x, t) -> h v_teacher + (end - t - h) sg v(x + h v_teacher, t + h)

where sg is no gradient. For h -> 0 it is the identity of MeanFlow (arXiv 2505.13447), v = v_teacher + (end - t) dv/dt
along the teacher's velocity, without forward-mode derivatives; with a fixed number of steps it is that of multistep
consistency models (arXiv 2403.06807).
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fluvial.flow.interpolant import INTERPOLANTS, expand, x_t
from fluvial.flow.timesteps import grid
from fluvial.methods.method import Distillable, Draws, with_functions
from fluvial.training.distributed import unwrapped

AT_START = 0.4  # of the points from images: at the start of a step, where sampling evaluates
AHEAD = 1 / 24  # length of the teacher's step, at most
SMALL = 1e-3  # mean square of an error that counts as small

Velocities = Callable[[Tensor, Tensor], Tensor]
Teacher = Callable[[Tensor, Tensor, Tensor | None, Sequence[Tensor]], Tensor]
"""The velocities of samples at points x (b, k, ...) at times t (b, k), with labels, of trajectories to these ends."""


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
        found = method.velocities_along(model, points[:, :-1], t, labels, points[:, -1])
        return method.mean_squares(model.config, found.float() - slopes(points, times))

    return with_functions(method, draws=draws, errors=errors)


def slopes(points: Float[Tensor, "b k1 *shape"], times: Float[Tensor, "k1"]) -> Float[Tensor, "b k *shape"]:
    """The slopes of the chords between neighbouring points at these times."""
    each = times.diff().to(points).reshape(1, -1, *(1 for _ in points.shape[2:]))
    return points.diff(dim=1) / each


def ahead_of_itself(method: Any, teacher: Teacher, steps: int) -> Any:  # noqa: ANN401 - a Distillable and an Objective
    """The objective of a method's model that learns from noisy images what its own next point tells, see above.

    An image has one point, in a random step. Where images form a sequence, they have the times of sampling: each is a
    step later than the one before it.
    """

    def draws(
        config: Any,  # noqa: ANN401
        shape: Sequence[int],
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str,
    ) -> Draws:
        count, drawn = shape[0], {"generator": generator, "device": device}
        if config.images_per_sequence is None:
            number = torch.randint(steps, (count, 1), **drawn)
        else:
            number = torch.arange(steps, device=device).expand(count, -1)
        inside = torch.rand(count, 1, **drawn)
        inside = torch.where(torch.rand(count, 1, **drawn) < AT_START, 0.0, inside)
        noise = torch.randn(count, number.shape[1], *config.noise_shape, **drawn)
        return Draws(t=(number + inside) / steps, noise=noise, drop=torch.zeros(count, device=device) > 0)

    def errors(model: nn.Module, latents: Tensor, labels: Tensor | None, draws: Draws) -> Float[Tensor, "b parts"]:
        config: Any = model.config
        if config.images_per_sequence is None:
            parts = method.ends(config, latents)
            clean = torch.cat(list(parts), dim=1).unsqueeze(1)
        else:
            parts, clean = [latents[:, -1]], latents
        ends, t = clean[:, -1], draws.t
        x = x_t(INTERPOLANTS[config.interpolant], draws.noise, clean, t)
        with torch.no_grad():  # first, so that the pass with a gradient is the last before it is taken
            inner = unwrapped(model)
            v = teacher(x, t, labels, parts)
            target = mean_velocity(
                lambda x, t: method.velocities_along(inner, x, t, labels, ends).float(), v, x, t, end_of(t, steps)
            )
        return robust(method.mean_squares(config, method.velocities_along(model, x, t, labels, ends).float() - target))

    return with_functions(method, draws=draws, errors=errors)


def robust(squares: Float[Tensor, "b parts"]) -> Float[Tensor, "b parts"]:
    """c log(1 + squares / c): about the squares where they are small, with the gradient c / (c + squares) of theirs.

    It is the adaptive weight of MeanFlow with the power 1 (arXiv 2505.13447, section 4.3) as a loss.
    """
    return SMALL * torch.log1p(squares / SMALL)


def end_of(t: Float[Tensor, "b k"], steps: int) -> Float[Tensor, "b k"]:
    """The end of the step, of `steps` equal ones, that each time in [0, 1) lies in."""
    return ((t * steps + 1e-4).floor() + 1) / steps  # t = k / steps is the start of a step, rounded down or up


def mean_velocity(
    own: Velocities,
    v: Float[Tensor, "b k *shape"],
    x: Float[Tensor, "b k *shape"],
    t: Float[Tensor, "b k"],
    end: Float[Tensor, "b k"],
    h: float = AHEAD,
) -> Float[Tensor, "b k *shape"]:
    """The mean velocity from x at t up to `end`: a step h along v, at most to the end, then as `own`(x, t) tells it."""
    step = (end - t).clamp(max=h)
    share = expand(step / (end - t), x)
    return share * v + (1 - share) * own(x + expand(step, x) * v, t + step)
