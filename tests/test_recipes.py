import dataclasses

import pytest
import torch

from fluvial import experiment, recipes
from fluvial.guidance import Guidance
from fluvial.methods import arflow, method_of, sit
from fluvial.train.loop import TrainConfig
from fluvial.train.optim import OptimConfig, adamw, clip_gradients


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_every_recipe_takes_a_step_at_reduced_width(name):
    run = recipes.get(name)
    heads = 2
    run = dataclasses.replace(run, method=dataclasses.replace(run.method, width=16, heads=heads, depth=2))
    model, method = experiment.build(run), method_of(run.method)
    sequence = () if run.method.images_per_sequence is None else (run.method.images_per_sequence,)
    latents = torch.randn(2, *sequence, run.method.channels, *run.method.size)
    loss = method.loss(model, latents, torch.tensor([0, run.method.classes - 1]))
    loss.backward()
    clip_gradients(list(model.parameters()), run.optim)
    adamw(model, run.optim).step()
    after = method.loss(model, latents, torch.tensor([0, run.method.classes - 1]))
    assert torch.isfinite(after) and after != loss


def test_arflow_on_imagenet_has_the_published_settings():
    for name, side, steps in (("imagenet128-arflow-xl2", 16, 400_000), ("imagenet256-arflow-xl2", 32, 2_600_000)):
        run = recipes.get(name)
        assert run.method == arflow.ARFlowConfig(size=(side, side), depth=28, width=1152, heads=18)
        assert run.optim == OptimConfig(lr=1e-4, betas=(0.9, 0.95), weight_decay=0.02, clip="value", clip_at=3.0)
        assert run.train == TrainConfig(steps=steps, batch=256, ema_decay=0.9999, save_every=10_000)
        assert run.autoencoder == "stabilityai/sd-vae-ft-ema" and run.data.flip
        check_sampling(run.sample)


def test_sit_on_imagenet_has_the_published_settings():
    run = recipes.get("imagenet256-sit-xl2")
    assert run.method == sit.SiTConfig(size=(32, 32), depth=28, width=1152, heads=16)
    assert run.optim == OptimConfig(lr=1e-4, betas=(0.9, 0.999), weight_decay=0.0, clip="none")
    check_sampling(run.sample)


def check_sampling(sample):
    assert (sample.solver, sample.diffusion, sample.last_step, sample.last_step_size) == (
        "euler-maruyama",
        "sigma",
        "mean",
        0.04,
    )
    assert sample.steps == 250 and sample.guidance == Guidance(weight=1.5, channels=3)


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_every_recipe_says_what_to_expect(name):
    assert len((recipes.RECIPES[name].__doc__ or "").split()) > 15
