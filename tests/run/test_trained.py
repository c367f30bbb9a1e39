import copy
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import fluvial
from fluvial import recipes
from fluvial.autoencoders.pixels import Pixels
from fluvial.config import Run
from fluvial.flow.guidance import Guidance
from fluvial.methods import arflow, flowar, method_of, sit
from fluvial.run.load import Sampler
from fluvial.run.train import check
from fluvial.sampling.precision import ready
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


def test_classes_are_given_as_arrays_and_tensors_too(trained):
    expected = trained.sample(4, classes=[3, 7])
    for classes in (np.array([3, 7]), torch.tensor([3, 7])):
        found = trained.sample(4, classes=classes)
        assert torch.equal(found.images, expected.images) and torch.equal(found.labels, expected.labels), classes
    assert trained._class_ids([np.int64(3), torch.tensor(7)]) == (3, 7)
    assert trained.sample(2, classes=torch.tensor(7)).labels.tolist() == [7, 7]
    for wrong in (torch.tensor([3.0]), np.array([True]), torch.tensor([[3, 7]]), np.array([10]), torch.zeros(0).long()):
        with pytest.raises(ValueError, match="classes"):
            trained.sample(4, classes=wrong)


WRONG = """
import fluvial
from fluvial import recipes
import fluvial
from fluvial import recipes
from fluvial.autoencoders.pixels import Pixels
from fluvial.run.load import Sampler
from fluvial.run.train import build

run = recipes.smoke(recipes.get("digits-sit"))
sampler = Sampler(model=build(run), run=run, autoencoder=Pixels())
for wrong in ({"guidance": "a"}, {"guidance": True}, {"guidance": [1.5]}, {"steps": 2.5}, {"steps": "12"},
              {"steps": [2.5]}, {"count": 2.5}, {"count": "a"}, {"classes": 3.5}, {"solver": 3}, {"indices": 3}):
    try:
        sampler.sample(**wrong)
    except ValueError as error:
        assert next(iter(wrong)) in str(error), (wrong, error)
    else:
        raise SystemExit(f"{wrong} is taken")
for call in (fluvial.load, lambda name, device: fluvial.train(run, name, device=device), fluvial.score):
    for device in ("cuda:99", "gpu", 3.5):
        try:
            call("nowhere", device=device)
        except ValueError as error:
            assert "device" in str(error), error
        else:
            raise SystemExit(f"{device} is taken")
"""


def test_values_of_a_wrong_type_are_value_errors(tmp_path):
    """Without the hook of the tests that refuses them before."""
    ended = subprocess.run([sys.executable, "-c", WRONG], cwd=tmp_path, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr, list(tmp_path.iterdir())) == (0, "", [])


def test_a_link_that_leads_nowhere_is_no_output_folder(tmp_path):
    link, file = tmp_path / "link", tmp_path / "file"
    link.symlink_to(tmp_path / "gone")
    file.write_text("mine")
    run = recipes.smoke(recipes.get("digits-sit"))
    for out, says in ((link, "is a link to .*gone, which is not there"), (link / "x", "link is a link to")):
        for call in (fluvial.train, check):
            with pytest.raises(ValueError, match=says):
                call(run, out)
    with pytest.raises(ValueError, match="file is there and is no folder"):
        fluvial.train(run, file)
    assert file.read_text() == "mine" and not (tmp_path / "gone").exists()


def test_another_model_guides_as_the_formula_says(trained):
    """Autoguidance: v_other + w (v - v_other); at weight 0 it is the other model, at 1 this one, labels for both."""
    other = copy.deepcopy(trained.model)
    with torch.no_grad():
        for p in other.parameters():
            p.add_(0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    other = replace(trained, model=other)
    guided = trained.guided_by(other)

    def end(sampler, weight, steps=1):
        return latents(sampler, replace(FP32, steps=steps, guidance=Guidance(weight=weight)))

    torch.testing.assert_close(end(guided, 0.0, 4), end(other, 1.0, 4), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(end(guided, 1.0, 4), end(trained, 1.0, 4))
    if not isinstance(trained.run.method, flowar.Config):  # whose finer scales start from what the coarser ones gave
        ends = end(other, 1.0) + 2.5 * (end(trained, 1.0) - end(other, 1.0))
        torch.testing.assert_close(end(guided, 2.5), ends, atol=1e-5, rtol=1e-4)
    assert guided.sample(1, settings=FP32).about["sampling"]["guide"].startswith("a model at step 0")
    assert "guide" not in trained.sample(1, settings=FP32).about["sampling"]


def test_a_guide_needs_no_null_branch_and_no_classes():
    config = sit.Config(**{**DIT, "classes": 0}, label_drop=0.0)
    sampler = Sampler(model=sit.Model(config).eval(), run=Run(method=config), autoencoder=Pixels())
    with pytest.raises(ValueError, match="guidance needs a model"):
        sampler.sample(1, guidance=2.0, steps=2)
    assert sampler.guided_by(sampler).sample(1, guidance=2.0, steps=2).nfe == {"conditional": 2, "null": 2}


def test_a_guide_of_another_space_is_refused():
    def of(**other):
        config = sit.Config(**{**DIT, **other})
        return Sampler(model=sit.Model(config).eval(), run=Run(method=config), autoencoder=Pixels())

    of().guided_by(of(depth=1, width=32, patch=4))  # another network will do
    for other, says in (({"classes": 3}, "classes is 3 there and 10 here"), ({"size": (16, 16)}, "size is")):
        with pytest.raises(ValueError, match=f"does not go with this model: .*{says}"):
            of().guided_by(of(**other))
