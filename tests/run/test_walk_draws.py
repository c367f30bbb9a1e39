"""Walks with all that is random in sampling: step noise, context noise, precisions; and what refuses them."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from conftest import randomise
from fluvial.autoencoders import Pixels
from fluvial.cli import main
from fluvial.cli.arguments import class_ids_of
from fluvial.config import Run
from fluvial.flow.guidance import Guidance
from fluvial.methods import flowar, sit
from fluvial.run.folder import RunFolder, record_of
from fluvial.run.load import Sampler
from fluvial.run.walk import image_of, plane, walk
from fluvial.sampling.settings import Dopri5, SampleConfig

SHAPE = {"size": (8, 8), "channels": 1, "classes": 4, "depth": 2, "width": 16, "heads": 2, "patch": 2}
SETTINGS = SampleConfig(steps=3, guidance=Guidance(weight=2.0))


def sampler_of(method, **config):
    settings = method.Config(**SHAPE, **config)
    model = method.Model(settings).eval().requires_grad_(False)
    randomise(model)
    return Sampler(model=model, run=Run(method=settings, sample=SETTINGS), autoencoder=Pixels())


def flowar_of(**config):
    return sampler_of(flowar, scales=(1, 2, 4), head_width=16, head_heads=2, head_depth=1, **config)


CASES = {
    "steps of an SDE": (lambda: sampler_of(sit), {"solver": "euler-maruyama"}),
    "steps of an SDE, scale by scale": (flowar_of, {"solver": "euler-maruyama"}),
    "context": (lambda: flowar_of(context_noise=0.5), {"settings": replace(SETTINGS, context_noise=0.4)}),
    "bf16": (lambda: sampler_of(sit), {"settings": replace(SETTINGS, precision="bf16")}),
    "adaptive": (lambda: sampler_of(sit), {"solver": Dopri5(atol=1e-2, rtol=1e-2)}),
    "small batches": (lambda: sampler_of(sit), {"settings": replace(SETTINGS, batch=2)}),
}


@pytest.mark.parametrize("case", CASES)
def test_the_ends_are_sampled_images_whatever_is_random(case):
    make, how = CASES[case]
    sampler = make()
    ends = [sampler.sample(indices=[i], classes=c, seed=7, **how).images[0] for i, c in ((5, 1), (9, 3))]
    found = walk(sampler, "1:5", "3:9", 3, seed=7, **how)
    assert torch.equal(found.images[0], ends[0]) and torch.equal(found.images[2], ends[1])
    assert not torch.equal(found.images[1], found.images[0]) and not torch.equal(found.images[1], found.images[2])
    corners = plane(sampler, ["1:5", "3:9", "3:9", "1:5"], 2, seed=7, **how).images
    assert torch.equal(corners, torch.stack([ends[0], ends[1], ends[1], ends[0]]))


def test_within_a_class_the_labels_are_ids_and_the_same_noise_changes_class_alone():
    sampler = sampler_of(sit)
    found = walk(sampler, "1:5", "1:9", 3)
    assert found.labels.tolist() == [1, 1, 1] and walk(sampler, "1:5", "3:9", 3).labels is None
    one, _, other = walk(sampler, "1:5", "3:5", 3).images
    assert torch.equal(
        torch.stack([one, other]), torch.cat([sampler.sample(indices=[5], classes=c).images for c in (1, 3)])
    )


@pytest.mark.parametrize(
    ("names", "place", "meant"),
    [
        ((), "2:5", 2),
        (("cat", "dog", "hen", "2"), "2:5", 3),
        (("cat", "dog", "hen", "7"), "2:5", 2),
        (("00", "01", "02", "03"), "1:5", 1),
        (("01", "02", "03", "04"), "1:5", 0),
        (("01", "02", "03", "04"), (1, 5), 1),
        (("a:1", "a", "b", "c"), "a:1:5", 0),
        (("cat", "dog", "hen", "pig"), 6, 2),
    ],
)
def test_a_class_is_meant_as_sample_means_it(names, place, meant):
    run = Run(method=sit.Config(**SHAPE))
    run = replace(run, data=replace(run.data, class_names=names))
    assert image_of(run, place) == (meant, 6 if place == 6 else 5)
    if isinstance(place, str):
        assert class_ids_of((place.rpartition(":")[0],), run) == (meant,)


class Named(nn.Module):
    """SiT's network with class embeddings of its own kind, as a method from elsewhere may have them."""

    def __init__(self, model):
        super().__init__()
        self.config, self.inner = model.config, model
        self.inner.embed_label = nn.Embedding(5, 16)

    def forward(self, x, t, labels):
        self.inner.embed_label.forward = lambda ids, batch: nn.functional.embedding(ids, self.inner.embed_label.weight)
        return self.inner(x, t, torch.full((len(x),), 4) if labels is None else labels)


def test_a_model_that_takes_only_ids_walks_in_one_class():
    sampler = sampler_of(sit)
    sampler = replace(sampler, model=Named(sampler.model).requires_grad_(False))
    assert len(walk(sampler, "1:5", "1:9", 3)) == 3
    with pytest.raises(ValueError, match=r"a walk stays in one class, got the ids 1, 2"):
        walk(sampler, "1:5", "2:9", 3)


def test_evaluations_stand_in_place_of_steps():
    found = walk(sampler_of(sit), 1, 2, 2, nfe=8)
    assert found.nfe == {"conditional": 4, "null": 4}


@pytest.fixture
def run(tmp_path):
    """A run folder without weights: what is refused is refused before they are read."""
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    names = {"class_names": ("cat", "dog", "hen:small", "7")}
    settings = Run(method=sit.Config(**SHAPE))
    folder.write(record_of(replace(settings, data=replace(settings.data, **names)), "run"))
    return str(folder)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ["--from", "cta:3", "--to", "dog:8"],
            "--from cta:3: classes must be names or class ids of the model's 4 (cat, ",
        ),
        (["--from", "cta:3", "--to", "dog:8"], "got cta; did you mean cat?"),
        (
            ["--from", "cat:3", "--to", "dog"],
            "--to dog: an image is INDEX or CLASS:INDEX, such as 3 or cat:3, got 'dog'",
        ),
        (["--from", "cat:-3", "--to", "dog:1"], "--from cat:-3: indices must be numbers from 0 on"),
        (["--corners", "1", "2", "3", "pig:4"], "--corners pig:4: classes must be names"),
        (["--from", "1", "--to", "2", "--nfe", "8", "--steps", "3"], "give --steps or --nfe, got both"),
        (["--from", "1", "--to", "2", "--side", "3"], "--side for --corners"),
        (["--corners", "1", "2", "3", "4", "--frames", "3"], "--frames is for --from and --to"),
        (["--from", "1", "--to", "2", "--nfe", "0"], "--nfe must be at least 1"),
        (["--from", "1", "--to", "2", "--nfe", "8", "--solver", "dopri5"], "error: the solver dopri5 chooses its own"),
    ],
)
def test_what_is_wrong_is_said_before_weights_are_read(run, words, says, capsys):
    assert main(["walk", run, *words]) == 2
    assert says in capsys.readouterr().err
    assert main(["walk", run, "--from", "hen:small:3", "--to", "7:1"]) == 1  # all is well but for the checkpoint
    assert "checkpoint" in capsys.readouterr().err
