from dataclasses import replace

import pytest
import torch
from torch import nn

from fluvial.autoencoders.pixels import Pixels
from fluvial.config import Run
from fluvial.flow.guidance import Guidance
from fluvial.methods import arflow, flowar, method_of, sit
from fluvial.run.load import Sampler, ready
from fluvial.sampling.settings import SampleConfig

SHAPE = {"size": (8, 8), "channels": 3, "classes": 10}
DIT = {**SHAPE, "patch": 2, "depth": 2, "width": 64, "heads": 2}
FLOWAR = {**SHAPE, "scales": (1, 2, 8), "depth": 2, "width": 64, "heads": 2, "head_width": 64, "head_heads": 2}
METHODS = {
    "sit": sit.Config(**DIT),
    "arflow": arflow.Config(**DIT),
    "flowar": flowar.Config(**FLOWAR),
    "flowar-cross": flowar.Config(**FLOWAR, head="cross_attention"),
}
FP32 = SampleConfig(steps=4, batch=2, guidance=Guidance(weight=2.0))
BF16 = replace(FP32, precision="bf16")


@pytest.fixture(params=METHODS)
def trained(request):
    torch.manual_seed(0)
    config = METHODS[request.param]
    model = method_of(config).Model(config).eval().requires_grad_(False)
    for p in model.parameters():
        if not bool(p.any()):
            nn.init.normal_(p, std=0.1)
    return Sampler(model=model, run=Run(method=config), autoencoder=Pixels())


def latents(trained, settings):
    """What is decoded, before it is rounded to 256 levels."""
    steps = []
    trained.sample(2, settings=settings, on_step=steps.append)
    return steps[-1].x


def test_rounded_weights_give_what_autocast_gives_of_the_whole_ones(trained):
    rounded = latents(trained, BF16)
    assert rounded.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(rounded, latents(trained, FP32))


def test_bf16_is_near_fp32_and_fp32_has_not_changed(trained):
    before = {name: p.clone() for name, p in trained.model.named_parameters()}
    whole, rounded = latents(trained, FP32), latents(trained, BF16)
    assert 0 < (rounded - whole).norm() / whole.norm() < 0.03
    assert all(torch.equal(p, before[name]) for name, p in trained.model.named_parameters())
    assert torch.equal(latents(trained, FP32), whole)
    assert ready(trained.model, FP32) is trained.model


def test_the_copy_is_made_once_and_keeps_what_is_float32(trained):
    for _ in range(2):
        trained.sample(2, settings=BF16)
    assert list(trained._ready) == [("bf16", False)]
    copy = trained._ready["bf16", False]
    for name, p in copy.named_parameters():
        exact = any(part in name for part in ("embed_t.", "attention.gate", "table", "positions", "norm"))
        assert p.dtype == (torch.float32 if exact else torch.bfloat16), name
    assert all(b.dtype != torch.bfloat16 for b in copy.buffers())


def test_pictures_on_the_way_are_decoded_outside_of_autocast(trained):
    seen = []
    trained.sample(2, settings=BF16, on_step=lambda step: seen.append((torch.is_autocast_enabled("cpu"), step.x.dtype)))
    assert set(seen) == {(False, torch.float32)}


def test_a_card_says_the_precision(trained):
    assert trained.provenance(settings=BF16)["sampling"]["dtype"] == "bfloat16"
    assert trained.provenance(settings=FP32)["sampling"]["dtype"] == "float32"
