"""ODE and SDE solvers: integrate a velocity field from times[0] to times[-1], and count its evaluations (NFE).

A field is `field(x, t, state) -> (velocity, state)`, with x (b, ...), t (b,) and velocity like x. `state` is ARFlow's
history of the points accepted so far, or None for a field without one. The state returned includes (x, t), so a solver
keeps it if and only if (x, t) is on the accepted trajectory. The trial points of Heun, midpoint and dopri5 read the
history and are not added to it.

Every solver raises RuntimeError, naming the time, for a velocity that is not finite. On a GPU this check would
synchronise with the device at every step, so there the caller checks the final result, as `fluvial.sampling.generate`
does.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial, wraps
from itertools import pairwise
from typing import Any, Concatenate, Literal, NamedTuple, ParamSpec

import torch
from torch import Tensor

from fluvial.flow.interpolant import Interpolant, data_from_velocity, expand, score_from_velocity

State = Any
Field = Callable[[Tensor, Tensor, State], tuple[Tensor, State]]


class Seen(NamedTuple):
    """The accepted point x (b, ...) that a step began with, its times t (b,), and the velocity of the field there."""

    x: Tensor
    t: Tensor
    velocity: Tensor

    def data(self, interpolant: Interpolant) -> Tensor:
        """The estimate of the clean data, shaped like x: the data that this velocity leads to along the path."""
        return data_from_velocity(interpolant, self.velocity, self.x, self.t)


class Step(NamedTuple):
    """The argument of the callback after each step (1, 2, ...); t is the smallest time in the batch."""

    number: int
    t: float
    x: Tensor
    nfe: int
    seen: Seen
    """Where the step began. No evaluation is added for it."""
    scale: str = ""
    """The name of the scale, such as 4x4, in FlowAR."""


class Solution(NamedTuple):
    """The final point, the field's state there, and the number of evaluations of the field (NFE)."""

    x: Tensor
    state: State
    nfe: int


OnStep = Callable[[Step], None]
StepNoise = Callable[[int], Tensor] | Tensor  # normal draws of step 0, 1, ...: from a function, or along the first axis
Solver = Callable[..., Solution]  # solver(field, x, times, *, state=None, on_step=None)
Options = ParamSpec("Options")
Solve = Callable[Concatenate[Field, Tensor, Sequence[float] | Tensor, Options], Solution]


def checks_are_free(values: Tensor) -> bool:
    """True if reading the values does not wait for a device; False on a GPU and for fake tensors (without values)."""
    return values.device.type == "cpu" and type(values) is Tensor


def is_finite(values: Tensor) -> bool:
    """True if all values are finite; synchronises with a GPU."""
    return math.isfinite(values.sum()) or bool(values.isfinite().all())  # finite values can have an infinite sum


def check_finite(values: Tensor, t: Tensor, name: str) -> None:
    """Raises RuntimeError if values (b, ...) are not finite, naming the smallest time t (b,) of those that are not."""
    if not is_finite(values):
        bad = ~values.isfinite().reshape(len(values), -1).all(dim=1)
        raise RuntimeError(
            f"{name} is not finite near t = {float(t[bad].min()):.6g}: the model has diverged in training, or was led "
            f"out of its range, as by strong guidance"
        )


def _checked(solve: Solve[Options]) -> Solve[Options]:
    """The solver with a check that every velocity is finite, where that check needs no synchronisation."""

    @wraps(solve)
    def checked(
        field: Field, x: Tensor, times: Sequence[float] | Tensor, *args: Options.args, **options: Options.kwargs
    ) -> Solution:
        def checked_field(x: Tensor, t: Tensor, state: State) -> tuple[Tensor, State]:
            velocity, state = field(x, t, state)
            check_finite(velocity, t, "the velocity")
            return velocity, state

        if not checks_are_free(x):
            return solve(field, x, times, *args, **options)
        solution = solve(checked_field, x, times, *args, **options)
        check_finite(solution.x, _at(float(times[-1]), x), "the solution")  # x can overflow with finite velocities
        return solution

    return checked


@_checked
def euler(
    field: Field, x: Tensor, times: Sequence[float] | Tensor, *, state: State = None, on_step: OnStep | None = None
) -> Solution:
    """Euler's method: first order, one evaluation per step, x + h v(x, t)."""
    steps = _steps(times)
    for i, (t, h) in enumerate(steps):
        start, time = x, _at(t, x)
        v, state = field(x, time, state)
        x = x + h * v
        _report(on_step, i + 1, t + h, x, i + 1, Seen(start, time, v))
    return Solution(x, state, len(steps))


@_checked
def heun(
    field: Field, x: Tensor, times: Sequence[float] | Tensor, *, state: State = None, on_step: OnStep | None = None
) -> Solution:
    """Heun's method: second order, two evaluations per step, the mean velocity of both ends of an Euler step."""
    steps = _steps(times)
    for i, (t, h) in enumerate(steps):
        start, time = x, _at(t, x)
        v, state = field(x, time, state)
        v_end, _ = field(x + h * v, _at(t + h, x), state)
        x = x + h / 2 * (v + v_end)
        _report(on_step, i + 1, t + h, x, 2 * i + 2, Seen(start, time, v))
    return Solution(x, state, 2 * len(steps))


@_checked
def midpoint(
    field: Field, x: Tensor, times: Sequence[float] | Tensor, *, state: State = None, on_step: OnStep | None = None
) -> Solution:
    """The midpoint method: second order, two evaluations per step, the velocity half an Euler step ahead."""
    steps = _steps(times)
    for i, (t, h) in enumerate(steps):
        start, time = x, _at(t, x)
        v, state = field(x, time, state)
        v_mid, _ = field(x + h / 2 * v, _at(t + h / 2, x), state)
        x = x + h * v_mid
        _report(on_step, i + 1, t + h, x, 2 * i + 2, Seen(start, time, v))
    return Solution(x, state, 2 * len(steps))


@_checked
def ab2(
    field: Field, x: Tensor, times: Sequence[float] | Tensor, *, state: State = None, on_step: OnStep | None = None
) -> Solution:
    """Adams-Bashforth 2: second order, one evaluation per step, reuses the last velocity; the first step is Euler's."""
    steps = _steps(times)
    previous: tuple[Tensor, float] | None = None
    for i, (t, h) in enumerate(steps):
        start, time = x, _at(t, x)
        v, state = field(x, time, state)
        slope = 0.0 if previous is None else (v - previous[0]) / previous[1]
        x = x + h * (v + h / 2 * slope)
        previous = v, h
        _report(on_step, i + 1, t + h, x, i + 1, Seen(start, time, v))
    return Solution(x, state, len(steps))


# Dormand-Prince 5(4): row i weighs the stages before stage i; the last row is also the fifth-order solution.
_DOPRI5_C = (1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
_DOPRI5_A = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
# fifth-order minus fourth-order weights: the error estimate
_DOPRI5_E = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)


@_checked
def dopri5(
    field: Field,
    x: Tensor,
    times: Sequence[float] | Tensor,
    *,
    state: State = None,
    on_step: OnStep | None = None,
    atol: float = 1e-5,
    rtol: float = 1e-5,
    max_steps: int = 10_000,
) -> Solution:
    """Dormand-Prince 5(4) with adaptive steps; only the first and last of `times` are used.

    Every sample of the batch has its own step size and error test, so a sample does not depend on the others in its
    batch; the NFE is that of the slowest sample. The last stage of a step is evaluated at the accepted point, so it is
    also the first stage of the next step, and the one that enters the history.

    Raises RuntimeError if a sample has not reached the end after max_steps steps: the field is not smooth enough.
    """
    start, end = float(times[0]), float(times[-1])
    if end <= start:
        raise ValueError(f"times must ascend, got {start} to {end}")
    t = torch.full((len(x),), start, dtype=torch.float64, device=x.device)
    h = torch.full_like(t, (end - start) / 20)
    v, state = field(x, _at(start, x), state)
    nfe, tried = 1, 0
    while True:
        active = t < end
        if not bool(active.any()):
            return Solution(x, state, nfe)
        if tried == max_steps:
            raise RuntimeError(f"dopri5 has reached only t = {float(t.min()):.6g} of {end} in {max_steps} steps")
        last = t + h >= end
        h = torch.where(active, torch.where(last, end - t, h), 0.0)
        stages, trial_state = [v], state
        trial = x
        for c, row in zip(_DOPRI5_C, _DOPRI5_A, strict=True):
            trial = x + expand(h, x) * sum(a * k for a, k in zip(row, stages, strict=True))
            k, trial_state = field(trial.to(x.dtype), (t + c * h).to(_time_dtype(x)), state)
            stages.append(k)
        nfe += 6
        error = expand(h, x) * sum(e * k for e, k in zip(_DOPRI5_E, stages, strict=True))
        scale = atol + rtol * torch.maximum(x.abs(), trial.abs())
        norm = (error / scale).flatten(1).square().mean(dim=1).sqrt()
        if not bool(torch.isfinite(norm[active]).all()):
            raise RuntimeError(f"the velocity is not finite near t = {float(t[active].min()):.6g}")
        accept = active & (norm <= 1)
        seen = Seen(x, t.to(_time_dtype(x)), v)
        x = torch.where(expand(accept, x), trial.to(x.dtype), x)
        v = torch.where(expand(accept, x), stages[-1], v)
        state = _select(accept, trial_state, state)
        t = torch.where(accept, torch.where(last, end, t + h), t)
        # the standard controller with safety factor 0.9; the step changes at most fivefold
        h = h * (0.9 * norm.clamp_min(1e-10) ** -0.2).clamp(0.2, 5.0)
        tried += 1
        _report(on_step, tried, float(t.min()), x, nfe, seen)


DiffusionForm = Literal["sigma", "constant", "linear", "sbdm", "decreasing", "increasing-decreasing"]
LastStep = Literal["none", "mean", "euler", "tweedie"]
SBDM_T_MIN = 1e-3  # the SBDM diffusion is infinite at t = 0


def diffusion(form: DiffusionForm, interpolant: Interpolant, t: Tensor, norm: float = 1.0) -> Tensor:
    """The diffusion coefficient w(t) of the SDE, half its squared noise rate, shaped like t.

    Any w >= 0 leaves the marginals unchanged.

    Source: SiT section 3.4; released file transport/path.py `compute_diffusion`.
    """
    match form:
        case "constant":
            return torch.full_like(t, norm)
        case "sigma":
            return norm * interpolant(t).sigma
        case "linear":
            return norm * (1 - t)
        case "sbdm":
            c = interpolant(t.clamp(min=SBDM_T_MIN))
            return norm * (c.d_alpha / c.alpha * c.sigma**2 - c.sigma * c.d_sigma)
        case "decreasing":
            return 0.25 * (norm * torch.cos(math.pi * t) + 1) ** 2
        case "increasing-decreasing":
            return norm * torch.sin(math.pi * t) ** 2


@_checked
def euler_maruyama(
    field: Field,
    x: Tensor,
    times: Sequence[float] | Tensor,
    *,
    interpolant: Interpolant,
    noise: StepNoise,
    form: DiffusionForm = "sigma",
    norm: float = 1.0,
    last_step: LastStep = "mean",
    state: State = None,
    on_step: OnStep | None = None,
) -> Solution:
    """Euler-Maruyama for the reverse SDE dx = (v + w s) dt + sqrt(2 w) dW: one evaluation per step, score s from v.

    The last step, over the final interval of `times`, adds no noise: "mean" follows the drift of the SDE, "euler"
    follows v, "tweedie" jumps to the expected data; "none" treats it like the others. `noise` gives the standard normal
    draws (shaped like x) of step 0, 1, ...

    Source: SiT section 3.4; released file transport/integrators.py and transport.py `__get_last_step`.
    """
    steps = _steps(times)
    for i, (t, h) in enumerate(steps):
        start, time = x, _at(t, x)
        v, state = field(x, time, state)
        is_last = i == len(steps) - 1 and last_step != "none"
        if is_last and last_step == "tweedie":
            x = data_from_velocity(interpolant, v, x, time)
        elif is_last and last_step == "euler":
            x = x + h * v
        else:
            w = expand(diffusion(form, interpolant, time, norm), x)
            x_mean = x + h * (v + w * score_from_velocity(interpolant, v, x, time))
            if is_last:
                x = x_mean
            else:
                draw = noise[i] if isinstance(noise, Tensor) else noise(i)
                x = x_mean + (2 * h * w).sqrt() * draw.to(x)
        _report(on_step, i + 1, t + h, x, i + 1, Seen(start, time, v))
    return Solution(x, state, len(steps))


SolverName = Literal["euler", "heun", "midpoint", "ab2", "dopri5", "euler-maruyama"]
ODE_SOLVERS: dict[SolverName, Solver] = {
    "euler": euler,
    "heun": heun,
    "midpoint": midpoint,
    "ab2": ab2,
    "dopri5": dopri5,
}


def solver(name: SolverName, **settings: Any) -> Solver:  # noqa: ANN401 - each solver names its own settings
    """The solver of this name with its settings bound."""
    return partial(euler_maruyama if name == "euler-maruyama" else ODE_SOLVERS[name], **settings)


def _steps(times: Sequence[float] | Tensor) -> list[tuple[float, float]]:
    """The pairs (t, step size) as Python floats, so that the loop does not wait for the device."""
    points = times.tolist() if isinstance(times, Tensor) else list(times)
    steps = [(a, b - a) for a, b in pairwise(points)]
    if not steps or any(h <= 0 for _, h in steps):
        raise ValueError(f"times must be two or more ascending numbers, got {points}")
    return steps


def _time_dtype(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)  # bfloat16 would round t


def _at(t: float, x: Tensor) -> Tensor:
    """The time t for every sample of x, (b,)."""
    return torch.full((len(x),), t, dtype=_time_dtype(x), device=x.device)


def _report(on_step: OnStep | None, number: int, t: float, x: Tensor, nfe: int, seen: Seen) -> None:
    if on_step is not None:
        on_step(Step(number, t, x, nfe, seen))


def _select(accept: Tensor, new: State, old: State) -> State:
    """The new state of accepted samples, the old one of others: None, a batch-first tensor, or a tuple of such."""
    if isinstance(new, Tensor):
        return torch.where(expand(accept, new), new, old)
    if isinstance(new, tuple):
        parts = [_select(accept, n, o) for n, o in zip(new, old, strict=True)]
        return tuple(parts) if type(new) is tuple else type(new)(*parts)
    return new
