"""The flows of methods: the ODEs whose densities `fluvial likelihood` measures."""

import pytest
import torch

from conftest import randomise
from fluvial.flow.interpolant import INTERPOLANTS, u_t, x_t
from fluvial.flow.likelihood import log_density, log_density_of_map
from fluvial.flow.solvers import euler
from fluvial.flow.timesteps import grid
from fluvial.methods import arflow, flowar, sit
from fluvial.methods.method import Reversible

SHAPE = {"size": (4, 4), "channels": 1, "classes": 3, "patch": 2, "width": 16, "heads": 2, "depth": 2}
CONFIGS = {
    "sit": (sit, sit.SiTConfig(**SHAPE, interpolant="gvp")),
    "arflow": (arflow, arflow.ARFlowConfig(**SHAPE, images_per_sequence=1)),
    "flowar": (
        flowar,
        flowar.FlowARConfig(**SHAPE, scales=(1, 2), head_depth=1, head_width=16, head_heads=2, dropout=0.0),
    ),
}


def made(name, **weights):
    method, config = CONFIGS[name]
    model = method.Model(config).eval().requires_grad_(False)
    randomise(model, **weights)
    return method, model


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("labels", [torch.tensor([0, 2]), None], ids=["labelled", "no labels"])
def test_the_velocities_have_the_errors_of_training(name, labels):
    """The error of velocities of the flows at points between noise and data is what `errors` measures."""
    method, model = made(name)
    assert isinstance(method, Reversible)
    latents = torch.randn(2, 1, 4, 4)
    as_trained = latents.unsqueeze(1) if name == "arflow" else latents
    draws = method.draws(model.config, as_trained.shape, device="cpu")
    errors = method.errors(model, as_trained, labels, draws)
    flows = method.flows(model, latents, labels)
    assert len(flows) == errors.shape[1] == max(1, len(method.scales(model.config)))
    path, noise = INTERPOLANTS[model.config.interpolant], draws.noise.flatten(1)
    for flow, expected, t in zip(flows, errors.T, draws.t.reshape(2, -1).T, strict=True):
        size = flow.clean[0].numel()
        x0, noise = noise[:, :size].view_as(flow.clean), noise[:, size:]
        v = flow.velocity(x_t(path, x0, flow.clean, t), t)
        found = (v - u_t(path, x0, flow.clean, t)).square().flatten(1).mean(dim=1)
        torch.testing.assert_close(found, expected)


def test_the_finest_scale_ends_at_the_latents_and_a_coarser_one_at_their_means():
    method, model = made("flowar")
    latents = torch.randn(2, 1, 4, 4)
    coarse, fine = method.flows(model, latents, None)
    assert torch.equal(flowar.unpatchify(fine.clean, 2, (2, 2)), latents)
    means = latents.view(2, 2, 2, 2, 2).mean(dim=(2, 4))
    torch.testing.assert_close(flowar.unpatchify(coarse.clean, 2, (1, 1))[:, 0], means)


def test_the_density_of_the_sampler_is_that_of_its_flow_without_a_history_alone():
    """Sampling x1 with many steps and following the flow back from x1 give one density: for SiT, and not for ARFlow."""
    for name in ("sit", "arflow"):
        method, model = made(name)
        labels = torch.tensor([1])

        def sample(noise, method=method, model=model):
            return method.sample(model, torch.ones(len(noise), dtype=torch.long), noise=noise, times=grid(25))

        x1, of_map = log_density_of_map(sample, torch.randn(1, 4, 4))
        flow = method.flows(model, x1[None], labels)[0]
        of_ode = log_density(flow.velocity, flow.clean, grid(25), solver=euler).value[0]
        assert (abs(float(of_map - of_ode)) < 0.2) == (name == "sit"), (name, of_map, of_ode)
