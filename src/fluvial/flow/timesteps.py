"""Distributions of t in training, and time grids for sampling. t = 0 is noise, t = 1 is data."""

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

TimeSampling = Literal["uniform", "logit-normal"]


def uniform(
    shape: tuple[int, ...], *, generator: torch.Generator | None = None, device: torch.device | str | None = None
) -> Float[Tensor, "..."]:
    """Times t ~ U(0, 1), as in both releases."""
    return torch.rand(shape, generator=generator, device=device)


def logit_normal(
    shape: tuple[int, ...],
    *,
    mean: float = 0.0,
    std: float = 1.0,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> Float[Tensor, "..."]:
    """Times t = sigmoid(mean + std z), z standard normal: more of them near 1/2 (Stable Diffusion 3, section 3.1)."""
    return torch.sigmoid(mean + std * torch.randn(shape, generator=generator, device=device))


def sorted_along_sequence(t: Float[Tensor, "b s"]) -> Float[Tensor, "b s"]:
    """Times with each row in ascending order: the noisiest image of a sequence comes first (ARFlow)."""
    return t.sort(dim=-1).values


TIME_SAMPLINGS = {"uniform": uniform, "logit-normal": logit_normal}


def shift(t: Tensor, factor: float) -> Tensor:
    """Times moved towards noise for factor > 1; 0 and 1 stay in place, and factor 1 changes nothing.

    In the noise level s = 1 - t this is s -> factor s / (1 + (factor - 1) s) (Stable Diffusion 3, equation 23).
    """
    return t / (t + factor * (1 - t))


def grid(steps: int, *, shift_factor: float = 1.0, t0: float = 0.0, t1: float = 1.0) -> Float[Tensor, "k"]:
    """A grid of steps + 1 ascending times from t0 to t1 in float64: equal steps, or denser near noise for shift > 1."""
    if steps < 1:
        raise ValueError(f"a time grid needs at least 1 step, got {steps}")
    if not 0 < shift_factor < math.inf:
        raise ValueError(f"the shift of a time grid must be above 0 and finite, got {shift_factor}")
    times = t0 + (t1 - t0) * shift(torch.linspace(0, 1, steps + 1, dtype=torch.float64), shift_factor)
    return _ascending(times, f"{steps} steps from {t0} to {t1} with shift {shift_factor}")


def grid_with_last_step(steps: int, last_step_size: float) -> Float[Tensor, "k"]:
    """The grid of the released SDE samplers: steps - 1 equal steps from 0 to 1 - last_step_size, then one to 1.

    It has steps + 1 points, so a solver with one evaluation a step makes `steps` of them (SiT and ARFlow: 250, 0.04).
    """
    if steps < 2 or not 0 < last_step_size < 1:
        raise ValueError(
            f"a grid with a last step needs at least 2 steps and a last step inside (0, 1), "
            f"got steps={steps}, last_step_size={last_step_size}"
        )
    times = torch.cat([grid(steps - 1, t1=1 - last_step_size), torch.ones(1, dtype=torch.float64)])
    return _ascending(times, f"{steps} steps, the last of {last_step_size}")


def _ascending(times: Float[Tensor, "k"], what: str) -> Float[Tensor, "k"]:
    """The times unchanged. Raises ValueError if they do not ascend strictly in float64."""
    if not bool((times.diff() > 0).all()):
        raise ValueError(f"the times of a grid must ascend, and some coincide: got {what}")
    return times


def two_piece_grid(steps: int) -> Float[Tensor, "k"]:
    """FlowAR's time grid: half of the points from noise level 1 to 0.3, the others from 0.25 to 0, denser near data.

    An even number of steps N is what the release calls N or N + 1 (its "25 steps" are 24 evaluations).
    """
    if steps < 2:
        raise ValueError(f"a two-piece time grid needs at least 2 steps, got {steps}")
    first = torch.linspace(1, 0.3, steps // 2, dtype=torch.float64)
    return 1 - torch.cat([first, torch.linspace(0.25, 0, steps - steps // 2 + 1, dtype=torch.float64)])
