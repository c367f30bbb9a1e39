import math
from collections import Counter

import pytest
import torch

from fluvial.flow.guidance import Guidance, guided
from fluvial.flow.solvers import euler
from fluvial.flow.timesteps import grid


def constant(value):
    return lambda x, t, state: (torch.full_like(x, value), state)


def remembering(value):
    """A field with a history: how many points it has seen."""
    return lambda x, t, state: (torch.full_like(x, value), torch.zeros(len(x)) + 1 if state is None else state + 1)


X = torch.zeros(2, 4, 3, 3)


def at(t, **settings):
    evaluations = Counter()
    field = guided(constant(3.0), constant(1.0), Guidance(**settings), evaluations=evaluations)
    return field(X, torch.tensor(t).expand(2), None)[0], evaluations


def test_the_formula():
    v, evaluations = at(0.5, weight=2.5)
    torch.testing.assert_close(v, torch.full_like(X, 1 + 2.5 * (3 - 1)))
    assert evaluations == {"conditional": 1, "null": 1}
    assert (at(0.5, weight=0.0)[0] == 1).all()


def test_only_the_first_channels_are_guided():
    v, _ = at(0.5, weight=2.0, channels=3)
    assert (v[:, :3] == 5).all() and (v[:, 3:] == 3).all()


@pytest.mark.parametrize(("t", "inside"), [(0.1, False), (0.25, True), (0.5, True), (0.75, True), (0.9, False)])
def test_the_interval_and_the_null_branch(t, inside):
    v, evaluations = at(t, weight=2.0, interval=(0.25, 0.75))
    assert (v == (5 if inside else 3)).all()
    assert evaluations["null"] == (1 if inside else 0)


def test_weight_one_never_evaluates_the_null_branch():
    assert at(0.5, weight=1.0)[1] == {"conditional": 1}


def test_samples_at_different_times_are_guided_each_for_itself():
    field = guided(constant(3.0), constant(1.0), Guidance(weight=2.0, interval=(0.25, 0.75)))
    v, _ = field(X, torch.tensor([0.1, 0.5]), None)
    assert (v[0] == 3).all() and (v[1] == 5).all()


def test_a_null_branch_with_a_history_sees_everything_until_the_interval_closes():
    evaluations = Counter()
    guidance = Guidance(weight=2.0, interval=(0.35, 0.75))
    field = guided(remembering(3.0), remembering(1.0), guidance, evaluations=evaluations)
    solution = euler(field, X, grid(10))
    conditional, null = solution.state
    assert (conditional == 10).all() and (null == 8).all()  # t = 0, 0.1, ... 0.7
    assert evaluations == {"conditional": 10, "null": 8}
    torch.testing.assert_close(solution.x, X + 0.1 * (6 * 3 + 4 * 5))


@pytest.mark.parametrize(
    "wrong", [{"weight": -1.0}, {"interval": (0.5, 0.2)}, {"interval": (0.0, 2.0)}, {"channels": 0}]
)
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(ValueError, match="got"):
        Guidance(**wrong)


@pytest.mark.parametrize("careful", [False, True])
@pytest.mark.parametrize(
    ("conditional", "null", "weight", "says"),
    [
        (math.nan, 1.0, 2.0, "the conditional velocity of scale 4x4 is not finite near t = 0:"),
        (math.nan, 1.0, 1.0, "the conditional velocity of scale 4x4 is not finite near t = 0:"),
        (3.0, math.inf, 2.0, "the null velocity of scale 4x4 is not finite near t = 0:"),
        (3e30, 1.0, 1e30, "the velocity of scale 4x4 under guidance of weight 1e[+]30 is not finite near t = 0:"),
    ],
)
def test_the_branch_that_is_not_finite_is_named(conditional, null, weight, says, careful):
    settings = {"place": " of scale 4x4", "careful": careful}
    field = guided(constant(conditional), constant(null), Guidance(weight=weight), **settings)
    with pytest.raises(RuntimeError, match=says):
        euler(field, X, grid(3))
