"""Walks: their ends are sampled images, bit for bit; ways on the sphere; labels as weights of classes."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from test_edits import sampler_of

import fluvial
from fluvial import recipes
from fluvial.cli import main
from fluvial.nn.layers import LabelEmbedding
from fluvial.run import walk as module
from fluvial.run.walk import between_seeds, plane, walk
from fluvial.sampling.walk import plane as plane_of_noise
from fluvial.sampling.walk import slerp
from fluvial.utils.randomness import normal


def test_points_between_two_noises_lie_on_the_arc():
    a, b = normal(0, [1, 2], (3, 40))
    found = slerp(a, b, torch.linspace(0, 1, 5))
    assert torch.equal(found[0], a) and torch.equal(found[-1], b)  # exactly
    angle = math.acos(float((a.flatten() @ b.flatten()) / (a.norm() * b.norm())))
    for i, point in enumerate(found):
        assert float(point.norm()) == pytest.approx(float(a.norm() + (b.norm() - a.norm()) * i / 4), rel=1e-5)
        cosine = float((point.flatten() @ a.flatten()) / (point.norm() * a.norm()))
        assert math.acos(min(1, cosine)) == pytest.approx(angle * i / 4, abs=2e-3)
    assert torch.equal(slerp(a, a, torch.linspace(0, 1, 3)), a.expand(3, 3, 40))


def test_a_plane_has_its_corners_and_is_symmetric():
    corners = normal(0, [1, 2, 3, 4], (8,))
    found = plane_of_noise(corners, 3).unflatten(0, (3, 3))
    assert torch.equal(found[[0, 0, 2, 2], [0, 2, 0, 2]], corners)
    assert torch.allclose(found[0], slerp(corners[0], corners[1], torch.linspace(0, 1, 3)))
    assert torch.allclose(found[:, 2], slerp(corners[1], corners[3], torch.linspace(0, 1, 3)))


@torch.no_grad()
def test_weights_of_classes_mix_their_embeddings():
    embedding = LabelEmbedding(4, 12)
    ids = torch.tensor([0, 3, 4])
    weights = torch.eye(5)
    assert torch.equal(embedding(weights[ids], 3), embedding(ids, 3))
    mixed = embedding(0.25 * weights[:1] + 0.75 * weights[2:3], 1)
    table = embedding.table.weight
    assert torch.allclose(mixed, 0.25 * table[:1] + 0.75 * table[2:3])


@pytest.mark.parametrize("kind", ["sit", "arflow", "flowar"])
def test_the_ends_of_walks_and_planes_are_sampled_images(kind):
    sampler = sampler_of(kind)
    one, other = (sampler.sample(indices=[i], classes=c).images[0] for i, c in ((5, 1), (9, 3)))
    found = walk(sampler, "1:5", (3, 9), 4)
    assert torch.equal(found.images[0], one) and torch.equal(found.images[-1], other)
    assert len({image.numpy().tobytes() for image in found.images}) == 4
    assert found.about["edit"] == {"edit": "walk", "walk": ["1:5", "(3, 9)"], "frames": 4}
    corners = plane(sampler, ["1:5", "3:9", 0, "7"], 2).images
    assert torch.equal(corners[0], one) and torch.equal(corners[1], other)
    assert torch.equal(corners[2:], sampler.sample(indices=[0, 7]).images)  # of their usual classes


@pytest.mark.parametrize("kind", ["sit", "arflow", "flowar"])
def test_between_seeds_the_corners_are_sampled_images(kind):
    sampler = sampler_of(kind)
    seeds = (3, 4, 103, 104)
    for at, seed in (((0.0, 0.0), 3), ((1.0, 0.0), 4), ((0.0, 1.0), 103), ((1.0, 1.0), 104)):
        own = sampler.sample(4, seed=seed, classes=[1, 2])
        found = between_seeds(sampler, seeds, at, 4, classes=[1, 2])
        assert torch.equal(found.images, own.images) and torch.equal(found.labels, own.labels)
        assert found.nfe == own.nfe
    inside = between_seeds(sampler, seeds, (0.25, 0.5), 4, classes=[1, 2])
    assert inside.about["edit"] == {"edit": "walk", "seeds": [3, 4, 103, 104], "at": [0.25, 0.5]}
    one = between_seeds(sampler, seeds, (0.25, 0.5), indices=[2], classes=[1, 2])
    assert torch.equal(one.images[0], inside.images[2]), "an image does not depend on its batch"
    assert not torch.equal(inside.images, sampler.sample(4, seed=3, classes=[1, 2]).images)


def test_between_seeds_noise_lies_on_the_arcs(monkeypatch):
    sampler, seen = sampler_of("sit"), []
    monkeypatch.setattr(module, "generate", lambda *args, noise, **rest: seen.append(noise([5, 9], 0)) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        between_seeds(sampler, (0, 1, 2, 3), (0.25, 0.5), 2)
    corners = [normal(seed, [5, 9], sampler.run.method.noise_shape) for seed in range(4)]
    for i, found in enumerate(seen[0]):
        shares = torch.tensor([0.25]), torch.tensor([0.5])
        top, below = (slerp(corners[k][i], corners[k + 1][i], shares[0])[0] for k in (0, 2))
        assert torch.equal(found, slerp(top, below, shares[1])[0])


def test_places_that_are_not_between_seeds_are_refused():
    sampler = sampler_of("sit")
    for seeds, at, expected in (
        ((1, 2), (0.5, 0.5), "4 seeds, got 2"),
        ((1, 2, 3, 4), (0.5, 1.5), "from 0 to 1"),
        ((1, 2, 3, -4), (0.5, 0.5), "seed must be"),
    ):
        with pytest.raises(ValueError, match=expected):
            between_seeds(sampler, seeds, at)
    with pytest.raises(ValueError, match="in place of a seed"):
        between_seeds(sampler, (1, 2, 3, 4), (0.5, 0.5), seed=7)


def test_a_model_without_classes_walks_between_indices():
    sampler = sampler_of("sit", classes=0, label_drop=0.0)
    found = walk(sampler, 2, 4, 3).images
    assert torch.equal(found[[0, 2]], sampler.sample(indices=[2, 4]).images)
    with pytest.raises(ValueError, match="without classes"):
        walk(sampler, "1:2", 4, 3)


def test_what_is_no_image_is_refused():
    sampler = sampler_of("sit")
    for place, expected in (("4:5", "got 4"), ("dog:5", "got dog"), ("dog", "INDEX or CLASS:INDEX"), (-1, "from 0 on")):
        with pytest.raises(ValueError, match=expected):
            walk(sampler, place, 2, 3)
    with pytest.raises(ValueError, match="4 corners, got 3"):
        plane(sampler, [1, 2, 3])
    with pytest.raises(ValueError, match="frames must be a whole number of at least 2, got 1"):
        walk(sampler, 1, 2, 1)
    for long in (lambda: walk(sampler, 1, 2, 10**6), lambda: plane(sampler, [1, 2, 3, 4], 33)):
        with pytest.raises(ValueError, match="must be at most"):
            long()


def test_the_command_draws_there_and_back(tmp_path, capsys):
    tiny = recipes.smoke(recipes.get("digits-sit"))
    train = replace(tiny.train, steps=1, batch=2, validate_every=0, sample_every=0, first_sample=0)
    fluvial.train(replace(tiny, train=train), tmp_path / "run", device="cpu")
    run = str(tmp_path / "run")
    assert main(["walk", run, "--from", "3:5", "--to", "8:9", "--frames", "4", "--steps", "2"]) == 0
    gif = Image.open(tmp_path / "run" / "walk" / "walk.gif")
    assert gif.n_frames == 6
    assert np.load(tmp_path / "run" / "walk" / "samples.npz")["arr_0"].shape == (4, 8, 8, 3)
    assert main(["walk", run, "--corners", "1", "2", "3", "4", "--side", "3", "--steps", "2", "--out", run + "-p"]) == 0
    assert np.load(tmp_path / "run-p" / "samples.npz")["arr_0"].shape == (9, 8, 8, 3)
    square = ["--seeds", "3", "4", "103", "104", "--at"]
    assert main(["walk", run, *square, "0", "1", "--count", "6", "--columns", "3", "--out", run + "-s"]) == 0
    assert main(["sample", run, "--seed", "103", "--count", "6", "--columns", "3", "--out", run + "-o"]) == 0
    files = [(tmp_path / name / "grid.png").read_bytes() for name in ("run-s", "run-o")]
    assert files[0] == files[1]
    for words, expected in (
        ([*square, "0.5"], "--seeds takes four and --at two numbers, got 4 and 1"),
        ([*square, "0.5", "2"], "from 0 to 1"),
        ([*square, "0", "1", "--seed", "3"], "in place of --seed"),
        (["--count", "3", "--from", "1", "--to", "2"], "--count is for --seeds"),
        ([*square, "0", "1", "--side", "3"], "--side for --corners"),
        (["--from", "3:5"], "needs --from and --to"),
        (["--corners", "1", "2"], "--corners takes four images, got 2"),
        (["--from", "11:5", "--to", "3:2"], "got 11"),
        (["--from", "1:5", "--to", "3:2", "--out", run], "holds files already"),
    ):
        assert main(["walk", run, *words]) in (1, 2)
        assert expected in capsys.readouterr().err
