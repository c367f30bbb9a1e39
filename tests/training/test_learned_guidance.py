"""Guidance in the loss: its gradient, its fixed point, where it acts, and what is refused."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from conftest import randomise
from fluvial import recipes
from fluvial.autoencoders import Pixels
from fluvial.flow.guidance import Guidance, GuidanceWeight
from fluvial.flow.interpolant import linear, u_t, x_t
from fluvial.methods import arflow, flowar, method_of, sit
from fluvial.methods.method import Draws
from fluvial.run.load import Sampler
from fluvial.run.train import build, learner_of
from fluvial.tools.guide.settings import axes_of
from fluvial.tools.guide.sweep import check_guidable
from fluvial.training.distributed import ALONE
from fluvial.training.guidance import share_of, with_guidance
from fluvial.weights.description import described

SHAPE = {"size": (4, 4), "channels": 2, "classes": 3, "width": 16, "heads": 2, "depth": 2}
CONFIGS = {
    "sit": sit.Config(**SHAPE, patch=2),
    "arflow": arflow.Config(**SHAPE, patch=2, images_per_sequence=3),
    "flowar": flowar.Config(**SHAPE, scales=(1, 2, 4), dropout=0.0, head_width=16, head_heads=2),
}
WEIGHT = GuidanceWeight(weight=1.5, interval=(0.2, 0.9), schedule="linear")
WEIGHTS = {"sit": WEIGHT, "arflow": WEIGHT, "flowar": replace(WEIGHT, ramp="linear")}


def made(name):
    """A random model in training mode, with latents, labels and draws of four examples of which one has no label."""
    torch.manual_seed(0)
    config = CONFIGS[name]
    method, model = method_of(config), method_of(config).Model(config).train()
    randomise(model)
    shape = (4, 3, 2, 4, 4) if name == "arflow" else (4, 2, 4, 4)
    draws = method.draws(config, shape, device="cpu")
    return method, model, torch.randn(shape), torch.tensor([0, 1, 2, 0]), replace(draws, drop=torch.arange(4) == 3)


def by_formula(name, model, latents, labels, draws):
    """The errors against the target u_t + (1 - 1 / weight) sg(v - v_null), written out for each method."""
    labels = labels.masked_fill(draws.drop, 3)
    if name == "flowar":
        config = model.config
        maps = flowar.pyramid(latents, config)
        clean = flowar.packed(maps, 1)
        inputs = flowar.packed([flowar.upsampled(m, config, i + 1) for i, m in enumerate(maps[:-1])], 1)
        sizes = torch.tensor(config.sizes)
        scale, t = torch.arange(3).repeat_interleave(sizes), draws.t.repeat_interleave(sizes, dim=1)
        weight = 1 + (0.5 * scale / 2) * 2 * t
        x, u = x_t(linear, draws.noise, clean, t), u_t(linear, draws.noise, clean, t)
        v, null = (model(x, draws.t, ids, inputs) for ids in (labels, torch.full_like(labels, 3)))
        weight, t, dims = weight.unsqueeze(-1), t.unsqueeze(-1), (2,)
    else:
        x, u = x_t(linear, draws.noise, latents, draws.t), u_t(linear, draws.noise, latents, draws.t)
        v, null = (model(x, draws.t, ids) for ids in (labels, torch.full_like(labels, 3)))
        v, null = (v[0], null[0]) if name == "arflow" else (v, null)
        t = draws.t[..., None, None, None]
        weight, dims = 1 + 0.5 * 2 * t, (-3, -2, -1)
    share = torch.where((0.2 <= t) & (t <= 0.9), 1 - 1 / weight, 0.0)
    error = (v - (u + share * (v - null)).detach()).square().mean(dims)
    if name == "flowar":
        return torch.stack([part.mean(1) for part in error.split(model.config.sizes, dim=1)], dim=1)
    return error.reshape(4, -1)


@pytest.mark.parametrize("name", CONFIGS)
def test_errors_and_their_gradient_are_those_of_the_formula(name):
    method, model, latents, labels, draws = made(name)
    guided = with_guidance(method, WEIGHTS[name])
    found, gradients = [], []
    for errors in (guided.errors(model, latents, labels, draws), by_formula(name, model, latents, labels, draws)):
        model.zero_grad()
        errors.mean().backward()
        found.append(errors.detach())
        gradients.append([p.grad.clone() for p in model.parameters()])
    torch.testing.assert_close(*found)
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)
    plain = method.errors(model, latents, labels, draws).detach()
    assert torch.equal(found[0][3], plain[3])  # without a label there is nothing to guide
    assert not torch.allclose(found[0][:3], plain[:3])


def test_the_least_error_is_at_the_guided_velocity():
    """Of velocities that are constants of a class: v = v_null + weight (u - v_null)."""
    velocities = torch.tensor([[1.0], [-2.0], [5.0]])

    class Constants(nn.Module):
        def __init__(self):
            super().__init__()
            self.config, self.table = SimpleNamespace(classes=3), nn.Parameter(torch.zeros(4, 1))

        def forward(self, x, t, labels):
            ids = torch.full((len(x),), 3) if labels is None else labels
            return self.table[ids].reshape(-1, 1, 1, 1)

    def errors(model, latents, labels, draws):
        labels = labels.masked_fill(draws.drop, 3)
        return (model(draws.noise, draws.t, labels) - latents).square().mean(dim=(2, 3))

    method = with_guidance(SimpleNamespace(errors=errors), GuidanceWeight(weight=1.5))
    model = Constants()
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    draws = Draws(t=torch.zeros(6), noise=torch.zeros(6, 1, 1, 1), drop=torch.arange(6) >= 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(200):
        optimizer.zero_grad()
        method.errors(model, velocities[labels].reshape(6, 1, 1, 1), labels, draws).mean().backward()
        optimizer.step()
    null = velocities.mean(0)
    torch.testing.assert_close(model.table.detach(), torch.cat([null + 1.5 * (velocities - null), null[None]]))


def test_the_share_follows_times_and_scales():
    t = torch.tensor([[0.1, 0.5, 1.0]])
    assert share_of(GuidanceWeight(weight=2.0, interval=(0.2, 0.9)), t).tolist() == [[0, 0.5, 0]]
    assert share_of(GuidanceWeight(weight=3.0, ramp="linear"), t).tolist() == [[0, 0.5, pytest.approx(2 / 3)]]
    assert share_of(GuidanceWeight(scale_weights=(1.0, 4.0, 2.0)), t).tolist() == [[0, 0.75, 0.5]]


def test_a_run_learns_guidance_and_without_it_the_method_is_itself():
    assert with_guidance(sit, GuidanceWeight()) is sit
    run = recipes.smoke(recipes.get("digits-sit"))
    run = replace(run, train=replace(run.train, guidance=GuidanceWeight(weight=1.5)), sample=no_guidance(run.sample))
    assert learner_of(run, build(run), ALONE).method.errors is not sit.errors
    assert learner_of(run, build(run), ALONE).method.draws is sit.draws


def test_what_is_learned_is_told_and_no_other_branch_guides_over_it():
    run = recipes.smoke(recipes.get("digits-sit"))
    plain = Sampler(model=build(run).eval(), run=run, autoencoder=Pixels())
    learned = replace(
        run, train=replace(run.train, guidance=GuidanceWeight(weight=1.5)), sample=no_guidance(run.sample)
    )
    sampler = replace(plain, run=learned)
    assert sampler.provenance()["sampling"]["guidance_learned"] == "guidance.weight 1.5"
    assert "guidance_learned" not in plain.provenance()["sampling"]
    assert described(learned)["guidance"] == "1; learned, and in the weights: guidance.weight 1.5"
    assert plain.guided_by(plain).settings(guidance=2.0).guidance.weight == 2
    with pytest.raises(ValueError, match="has learned its guidance .* none to find"):
        check_guidable(learned, axes_of((1.0, 2.0), ((0.0, 1.0),), ("ema",), (), learned.sample), learned.sample)
    for guided in (sampler, sampler.guided_by(plain)):
        with pytest.raises(ValueError, match="has learned guidance"):
            guided.settings(guidance=2.0)


def no_guidance(sample):
    return replace(sample, guidance=Guidance())


def test_what_cannot_be_learned_is_refused():
    run = recipes.get("digits-sit")
    learned = replace(run.train, guidance=GuidanceWeight(weight=1.5))
    both = replace(run, train=learned)
    with pytest.raises(
        ValueError, match=r"learned guidance \(train.guidance.weight 1.5\).* set sample.guidance.weight 1"
    ):
        both.check_guidance()
    replace(both, sample=no_guidance(run.sample)).check_guidance()
    with pytest.raises(ValueError, match="weights of at least 1"):
        replace(run.train, guidance=GuidanceWeight(weight=0.5))
    with pytest.raises(ValueError, match="train.guidance.ramp needs a method with scales"):
        replace(run, train=replace(run.train, guidance=GuidanceWeight(weight=1.5, ramp="linear")))
    with pytest.raises(ValueError, match="learned from labels"):
        replace(both, method=replace(run.method, label_drop=0.0))
    flow = recipes.get("digits-flowar")
    with pytest.raises(ValueError, match="train.guidance.scale_weights must be one for each of the method's 3 scales"):
        replace(flow, train=replace(flow.train, guidance=GuidanceWeight(scale_weights=(1.0, 2.0))))
    assert math.isclose(GuidanceWeight(weight=3.0, ramp="linear").at_scale(1, 3).weight, 2.0)
