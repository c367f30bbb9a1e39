"""Edits as solvers: against the closed forms of Gaussian data and of a single point, and their own inverses."""

import math

import pytest
import torch

from fluvial.flow.interpolant import INTERPOLANTS, velocity_from_data, x_t
from fluvial.flow.solvers import ab2, euler, heun
from fluvial.sampling.edit import (
    agreeing,
    forked,
    inpainted,
    inverted,
    kept,
    lifted,
    noise_at,
    noisier,
    placed,
    pooled,
    shown,
    started,
    unremembered,
)

TIMES = torch.linspace(0, 1, 21).tolist()
CORRELATION = 0.8


def gaussian(covariance):
    """The velocity on the linear path to data N(0, covariance), E[x1 - x0 | x_t] in closed form."""
    one = torch.eye(len(covariance))

    def field(x, t, state):
        time = float(t[0])
        spread = time**2 * covariance + (1 - time) ** 2 * one
        return x @ torch.linalg.solve(spread, time * covariance - (1 - time) * one), state

    return field


def to_point(clean):
    """The velocity on the linear path to one point of data, whose history counts the evaluations."""

    def field(x, t, state):
        return (clean - x) / (1 - t).clamp(min=1e-3)[:, None], (state or 0) + 1

    return field


def test_resampling_fits_what_is_drawn_to_what_is_known():
    covariance = torch.tensor([[1.0, CORRELATION], [CORRELATION, 1.0]])
    clean, known, noise = torch.full((10_000, 2), 1.5), torch.tensor([[True, False]]), torch.randn(10_000, 2)

    def unknown(repeats):
        solver = inpainted(heun, clean, known, lambda i: torch.randn(10_000, 2), repeats=repeats, jump=2)
        drawn = solver(gaussian(covariance), noise, TIMES).x
        assert torch.equal(drawn[:, 0], clean[:, 0])  # to the last bit
        return float(drawn[:, 1].mean()), float(drawn[:, 1].std())

    # the conditional distribution is N(r x, 1 - r^2), which is approached as steps are taken again more often
    mean, spread = 1.5 * CORRELATION, math.sqrt(1 - CORRELATION**2)
    replaced, few, many = unknown(0), unknown(4), unknown(32)
    assert many == pytest.approx((mean, spread), abs=0.06)
    assert mean - replaced[0] > 0.6 and mean - few[0] < 0.3 and few[1] < replaced[1]


def test_known_values_stay_on_the_path_of_their_noise():
    clean, noise = torch.randn(3, 4), torch.randn(3, 4)
    known = torch.tensor([[True, True, False, False]])
    seen = []

    def field(x, t, state):
        seen.append((float(t[0]), x))
        return torch.randn_like(x), state

    for name in INTERPOLANTS:
        seen.clear()
        path = INTERPOLANTS[name]
        solution = inpainted(ab2, clean, known, path=path)(field, noise, TIMES)
        assert solution.nfe == 20 == len(seen)
        for t, x in seen:
            assert torch.allclose(x[:, :2], x_t(path, noise, clean, torch.full((3,), t))[:, :2], atol=1e-6)
        assert torch.equal(solution.x[:, :2], clean[:, :2]) and not torch.equal(solution.x[:, 2:], clean[:, 2:])


def test_steps_that_are_taken_again_enter_a_history_once_and_count_as_evaluations():
    steps = []
    clean, known = torch.zeros(2, 2), torch.tensor([[True, False]])
    solver = inpainted(euler, clean, known, lambda i: torch.randn(2, 2), repeats=3, jump=5)
    solution = solver(to_point(torch.ones(2)), torch.randn(2, 2), TIMES, on_step=steps.append)
    assert solution.state == 20  # one for each step of the grid
    assert solution.nfe == 5 + 3 * 4 * 5  # the first five once, the others four times
    passes = [*range(1, 6), *list(range(6, 11)) * 4, *list(range(11, 16)) * 4, *list(range(16, 21)) * 4]
    assert [step.number for step in steps] == passes
    assert [step.nfe for step in steps] == list(range(1, 66))


def test_going_back_gives_points_of_the_earlier_time():
    data, noise = torch.full((200_000,), 0.7), torch.randn(200_000)
    for name in INTERPOLANTS:
        path = INTERPOLANTS[name]
        x = x_t(path, noise, data, torch.tensor(0.8).expand(200_000))
        earlier = noisier(x, 0.8, 0.3, torch.randn(200_000), path)
        expected = path(torch.tensor(0.3))
        assert float(earlier.mean()) == pytest.approx(0.7 * float(expected.alpha), abs=0.01)
        assert float(earlier.std()) == pytest.approx(float(expected.sigma), abs=0.01)
        assert torch.allclose(noise_at(x, data, 0.8, path), noise, atol=1e-4)


def test_a_start_from_a_noisy_image_takes_the_rest_of_the_grid():
    clean, noise = torch.randn(3, 4), torch.randn(3, 4)
    seen = []

    def field(x, t, state):
        seen.append((float(t[0]), x))
        return clean - noise, state

    found = started(euler, clean, 0.52)(field, noise, TIMES)
    assert [t for t, _ in seen] == pytest.approx([0.52, *(t for t in TIMES if 0.52 < t < 1)])
    assert torch.allclose(seen[0][1], 0.52 * clean + 0.48 * noise)
    assert torch.allclose(found.x, clean, atol=1e-6)  # this velocity leads there


def test_a_fork_shares_the_trunk_and_the_history_and_parts_by_its_own_noise():
    clean = torch.tensor([[2.0, -1.0]]).expand(3, 2)
    trunk, noise = torch.randn(1, 2).expand(3, 2), torch.randn(3, 2)
    seen = []

    def field(x, t, state):
        seen.append((float(t[0]), x))
        return to_point(clean)(x, t, state)

    solution = forked(euler, trunk, 0.5)(field, noise, TIMES)
    before = [x for t, x in seen if t < 0.5]
    assert len(before) == 10 and all(torch.equal(x, x[:1].expand(3, 2)) for x in before)
    at = [x for t, x in seen if t == 0.5]
    assert torch.allclose(at[1], 0.5 * clean + 0.5 * noise, atol=1e-5)  # the estimate of this field is exact
    assert solution.nfe == len(seen) == 21
    assert solution.state == 20  # the evaluation at the fork enters no history
    assert torch.allclose(solution.x, clean, atol=1e-5)


def test_examples_are_in_the_history_one_a_step_as_noisy_as_the_step():
    examples, noise = torch.randn(2, 3, 4), torch.randn(2, 3, 4)

    def field(x, t, state):
        return torch.ones_like(x), (*(state or ()), (round(float(t[0]), 6), x))

    def entered(alone):
        return shown(euler, examples, noise, alone=alone)(field, torch.zeros(2, 4), [0.0, 0.25, 0.5, 0.75, 1.0])

    found = entered(True)
    assert found.nfe == 8
    for step, (t, x) in enumerate(found.state):
        assert t == 0.25 * step
        assert torch.allclose(x, t * examples[:, step % 3] + (1 - t) * noise[:, step % 3])
    both = entered(False).state
    assert len(both) == 8 and all(torch.equal(both[i][1], torch.full((2, 4), 0.125 * i)) for i in range(0, 8, 2))


def test_inversion_is_the_ode_backwards_and_the_way_back_leads_to_the_image():
    def field(x, t, state):  # dx/dt = (1 + t) x, with a history that must not be used
        return (1 + t)[:, None] * x * (1 if state is None else 2), 1

    data = torch.randn(3, 4)
    noise = placed(inverted(heun), data)(field, torch.zeros(3, 4), torch.linspace(0, 1, 101)).x
    assert torch.allclose(noise, data * math.exp(-1.5), rtol=1e-4)
    back = placed(unremembered(heun), noise)(field, torch.zeros(3, 4), torch.linspace(0, 1, 101)).x
    assert torch.allclose(back, data, rtol=1e-4)


def test_a_kept_value_takes_no_evaluation():
    def never(x, t, state):
        raise AssertionError

    solution = kept(torch.ones(2, 3))(never, torch.zeros(2, 3), TIMES, state="as it was")
    assert torch.equal(solution.x, torch.ones(2, 3)) and (solution.state, solution.nfe) == ("as it was", 0)


@pytest.mark.parametrize(
    ("large", "small"), [((8, 8), (4, 4)), ((7, 7), (4, 4)), ((28, 28), (16, 16)), ((6, 9), (2, 3))]
)
def test_lifting_is_the_least_norm_inverse_of_pooling(large, small):
    images = torch.randn(2, 3, *small)
    found = lifted(images, large)
    assert torch.allclose(pooled(found, small), images, atol=1e-5)
    pool = pooled(torch.eye(math.prod(large)).unflatten(1, large)[:, None], small).flatten(1).T
    expected = torch.linalg.lstsq(pool, images.flatten(2).flatten(0, 1).T, driver="gelsd").solution.T
    assert torch.allclose(found.flatten(2).flatten(0, 1), expected, atol=1e-4)


def test_agreeing_images_pool_to_the_small_ones_and_change_no_more_than_they_must():
    images, small = torch.randn(2, 1, 7, 7), torch.randn(2, 1, 4, 4)
    found = agreeing(images, small)
    assert torch.allclose(pooled(found, (4, 4)), small, atol=1e-5)
    change = found - images
    assert torch.allclose(lifted(pooled(change, (4, 4)), (7, 7)), change, atol=1e-5)  # nothing that pooling loses
    inside = agreeing(images.clamp(-1, 1), (small / 4).clamp(-0.9, 0.9), (-1.0, 1.0))
    assert float(inside.abs().max()) < 1 + 1e-2
    assert torch.allclose(pooled(inside, (4, 4)), (small / 4).clamp(-0.9, 0.9), atol=1e-5)


def test_the_callback_of_an_inversion_sees_the_times_and_velocities_of_the_field():
    data, steps = torch.tensor([0.7, -1.2], dtype=torch.float64).expand(3, 2), []
    for path in INTERPOLANTS.values():
        steps.clear()
        times = [0.1, 0.4, 0.8]
        field = one_point(path, data)
        inverted(heun)(field, torch.randn(3, 2, dtype=torch.float64), times, on_step=steps.append)
        assert [float(step.seen.t[0]) for step in steps] == pytest.approx([0.8, 0.4])
        for step in steps:
            torch.testing.assert_close(step.seen.data(path), data)


def one_point(path, data):
    """The exact velocity field when all data are this point."""
    return lambda x, t, state: (velocity_from_data(path, data, x, t), state)
