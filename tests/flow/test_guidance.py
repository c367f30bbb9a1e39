import math
from collections import Counter
from typing import NamedTuple

import pytest
import torch

from conftest import randomise
from fluvial.flow import guidance as guidance_module
from fluvial.flow.guidance import Guidance, guided
from fluvial.flow.interpolant import INTERPOLANTS, log_snr
from fluvial.flow.solvers import euler, heun
from fluvial.flow.timesteps import grid
from fluvial.methods import METHODS


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


def random_fields(seed=0, shape=(3, 2, 4, 4)):
    """A point, and constant fields of a conditional and a null velocity."""
    generator = torch.Generator().manual_seed(seed)
    x, v_c, v_n = (torch.randn(shape, generator=generator) for _ in range(3))
    return x, v_c, v_n, (lambda x, t, state: (v_c, state)), (lambda x, t, state: (v_n, state))


def test_an_interval_in_log_snr_is_one_in_t():
    """On the linear path log SNR is 2 log(t / (1 - t)): from -2 to 2 it is t from 0.269 to 0.731."""
    edge = 1 / (1 + math.exp(1.0))
    for t, inside in ((edge - 0.01, False), (edge + 0.01, True), (0.5, True), (1 - edge - 0.01, True), (1.0, False)):
        v, evaluations = at(t, weight=2.0, log_snr=(-2.0, 2.0))
        assert (v == (5 if inside else 3)).all() and evaluations["null"] == inside, t
    for name, path in INTERPOLANTS.items():
        c = path(torch.tensor([0.2, 0.6]))
        torch.testing.assert_close(log_snr(path, torch.tensor([0.2, 0.6])), (c.alpha**2 / c.sigma**2).log()), name


@pytest.mark.parametrize(
    ("schedule", "weights"), [("constant", (3.0, 3.0, 3.0)), ("linear", (1.0, 3.0, 5.0)), ("cosine", (1.0, 3.0, 5.0))]
)
def test_a_schedule_has_the_weight_as_its_mean(schedule, weights):
    for t, weight in zip((0.0, 0.5, 1.0), weights, strict=True):
        v, _ = at(t, weight=3.0, schedule=schedule)
        torch.testing.assert_close(v, torch.full_like(X, 1 + weight * 2))
    many = torch.linspace(0, 1, 10_001)
    assert float(Guidance(weight=3.0, schedule=schedule).weight_at(many).mean()) == pytest.approx(3.0, abs=1e-3)
    quarter = {"constant": 3.0, "linear": 2.0, "cosine": 1 + 2 * (1 - math.cos(math.pi / 4))}[schedule]
    assert float(Guidance(weight=3.0, schedule=schedule).weight_at(torch.tensor(0.25))) == pytest.approx(quarter)


def test_rescaling_gives_the_deviation_of_the_conditional_velocity():
    x, v_c, v_n, conditional, null = random_fields()
    t = torch.full((3,), 0.4)
    plain = v_n + 4.0 * (v_c - v_n)
    for share in (0.25, 1.0):
        v, _ = guided(conditional, null, Guidance(weight=4.0, rescale=share))(x, t, None)
        for image, full, of in zip(v, plain, v_c, strict=True):
            torch.testing.assert_close(image, share * full * of.std() / full.std() + (1 - share) * full)


def apg(x, v_c, v_n, t, weight, *, parallel, norm, momentum, total):
    """Algorithm 1 of arXiv 2410.02416, image by image, on predictions of the data: x + (1 - t) v on the linear path."""
    out = []
    for image in range(len(x)):
        cond, null = x[image] + (1 - t) * v_c[image], x[image] + (1 - t) * v_n[image]
        total[image] = cond - null + momentum * total[image]
        difference = total[image] * min(1.0, norm / float(total[image].norm())) if norm else total[image]
        unit = cond / cond.norm()
        along = (difference * unit).sum() * unit
        data = cond + (weight - 1) * (difference - along + parallel * along)
        out.append((data - x[image]) / (1 - t))
    return torch.stack(out)


@pytest.mark.parametrize(
    "settings",
    [
        {"parallel": 0.0, "norm": 0.0, "momentum": 0.0},
        {"parallel": 0.5, "norm": 2.5, "momentum": 0.0},
        {"parallel": 0.0, "norm": 2.5, "momentum": -0.5},
        {"parallel": 1.0, "norm": 0.0, "momentum": 0.3},
    ],
)
def test_projected_guidance_is_that_of_the_paper(settings):
    total, state = [0.0] * 3, None
    for step, t in enumerate((0.0, 0.3, 0.6)):
        x, v_c, v_n, conditional, null = random_fields(step)
        field = guided(conditional, null, Guidance(weight=4.0, **settings))
        v, state = field(x, torch.full((3,), t), state)
        torch.testing.assert_close(v, apg(x, v_c, v_n, t, 4.0, **settings, total=total))


def test_the_running_sum_keeps_accepted_points_only():
    """Heun's trial points at the ends of steps do not enter it: the sum is that of Euler at the same points."""
    _, _, _, conditional, null = random_fields()
    guidance = Guidance(weight=2.0, momentum=0.5)
    x = torch.zeros(3, 2, 4, 4)
    sums = [solve(guided(conditional, null, guidance), x, grid(4)).state[2] for solve in (euler, heun)]
    torch.testing.assert_close(*sums)


def test_projected_guidance_is_finite_at_the_data():
    x, _, _, conditional, null = random_fields()
    for path in INTERPOLANTS.values():
        field = guided(conditional, null, Guidance(weight=4.0, parallel=0.0, norm=1.0), interpolant=path)
        assert bool(field(x, torch.ones(3), None)[0].isfinite().all())


@pytest.mark.parametrize(
    "wrong",
    [
        {"log_snr": (1.0, 0.0)},
        {"log_snr": (0.0, 1.0), "interval": (0.1, 0.9)},
        {"rescale": 1.5},
        {"parallel": -1.0},
        {"norm": -1.0},
        {"momentum": 1.0},
    ],
)
def test_wrong_settings_of_further_guidance_are_refused(wrong):
    with pytest.raises(ValueError, match="got"):
        Guidance(**wrong)


@pytest.mark.parametrize("name", ["sit", "arflow", "flowar"])
@pytest.mark.parametrize("momentum", [0.0, -0.5])
def test_branches_at_once_give_the_samples_of_branches_apart(name, momentum, monkeypatch):
    shape = {"size": (4, 4), "channels": 2, "classes": 3, "width": 32, "heads": 2, "depth": 2}
    own = {"scales": (1, 2, 4), "head_width": 32, "head_heads": 2} if name == "flowar" else {"patch": 2}
    method = METHODS[name]
    config = method.Config(**shape, **own)
    model = method.Model(config).eval().requires_grad_(False)
    randomise(model)
    noise = torch.randn(3, *config.noise_shape)
    ramp = {"ramp": "linear"} if name == "flowar" else {}
    given = {
        "noise": noise,
        "times": grid(4),
        "solver": heun,
        "guidance": Guidance(weight=2.0, momentum=momentum, **ramp),
    }
    rows = []
    model.register_forward_pre_hook(lambda module, inputs: rows.append(len(inputs[0])))
    if name == "flowar":
        model.head.register_forward_pre_hook(lambda module, inputs: rows.append(len(inputs[0])))
    found = {}
    for most in (0, 10**6):
        monkeypatch.setattr(guidance_module, "TOGETHER", most)
        evaluations = Counter()
        rows.clear()
        found[most] = method.sample(model, torch.tensor([0, 2, 1]), **given, evaluations=evaluations), evaluations
        assert (6 in rows) == bool(most) and (
            most == 0 or rows.count(3) in (0, 8)
        )  # FlowAR's first scale has no guidance
    torch.testing.assert_close(*(samples for samples, _ in found.values()), atol=1e-5, rtol=1e-5)
    assert found[0][1] == found[10**6][1]
    monkeypatch.setattr(guidance_module, "TOGETHER", 10**6)
    method.sample(model, torch.eye(4)[torch.tensor([0, 2, 1])], **given)  # mixed classes are evaluated apart
    method.sample(model, torch.tensor([0, 2, 1]), **given, guide=model)


def test_half_of_a_state_is_that_of_a_branch():
    class Pair(NamedTuple):
        a: torch.Tensor
        b: torch.Tensor

    def both(x, t, state):
        assert x.shape == (4, 1) and t.shape == (4,)
        if state is not None:
            assert isinstance(state[0], Pair) and state[0].a.tolist() == [1, 1, 2, 2]
        change = torch.tensor([1.0, 1.0, 2.0, 2.0])
        return torch.ones_like(x), (Pair(change, change + 1), change)

    field = guided(constant(0.0), constant(0.0), Guidance(weight=2.0), both=both)
    v, state = field(torch.zeros(2, 1), torch.zeros(2), None)
    assert (v == 1).all() and state[1][0].b.tolist() == [3, 3] and state[0][1].tolist() == [1, 1]
    field(torch.zeros(2, 1), torch.zeros(2), state)
