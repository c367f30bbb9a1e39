"""Edits of known images, as solvers that are made from a solver and go wherever one goes.

    kept        a value in place of an integral: a coarse scale of a known image (FlowAR)
    started     from a noisy image in place of noise (SDEdit)
    inpainted   with known pixels, by replacement with resampling (RePaint)
    forked      one trajectory up to a time, several from there on
    shown       with other images in the history (ARFlow)
    inverted    from an image back to its noise
    placed      from a given point, whatever point it is given

`clean` are the data that a path ends with, in the shape that the solver has (`ends` of the method): latents
(b, c, h, w), or the tokens of one scale (b, n, p). `path` is the interpolant. The point that such a solver is given is
the noise, except for `inverted`.
"""

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from fluvial.flow.interpolant import Interpolant, data_from_velocity, linear, u_t, x_t
from fluvial.flow.solvers import Field, OnStep, Solution, Solver, State, Step

Draw = Callable[[int], Tensor]  # standard normal noise, shaped like x, of number 0, 1, ...
Times = Sequence[float] | Tensor


def kept(clean: Float[Tensor, "b ..."]) -> Solver:
    """A solver that ends with these values, and evaluates nothing."""

    def solve(field: Field, x: Tensor, times: Times, *, state: State = None, **options: Any) -> Solution:  # noqa: ANN401
        return Solution(clean.to(x), state, 0)

    return solve


def started(solver: Solver, clean: Float[Tensor, "b ..."], at: float, *, path: Interpolant = linear) -> Solver:
    """A solver that starts from the clean values with noise, at time `at` (0 is all noise, 1 no noise).

    Source: SDEdit (arXiv 2108.01073), section 3.
    """

    def solve(field: Field, x: Tensor, times: Times, **options: Any) -> Solution:  # noqa: ANN401
        noisy = x_t(path, x, clean.to(x), torch.full_like(x[:, :1], at).flatten(1)[:, 0])
        return solver(field, noisy, [at, *(t for t in _floats(times) if t > at)], **options)

    return solve


def inpainted(
    solver: Solver,
    clean: Float[Tensor, "b ..."],
    known: Bool[Tensor, "#b ..."],
    draw: Draw | None = None,
    *,
    repeats: int = 0,
    jump: int = 2,
    path: Interpolant = linear,
) -> Solver:
    """A solver that ends with the clean values where they are known, and fits the others to them.

    Known values follow the path from their own noise to `clean`. After every `jump` steps the solver goes back to where
    they began, with new noise from `draw`, and takes them again, `repeats` times: so the unknown values come to fit the
    known ones. A history has only the last of steps that were taken more than once.

    Source: RePaint (arXiv 2201.09865), algorithm 1, for a path from noise at t = 0 to data at t = 1.
    """

    def solve(
        field: Field,
        x: Tensor,
        times: Times,
        *,
        state: State = None,
        on_step: OnStep | None = None,
        **options: Any,  # noqa: ANN401
    ) -> Solution:
        points, own, nfe, drawn = _floats(times), x, 0, 0
        values, fixed = clean.to(x), known.to(x.device)
        length = jump if repeats else len(points) - 1
        for first in range(0, len(points) - 1, length):
            part = points[first : first + length + 1]
            found = Solution(x, state, 0)
            for again in range(repeats + 1 if first else 1):  # at the start there is only noise to go back to
                start = found.x
                if again:
                    assert draw is not None, "resampling needs noise"
                    start = noisier(start, part[-1], part[0], draw(drawn).to(x), path)
                    own, drawn = noise_at(start, values, part[0], path), drawn + 1
                after = None if on_step is None else partial(_pass_on, on_step, first, nfe)
                fitted = replaced(field, values, fixed, own, path)
                found = solver(fitted, start, part, state=state, on_step=after, **options)
                nfe += found.nfe
            x, state = found.x, found.state
        return Solution(torch.where(fixed, values, x), state, nfe)

    return solve


def replaced(field: Field, clean: Tensor, known: Tensor, noise: Tensor, path: Interpolant) -> Field:
    """The field that holds known values on the path from this noise to the clean values."""

    def on_path(x: Tensor, t: Tensor, state: State) -> tuple[Tensor, State]:
        time = t.to(x.dtype)
        v, state = field(torch.where(known, x_t(path, noise, clean, time), x), t, state)
        return torch.where(known, u_t(path, noise, clean, time).to(v.dtype), v), state

    return on_path


def noisier(x: Tensor, t: float, s: float, noise: Tensor, path: Interpolant = linear) -> Tensor:
    """A point at the earlier time s, drawn given the point x at time t: with less of the data, and more noise."""
    now, then = (path(torch.tensor(at, dtype=torch.float64)) for at in (t, s))
    share = then.alpha / now.alpha
    return float(share) * x + float((then.sigma**2 - (share * now.sigma) ** 2).clamp(min=0).sqrt()) * noise


def noise_at(x: Tensor, clean: Tensor, t: float, path: Interpolant = linear) -> Tensor:
    """The noise from which a path to the clean values passes x at time t, below 1."""
    c = path(torch.tensor(t, dtype=torch.float64))
    return (x - float(c.alpha) * clean) / float(c.sigma)


def forked(solver: Solver, trunk: Float[Tensor, "b ..."], at: float, *, path: Interpolant = linear) -> Solver:
    """A solver whose trajectories are one, from the noise `trunk`, until time `at`, and part there.

    There every one keeps the estimate of the data and the history, and goes on with its own noise, which is the noise
    that the solver is given.
    """

    def solve(
        field: Field,
        x: Tensor,
        times: Times,
        *,
        state: State = None,
        on_step: OnStep | None = None,
        **options: Any,  # noqa: ANN401
    ) -> Solution:
        points = _floats(times)
        before, after = [t for t in points if t < at], [t for t in points if t > at]
        first = solver(field, trunk.to(x), [*before, at], state=state, on_step=on_step, **options)
        time = torch.full((len(x),), at, device=x.device)
        v, _ = field(first.x, time, first.state)
        data = data_from_velocity(path, v, first.x, time)
        told = None if on_step is None else partial(_pass_on, on_step, len(before), first.nfe + 1)
        parted = x_t(path, x, data, time)
        last = solver(field, parted, [at, *after], state=first.state, on_step=told, **options)
        return last._replace(nfe=first.nfe + 1 + last.nfe)

    return solve


def shown(
    solver: Solver,
    examples: Float[Tensor, "b m ..."],
    noise: Float[Tensor, "b m ..."],
    *,
    alone: bool = True,
    path: Interpolant = linear,
) -> Solver:
    """A solver with examples in the history of its field: at every step one of them, noisy as the step's point is.

    Step for step the examples are taken in turn, so that the history is of different images at ascending times, as in
    training. They stand in place of the trajectory's own points, or with alone=False beside them.
    """

    def solve(field: Field, x: Tensor, times: Times, **options: Any) -> Solution:  # noqa: ANN401
        points, count = torch.tensor(_floats(times)), examples.shape[1]

        def seen(x: Tensor, t: Tensor, state: State) -> tuple[Tensor, State]:
            v, after = field(x, t, state)
            turn = int((points <= float(t.min()) + 1e-6).sum() - 1) % count
            example = x_t(path, noise[:, turn].to(x), examples[:, turn].to(x), t.to(x.dtype))
            return v, field(example, t, state if alone else after)[1]

        found = solver(seen, x, times, **options)
        return found._replace(nfe=2 * found.nfe)

    return solve


def inverted(solver: Solver) -> Solver:
    """A solver from the last of the times to the first: from data to the noise that `solver` takes to them.

    It follows the field without a history, the only one that is an ODE in x; so must the way back (`unremembered`).
    """

    def solve(
        field: Field,
        x: Tensor,
        times: Times,
        *,
        state: State = None,
        on_step: OnStep | None = None,
        **options: Any,  # noqa: ANN401
    ) -> Solution:
        points = _floats(times)
        end = points[-1]

        def back(x: Tensor, s: Tensor, _: State) -> tuple[Tensor, State]:
            return -field(x, end - s, state)[0], None

        def told(step: Step) -> None:
            assert on_step is not None
            seen = step.seen._replace(t=end - step.seen.t, velocity=-step.seen.velocity)  # of the field, not of `back`
            on_step(step._replace(seen=seen))

        return solver(back, x, [end - t for t in reversed(points)], on_step=on_step and told, **options)

    return solve


def placed(solver: Solver, start: Float[Tensor, "b ..."]) -> Solver:
    """A solver that starts from these values, not from the point that it is given."""

    def solve(field: Field, x: Tensor, times: Times, **options: Any) -> Solution:  # noqa: ANN401
        return solver(field, start.to(x), times, **options)

    return solve


def unremembered(solver: Solver) -> Solver:
    """A solver of the field without a history: every point is the first image of a sequence."""

    def solve(field: Field, x: Tensor, times: Times, *, state: State = None, **options: Any) -> Solution:  # noqa: ANN401
        return solver(lambda x, t, _: (field(x, t, state)[0], state), x, times, state=state, **options)

    return solve


def pooled(images: Float[Tensor, "b c h w"], size: tuple[int, int]) -> Float[Tensor, "b c _ _"]:
    """The images pooled by area to this height and width."""
    return F.interpolate(images, size=size, mode="area")


def lifted(images: Float[Tensor, "b c h w"], size: tuple[int, int]) -> Float[Tensor, "b c _ _"]:
    """The smallest images (in L2 norm) of this height and width that `pooled` takes to `images`."""
    rows, columns = (
        _lifting(large, small).to(images.device) for large, small in zip(size, images.shape[-2:], strict=True)
    )
    return (rows @ images.double() @ columns.T).to(images.dtype)


@cache
def _lifting(large: int, small: int) -> Float[Tensor, "l s"]:
    """The pseudo-inverse of pooling a row of pixels, in float64."""
    return torch.linalg.pinv(F.adaptive_avg_pool1d(torch.eye(large, dtype=torch.float64), small).T)


def agreeing(
    images: Float[Tensor, "b c h w"], small: Float[Tensor, "b c _ _"], bounds: tuple[float, float] | None = None
) -> Float[Tensor, "b c h w"]:
    """The images closest to these that `pooled` takes to `small`; with `bounds`, to rounding, inside of them too.

    Inside bounds they are found by alternating projections; if `small` is inside of them there are such images.
    """
    (h, w), (height, width) = small.shape[-2:], images.shape[-2:]
    for _ in range(1 if bounds is None else 100):
        images = images if bounds is None else images.clamp(*bounds)
        images = images + lifted(small - pooled(images, (h, w)), (height, width))
    return images


def _pass_on(on_step: OnStep, steps: int, nfe: int, step: Step) -> None:
    """Calls on_step with the numbers of earlier steps and evaluations added."""
    on_step(step._replace(number=steps + step.number, nfe=nfe + step.nfe))


def _floats(times: Times) -> list[float]:
    return times.tolist() if isinstance(times, Tensor) else list(times)
