from collections import Counter

import pytest
import torch

from conftest import loss, randomise
from fluvial.flow import solvers as it
from fluvial.flow.guidance import Guidance
from fluvial.flow.interpolant import linear
from fluvial.flow.timesteps import grid, grid_with_last_step
from fluvial.methods import sit
from fluvial.weights import released as upstream


@pytest.fixture(scope="module")
def released(sit_golden):
    return upstream.from_state_dict(sit_golden.state_dict, heads=sit_golden.meta["num_heads"])[0]


def test_velocity(released, sit_golden):
    g = sit_golden.tensors
    got = released(g["forward.x_t"], g["forward.t"], g["forward.labels"])
    torch.testing.assert_close(got, g["forward.velocity"], atol=2e-5, rtol=0)


@pytest.mark.parametrize(
    ("name", "ours", "settings"),
    [("euler", "euler", {}), ("heun2", "heun", {}), ("dopri5", "dopri5", {"atol": 1e-6, "rtol": 1e-5})],
)
def test_ode_trajectories(released, sit_golden, name, ours, settings):
    g, meta = sit_golden.tensors, sit_golden.meta
    got = sit.sample(
        released,
        g["forward.labels"],
        noise=g["sample.noise"],
        times=grid(meta["ode_num_steps"][name] - 1),
        guidance=Guidance(weight=meta["cfg_scale"], channels=meta["guided_channels"]),
        solver=it.solver(ours, **settings),
    )
    torch.testing.assert_close(got, g[f"sample.ode.{name}"], atol=2e-4, rtol=0)


def test_sde_trajectory(released, sit_golden):
    g, meta = sit_golden.tensors, sit_golden.meta
    got = sit.sample(
        released,
        g["forward.labels"],
        noise=g["sample.noise"],
        times=grid_with_last_step(meta["sde_num_steps"], 0.04),
        solver=it.solver("euler-maruyama", interpolant=linear, noise=g["sample.sde.noise_steps"]),
    )
    torch.testing.assert_close(got, g["sample.sde.euler"], atol=2e-4, rtol=0)


def test_loss_is_the_squared_velocity_error(released, sit_golden):
    g = sit_golden.tensors
    x1, x0, t, labels = g["data"], g["noise"], g["forward.t"], g["forward.labels"]
    velocity = released(g["path.linear.x_t"], t, labels)
    expected = (velocity - g["path.linear.u_t"]).square().mean()
    torch.testing.assert_close(loss(released, x1, labels, t=t, noise=x0), expected)


TINY = {"size": (4, 6), "channels": 3, "classes": 5, "patch": 2, "depth": 2, "width": 16, "heads": 2}


def test_labels_are_dropped_in_training_only():
    model = sit.SiT(sit.SiTConfig(**TINY))
    randomise(model)
    x, labels = torch.randn(6, 3, 4, 6), torch.arange(6) % 5
    chance = {"t": torch.rand(6), "noise": torch.randn_like(x)}
    everything = {**chance, "drop": torch.ones(6, dtype=torch.bool)}
    unlabelled = loss(model.eval(), x, None, **chance)
    torch.testing.assert_close(loss(model.train(), x, labels, **everything), unlabelled)
    assert abs(loss(model.eval(), x, labels, **everything) - unlabelled) > 1e-4
    drop = sit.draws(sit.SiTConfig(**TINY), (100_000, 1), device="cpu").drop
    assert abs(drop.float().mean() - 0.1) < 0.01


def test_the_velocity_is_zero_at_initialisation_and_every_gate_is():
    model = sit.SiT(sit.SiTConfig(**TINY))
    assert (model(torch.randn(2, 3, 4, 6), torch.rand(2), torch.tensor([0, 4])) == 0).all()
    for name, p in model.named_parameters():
        if "modulation" in name or name.startswith("head."):
            assert (p == 0).all(), name
        elif p.ndim > 1:
            assert p.std() > 0, name


@pytest.mark.parametrize(
    "change",
    [
        {"classes": 0},
        {"size": (6, 2)},
        {"channels": 1},
        {"heads": 4},
        {"patch": 1},
        {"interpolant": "gvp"},
        {"time_sampling": "logit-normal"},
    ],
)
def test_any_shape_trains_and_samples(change):
    config = sit.SiTConfig(**{**TINY, **change})
    model = sit.SiT(config)
    randomise(model)
    labels = None if config.classes == 0 else torch.tensor([0, 4])
    x = torch.randn(2, config.channels, *config.size)
    loss(model, x, labels).backward()
    assert model.embed.project.weight.grad.abs().max() > 0
    evaluations = Counter()
    out = sit.sample(model, labels, noise=x, times=grid(3), guidance=Guidance(weight=2.0), evaluations=evaluations)
    assert out.shape == x.shape and not torch.equal(out, x)
    assert evaluations == ({"conditional": 3} if labels is None else {"conditional": 3, "null": 3})


@pytest.mark.parametrize(
    "wrong",
    [{"size": (5, 6)}, {"heads": 3}, {"width": 18, "heads": 2}, {"classes": -1}, {"label_drop": 1.5}, {"depth": 0}],
)
def test_impossible_configurations_are_refused(wrong):
    with pytest.raises(ValueError, match="must be"):
        sit.SiTConfig(**{**TINY, **wrong})


def test_an_unknown_preset_names_the_known_ones():
    with pytest.raises(ValueError, match="'M/2': expected one of S/2"):
        sit.preset("M/2")
