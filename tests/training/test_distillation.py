"""Distillation: the slopes that are learned, the points they are learned at, and what of a model learns them."""

import math
from dataclasses import replace

import pytest
import torch

from conftest import randomise
from fluvial.flow.guidance import Guidance
from fluvial.flow.solvers import ab2, euler, heun
from fluvial.flow.timesteps import grid
from fluvial.methods import arflow, flowar, method_of, sit
from fluvial.methods.method import Distillable
from fluvial.nn.layers import patchify, unpatchify
from fluvial.sampling.settings import SampleConfig
from fluvial.sampling.trajectories import recorded, trajectories, united
from fluvial.training.distillation import following, slopes

SHAPE = {"size": (4, 4), "channels": 2, "classes": 3, "width": 16, "heads": 2, "depth": 2}
CONFIGS = {
    "sit": sit.Config(**SHAPE, patch=2),
    "arflow": arflow.Config(**SHAPE, patch=2),
    "flowar": flowar.Config(**SHAPE, scales=(1, 2, 4), dropout=0.5, head_width=16, head_heads=2),
}
STEPS = 4


def made(name):
    """A random model that is to follow trajectories, with three random trajectories and their labels."""
    torch.manual_seed(0)
    config = method_of(CONFIGS[name]).follower(CONFIGS[name], STEPS)
    model = method_of(config).Model(config).train()
    randomise(model)
    return method_of(config), model, torch.randn(3, STEPS + 1, *config.noise_shape), torch.tensor([0, 2, 1])


def velocities(name, model, points, labels):
    """The velocities at the points but the last, one after another, as a sampler would have them."""
    found, state = [], None
    if name == "flowar":
        config, found, caches, coarser = model.config, [], None, None
        for i, size in enumerate(config.maps):
            scales = range(i, i + 1)
            span = config.span(scales)
            inputs = None if i == 0 else patchify(flowar.upsampled(coarser, config, i), 1)
            z, caches = model.transformer(inputs, labels, scales, caches)
            condition = model.head.condition(z, scales)
            times = [torch.full((3, 1), k / STEPS) for k in range(STEPS)]
            found.append(
                torch.stack([model.head(points[:, k, span], t, condition, scales) for k, t in enumerate(times)])
            )
            coarser = unpatchify(points[:, -1, span], 1, size)
        return torch.cat(found, dim=2).transpose(0, 1)
    for k in range(STEPS):
        t = torch.full((3,), k / STEPS)
        if name == "sit":
            found.append(model(points[:, k], t, labels))
        else:
            v, state = model(points[:, k].unsqueeze(1), t.unsqueeze(1), labels, state)
            found.append(v.squeeze(1))
    return torch.stack(found, dim=1)


@pytest.mark.parametrize("name", CONFIGS)
def test_errors_are_those_of_the_velocities_that_a_sampler_meets(name):
    method, model, points, labels = made(name)
    assert isinstance(method, Distillable)
    objective = following(method, STEPS)
    draws = objective.draws(model.config, points.shape, device="cpu")
    found = objective.errors(model, points, labels, draws)
    chords = STEPS * (points[:, 1:] - points[:, :-1])
    squares = (velocities(name, model, points, labels) - chords).square()
    if name == "sit":
        expected = squares.mean(dim=(1, 2, 3, 4)).unsqueeze(1)
    elif name == "arflow":
        expected = squares.mean(dim=(2, 3, 4))
    else:
        expected = torch.stack([part.mean(dim=(1, 2, 3)) for part in squares.split(model.config.sizes, dim=2)], dim=1)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert found.shape[1] == len(objective.part_weights(model.config))
    assert torch.equal(found[1:2], objective.errors(model, points[1:2], labels[1:2], draws[1:2]))


def test_eulers_steps_along_the_slopes_are_the_trajectory():
    times = torch.tensor([0.0, 0.1, 0.5, 1.0])
    points = torch.randn(2, 4, 3, dtype=torch.float64)
    found, steps = [points[:, 0]], slopes(points, times.double())

    def field(x, t, state):
        return steps[:, len(found) - 1], None

    end = euler(field, points[:, 0], times.double(), on_step=lambda step: found.append(step.x))
    torch.testing.assert_close(torch.stack(found, dim=1), points)
    torch.testing.assert_close(end.x, points[:, -1])


def test_what_of_a_model_learns():
    for name, all_of_it in (("sit", True), ("arflow", True), ("flowar", False)):
        method, model, _, _ = made(name)
        learning = {id(p) for p in method.followed(model).parameters()}
        there = {key for key, p in model.named_parameters() if id(p) in learning}
        assert there == {key for key, _ in model.named_parameters() if all_of_it or key.startswith("head.")}


def test_recorded_points_lie_on_the_solution():
    """x' = -x, from 1: exp(-t)."""
    seen = []
    solve = recorded(heun, [0.0, 0.33, 1.0], seen)
    found = solve(lambda x, t, state: (-x, None), torch.ones(2, 1, dtype=torch.float64), grid(50).double())
    torch.testing.assert_close(
        seen[0][:, :, 0], torch.tensor([[1.0, math.exp(-0.33), math.exp(-1)]] * 2).double(), atol=1e-4, rtol=0
    )
    assert torch.equal(seen[0][:, -1], found.x) and found.nfe == 2 * 51  # 0.33 is no time of the grid


def test_united_grids_have_each_time_once():
    assert united(grid(4), [0.0, 1 / 3, 0.5, 2 / 3, 1.0]) == pytest.approx([0, 0.25, 1 / 3, 0.5, 2 / 3, 0.75, 1])
    assert united([0.0, 0.1 + 0.2, 1.0], [0.0, 0.3, 1.0]) == pytest.approx([0, 0.3, 1])


@pytest.mark.parametrize("name", CONFIGS)
def test_trajectories_are_those_that_samples_are_drawn_along(name):
    config = replace(CONFIGS[name], dropout=0.0) if name == "flowar" else CONFIGS[name]
    method = method_of(config)
    model = method.Model(config).eval().requires_grad_(False)
    randomise(model)
    settings = SampleConfig(solver="ab2", steps=4, guidance=Guidance(weight=1.5), batch=2)
    labels = torch.tensor([0, 1, 2, 0, 1])
    drawn = list(
        trajectories(model, method.sample, settings, [0.0, 0.5, 1.0], parts=[range(5)], labels=[labels], seed=3)
    )
    points, latents = torch.cat([each for _, each in drawn]), torch.cat([batch.latents for batch, _ in drawn])
    assert points.shape == (5, 3, *config.noise_shape)
    ends = points[:, -1]
    if name == "flowar":
        ends = unpatchify(ends[:, config.span(range(2, 3))], 1, config.maps[-1])
    assert torch.equal(ends, latents)
    seen, given = [], {"times": settings.times(), "guidance": settings.guidance, "solver": ab2}
    method.sample(model, labels, noise=points[:, 0], on_step=seen.append, **given)
    if name != "flowar":
        torch.testing.assert_close(points[:, 1], seen[1].x, atol=1e-5, rtol=1e-5)
