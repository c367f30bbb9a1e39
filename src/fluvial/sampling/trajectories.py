"""Trajectories of a sampler: their points at given times on the way from noise to data, and velocities at points."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from fluvial.flow.solvers import Field, OnStep, Solution, Solver, State, Step
from fluvial.nn.layers import Labels
from fluvial.sampling.generate import Batch, batches
from fluvial.sampling.settings import SampleConfig
from fluvial.utils.randomness import normal

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


def velocities(
    model: nn.Module,
    sample: Callable[..., Tensor],
    settings: SampleConfig,
    x: Float[Tensor, "b k ..."],
    t: Float[Tensor, "b k"],
    labels: Labels | None,
    ends: Sequence[Float[Tensor, "b ..."]],
    *,
    seed: int = 0,
) -> Float[Tensor, "b k ..."]:
    """The velocities of samples, guided as the settings say, at k points each, one after another at the times t.

    `ends` are the values that the points lead to: of each scale, coarse to fine, from which the next one is drawn, or
    one. A history holds the points before. FlowAR's context noise is that of the seed.
    """
    found, seen = list[Tensor](), list[Tensor]()  # in all, and of one batch, by scale
    config: Any = model.config
    points = x.split([end.shape[1] for end in ends], dim=2)

    def at_points(solver: Solver, positions: slice) -> Solver | Sequence[Solver]:
        seen.clear()
        each = [
            visiting(part[positions], t[positions], end[positions], seen)
            for part, end in zip(points, ends, strict=True)
        ]
        return each if len(each) > 1 else each[0]

    def noise(indices: Sequence[int], step: int) -> Tensor:
        shape = config.noise_shape
        return normal(seed, list(indices), shape, step=step) if step else torch.zeros(len(indices), *shape)

    given = {"labels": [] if labels is None else [labels], "noise": noise, "edit": at_points}
    for _ in batches(model, sample, settings, parts=[range(len(x))], **given):
        found.append(torch.cat(seen, dim=2))
    return torch.cat(found)


def visiting(
    points: Float[Tensor, "b k ..."], t: Float[Tensor, "b k"], end: Float[Tensor, "b ..."], seen: list[Tensor]
) -> Solver:
    """A solver that visits these points, adds the velocities (b, k, ...) there to `seen`, and ends with `end`."""

    def solve(
        field: Field,
        x: Tensor,
        times: Sequence[float] | Tensor,
        *,
        state: State = None,
        **options: Any,  # noqa: ANN401
    ) -> Solution:
        found = list[Tensor]()
        for i in range(points.shape[1]):
            velocity, state = field(points[:, i], t[:, i], state)
            found.append(velocity)
        seen.append(torch.stack(found, dim=1))
        return Solution(end, state, len(found))

    return solve


def united(a: Sequence[float] | Tensor, b: Sequence[float] | Tensor) -> list[float]:
    """The times of both grids, ascending, those that are the same once."""
    every = sorted({*map(float, a), *map(float, b)})
    return [t for i, t in enumerate(every) if i == 0 or t - every[i - 1] > SAME]
