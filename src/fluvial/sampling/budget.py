"""Evaluations of the network that sampling settings take, and the most steps for a number of them."""

from collections import Counter
from dataclasses import replace

import torch
from torch import Tensor

from fluvial.flow.guidance import guided
from fluvial.flow.interpolant import Interpolant
from fluvial.flow.solvers import State
from fluvial.sampling.settings import MOST_STEPS, SampleConfig

WIDTH = 4  # numbers in the point that stands for an image


def evaluations(settings: SampleConfig, interpolant: Interpolant, *, scales: int = 0, history: bool = False) -> int:
    """The evaluations of the network for one image, both branches of guidance together, as sampling counts them.

    `scales` are those of FlowAR, 0 for methods without; with `history` (ARFlow) the null branch is evaluated before the
    interval of guidance too. The solver is run with velocities of zero, so that each rule stands in one place. Raises
    ValueError for a solver that chooses its own steps.
    """
    solver = settings.solver_settings
    if solver.is_adaptive:
        raise ValueError(f"the solver {solver.name} chooses its own steps: no number of evaluations can be given")
    grids, count, tally = settings.times(), max(1, scales), Counter[str]()
    solve = solver.bound(interpolant)
    noise = {"noise": lambda step: torch.zeros(1, WIDTH)} if solver.is_stochastic else {}

    def still(x: Tensor, t: Tensor, state: State) -> tuple[Tensor, State]:
        return torch.zeros_like(x), x if history else None

    for i, times in enumerate(grids if isinstance(grids, list) else [grids] * count):
        guidance = replace(settings.guidance.at_scale(i, count), channels=None)
        field = guided(still, still, guidance, interpolant=interpolant, evaluations=tally)
        solve(field, torch.zeros(1, WIDTH), times, **noise)
    return tally.total()


def with_evaluations(
    settings: SampleConfig, most: int, interpolant: Interpolant, *, scales: int = 0, history: bool = False
) -> SampleConfig:
    """The settings with as many steps as `most` evaluations of the network allow; see `evaluations`.

    Steps of several scales stay in the proportion of the settings', at least one each. Raises ValueError, with the
    fewest evaluations that are possible, for fewer.
    """
    own, fewest = settings.each_steps, 1

    def stepped(longest: int) -> SampleConfig:
        if not isinstance(settings.steps, tuple):
            return replace(settings, steps=longest)
        return replace(settings, steps=tuple(max(fewest, round(longest * each / max(own))) for each in own))

    def cost(longest: int) -> int:
        return evaluations(stepped(longest), interpolant, scales=scales, history=history)

    try:
        least = cost(fewest)
    except ValueError:  # some grids have two parts
        fewest = 2
        least = cost(fewest)
    if least > most:
        guided = "" if settings.guidance.is_off else " and guidance"
        name = settings.solver_settings.name
        raise ValueError(f"nfe must be at least {least} with the solver {name}{guided}, got {most}")
    low, high = fewest, fewest + 1
    while high <= min(most, MOST_STEPS) and cost(high) <= most:
        low, high = high, 2 * high
    high = min(high, most + 1, MOST_STEPS + 1)  # a step takes one evaluation at least
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if cost(middle) <= most else (low, middle)
    return stepped(low)
