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
from fluvial.sampling.trajectories import recorded, trajectories, united, velocities
from fluvial.training.distillation import ahead_of_itself, end_of, following, mean_velocity, slopes

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


def one_by_one(name, model, points, labels):
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
    squares = (one_by_one(name, model, points, labels) - chords).square()
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


def test_mean_velocities_of_eulers_steps_are_their_own_targets():
    """x' = -x in steps of 1 / 24: from t, n of them are left until `end`, and x is multiplied by (1 - 1 / 24)^n."""
    h, end = 1 / 24, torch.tensor([[0.5, 1.0], [0.5, 0.5]], dtype=torch.float64)
    left = torch.tensor([[12, 6], [1, 3]])
    t, x = end - left * h, torch.randn(2, 2, 3, dtype=torch.float64)

    def own(x, t):
        share = (1 - h) ** ((end - t) / h)
        return (((share - 1) / (end - t)).nan_to_num())[..., None] * x

    torch.testing.assert_close(mean_velocity(own, -x, x, t, end, h), own(x, t), atol=1e-12, rtol=1e-12)


def test_a_short_step_is_the_identity_of_meanflow():
    """(target - u) (end - t) / h -> v + (end - t) du/dt - u, with du/dt along (v, 1) by autograd and differences."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.Tanh(), torch.nn.Linear(16, 3)).double()

    def own(x, t):
        return net(torch.cat([x, t[..., None]], dim=-1))

    x, v = (torch.randn(5, 2, 3, dtype=torch.float64) for _ in range(2))
    t, end = torch.rand(5, 2, dtype=torch.float64) / 2, torch.full((5, 2), 0.75, dtype=torch.float64)
    u, along = torch.func.jvp(own, (x, t), (v, torch.ones_like(t)))
    small = 1e-4
    differences = (own(x + small * v, t + small) - own(x - small * v, t - small)) / (2 * small)
    torch.testing.assert_close(along, differences, atol=1e-6, rtol=1e-6)
    left, h = (end - t)[..., None], 1e-6
    found = (mean_velocity(own, v, x, t, end, h) - u) * left / h
    torch.testing.assert_close(found, v + left * along - u, atol=1e-4, rtol=1e-4)


def test_the_last_step_is_the_teachers_alone():
    t = torch.tensor([[0.49, 0.99]])
    x, v = torch.randn(1, 2, 3), torch.randn(1, 2, 3)
    assert torch.equal(mean_velocity(lambda x, t: x * 1e6, v, x, t, end_of(t, 2)), v)


@pytest.mark.parametrize("steps", (1, 2, 3, 4, 22, 41))  # 13 / 22 times 22 is below 13 in float32
def test_the_end_of_a_step(steps):
    starts = (torch.arange(steps) + 0.0) / steps
    for inside in (0.0, 0.3, 0.99):
        t = ((torch.arange(steps) + inside) / steps)[None]
        torch.testing.assert_close(end_of(t, steps)[0], starts + 1 / steps)


def guided_at_once(name, model, x, t, labels, ends):
    """The velocities of guidance with the weight 3, and for FlowAR a ramp, from passes over all points at once."""
    method, config = method_of(CONFIGS[name]), model.config
    clean = torch.cat(list(ends), dim=1)
    v, null = (method.velocities_along(model, x, t, of, clean) for of in (labels, torch.full_like(labels, 3)))
    weight = torch.tensor(3.0)
    if name == "flowar":
        weight = torch.tensor([1.0, 2.0, 3.0]).repeat_interleave(torch.tensor(config.sizes))[:, None]
    return null + weight * (v - null)


@pytest.mark.parametrize("name", CONFIGS)
def test_velocities_at_points_are_those_of_samples(name):
    method, model, points, labels = made(name)
    model.eval()
    x, t = points[:, :2], torch.tensor([[0.1, 0.3], [0.0, 0.5], [0.6, 0.9]])
    ends = method.ends(model.config, torch.randn(3, 2, 4, 4))
    ramp = {"ramp": "linear"} if name == "flowar" else {}
    settings = SampleConfig(guidance=Guidance(weight=3.0, **ramp), batch=2)
    found = velocities(model, method.sample, settings, x, t, labels, ends)
    torch.testing.assert_close(found, guided_at_once(name, model, x, t, labels, ends), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", CONFIGS)
def test_errors_on_images_are_those_of_the_mean_velocity(name):
    method, model, _, labels = made(name)
    sequence = model.config.images_per_sequence
    latents = torch.randn(3, *([sequence] if sequence else []), 2, 4, 4)
    seen = []

    def teacher(x, t, labels, ends):
        seen.append((x, t, ends))
        return torch.sin(3 * x)

    objective = ahead_of_itself(method, teacher, STEPS)
    drawn = objective.draws(model.config, latents.shape, generator=torch.Generator().manual_seed(1), device="cpu")
    assert drawn.noise.shape == (3, sequence or 1, *model.config.noise_shape) and not drawn.drop.any()
    found = objective.errors(model, latents, labels, drawn)
    x, t = seen[0][:2]
    last = torch.cat(list(seen[0][2]), dim=1)
    clean = latents if sequence else last.unsqueeze(1)
    at = t.reshape(t.shape + (1,) * (x.ndim - 2))
    torch.testing.assert_close(x, (1 - at) * drawn.noise + at * clean)
    end = ((t * STEPS).floor() + 1) / STEPS
    h = (end - t).clamp(max=1 / 24)
    share, step = ((h / (end - t)).reshape(at.shape), h.reshape(at.shape))
    own = method.velocities_along(model, x + step * torch.sin(3 * x), t + h, labels, last)
    target = share * torch.sin(3 * x) + (1 - share) * own
    squares = method.mean_squares(model.config, method.velocities_along(model, x, t, labels, last) - target)
    expected = 1e-3 * torch.log(1 + squares / 1e-3)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    found.sum().backward()  # the target has no gradient
    grads = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    squares = method.mean_squares(model.config, method.velocities_along(model, x, t, labels, last) - target.detach())
    (squares * 1e-3 / (1e-3 + squares.detach())).sum().backward()  # MeanFlow's adaptive weight
    for one, other in zip(grads, (p.grad for p in model.parameters() if p.grad is not None), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)


def test_times_on_images_begin_at_the_start_of_a_step():
    method, model, *_ = made("sit")
    drawn = ahead_of_itself(method, lambda x, *_: x, STEPS).draws(model.config, (20_000, 2, 4, 4), device="cpu")
    inside = drawn.t * STEPS % 1
    assert float((inside == 0).float().mean()) == pytest.approx(0.4, abs=0.02)
    assert float(inside[inside > 0].mean()) == pytest.approx(0.5, abs=0.02)
    assert torch.bincount((drawn.t * STEPS).flatten().long()).tolist() == pytest.approx([5000] * 4, rel=0.05)
    method, model, *_ = made("arflow")
    t = ahead_of_itself(method, lambda x, *_: x, STEPS).draws(model.config, (5, STEPS, 2, 4, 4), device="cpu").t
    torch.testing.assert_close(t.diff(dim=1), torch.full((5, STEPS - 1), 1 / STEPS))
