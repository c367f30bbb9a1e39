import math
from collections import Counter
from functools import partial
from itertools import pairwise

import pytest
import torch

from fluvial.flow import solvers as it
from fluvial.flow.interpolant import INTERPOLANTS, gvp, linear, velocity_from_data
from fluvial.flow.timesteps import grid, grid_with_last_step


def swing(x, t, state):
    """dx/dt = cos(3t) x - sin(t), with no closed-form shortcut for any solver; see `swing_exact`."""
    c = torch.cos(3 * t).reshape(-1, 1)
    return c * x - torch.sin(t).reshape(-1, 1), state


def swing_exact(x0):
    """The integrating factor, by quadrature to machine precision."""
    s = torch.linspace(0, 1, 200_001, dtype=torch.float64)
    integrand = torch.exp(-torch.sin(3 * s) / 3) * torch.sin(s)
    return math.exp(math.sin(3) / 3) * (x0 - torch.trapezoid(integrand, s))


X0 = torch.tensor([[0.5], [-2.0]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("name", "order", "per_step"), [("euler", 1, 1), ("heun", 2, 2), ("midpoint", 2, 2), ("ab2", 2, 1)]
)
@pytest.mark.parametrize("shift", [1.0, 2.0])
def test_order_and_evaluations(name, order, per_step, shift):
    errors = []
    for steps in (80, 160):
        solution = it.solver(name)(swing, X0, grid(steps, shift_factor=shift))
        errors.append(float((solution.x - swing_exact(X0)).abs().max()))
        assert solution.nfe == per_step * steps
    assert abs(math.log2(errors[0] / errors[1]) - order) < 0.2


def test_dopri5_meets_its_tolerance_and_is_of_fifth_order():
    errors, evaluations = [], []
    for tolerance in (1e-4, 1e-10):
        solution = it.dopri5(swing, X0, grid(1), atol=tolerance, rtol=0.0)
        errors.append(float((solution.x - swing_exact(X0)).abs().max()))
        evaluations.append(solution.nfe)
        assert errors[-1] < 10 * tolerance
    # error control: a millionfold smaller tolerance costs 10^(6/5) = 16 times the steps, at order four 32 times
    assert evaluations[1] < 22 * evaluations[0]


def test_a_sample_under_dopri5_does_not_depend_on_its_neighbours():
    def stiff(x, t, state):
        return -40 * x * (x.abs() > 1) - x + torch.sin(t).reshape(-1, 1), state

    batch = torch.tensor([[0.3], [5.0], [0.7]], dtype=torch.float64)
    together = it.dopri5(stiff, batch, grid(1)).x
    alone = torch.cat([it.dopri5(stiff, row[None], grid(1)).x for row in batch])
    assert torch.equal(together, alone)


def test_dopri5_gives_up_on_a_field_that_is_not_smooth():
    with pytest.raises(RuntimeError, match="reached only t = "):
        it.dopri5(lambda x, t, s: (x + torch.sin(1e9 * t).reshape(-1, 1) * 1e3, s), X0, grid(1), max_steps=50)


def test_dopri5_says_at_once_that_a_velocity_is_not_finite():
    seen = []
    with pytest.raises(RuntimeError, match="not finite near t = "):
        it.dopri5(lambda x, t, s: (seen.append(t) or x / (t.reshape(-1, 1) < 0.5), s), X0, grid(1))
    assert len(seen) < 200


def gaussian_field(path, mean, std):
    """The exact velocity when the data are N(mean, std^2): whatever the solver, the end must be N(mean, std^2)."""

    def field(x, t, state):
        c = [a.reshape(-1, 1) for a in path(t)]
        alpha, sigma, d_alpha, d_sigma = c
        r = (x - alpha * mean) / (alpha**2 * std**2 + sigma**2)
        return d_alpha * (mean + alpha * std**2 * r) + d_sigma * sigma * r, state

    return field


@pytest.mark.parametrize("form", ["sigma", "constant", "linear", "sbdm", "decreasing", "increasing-decreasing"])
@pytest.mark.parametrize("path", ["linear", "gvp"])
def test_every_diffusion_keeps_the_marginals(form, path):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(20_000, 1, generator=g, dtype=torch.float64)
    times = grid_with_last_step(300, 0.01)
    if form == "sbdm":  # infinite at t = 0: start a little later, on the exact marginal
        times = torch.cat([grid(300, t0=0.02, t1=0.99), torch.ones(1, dtype=torch.float64)])
        c = INTERPOLANTS[path](times[0])
        x = c.alpha * 1.5 + (c.alpha**2 * 0.36 + c.sigma**2).sqrt() * x
    solution = it.euler_maruyama(
        gaussian_field(INTERPOLANTS[path], 1.5, 0.6),
        x,
        times,
        interpolant=INTERPOLANTS[path],
        noise=lambda step: torch.randn(x.shape, generator=g, dtype=torch.float64),
        form=form,
    )
    assert solution.nfe == len(times) - 1
    assert abs(solution.x.mean() - 1.5) < 0.02
    assert abs(solution.x.std() - 0.6) < 0.02


def test_the_noise_of_the_sde_is_really_there():
    """Two draws of the noise from one start end apart; with w = 0 they would not."""
    field = gaussian_field(linear, 1.5, 0.6)
    x, ends = torch.zeros(500, 1, dtype=torch.float64), []
    for seed in (0, 1):
        g = torch.Generator().manual_seed(seed)
        noise = torch.randn(100, 500, 1, generator=g, dtype=torch.float64)
        ends.append(it.euler_maruyama(field, x, grid_with_last_step(100, 0.04), interpolant=linear, noise=noise).x)
    assert (ends[0] - ends[1]).std() > 0.3


def test_last_steps():
    field, x = gaussian_field(linear, 1.5, 0.6), torch.tensor([[0.4], [2.0]], dtype=torch.float64)
    t, h = 0.9, 0.1
    time = torch.full((2,), t, dtype=torch.float64)
    v, _ = field(x, time, None)
    score = -(x - t * 1.5) / (t**2 * 0.36 + (1 - t) ** 2)
    expected = {
        "euler": x + h * v,
        "mean": x + h * (v + (1 - t) * score),
        "tweedie": 1.5 + t * 0.36 * (x - t * 1.5) / (t**2 * 0.36 + (1 - t) ** 2),
        "none": x + h * (v + (1 - t) * score) + math.sqrt(2 * h * (1 - t)) * 3.0,
    }
    for last_step, end in expected.items():
        got = it.euler_maruyama(
            field, x, [t, 1.0], interpolant=linear, noise=lambda step: torch.full_like(x, 3.0), last_step=last_step
        )
        torch.testing.assert_close(got.x, end)


def test_sigma_diffusion_is_the_specified_drift():
    """On the linear path with w = 1 - t the drift v + w s is (1 + t) v - x (specification, section 7)."""
    x, v, t, h = torch.randn(4, 3), torch.randn(4, 3), 0.3, 0.05
    got = it.euler_maruyama(lambda *_: (v, None), x, [t, t + h], interpolant=linear, noise=torch.zeros(1, 4, 3))
    torch.testing.assert_close(got.x, x + h * ((1 + t) * v - x))


def test_diffusion_forms():
    t = torch.tensor([0.25, 0.75], dtype=torch.float64)
    expected = {
        "constant": torch.full_like(t, 2.0),
        "sigma": 2 * torch.cos(t * math.pi / 2),
        "linear": 2 * (1 - t),
        "decreasing": 0.25 * (2 * torch.cos(math.pi * t) + 1) ** 2,
        "increasing-decreasing": 2 * torch.sin(math.pi * t) ** 2,
        "sbdm": 2 * math.pi / 2 / torch.tan(t * math.pi / 2),  # cos^2 / tan + sin cos = 1 / tan
    }
    for form, value in expected.items():
        torch.testing.assert_close(it.diffusion(form, gvp, t, norm=2.0), value)
    assert torch.isfinite(it.diffusion("sbdm", linear, torch.zeros(1)))


ALL = ["euler", "heun", "midpoint", "ab2", "dopri5", "euler-maruyama"]


@pytest.mark.parametrize("name", ALL)
def test_only_accepted_points_enter_the_history(name):
    """The state is the list of points a field has seen; at the end it must be the trajectory and nothing else."""
    trajectory = []

    def field(x, t, state):
        seen = torch.cat([torch.zeros(1, 0, 2) if state is None else state, torch.stack([t, x[:, 0]], -1)[:, None]], 1)
        return -3 * x + torch.sin(40 * t).reshape(-1, 1), seen

    x = torch.ones(1, 1)
    settings = {"euler-maruyama": {"interpolant": linear, "noise": torch.zeros(9, 1, 1)}}.get(name, {})
    if name == "dopri5":  # the states of a batch-first tensor cannot grow under a per-sample choice: count instead
        seen = []

        def counting(x, t, state):
            state = torch.zeros(1, 1) if state is None else state
            velocity = -3 * x + torch.sin(40 * t).reshape(-1, 1)
            seen.append((float(t), float(x)))
            return velocity, state + t.reshape(-1, 1)

        solution = it.dopri5(
            counting, x, grid(1), rtol=1e-4, atol=1e-4, on_step=lambda s: trajectory.append((s.t, float(s.x)))
        )
        accepted = sorted(set(trajectory))  # a rejected step reports the same point again
        assert len(accepted) < len(trajectory), "no step was rejected: the test shows nothing"
        torch.testing.assert_close(float(solution.state), sum(t for t, _ in accepted), rtol=1e-5, atol=1e-5)
        assert len(seen) == solution.nfe
        return
    solution = it.solver(name, **settings)(field, x, grid(8), on_step=lambda s: trajectory.append((s.t, float(s.x))))
    expected = torch.tensor([(0.0, 1.0), *trajectory[:-1]])  # the last point is never evaluated
    torch.testing.assert_close(solution.state[0], expected)


@pytest.mark.parametrize("name", ALL[:5])
def test_the_callback_sees_every_step(name):
    steps = []
    solution = it.solver(name)(swing, X0, grid(7), on_step=steps.append)
    assert [s.number for s in steps] == list(range(1, len(steps) + 1))
    assert steps[-1].t == pytest.approx(1.0) and steps[-1].nfe == solution.nfe
    assert torch.equal(steps[-1].x, solution.x)


@pytest.mark.parametrize("times", [[0.0], [0.0, 0.0], [1.0, 0.0]])
def test_times_must_ascend(times):
    for solve in (it.euler, partial(it.euler_maruyama, interpolant=linear, noise=torch.zeros(1, 2, 1))):
        with pytest.raises(ValueError, match="ascending"):
            solve(swing, X0, times)


def breaks_at(t_bad, value, seen):
    """A velocity of 1 that is `value` for the second sample from t_bad on."""

    def field(x, t, state):
        seen.append(float(t.max()))
        bad = (t >= t_bad) & (torch.arange(len(x)) == 1)
        return torch.where(bad[:, None], value, torch.ones_like(x)), state

    return field


SETTINGS = {"euler-maruyama": {"interpolant": linear, "noise": torch.zeros(8, 2, 1)}}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ALL)
def test_a_velocity_that_is_not_finite_stops_every_solver_and_says_where(name, value):
    seen = []
    with pytest.raises(RuntimeError, match="velocity is not finite near t = 0.") as error:
        it.solver(name, **SETTINGS.get(name, {}))(breaks_at(0.5, value, seen), torch.zeros(2, 1), grid(8))
    t = float(str(error.value).partition("near t = ")[2].partition(":")[0])
    assert t >= 0.5 and t == pytest.approx(seen[-1], abs=1e-6)  # the first that is bad, and nothing after it
    assert name == "dopri5" or t <= 0.625


def test_a_sum_that_overflows_is_not_taken_for_a_velocity_that_is_not_finite():
    solution = it.euler(lambda x, t, s: (torch.full_like(x, 3e38), s), torch.zeros(2, 4), [0.0, 0.5])
    assert (solution.x == 1.5e38).all()


@pytest.mark.parametrize("name", ALL[:5])
def test_a_point_that_overflows_where_velocities_do_not_is_said(name):
    def field(x, t, state):
        return torch.full_like(x, 3e38), state

    with pytest.raises(RuntimeError, match="is not finite near t = "):
        it.solver(name, **SETTINGS.get(name, {}))(field, torch.full((2, 1), 3e38), [0.0, 4.0])


def one_point(path, data):
    """The exact velocity field when all data are this point: wherever x is, it leads there."""
    return lambda x, t, state: (velocity_from_data(path, data.expand_as(x), x, t), state)


@pytest.mark.parametrize("path", INTERPOLANTS)
@pytest.mark.parametrize("name", ALL)
def test_the_estimate_of_the_field_of_one_point_is_that_point(name, path):
    data, steps = torch.tensor([[0.7, -1.2]], dtype=torch.float64), []
    own = {"atol": 1e-3, "rtol": 1e-3} if name == "dopri5" else {}
    if name == "euler-maruyama":
        own = {"interpolant": INTERPOLANTS[path], "noise": torch.ones(5, 3, 2)}
    x = torch.tensor([[0.3, 0.1], [-2.0, 1.0], [4.0, 0.5]], dtype=torch.float64)
    times = grid(5, t0=0.05, t1=0.95)  # at t = 1 the field is undefined
    it.solver(name, **own)(one_point(INTERPOLANTS[path], data), x, times, on_step=steps.append)
    assert len(steps) >= 3 and torch.equal(steps[0].seen.x, x)
    for step in steps:
        torch.testing.assert_close(step.seen.data(INTERPOLANTS[path]), data.expand(3, 2))


@pytest.mark.parametrize("name", ALL)
def test_a_step_tells_the_accepted_point_that_it_began_with_and_its_velocity(name):
    steps, count = [], Counter()

    def field(x, t, state):
        count["field"] += 1
        return swing(x, t, state)

    own = {"interpolant": linear, "noise": torch.ones(7, 2, 1)} if name == "euler-maruyama" else {}
    solution = it.solver(name, **own)(field, X0, grid(7), on_step=steps.append)
    assert count["field"] == solution.nfe  # and not one for the callback
    for before, step in pairwise(steps):
        assert torch.equal(step.seen.x, before.x) and float(step.seen.t.min()) == pytest.approx(before.t)
    for step in steps:
        torch.testing.assert_close(step.seen.velocity, swing(step.seen.x, step.seen.t, None)[0])
