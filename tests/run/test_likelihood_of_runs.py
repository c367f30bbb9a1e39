"""The likelihood of images under a run: closed forms, what is refused, and the command."""

import importlib.util
import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.distributions import Normal

from conftest import randomise
from fluvial import methods, recipes
from fluvial.autoencoders import Pixels
from fluvial.cli import main
from fluvial.data.dequantise import dequantised
from fluvial.data.images import digits
from fluvial.methods import empty_model, method_of
from fluvial.run import likelihood as it
from fluvial.run.folder import RunFolder, record_of
from fluvial.run.load import Sampler
from fluvial.utils.files import json_checksum

MEAN, STD = 0.3, 0.2
IMAGES = digits("test").pixels[:6]
LABELS = digits("test").labels[:6]


class Gaussian(nn.Module):
    """The velocity of data whose numbers are independent N(MEAN, STD^2), on the linear path."""

    def __init__(self, config):
        super().__init__()
        self.config, self.weight = config, nn.Parameter(torch.zeros(1), requires_grad=False)

    def forward(self, x, t, labels=None):
        t = t.view(-1, 1, 1, 1)
        r = (x - t * MEAN) / (t**2 * STD**2 + (1 - t) ** 2)
        return MEAN + t * STD**2 * r - (1 - t) * r


def run_of(recipe, **method):
    run = recipes.smoke(recipes.get(recipe))
    return replace(run, method=replace(run.method, **method))


def sampler_of(recipe, std=0.1, **method):
    """A sampler with random weights."""
    run = run_of(recipe, **method)
    model = empty_model(run.method).eval().requires_grad_(False)
    randomise(model, std=std)
    return Sampler(model=model, run=run, autoencoder=Pixels())


def gaussian():
    run = run_of("digits-sit")
    return Sampler(model=Gaussian(run.method), run=run, autoencoder=Pixels())


@pytest.mark.parametrize("probes", [0, 1, 2])
def test_gaussian_pixels_have_the_bits_of_the_closed_form(probes):
    """The Jacobian is diagonal: the probes are as good as the exact trace."""
    settings = it.LikelihoodConfig(probes=probes, tolerance=1e-5, seed=3)
    found = it.likelihood(gaussian(), IMAGES, LABELS, settings=settings)
    log_density = Normal(MEAN, STD).log_prob(dequantised(IMAGES, range(6), seed=3).double()).flatten(1)
    expected = -log_density.mean(dim=1) / math.log(2) + math.log2(127.5)
    torch.testing.assert_close(found.bits, expected, atol=0.01, rtol=0)
    torch.testing.assert_close(found.nats["image"], log_density.sum(dim=1), atol=0.4, rtol=0)
    assert found.numbers == {"image": 64} and not found.no_bits


@pytest.mark.parametrize("recipe", ["digits-sit", "digits-flowar"])
def test_an_image_has_one_likelihood_in_any_batch(recipe):
    sampler = sampler_of(recipe)
    whole = it.likelihood(sampler, IMAGES, LABELS, settings=it.LikelihoodConfig(solver="heun", steps=4, batch=4))
    alone = replace(whole_settings(), batch=1)
    part = it.likelihood(sampler, IMAGES[[5, 1]], LABELS[[5, 1]], indices=[5, 1], settings=alone)
    for name, nats in whole.nats.items():
        torch.testing.assert_close(part.nats[name], nats[[5, 1]], rtol=1e-5, atol=0)
        torch.testing.assert_close(part.probe_errors[name], whole.probe_errors[name][[5, 1]], rtol=1e-4, atol=0)


def whole_settings():
    return it.LikelihoodConfig(solver="heun", steps=4)


def test_probes_agree_with_the_exact_trace_within_their_error():
    sampler = sampler_of("digits-sit", std=0.2)
    exact, estimate = (
        it.likelihood(sampler, IMAGES, LABELS, settings=replace(whole_settings(), probes=probes)) for probes in (0, 16)
    )
    off = (estimate.nats["image"] - exact.nats["image"]) / estimate.probe_errors["image"]
    assert float(off.abs().max()) < 4 and float(estimate.probe_errors["image"].min()) > 0
    assert not exact.probe_errors["image"].any()


def test_every_image_has_probes_of_its_own():
    """Twice the same latents, so that nothing is dequantised: the estimates differ, the exact traces do not."""
    sampler, twice = sampler_of("digits-sit", std=0.2), IMAGES[:1].float().repeat(2, 1, 1, 1) / 127.5 - 1
    for probes in (0, 1):
        found = it.likelihood(sampler, twice, LABELS[[0, 0]], settings=replace(whole_settings(), probes=probes))
        first, second = found.nats["image"].tolist()
        assert (abs(first - second) < 1e-3) == (probes == 0)


def test_labels_matter_and_can_be_left_out():
    sampler = sampler_of("digits-sit")
    own, none = (it.likelihood(sampler, IMAGES, labels, settings=whole_settings()) for labels in (LABELS, None))
    assert not torch.allclose(own.nats["image"], none.nats["image"])
    assert (own.about["labels"], none.about["labels"]) == ("those of the images", "none")
    only = sampler_of("digits-sit", label_drop=0.0)
    with pytest.raises(ValueError, match=r"trained with labels alone \(label_drop 0\)"):
        it.likelihood(only, IMAGES, None, settings=whole_settings())


def test_arflow_is_refused_with_its_history_and_measured_without():
    sampler = sampler_of("digits-arflow")
    with pytest.raises(ValueError, match=r"arflow depends on the points before, .* solves no ODE in x.*History off"):
        it.likelihood(sampler, IMAGES, LABELS)
    found = it.likelihood(sampler, IMAGES, LABELS, settings=replace(whole_settings(), history=False))
    assert found.about["density"] == "of the ODE without history, another model than the sampled one"
    assert found.bits.isfinite().all()
    with pytest.raises(ValueError, match="sit has no history that could be off"):
        it.likelihood(gaussian(), IMAGES, LABELS, settings=replace(whole_settings(), history=False))


def test_flowar_has_a_density_for_each_scale_and_no_bits():
    found = it.likelihood(sampler_of("digits-flowar"), IMAGES, LABELS, settings=whole_settings())
    assert list(found.numbers.values()) == [4, 16, 64] and found.nfe == 3 * 8
    with pytest.raises(ValueError, match="no bits per dimension: the coarse maps are functions of the fine one"):
        _ = found.bits
    assert "bits_per_dim" not in found.record()
    with pytest.raises(ValueError, match="84 numbers of noise"):
        it.likelihood_of_samples(sampler_of("digits-flowar"), 2)


class Shrunk(Pixels):
    """An autoencoder whose latents are half the images."""

    hash = "shrunk"

    def latents(self, moments, generator=None, part=None):
        return moments / 2


def test_latents_have_a_density_of_their_own_and_no_bits():
    sampler = replace(gaussian(), autoencoder=Shrunk())
    found = it.likelihood(sampler, IMAGES, LABELS, settings=it.LikelihoodConfig(probes=1))
    latents = (IMAGES.double() / 127.5 - 1) / 2
    expected = Normal(MEAN, STD).log_prob(latents).flatten(1).sum(dim=1)
    torch.testing.assert_close(found.nats["image"], expected, atol=0.4, rtol=0)
    given = it.likelihood(sampler, latents.float(), LABELS, settings=it.LikelihoodConfig(probes=1))
    torch.testing.assert_close(given.nats["image"], found.nats["image"], rtol=1e-5, atol=0)
    with pytest.raises(ValueError, match="no bits per dimension: the model has a density of latents"):
        _ = found.bits


@pytest.mark.parametrize("recipe", ["digits-sit", "digits-arflow"])
def test_samples_are_those_that_are_drawn_without_guidance(recipe):
    sampler = sampler_of(recipe)
    found = it.likelihood_of_samples(sampler, 3, classes=[4, 2], steps=3, seed=5)
    drawn = sampler.sample(3, classes=[4, 2], steps=3, seed=5, guidance=1.0)
    assert int((found.images.int() - drawn.images.int()).abs().max()) <= 1 and found.labels.tolist() == [4, 2, 4]
    assert found.nats["image"].isfinite().all() and len(set(found.nats["image"].tolist())) == 3


def test_gaussian_samples_have_the_density_of_the_data():
    """Its map is linear: log p(x1) is that of N(MEAN, STD^2) at the samples, up to the error of the steps."""
    found = it.likelihood_of_samples(gaussian(), 2, steps=50, solver="midpoint")
    noise = it.normal(0, range(2), (1, 8, 8)).double().flatten(1)
    expected = Normal(0.0, 1.0).log_prob(noise).sum(dim=1) - 64 * math.log(STD)
    torch.testing.assert_close(found.nats["image"], expected, atol=0.2, rtol=0)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"solver": "euler-maruyama"}, "is of an SDE, along which a density does not follow"),
        ({"steps": 4}, "steps has no effect with the solver dopri5: leave it out, or choose heun"),
        ({"solver": "heun", "tolerance": 1e-3}, "tolerance has no effect with the solver heun"),
        ({"tolerance": 0.0}, "tolerance"),
        ({"probes": -1}, "probes"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(given, reason):
    with pytest.raises(ValueError, match=reason):
        it.LikelihoodConfig(**given)


@pytest.mark.parametrize(
    ("images", "labels", "reason"),
    [
        (IMAGES[..., :4], LABELS, r"of \(8, 8\) pixels .*got 6 images of \(8, 4\)"),
        (IMAGES[:0], LABELS[:0], "got 0 images"),
        (IMAGES, LABELS + 10, "class ids from 0 to 9, got"),
    ],
)
def test_images_and_labels_of_another_model_are_refused(images, labels, reason):
    with pytest.raises(ValueError, match=reason):
        it.likelihood(gaussian(), images, labels)
    with pytest.raises(ValueError, match="6 images need as many labels and indices, got 6 and 1"):
        it.likelihood(gaussian(), IMAGES, LABELS, indices=[0])


def test_large_images_have_no_exact_trace():
    run = run_of("digits-sit", size=(64, 64))
    with pytest.raises(ValueError, match=r"for at most 1,024 numbers, got 4,096.*--probes"):
        it.check_likelihood(run, it.LikelihoodConfig(probes=0), labelled=True)


def test_a_method_that_does_not_tell_its_ode_is_refused(monkeypatch):
    monkeypatch.setattr(methods, "METHODS", dict(methods.METHODS))
    monkeypatch.setattr(recipes, "RECIPES", dict(recipes.RECIPES))
    file = Path(__file__).parents[2] / "examples" / "pixel_flow.py"
    spec = importlib.util.spec_from_file_location("pixel_flow_without_flows", file)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    run = replace(recipes.get("digits-sit"), method=module.Config())
    assert method_of(run.method) is module
    with pytest.raises(ValueError, match=r"pixel-flow does not tell the ODE .*sit, arflow, flowar.*`flows`"):
        it.check_likelihood(run, it.LikelihoodConfig(), labelled=True)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Run folders with random weights."""
    root, made = tmp_path_factory.mktemp("likelihood"), {}
    for recipe in ("digits-sit", "digits-arflow", "digits-flowar"):
        sampler = sampler_of(recipe)
        made[recipe] = RunFolder(root / recipe)
        made[recipe].create(record_of(sampler.run, recipe), sampler.model.state_dict())
    return made


def test_the_command_writes_all_numbers_and_a_picture(folders, capsys):
    folder = folders["digits-sit"].path
    words = ["--count", "4", "--solver", "heun", "--steps", "3", "--seed", "2"]
    assert main(["likelihood", str(folder), *words]) == 0
    said = capsys.readouterr().out
    record = json.loads((folder / "likelihood.json").read_text())
    assert f"{record['bits_per_dim']['value']:.3f}" in said and (folder / "likelihood.png").exists()
    assert record.pop("sha256") == json_checksum(record) and record == {**record, "kind": it.KIND}
    settings = record["settings"]
    assert (settings["solver"], settings["steps"], settings["seed"], settings["guidance"]) == ("heun", 3, 2, 1.0)
    test = digits("test")
    rows = record["images"]["index"]
    again = it.likelihood(
        sampler_of("digits-sit"),
        test.pixels[rows],
        test.labels[rows],
        indices=rows,
        settings=it.LikelihoodConfig(solver="heun", steps=3, seed=2),
    )
    assert record["images"]["label"] == test.labels[rows].tolist()
    assert record["images"]["nats"]["image"] == pytest.approx(again.nats["image"].tolist(), rel=1e-5)


def test_the_command_measures_training_images_scales_and_samples(folders, capsys, tmp_path):
    fast = ["--count", "2", "--solver", "heun", "--steps", "2", "--out", str(tmp_path / "found.json")]
    assert main(["likelihood", str(folders["digits-sit"].path), "train", *fast]) == 0
    assert main(["likelihood", str(folders["digits-sit"].path), "digits:train", *fast, "--labels", "none"]) == 0
    assert main(["likelihood", str(folders["digits-flowar"].path), *fast]) == 0
    said = capsys.readouterr().out
    assert "4x4" in said and "no bits per dimension: the coarse maps" in said
    assert main(["likelihood", str(folders["digits-arflow"].path), "--samples", *fast]) == 0
    assert "of the sampler, by its Jacobian" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("recipe", "words", "code", "reason"),
    [
        ("digits-arflow", [], 2, "solves no ODE in x"),
        ("digits-sit", ["--history", "off"], 2, "sit has no history"),
        ("digits-sit", ["--exact", "--probes", "2"], 2, "give --probes or --exact, got both"),
        ("digits-sit", ["--samples", "--exact"], 2, "--samples has no --exact"),
        ("digits-sit", ["train", "--samples"], 2, "in place of images, got train too"),
        ("digits-sit", ["--steps", "3"], 2, "steps has no effect with the solver dopri5"),
        ("digits-sit", ["--count", "1"], 2, "--count must be at least 2, got 1|count"),
        ("digits-sit", ["no/such/images"], 1, "no/such/images"),
        ("digits-flowar", ["--samples"], 1, "84 numbers of noise"),
    ],
)
def test_the_command_refuses_in_a_line(folders, capsys, recipe, words, code, reason):
    assert main(["likelihood", str(folders[recipe].path), *words]) == code
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    assert any(part in said for part in reason.split("|")), said
