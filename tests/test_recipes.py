import dataclasses

import pytest
import torch

from conftest import loss
from fluvial import recipes
from fluvial.flow.guidance import Guidance
from fluvial.methods import arflow, flowar, method_of, sit
from fluvial.run.train import build
from fluvial.sampling.settings import EulerMaruyama
from fluvial.training.config import TrainConfig
from fluvial.training.optim import OptimConfig, adamw, clip_gradients


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_every_recipe_takes_a_step_at_reduced_width(name):
    run = recipes.get(name)
    reduced = {"width": 16, "heads": 2, "depth": 2}
    if isinstance(run.method, flowar.FlowARConfig):
        reduced |= {"head_width": 16, "head_heads": 2, "head_depth": 2, "dropout": 0.0}
    run = dataclasses.replace(run, method=dataclasses.replace(run.method, **reduced))
    model, method = build(run), method_of(run.method)
    sequence = () if run.method.images_per_sequence is None else (run.method.images_per_sequence,)
    latents, labels = torch.randn(2, *sequence, run.method.channels, *run.method.size), torch.tensor([0, 9])
    labels = labels if run.method.classes else None
    draws = vars(method.draws(run.method, latents.shape, device="cpu"))
    optimizer = adamw(model, dataclasses.replace(run.optim, lr=1e-3))
    losses = []
    for _ in range(2):
        value = loss(model, latents, labels, **draws)
        value.backward()
        clip_gradients(list(model.parameters()), run.optim)
        optimizer.step()
        losses.append(value.item())
    assert losses[1] < losses[0]  # on the same images, times and noise


def test_arflow_on_imagenet_has_the_published_settings():
    for name, side, steps in (("imagenet128-arflow-xl2", 16, 400_000), ("imagenet256-arflow-xl2", 32, 2_600_000)):
        run = recipes.get(name)
        assert run.method == arflow.ARFlowConfig(size=(side, side), depth=28, width=1152, heads=18)
        assert run.optim == OptimConfig(lr=1e-4, betas=(0.9, 0.95), weight_decay=0.02, clip="value", clip_at=3.0)
        assert run.train == TrainConfig(steps=steps, batch=256, ema_decay=0.9999, save_every=10_000, precision="tf32")
        assert run.autoencoder.name == "stabilityai/sd-vae-ft-ema" and run.data.flip and run.data.size == 8 * side
        check_sampling(run.sample)


def test_sit_on_imagenet_has_the_published_settings():
    run = recipes.get("imagenet256-sit-xl2")
    assert run.method == sit.SiTConfig(size=(32, 32), depth=28, width=1152, heads=16)
    assert run.optim == OptimConfig(lr=1e-4, betas=(0.9, 0.999), weight_decay=0.0, clip="none")
    check_sampling(run.sample)


def test_flowar_on_imagenet_has_the_published_settings():
    for name, weight in (("s", 4.3), ("b", 2.4), ("l", 2.4), ("h", 2.4)):
        run = recipes.get(f"imagenet256-flowar-{name}")
        assert flowar.preset(name.upper()) == run.method and run.train.activation_checkpointing == (name in "lh")
        assert (run.data.size, run.data.crop, run.data.flip) == (256, "random", True)
        assert run.autoencoder.name == "kl16.ckpt"
        assert (run.optim.lr, run.optim.final_lr, run.optim.clip, run.optim.clip_at) == (2e-4, 1e-5, "norm", 1.0)
        assert (run.train.batch, run.train.steps, run.optim.warmup) == (1024, 400 * 1251, 100 * 1251)
        assert run.sample.guidance.weight == weight and run.sample.guidance.ramp == "linear"
        low = 0.3 if name == "h" else 0.1
        assert run.sample.guidance.interval == (low, 1.0)
        times = run.sample.times()
        assert len(times) == (51 if name == "h" else 25)  # the release's "25 steps" are 24
        guided = (times[:-1].float() >= low).sum()  # as `guided` compares them
        assert guided == (35 if name == "h" else 22)  # specification, section 7
    run = recipes.get("imagenet512-flowar-l")
    assert run.method.maps[-1] == (32, 32) and len(run.method.maps) == 6 and run.data.size == 512


def check_sampling(sample):
    assert sample.solver == EulerMaruyama(diffusion="sigma", norm=1.0, last_step="mean", last_step_size=0.04)
    assert sample.steps == 250 and sample.guidance == Guidance(weight=1.5, channels=3)


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_every_recipe_has_a_smoke_form(name):
    run, small = recipes.get(name), recipes.smoke(recipes.get(name))
    assert small.data == run.data and small.autoencoder == run.autoencoder and small.method.size == run.method.size
    assert sum(p.numel() for p in build(small).parameters()) < 1_000_000 and small.train.steps <= 60


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_every_recipe_says_what_to_expect(name):
    assert len((recipes.RECIPES[name].__doc__ or "").split()) > 15
