import math

import pytest
import torch

from conftest import randomise
from fluvial.flow.guidance import Guidance
from fluvial.flow.interpolant import linear
from fluvial.flow.solvers import dopri5, euler_maruyama
from fluvial.methods import arflow, sit
from fluvial.sampling.generate import generate
from fluvial.sampling.labels import labels_for
from fluvial.sampling.samples import Frames
from fluvial.sampling.settings import SOLVERS, Dopri5, EulerMaruyama, SampleConfig, chosen_solver

SHAPE = {"size": (4, 4), "channels": 1, "classes": 3, "patch": 2, "depth": 1, "width": 16, "heads": 2}


def model_of(method):
    model = method.Model(method.Config(**SHAPE)).eval()
    randomise(model)
    return model


def images(method, count=7, **settings):
    model, on_step = model_of(method), settings.pop("on_step", None)
    return generate(
        model,
        method.sample,
        lambda x: x,
        SampleConfig(**settings),
        indices=range(count),
        labels=labels_for(range(count), (0, 2)),
        seed=3,
        on_step=on_step,
    )


@pytest.mark.parametrize("method", [sit, arflow])
@pytest.mark.parametrize("solver", ["euler", "heun", "ab2", "dopri5", "euler-maruyama"])
def test_an_image_does_not_depend_on_its_batch(method, solver):
    settings = {"solver": solver, "steps": 4, "guidance": Guidance(weight=2.0, interval=(0.1, 0.9))}
    whole, parts = (images(method, batch=batch, **settings).images.int() for batch in (7, 2))
    assert (whole - parts).abs().max() <= 1  # a grey level at most: rounding may fall either way
    fewer = images(method, count=3, batch=7, **settings).images.int()
    assert (whole[:3] - fewer).abs().max() <= 1
    assert (whole[0] - whole[2]).abs().max() > 10  # and images do differ


def test_stochastic_steps_use_new_noise():
    draws = []

    def recording(model, labels, *, noise, step_noise, **_):
        draws.extend([noise, step_noise(0), step_noise(1)])
        return noise

    settings = SampleConfig(solver="euler-maruyama")
    generate(
        model_of(sit),
        recording,
        lambda x: x,
        settings,
        indices=range(2),
        labels=None,
    )
    assert len({tuple(d.flatten().tolist()) for d in draws}) == 3


def test_labels_take_turns_and_evaluations_are_counted():
    generated = images(sit, solver="heun", steps=3, guidance=Guidance(weight=2.0), batch=4)
    assert generated.labels.tolist() == [0, 2, 0, 2, 0, 2, 0]
    asked = []

    def recording(model, labels, *, noise, **_):
        asked.extend(labels.tolist())
        return noise

    settings = SampleConfig(batch=3)
    generate(
        model_of(sit),
        recording,
        lambda x: x,
        settings,
        indices=range(7),
        labels=labels_for(range(7), (0, 2)),
    )
    assert asked == [0, 2, 0, 2, 0, 2, 0]
    assert generated.nfe == {"conditional": 6, "null": 6}
    assert labels_for(range(3), ()) is None


def test_frames_follow_the_trajectory():
    frames = Frames(lambda x: x, count=3)
    end = images(sit, steps=5, on_step=frames).images
    assert len(frames.images) == 5 and torch.equal(frames.images[-1], end[:3])
    assert len(frames.ends) == 1 and torch.equal(frames.ends[0], end[:3])


def test_frames_can_leave_out_all_but_the_ends():
    decoded = []
    frames = Frames(lambda x: decoded.append(x) or x, count=3, ends_only=True)
    end = images(sit, steps=5, on_step=frames).images
    assert len(decoded) == 1 and torch.equal(frames.ends[0], end[:3])


def test_frames_follow_the_first_batch_only():
    frames = Frames(lambda x: x, count=7)
    end = images(sit, steps=5, batch=3, on_step=frames).images
    assert len(frames.images) == 5 and torch.equal(frames.images[-1], end[:3])


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0},
        {"batch": 0},
        {"steps": ()},
        {"steps": (3, 0)},
        {"solver": "euler-maruyama", "steps": 1},
        {"solver": "euler-maruyama", "shift": 2.0},
    ],
)
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ValueError, match="got|at least 1"):
        SampleConfig(**wrong)


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        (Dopri5, {"atol": 0.0}),
        (Dopri5, {"rtol": -1.0}),
        (Dopri5, {"rtol": math.nan}),
        (EulerMaruyama, {"norm": -1.0}),
    ],
)
def test_impossible_settings_of_a_solver_are_refused_by_name(kind, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        kind(**wrong)


@pytest.mark.parametrize("wrong", ["rk4", 3, None])
def test_what_is_no_solver_is_refused_with_those_there_are(wrong):
    with pytest.raises(ValueError, match="solver must be one of euler, ab2, .*got"):
        chosen_solver(wrong)


@pytest.mark.parametrize("name", SOLVERS)
def test_a_solver_can_be_given_by_its_name(name):
    assert SampleConfig(solver=name) == SampleConfig(solver=SOLVERS[name]()) and SOLVERS[name].name == name


def test_settings_of_a_solver_reach_it():
    def field(x, t, state):
        return torch.cos(20 * t)[:, None] * x, state

    x = torch.ones(2, 1, dtype=torch.float64)
    for settings in ({"atol": 1e-2, "rtol": 1e-2}, {"atol": 1e-9, "rtol": 1e-9}):
        assert (
            Dopri5(**settings).bound(linear)(field, x, [0.0, 1.0]).nfe == dopri5(field, x, [0.0, 1.0], **settings).nfe
        )
    noise = torch.ones(4, 2, 1)
    for form, norm, last_step in (("linear", 0.5, "tweedie"), ("constant", 2.0, "none")):
        sampling = SampleConfig(solver=EulerMaruyama(diffusion=form, norm=norm, last_step=last_step), steps=4)
        ours = sampling.solver.bound(linear)(field, x, sampling.times(), noise=noise).x
        expected = {"form": form, "norm": norm, "last_step": last_step, "interpolant": linear, "noise": noise}
        assert torch.equal(ours, euler_maruyama(field, x, sampling.times(), **expected).x)
    assert float(SampleConfig(solver=EulerMaruyama(last_step_size=0.1), steps=4).times()[-2]) == pytest.approx(0.9)


def test_a_part_of_a_run_is_that_part_of_it():
    whole = images(sit, count=7, steps=3, batch=4)
    model = model_of(sit)
    part = generate(
        model, sit.sample, lambda x: x, SampleConfig(steps=3, batch=2), indices=range(3, 6),
        labels=labels_for(range(3, 6), (0, 2)), seed=3,
    )  # fmt: skip
    assert (part.images.int() - whole.images[3:6].int()).abs().max() <= 1
    assert part.labels.tolist() == whole.labels[3:6].tolist() == [2, 0, 2]


@pytest.mark.parametrize("value", [math.nan, math.inf, -1e30, 1e5])
@pytest.mark.parametrize("what", ["latents", "images"])
def test_what_would_be_rounded_to_black_or_white_is_refused(what, value):
    """Latents that no velocity overflowed for, and an autoencoder that overflows on good ones."""
    bad = torch.zeros(2, 1, 4, 4)
    bad[1, 0, 2, 3] = value
    latents, decoded = (bad, torch.zeros(2, 1, 4, 4)) if what == "latents" else (torch.zeros(2, 1, 4, 4), bad)
    with pytest.raises(RuntimeError, match=f"the {what} that were drawn are (not finite|as large as)"):
        generate(
            model_of(sit), lambda *_, **__: latents, lambda x: decoded, SampleConfig(), indices=range(2), labels=None,
        )  # fmt: skip


def test_where_it_begins_is_looked_for_in_a_second_run():
    """As on a GPU, where no velocity is looked at the first time."""
    runs = []

    def late(model, labels, *, noise, on_step, careful=False, **_):
        runs.append((noise, on_step, careful))
        if careful:
            raise RuntimeError("the null velocity is not finite near t = 0.25")
        return noise / 0

    with pytest.raises(RuntimeError, match="the null velocity is not finite near t = 0.25"):
        generate(
            model_of(sit), late, lambda x: x, SampleConfig(), indices=range(2), labels=None,
            on_step=lambda step: None,
        )  # fmt: skip
    (first, _, careful), (second, seen, again) = runs
    assert torch.equal(first, second) and (careful, seen, again) == (False, None, True)
