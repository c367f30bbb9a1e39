import dataclasses
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import fluvial
from fluvial import recipes
from fluvial.autoencoders import AutoencoderConfig
from fluvial.config import Run
from fluvial.data import images as data_images
from fluvial.data import latents
from fluvial.data.images import DataConfig, digits
from fluvial.data.pixels import to_signed
from fluvial.evaluation.against import real_images
from fluvial.methods import arflow, sit
from fluvial.run import inputs
from fluvial.run.folder import RunFolder
from fluvial.run.inputs import batches_of, encode, open_autoencoder, open_inputs
from fluvial.training.config import TrainConfig
from fluvial.training.optim import OptimConfig


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Twenty noisy pictures of three classes."""
    root, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for i in range(20):
        folder = root / "abc"[i % 3]
        folder.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 16 + i, 3), dtype=np.uint8)).save(folder / f"{i:02d}.png")
    return root


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    """An AutoencoderKL of stride 2 whose posterior has a variance that shows."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    shape = {"block_out_channels": (8, 8), "norm_num_groups": 4, "latent_channels": 4, "scaling_factor": 0.5}
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    folder = tmp_path_factory.mktemp("vae")
    diffusers.AutoencoderKL(**shape, **blocks).save_pretrained(folder)
    return str(folder)


def run(photos, vae, *, method=None, data=None, autoencoder=None):
    settings = {"size": (8, 8), "channels": 4, "classes": 3, "patch": 4, "depth": 1, "width": 16, "heads": 2}
    return Run(
        method=arflow.Config(**{**settings, "images_per_sequence": 3, **(method or {})}),
        data=DataConfig(**{"path": str(photos), "size": 16, "flip": True, **(data or {})}),
        autoencoder=AutoencoderConfig(**{"name": vae, **(autoencoder or {})}),
        optim=OptimConfig(lr=1e-3, schedule="constant"),
        train=TrainConfig(
            **{"steps": 3, "batch": 4, "log_every": 1, "save_every": 3, "validate_every": 0, "sample_every": 3}
        ),
    )


def cached(folder, photos, vae, **options):
    encode(
        DataConfig(path=str(photos), size=16),
        open_autoencoder(AutoencoderConfig(name=vae)),
        folder,
        **{"dtype": "fp32", **options},
    )
    return {"path": str(folder)}


def drawn(opened, step, **options):
    return batches_of(opened, opened.train, 4, "cpu", flip=True, **options)(step)


@pytest.mark.parametrize("method", [{}, {"images_per_sequence": 1}])
def test_images_and_their_cache_give_the_same_batches(tmp_path, photos, vae, method):
    on_the_fly = open_inputs(run(photos, vae, method=method))
    from_cache = open_inputs(run(photos, vae, method=method, data=cached(tmp_path / "c", photos, vae, shard=6)))
    assert from_cache.run.data.class_names == ("a", "b", "c")
    for step in (0, 7):
        (x, labels), (y, other) = drawn(on_the_fly, step), drawn(from_cache, step)
        assert torch.equal(labels, other)
        torch.testing.assert_close(x, y, atol=1e-5, rtol=1e-5)
    again = drawn(from_cache, 7)[0]
    assert torch.equal(again, y) and not torch.equal(drawn(from_cache, 8)[0], y)
    other_seed = dataclasses.replace(from_cache, run=dataclasses.replace(from_cache.run, seed=1))
    assert not torch.equal(drawn(other_seed, 7)[0], y)


def test_mirror_images_and_draws_are_what_they_are_called(tmp_path, photos, vae):
    """One image, over and over: every latent is a draw from the posterior of it or of its mirror image."""
    opened = open_inputs(run(photos, vae, method={"images_per_sequence": 1, "classes": 0}))
    one = dataclasses.replace(opened, train=opened.train.subset(torch.tensor([0])))
    draws = torch.cat([drawn(one, step, small_classes="repeat")[0].flatten(0, 1) for step in range(60)])
    assert len(draws.flatten(1).unique(dim=0)) == 240  # no draw twice
    other_seed = dataclasses.replace(one, run=dataclasses.replace(one.run, seed=1))
    x, y = (batches_of(o, o.train, 4, "cpu", small_classes="repeat")(0)[0] for o in (one, other_seed))
    assert not torch.equal(x, y)  # nor by another seed, and here nothing is mirrored
    pixels = to_signed(opened.train.pixels[:1])
    expected = [opened.autoencoder.moments(x) for x in (pixels, pixels.flip(-1))]
    means = torch.stack([m[0, :4] * 0.5 for m in expected])
    nearest = (draws[:, None] - means).square().sum((2, 3, 4)).argmin(1)
    for k, m in enumerate(expected):
        mine, std = draws[nearest == k], (m[0, 4:] / 2).exp() * 0.5
        assert 80 < len(mine) < 160  # of 240
        z = (mine - means[k]) / std
        assert abs(z.mean()) < 0.03 and abs(z.std() - 1) < 0.03


def test_training_on_a_cache_is_training_on_the_images(tmp_path, photos, vae):
    direct = fluvial.train(run(photos, vae), tmp_path / "direct", device="cpu")
    through = run(photos, vae, data={"cache": True})
    cache = fluvial.train(through, tmp_path / "through", device="cpu")
    assert latents.read_manifest(tmp_path / "through" / "latents").plan.dtype == "bf16"
    ours, theirs = (t.model.state_dict() for t in (direct, cache))
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], atol=2e-3, rtol=0.05)  # the cache is in bf16
    assert cache.sample(3).images.shape == (3, 3, 16, 16) and (tmp_path / "through" / "samples").exists()
    assert fluvial.train(through, tmp_path / "through", device="cpu").step == 3


def test_sampling_needs_no_data(tmp_path, photos, vae):
    shutil.copytree(photos, tmp_path / "photos")
    settings = run(tmp_path / "photos", vae, autoencoder={"statistics": "measured"})
    trained = fluvial.train(settings, tmp_path / "run", device="cpu")
    shutil.rmtree(tmp_path / "photos")
    written = RunFolder(tmp_path / "run").run()
    assert len(written.autoencoder.shift) == 4 and written.data.class_names == ("a", "b", "c")
    again = fluvial.load(tmp_path / "run", device="cpu")
    assert torch.equal(again.sample(4).images, trained.sample(4).images)
    assert again.autoencoder.shift == trained.autoencoder.shift == written.autoencoder.shift


def test_measured_statistics_are_kept_when_a_run_goes_on(tmp_path, photos, vae, monkeypatch):
    """Even if they would be measured otherwise now: the steps taken so far are on the old ones."""
    settings = run(photos, vae, autoencoder={"statistics": "measured"})
    first = fluvial.train(settings, tmp_path / "run", device="cpu").run
    assert open_inputs(settings).run.autoencoder == first.autoencoder
    monkeypatch.setattr(inputs, "MEASURED", 5)
    assert open_inputs(settings).run.autoencoder.shift != first.autoencoder.shift
    assert fluvial.train(settings, tmp_path / "run", device="cpu").run.autoencoder == first.autoencoder


def test_a_run_goes_on_with_the_same_images_only(tmp_path, photos, vae):
    fluvial.train(run(photos, vae), tmp_path / "run", device="cpu")
    shutil.copytree(photos, tmp_path / "moved")
    assert fluvial.train(run(tmp_path / "moved", vae), tmp_path / "run", device="cpu").step == 3
    from_cache = run(photos, vae, data=cached(tmp_path / "c", photos, vae))
    assert fluvial.train(from_cache, tmp_path / "run", device="cpu").step == 3
    next((tmp_path / "moved" / "a").iterdir()).unlink()
    with pytest.raises(ValueError, match=r"the images are not those that .* was trained on"):
        fluvial.train(run(tmp_path / "moved", vae), tmp_path / "run", device="cpu")


def test_unreadable_images_are_named_when_training_starts(tmp_path, photos, vae, capsys):
    shutil.copytree(photos, tmp_path / "photos")
    (tmp_path / "photos" / "a" / "00.png").write_bytes(b"")
    fluvial.train(run(tmp_path / "photos", vae, data={"unreadable": "skip"}), tmp_path / "run", device="cpu")
    assert "left out: 1 unreadable image: " in capsys.readouterr().out


def test_a_batch_of_which_nothing_can_be_read_is_left_out(tmp_path, photos, vae):
    shutil.copytree(photos, tmp_path / "photos")
    for i in (0, 3):  # the first batch
        (tmp_path / "photos" / "a" / f"{i:02d}.png").write_bytes(b"")
    data = DataConfig(path=str(tmp_path / "photos"), size=16, unreadable="skip")
    manifest = encode(data, open_autoencoder(AutoencoderConfig(name=vae)), tmp_path / "c", batch=2)
    assert manifest.images == 18 and len(manifest.skipped) == 2


def test_channels_that_do_not_vary_have_no_measured_scale():
    flat = data_images.ImageSet(torch.zeros(8, 1, 8, 8, dtype=torch.uint8), None, ())
    with pytest.raises(ValueError, match=r"channels \[0\] of the latents are constant"):
        inputs._measured(flat, open_autoencoder(AutoencoderConfig()), "cpu")


def test_measured_statistics_standardise_the_latents(tmp_path, photos, vae):
    for data in ({}, cached(tmp_path / "c", photos, vae)):
        opened = open_inputs(run(photos, vae, data=data, autoencoder={"statistics": "measured"}))
        x = torch.cat([drawn(opened, step)[0].flatten(0, 1) for step in range(40)])
        assert x.mean((0, 2, 3)).abs().max() < 0.1 and (x.std((0, 2, 3)) - 1).abs().max() < 0.1


def test_the_autoencoder_may_move_but_not_change(tmp_path, photos, vae):
    fluvial.train(run(photos, vae), tmp_path / "run", device="cpu")
    from diffusers import AutoencoderKL

    model = AutoencoderKL.from_pretrained(vae, low_cpu_mem_usage=False)
    model.save_pretrained(tmp_path / "moved")
    assert fluvial.load(tmp_path / "run", autoencoder=str(tmp_path / "moved"), device="cpu").step == 3
    resumed = run(photos, str(tmp_path / "moved"))
    assert fluvial.train(resumed, tmp_path / "run", device="cpu").step == 3
    with torch.no_grad():
        model.decoder.conv_out.bias += 0.1
    model.save_pretrained(tmp_path / "changed")
    with pytest.raises(ValueError, match="whose weights have the hash .*, '.*changed' has"):
        fluvial.load(tmp_path / "run", autoencoder=str(tmp_path / "changed"), device="cpu")
    with pytest.raises(ValueError, match="whose weights have the hash .*, '.*changed' has"):
        fluvial.train(run(photos, str(tmp_path / "changed")), tmp_path / "run", device="cpu")


def test_a_cache_that_does_not_fit_names_both_values(tmp_path, photos, vae):
    data = cached(tmp_path / "c", photos, vae, flip=False)
    with pytest.raises(ValueError, match="images have 16 pixels there and 32 here"):
        open_inputs(run(photos, vae, data={**data, "size": 32, "flip": False}))
    with pytest.raises(ValueError, match="no mirror images there, and data.flip is True here"):
        open_inputs(run(photos, vae, data=data))
    with pytest.raises(ValueError, match="the crop is centre there and random here"):
        open_inputs(run(photos, vae, data={**data, "crop": "random", "flip": False}))
    with pytest.raises(ValueError, match=r"the autoencoder is .*vae.* \(.*\) there and pixels \(pixels\) here"):
        open_inputs(run(photos, "pixels", data={**data, "flip": False}))
    with pytest.raises(ValueError, match="the data has 3 classes, the model 5"):
        open_inputs(run(photos, vae, data={**data, "flip": False}, method={"classes": 5}))
    (tmp_path / "c" / "manifest.json").rename(tmp_path / "c" / "plan.json")
    with pytest.raises(ValueError, match="has not finished there"):
        open_inputs(run(photos, vae, data=data))


def test_data_that_does_not_fit_the_model_says_what_to_set(tmp_path, photos, vae):
    with pytest.raises(ValueError, match=r"latents of \(4, 8, 8\).*the model takes \(4, 16, 16\)"):
        open_inputs(run(photos, vae, method={"size": (16, 16)}))
    with pytest.raises(ValueError, match="images of 17 x 17 pixels cannot be encoded by .*choose a multiple of 2"):
        open_inputs(run(photos, vae, data={"size": 17}))
    with pytest.raises(ValueError, match="the images have 1 channels, .* takes 3; set data.channels"):
        open_inputs(run(photos, vae, data={"channels": 1}))
    one = tmp_path / "one" / "only"
    one.mkdir(parents=True)
    for file in sorted((photos / "a").iterdir()):
        (one / file.name).write_bytes(file.read_bytes())
    with pytest.raises(ValueError, match="one class only, 'only'; set method.classes to 0"):
        open_inputs(run(one.parent, vae))
    (tmp_path / "numbers").mkdir()
    labels = torch.zeros(9, dtype=torch.long)
    one_class = data_images.ImageSet(torch.zeros(9, 3, 16, 16, dtype=torch.uint8), labels, ())
    with pytest.raises(ValueError, match="one class only, 0; set method.classes to 0"):
        open_inputs(run(photos, vae), images=one_class)
    with pytest.raises(ValueError, match=r"fewer: c \(6\)"):
        fluvial.train(run(photos, vae, method={"images_per_sequence": 7}), tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()


def test_pixels_can_be_cached_too(tmp_path):
    encode(DataConfig(name="digits"), open_autoencoder(AutoencoderConfig()), tmp_path / "c", flip=False, dtype="fp32")
    shape = {"size": (8, 8), "channels": 1, "classes": 10, "patch": 4, "depth": 1, "width": 16, "heads": 2}
    opened = open_inputs(Run(method=sit.Config(**shape), data=DataConfig(path=str(tmp_path / "c"))))
    chosen = torch.tensor([3, 700])
    assert torch.equal(opened.train.rows(chosen), to_signed(digits("train").pixels[chosen]))


@pytest.mark.slow
def test_torchrun_shares_the_work(tmp_path, photos, vae):
    out = tmp_path / "latents"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "fluvial"]
    options = ["encode", str(photos), "--autoencoder", vae, "--image-size", "16", "--shard", "3", "--dtype", "fp32"]
    done = subprocess.run([*command, *options, "--out", str(out)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()  # a rank that ends before the other cannot tell of all shards
    assert any(line == f"{out}: 20 images in 7 shards" for line in said), said
    assert sum(" is done with its part of " in line or "20 images in 7 shards" in line for line in said) == 2, said
    cached(tmp_path / "alone", photos, vae, shard=3)
    chosen = torch.arange(20)
    torch.testing.assert_close(inputs.latents.load(out).rows(chosen), latents.load(tmp_path / "alone").rows(chosen))


def test_a_path_that_is_not_there_is_never_asked_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cats" / "photos").mkdir(parents=True)
    asked = []
    monkeypatch.setattr("datasets.load_dataset", lambda *names, **_: asked.append(names) or 1 / 0)
    for place in ("cats/photo", "cat/photos", "./cats/photo", "/nowhere/at/all"):
        with pytest.raises(ValueError, match=r"does not exist.*hub:OWNER/NAME"):
            data_images.load(DataConfig(path=place), "train")
    with pytest.raises(ValueError, match=r"did you mean cats/photos\?"):
        data_images.load(DataConfig(path="cats/photo"), "train")
    assert not asked
    for config in (DataConfig(path="hub:owner/name"), DataConfig(name="owner/name")):
        with pytest.raises(ValueError, match="owner/name is no folder or file here, and cannot be loaded from"):
            data_images.load(config, "train")
    assert asked == [("owner/name",)] * 2
    with pytest.raises(ValueError, match="cats/photo does not exist; did you mean cats/photos"):
        data_images.load(DataConfig(name="cats/photo"), "train")  # there is a folder cats


def test_a_run_never_names_a_data_set_that_it_did_not_use():
    assert recipes.get("cifar10-sit").data.name == "uoft-cs/cifar10"
    assert dataclasses.replace(recipes.get("cifar10-sit").data, path="data/animals").name == ""


def test_labels_below_zero_are_refused_before_anything_is_encoded(tmp_path, monkeypatch):
    bad = digits("train")._replace(labels=torch.cat([torch.tensor([0, 1, -1]), digits("train").labels[3:]]))
    monkeypatch.setattr(data_images, "load", lambda *_, **__: bad)
    says = r"1 of 1,257 are below: that of image 2 is -1"
    with pytest.raises(ValueError, match=says):
        encode(DataConfig(name="digits"), open_autoencoder(AutoencoderConfig()), tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
    with pytest.raises(ValueError, match=says):
        open_inputs(recipes.get("digits-sit"))


def test_a_share_of_the_images_is_held_out_of_images_and_of_latents(tmp_path, photos, vae):
    """The same images are for validation, read from files, from latents, or to be measured against."""
    share = {"validation": 0.25}
    from_files = open_inputs(run(photos, vae, data=share))
    cached(tmp_path / "cache", photos, vae)
    from_cache = open_inputs(run(tmp_path / "cache", vae, data=share))
    assert [len(part[0]) for part in (from_files.train, from_files.held_out)] == [15, 5]
    every = from_files.autoencoder.moments(to_signed(from_files.held_out.rows(torch.arange(5))))
    assert torch.allclose(from_cache.held_out.rows(torch.arange(5)), every, atol=0.05)
    assert torch.equal(from_cache.train.labels, from_files.train.labels)
    real = real_images(run(photos, vae, data=share).data)
    assert (real.training.n, real.test.n) == (15, 5)
    assert torch.equal(real.test.read(range(5))[0], from_files.held_out.rows(torch.arange(5)))


def test_a_cache_of_the_run_leaves_the_validation_images_out(tmp_path, photos, vae):
    found = open_inputs(run(photos, vae, data={"validation": 0.25, "cache": True}), cache=tmp_path / "latents")
    assert [len(part[0]) for part in (found.train, found.held_out)] == [15, 5]


def test_images_given_in_python_give_their_share_for_validation_and_for_scores():
    pixels = torch.randint(0, 256, (40, 3, 16, 16), dtype=torch.uint8)
    data = DataConfig(name="given", validation=0.25)
    method = arflow.Config(size=(16, 16), channels=3, classes=0, patch=4, depth=1, width=16, heads=2)
    images = data_images.ImageSet(pixels, None, ())
    found = open_inputs(Run(method=method, data=data), images=images)
    real = real_images(data, images)
    assert [len(part[0]) for part in (found.train, found.held_out)] == [30, 10]
    assert torch.equal(real.test.read(range(10))[0], found.held_out.rows(torch.arange(10)))
