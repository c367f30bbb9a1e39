"""Sampling step by step: `Sampler.steps`, previews, and what a callback sees."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from fluvial.autoencoders.pixels import Pixels
from fluvial.config import Run
from fluvial.data.pixels import to_uint8
from fluvial.flow.guidance import Guidance
from fluvial.methods import arflow, flowar, method_of, sit
from fluvial.run.load import Sampler
from fluvial.sampling.settings import SampleConfig

SHAPE = {"size": (8, 8), "channels": 3, "classes": 10}
DIT = {**SHAPE, "patch": 2, "depth": 1, "width": 32, "heads": 2}
FLOWAR = {**SHAPE, "scales": (1, 2, 8), "depth": 2, "width": 32, "heads": 2, "head_width": 32, "head_heads": 2}
METHODS = {
    "sit": sit.Config(**DIT, interpolant="gvp"),
    "arflow": arflow.Config(**DIT),
    "flowar": flowar.Config(**FLOWAR),
}
SETTINGS = SampleConfig(steps=2, guidance=Guidance(weight=2.0))


def sampler_of(name):
    torch.manual_seed(0)
    config = METHODS[name]
    model = method_of(config).Model(config).eval().requires_grad_(False)
    for p in model.parameters():
        if not bool(p.any()):
            nn.init.normal_(p, std=0.1)
    data = replace(Run(method=config).data, class_names=tuple("abcdefghij"))
    return Sampler(model=model, run=Run(method=config, data=data, sample=SETTINGS), autoencoder=Pixels())


@pytest.fixture(params=METHODS)
def sampler(request):
    return sampler_of(request.param)


@pytest.mark.parametrize("solver", ["heun", "euler-maruyama"])
def test_the_steps_end_with_the_images_of_sample(sampler, solver, new_threads):
    how = {"indices": [4, 2, 9], "classes": ["c", "a"], "seed": 3, "solver": solver}
    seen = []
    whole = sampler.sample(**how, on_step=seen.append)
    *items, last = sampler.steps(**how)
    assert torch.equal(last.images, whole.images) and torch.equal(last.samples.labels, whole.labels)
    assert last.samples.about == whole.about and last.samples.nfe == whole.nfe
    for item, step in zip(items, seen, strict=True):
        estimate = step.seen.data(sampler.path).to(torch.float32)
        assert torch.equal(item.images, to_uint8(estimate)) and item.samples is None
        assert (item.number, item.t, item.nfe, item.scale) == (step.number, step.t, step.nfe, step.scale)
    assert (last.number, last.t, last.nfe, last.scale) == (len(seen), seen[-1].t, seen[-1].nfe, seen[-1].scale)
    assert not new_threads()


def test_the_scales_are_named_and_evaluations_are_counted_over_them():
    items = list(sampler_of("flowar").steps(2, steps=[1, 2, 1], solver="heun"))
    assert [item.scale for item in items] == ["1x1", "2x2", "2x2", "8x8", "8x8"]
    assert [item.nfe for item in items] == [2, 4, 6, 8, 8]


def test_what_is_left_early_is_not_sampled_to_its_end(sampler, new_threads):
    calls = []
    sampler.model.head.register_forward_hook(lambda *_: calls.append(1))
    for item in sampler.steps(2, steps=4, guidance=1.0):
        assert len(calls) == item.nfe
        if item.number == 2:
            break
    assert len(calls) == 2 and not new_threads()


def test_impossible_requests_are_refused_at_once(sampler, new_threads):
    for wrong, message in (
        ({"classes": "k"}, "got k"),
        ({"count": 0}, "count must be at least 1"),
        ({"indices": [-1]}, "indices must be"),
        ({"steps": 0}, "at least 1 step"),
        ({"seed": -1}, "seed must be"),
    ):
        with pytest.raises(ValueError, match=message):
            sampler.steps(**wrong)
    assert not new_threads()


def test_a_model_that_diverges_says_so_on_the_way():
    sampler = sampler_of("sit")

    def late(module, args, output):
        return output / (args[1] < 0.6).reshape(-1, 1, 1, 1)  # 0 / 0 and v / 0 from there on

    sampler.model.register_forward_hook(late)
    items = sampler.steps(2, steps=4)
    assert [next(items).number for _ in range(3)] == [1, 2, 3]
    with pytest.raises(RuntimeError, match=r"velocity is not finite near t = 0\.75"):
        next(items)


def test_autocast_of_the_caller_holds_for_the_steps_too(sampler):
    with torch.autocast("cpu", torch.bfloat16):
        whole = sampler.sample(3).images
        *_, last = sampler.steps(3)
    assert torch.equal(last.images, whole) and not torch.equal(whole, sampler.sample(3).images)
    bf16 = replace(SETTINGS, precision="bf16")
    *_, last = sampler.steps(3, settings=bf16)
    assert torch.equal(last.images, sampler.sample(3, settings=bf16).images)


def test_the_precision_of_sampling_does_not_reach_the_one_who_watches():
    sampler, outside = sampler_of("sit"), torch.get_float32_matmul_precision()
    inside = []
    sampler.model.register_forward_hook(lambda *_: inside.append(torch.get_float32_matmul_precision()))
    first, second = (sampler.steps(2, settings=replace(SETTINGS, precision="tf32")) for _ in range(2))
    for _ in zip(first, second, strict=True):
        assert torch.get_float32_matmul_precision() == outside == "highest"
        assert not torch.is_autocast_enabled("cpu")
    assert set(inside) == {"high"}


def test_batches_follow_each_other_and_end_in_all_images():
    sampler = sampler_of("sit")
    settings = replace(SETTINGS, batch=2)
    items = list(sampler.steps(5, settings=settings))
    assert [len(item.images) for item in items] == [2] * 4 + [1] * 2 + [5]
    assert torch.equal(items[-1].images, sampler.sample(5, settings=settings).images)


def test_a_preview_has_the_estimate_of_every_step_and_ends_in_the_images(sampler, tmp_path):
    items = list(sampler.steps(3))
    found = sampler.sample(3, preview=True)
    assert all(torch.equal(a, b.images) for a, b in zip(found.preview, items, strict=True))
    assert found.trajectory == () and torch.equal(found.images, sampler.sample(3).images)
    assert found.gif(preview=True).n_frames >= len(set(map(str, found.preview)))
    with pytest.raises(ValueError, match="no trajectory: sample them with trajectory=True"):
        found.gif()
    with pytest.raises(ValueError, match="no preview: sample them with preview=True"):
        sampler.sample(3).gif(preview=True)
    assert "preview.gif" in [path.name for path in found.save(tmp_path)]
    sampler.sample(3).save(tmp_path)
    assert not (tmp_path / "preview.gif").exists()
