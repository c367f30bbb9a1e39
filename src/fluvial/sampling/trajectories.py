"""Trajectories of a sampler: the points at given times of the way from noise to data."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from fluvial.flow.solvers import Field, OnStep, Solution, Solver, State, Step
from fluvial.sampling.generate import Batch, batches
from fluvial.sampling.settings import SampleConfig

SAME = 1e-6  # times that are closer are one


def trajectories(
    model: nn.Module,
    sample: Callable[..., Tensor],
    settings: SampleConfig,
    times: Sequence[float],
    *,
    parts: Sequence[Sequence[int]],
    labels: Sequence[Int[Tensor, "_"]] = (),
    seed: int = 0,
) -> Iterator[tuple[Batch, Float[Tensor, "b k ..."]]]:
    """The points at these times, from 0 to 1, of the trajectories of each part's indices, batch by batch.

    Points have the shape of the noise; for a method with scales those of all scales are together. The solver takes its
    own steps, and ends one at each of these times. `labels` are those of each part, or none.
    """
    seen = list[Tensor]()  # of one batch, by scale

    def recording(solver: Solver, positions: slice) -> Solver:
        seen.clear()
        return recorded(solver, times, seen)

    for batch in batches(model, sample, settings, parts=parts, labels=labels, seed=seed, edit=recording):
        yield batch, torch.cat(seen, dim=2) if len(seen) > 1 else seen[0]


def recorded(solver: Solver, times: Sequence[float], seen: list[Tensor]) -> Solver:
    """The solver, with steps that end at these times too; it adds the points (b, k, ...) there to `seen`."""

    def solve(
        field: Field,
        x: Tensor,
        own: Sequence[float] | Tensor,
        *,
        state: State = None,
        on_step: OnStep | None = None,
        **options: Any,  # noqa: ANN401
    ) -> Solution:
        grid = united(own, times)
        points = {0: x}

        def keep(step: Step) -> None:
            points[step.number] = step.x
            if on_step is not None:
                on_step(step)

        found = solver(field, x, grid, state=state, on_step=keep, **options)
        wanted = [min(range(len(grid)), key=lambda i: abs(grid[i] - t)) for t in times]
        seen.append(torch.stack([points[i] for i in wanted], dim=1))
        return found

    return solve


def united(a: Sequence[float] | Tensor, b: Sequence[float] | Tensor) -> list[float]:
    """The times of both grids, ascending, those that are the same once."""
    every = sorted({*map(float, a), *map(float, b)})
    return [t for i, t in enumerate(every) if i == 0 or t - every[i - 1] > SAME]
