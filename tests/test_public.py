"""The calls people reach for: train, load, sample, save and score, with data and autoencoders given in Python."""

import importlib.util
import json
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, IterableDataset

import fluvial
from fluvial import cli, recipes
from fluvial.autoencoders import Pixels
from fluvial.data.given import image_set
from fluvial.data.images import DataConfig, digits, load
from fluvial.evaluation.opening import open_images
from fluvial.flow.guidance import Guidance
from fluvial.sampling.samples import Samples
from fluvial.sampling.settings import Heun
from fluvial.training import checkpoint

ROOT = Path(__file__).parents[1]
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def tiny(recipe="digits-sit", *, steps=4, save_every=2, **data):
    """A run of few steps that are long, so that classes and guidance matter after them."""
    run = recipes.smoke(recipes.get(recipe))
    every = {"log_every": 2, "save_every": save_every, "validate_every": steps, "sample_every": steps}
    return replace(
        run,
        optim=replace(run.optim, lr=2e-2, warmup=0, schedule="constant"),
        train=replace(run.train, steps=steps, batch=8, ema_decay=0.5, **every),
        data=replace(run.data, **data),
        sample=replace(run.sample, batch=100),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A trained run."""
    out = tmp_path_factory.mktemp("public") / "run"
    fluvial.train(tiny(), out, device="cpu")
    return out


@pytest.fixture(scope="module")
def sampler(folder):
    return fluvial.load(folder, device="cpu")


@pytest.fixture(scope="module")
def named(tmp_path_factory):
    """A trained run whose classes have names."""
    data = digits("train")._replace(class_names=NAMES)
    return fluvial.train(tiny(steps=2), tmp_path_factory.mktemp("public") / "named", data=data, device="cpu")


LATE = Guidance(weight=4.0, interval=(0.5, 1.0))


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def weights(sampler):
    return sampler.model.state_dict()


def test_indices_are_the_images_that_a_count_gives(sampler):
    whole = sampler.sample(25, settings=replace(sampler.run.sample, batch=10))
    part = sampler.sample(indices=[20, 3, 11])
    assert len(whole) == 25 and len(sampler.sample()) == 16
    assert torch.equal(part.images, whole.images[[20, 3, 11]])
    assert part.labels.tolist() == whole.labels[[20, 3, 11]].tolist() == [0, 3, 1]
    assert not torch.equal(sampler.sample(25, seed=1).images, whole.images)


@pytest.mark.parametrize(
    ("given", "changed"),
    [
        ({"steps": 3}, {"steps": 3}),
        ({"guidance": 4.0}, {"guidance": Guidance(weight=4.0)}),
        ({"guidance": LATE}, {"guidance": LATE}),
        ({"solver": "heun"}, {"solver": Heun()}),
        ({"solver": Heun(), "steps": 2}, {"solver": "heun", "steps": 2}),
    ],
)
def test_a_keyword_replaces_one_setting_of_the_run(sampler, given, changed):
    found = sampler.sample(4, **given)
    expected = sampler.sample(4, settings=replace(sampler.run.sample, **changed))
    assert torch.equal(found.images, expected.images) and found.about == expected.about and found.nfe == expected.nfe
    assert not torch.equal(found.images, sampler.sample(4).images)


def test_a_keyword_leaves_the_other_settings_given_as_they_are(sampler):
    given = replace(sampler.run.sample, steps=7, solver="heun")
    assert sampler.settings(given, guidance=4.0) == replace(given, guidance=Guidance(weight=4.0))
    assert sampler.settings(given, steps=2) == replace(given, steps=2)
    assert sampler.settings() == sampler.run.sample


def test_classes_are_chosen_by_name_by_id_and_alone(sampler, named):
    by_id = sampler.sample(4, classes=[3, 7])
    assert by_id.labels.tolist() == [3, 7, 3, 7] and by_id.about["labels"] == "3 7 classes in turn"
    assert torch.equal(sampler.sample(4, classes=("3", 7)).images, by_id.images)
    assert named.sample(4, classes=["seven", 0]).labels.tolist() == [7, 0, 7, 0]
    for alone in ("seven", 7, ["seven"]):
        assert named.sample(3, classes=alone).labels.tolist() == [7, 7, 7]
    assert not torch.equal(sampler.sample(4, classes=3).images, sampler.sample(4, classes=4).images)
    assert named.sample(12).labels.tolist() == [*range(10), 0, 1]


def test_a_word_is_a_name_and_a_number_an_id(tmp_path):
    backwards = digits("train")._replace(class_names=tuple("9876543210"))
    found = fluvial.train(tiny(steps=1), tmp_path / "run", data=backwards, device="cpu")
    assert found.sample(2, classes=["3", 3]).labels.tolist() == [6, 3]


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"classes": ["37"]}, r"classes must be names or class ids of the model's 10 \(0 to 9\), got 37"),
        ({"classes": "37"}, "got 37"),  # and not the classes 3 and 7
        ({"classes": [10]}, "got 10"),
        ({"classes": []}, "classes are empty: give at least one, or leave them out for all classes in turn"),
        ({"count": 0}, "count must be at least 1, got 0"),
        ({"count": 3, "indices": [1]}, r"give a count or indices, got count 3 and indices \[1\]"),
        ({"indices": []}, r"indices must be numbers from 0 on \(below 2\^63\), at least one, got \[\]"),
        ({"indices": [2, -1]}, "indices must be numbers from 0 on"),
        ({"steps": 0}, "a time grid needs at least 1 step, got 0"),
        ({"steps": (2, 3)}, "steps"),
        ({"guidance": float("nan")}, "guidance|weight"),
    ],
)
def test_what_cannot_be_sampled_is_refused(sampler, given, reason):
    with pytest.raises(ValueError, match=reason):
        sampler.sample(**given)


def test_a_name_nearly_right_is_suggested_and_a_model_without_classes_has_none(named, tmp_path):
    with pytest.raises(ValueError, match=r"\(zero, one, two.*nine\), got sevn; did you mean seven\?"):
        named.sample(classes="sevn")
    run = tiny(steps=1)
    without = fluvial.train(replace(run, method=replace(run.method, classes=0)), tmp_path / "run", device="cpu")
    assert without.sample(2).labels is None
    with pytest.raises(ValueError, match=r"classes \(3,\) were given for a model without classes; leave them out"):
        without.sample(2, classes=3)


@pytest.mark.slow
def test_a_path_may_be_a_str_or_a_path(folder, sampler, tmp_path):
    for kind in (str, Path):
        assert same(weights(fluvial.load(kind(folder), device="cpu")), weights(sampler))
        assert fluvial.train(tiny(), kind(folder), device="cpu").step == 4
        saved = sampler.sample(20).save(kind(tmp_path / "samples"))
        assert saved[0] == tmp_path / "samples" / "samples.npz"
        files = {"nearest": kind(tmp_path / "nearest.png"), "keep": kind(tmp_path / "kept.safetensors")}
        fluvial.score(kind(folder), count=20, device="cpu", **files)
        of_images = {"reference": kind(saved[0]), "training": kind(saved[0]), "features": "pixels", "channels": 1}
        assert fluvial.score(kind(tmp_path / "samples"), device="cpu", **of_images)["images"]["count"] == 20
        fluvial.load(kind(folder), autoencoder=kind("pixels"), device="cpu")
        with pytest.raises(ValueError, match="no/such/vae"):
            fluvial.load(kind(folder), autoencoder=kind("no/such/vae"), device="cpu")
    started = [
        fluvial.train(tiny(), tmp_path / kind.__name__, start=kind(folder), device="cpu") for kind in (str, Path)
    ]
    assert same(*map(weights, started))


@pytest.mark.parametrize(("recipe", "steps", "frames"), [("digits-sit", 3, 3), ("digits-flowar", (1, 2, 3), 6)])
def test_a_trajectory_has_a_frame_a_step_and_ends_in_the_images(sampler, tmp_path, recipe, steps, frames):
    if recipe != "digits-sit":
        sampler = fluvial.train(tiny(recipe), tmp_path / "run", device="cpu")
    found = sampler.sample(3, steps=steps, trajectory=True)
    assert torch.equal(found.images, sampler.sample(3, steps=steps).images)
    assert len(found.trajectory) == frames and torch.equal(found.trajectory[-1], found.images)
    assert len(found.stages) == (3 if recipe == "digits-flowar" else 1)
    animation = found.gif()
    assert animation.n_frames == frames
    animation.seek(frames - 1)
    np.testing.assert_array_equal(animation.convert("L"), found.grid())

    saved = found.save(tmp_path / "out")
    strip = ["scales.png"] if recipe == "digits-flowar" else []
    assert [path.name for path in saved] == ["samples.npz", "grid.png", "trajectory.gif", *strip]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"samples.json", *(path.name for path in saved)}
    with pytest.raises(ValueError, match="no trajectory: sample them with trajectory=True"):
        sampler.sample(1).gif()


def test_saved_samples_are_read_back(sampler, tmp_path):
    found = sampler.sample(20)
    files = found.save(tmp_path / "out")
    assert {file.name for file in tmp_path.glob("out/*")} == {"samples.npz", "samples.json", "grid.png"}
    assert all(file.parent == tmp_path / "out" and file.exists() for file in files)
    images, labels = open_images(str(tmp_path / "out")).read(range(20))
    assert torch.equal(images, found.images) and torch.equal(labels, found.labels)
    np.testing.assert_array_equal(Image.open(tmp_path / "out" / "grid.png"), found.grid())
    record = json.loads((tmp_path / "out" / "samples.json").read_text())
    assert record["sampling"] == json.loads(json.dumps(found.about["sampling"])) and record["grey"] is True

    measured = {"reference": "digits:test", "features": "pixels", "channels": 1, "device": "cpu"}
    card = fluvial.score(tmp_path / "out", **measured)
    assert card["images"]["count"] == 20 and card["sampling"]["seed"] == 0
    direct = fluvial.score(sampler, count=20, device="cpu")
    distance = card["scores"]["frechet_distance"]["value"]
    assert distance == pytest.approx(direct["scores"]["frechet_distance"]["value"], rel=1e-4)
    itself = fluvial.score(tmp_path / "out", **{**measured, "reference": tmp_path / "out"})
    assert itself["scores"]["frechet_distance"]["value"] == pytest.approx(0, abs=1e-3)


def test_keywords_of_a_score_are_those_of_sample(folder, sampler):
    by_name = fluvial.score(folder, count=20, steps=2, guidance=3.0, solver="heun", seed=5, device="cpu")
    settings = sampler.settings(steps=2, guidance=3.0, solver="heun")
    by_settings = fluvial.score(sampler, count=20, settings=settings, seed=5, device="cpu")
    assert by_name["scores"] == by_settings["scores"]
    weaker = fluvial.score(folder, count=20, steps=2, solver="heun", seed=5, device="cpu")
    assert weaker["scores"] != by_name["scores"]
    assert by_name["sampling"]["seed"] == 5 and by_name["sampling"]["settings"]["steps"] == 2


def test_a_notebook_shows_the_grid(sampler):
    found = sampler.sample(12)
    picture = Image.open(BytesIO(found._repr_png_()))
    assert picture.format == "PNG"
    np.testing.assert_array_equal(picture, found.grid())
    assert Samples(images=torch.zeros(2, 4, 8, 8, dtype=torch.uint8))._repr_png_() is None


def test_any_average_of_a_checkpoint_can_be_loaded(folder, sampler):
    place = checkpoint.newest(folder)
    raw = fluvial.load(folder, average="raw", device="cpu")
    assert same(weights(raw), checkpoint.load(place, "model")) and not same(weights(raw), weights(sampler))
    assert same(weights(sampler), checkpoint.load(place, "ema"))
    assert raw.average == raw.sample(1).about["sampling"]["weights"] == "not averaged"
    with pytest.raises(
        ValueError, match=f"{re.escape(str(place))} has no average 'ema-0.9'; it has ema, raw; for any length"
    ):
        fluvial.load(folder, average="ema-0.9", device="cpu")


def test_an_average_of_any_length_can_be_loaded_where_snapshots_were_stored(tmp_path):
    out, run = tmp_path / "run", tiny(steps=8)
    run = replace(run, train=replace(run.train, ema_lengths=(0.05, 0.1), ema_every=1))
    fluvial.train(run, out, device="cpu")
    tracked, place = fluvial.load(out, average=0.1, device="cpu"), checkpoint.newest(out)
    assert same(weights(tracked), checkpoint.load(place, "power-0.100")) and tracked.step == 8
    assert tracked.average == "power-function average of length 0.1"
    assert cli.main(["ema", str(out), "--length", "0.08", "--step", "6"]) == 0
    made, other = (
        fluvial.load(tmp_path / "run-ema-0.080", device="cpu"),
        fluvial.load(out, average="0.08", step=6, device="cpu"),
    )
    assert same(weights(other), weights(made)) and (other.step, other.average) == (6, made.average)
    with pytest.raises(ValueError, match="has no average 'ema-0.9'; it has ema, raw, 0.05, 0.1; for any length"):
        fluvial.load(out, average="ema-0.9", device="cpu")
    with pytest.raises(ValueError, match="length of an average must be above 0"):
        fluvial.load(out, average=0.9, device="cpu")
    for average, name in (("raw", "not averaged"), ("0.1", tracked.average)):
        assert fluvial.score(out, average=average, count=20, device="cpu")["sampling"]["weights"] == name
        assert cli.main(["sample", str(out), "--count", "4", "--average", average]) == 0
        assert json.loads((out / "samples" / "samples.json").read_text())["sampling"]["weights"] == name


def test_a_model_can_be_loaded_to_compute_in_bf16(folder, sampler):
    found = fluvial.load(folder, precision="bf16", device="cpu")
    settings = replace(sampler.run.sample, precision="bf16")
    images, expected = found.sample(8), sampler.sample(8, settings=settings)
    assert images.about["sampling"]["dtype"] == "bfloat16" and torch.equal(images.images, expected.images)
    exact = sampler.sample(8).images
    assert not torch.equal(images.images, exact)
    assert (images.images.float() - exact.float()).abs().mean() < 3
    assert same(weights(found), weights(sampler))  # they are rounded in a copy


def test_on_step_is_called_once_a_step_and_changes_nothing(sampler, tmp_path):
    seen = []

    def look(number, metrics):
        torch.rand(7)
        seen.append((number, float(metrics.loss)))

    watched = fluvial.train(tiny(), tmp_path / "run", on_step=look, device="cpu")
    assert [number for number, _ in seen] == [1, 2, 3, 4]
    assert same(weights(watched), weights(sampler))
    logged = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    losses, loss = [(row["step"], row["loss"]) for row in logged if "loss" in row], dict(seen)
    means = {2: (loss[1] + loss[2]) / 2, 4: (loss[3] + loss[4]) / 2}  # since the line before
    assert losses == [(step, pytest.approx(mean)) for step, mean in means.items()]
    fluvial.train(tiny(), tmp_path / "run", on_step=look, device="cpu")  # ended: there is no step left
    assert len(seen) == 4


class Pictures(Dataset):
    """PIL images with class ids."""

    classes = NAMES

    def __init__(self, pixels, labels):
        self.pixels, self.labels = pixels, labels

    def __len__(self):
        return len(self.pixels)

    def __getitem__(self, index):
        return Image.fromarray(self.pixels[index, 0].numpy()), int(self.labels[index])


class Tensors(Pictures):
    """uint8 tensors, with class ids as tensors."""

    def __getitem__(self, index):
        return self.pixels[index], self.labels[index]


class Unlabelled(Pictures):
    def __getitem__(self, index):
        return self.pixels[index]


@pytest.fixture(scope="module")
def given():
    """A few digits, class by class, as a folder has them, with labels."""
    images = digits("train")
    order = images.labels[:60].argsort(stable=True)
    return images.pixels[:60][order], images.labels[:60][order]


def test_the_same_images_given_in_any_way_train_the_same_weights(given, tmp_path):
    pixels, labels = given
    for i, (image, label) in enumerate(zip(pixels, labels.tolist(), strict=True)):
        (tmp_path / "png" / str(label)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0].numpy()).save(tmp_path / "png" / str(label) / f"{i:02}.png")
    ways = {
        "pair": (pixels, labels),
        "small labels": (pixels, labels.int()),
        "pictures": Pictures(pixels, labels),
        "tensors": Tensors(pixels, labels),
        "folder": tmp_path / "png",
        "folder by name": str(tmp_path / "png"),
    }
    found = {
        way: fluvial.train(tiny(steps=2, channels=1), tmp_path / way, data=data, device="cpu")
        for way, data in ways.items()
    }
    for way, trained in found.items():
        assert same(weights(trained), weights(found["pair"])), way
    names = {way: trained.run.data.class_names for way, trained in found.items()}
    assert names["pictures"] == NAMES and names["folder"] == tuple("0123456789")
    assert found["pictures"].sample(1, classes="six").labels.tolist() == [6]
    shuffled = fluvial.train(tiny(steps=2), tmp_path / "shuffled", data=(pixels, labels.flip(0)), device="cpu")
    assert not same(weights(shuffled), weights(found["pair"]))


def test_images_without_labels_are_a_tensor_or_a_data_set_of_images(given, tmp_path):
    run = tiny(steps=2)
    run = replace(run, method=replace(run.method, classes=0))
    ways = (given[0], (given[0], None), Unlabelled(*given), given)  # labels that are not asked for are left aside
    found = [fluvial.train(run, tmp_path / str(i), data=data, device="cpu") for i, data in enumerate(ways)]
    assert all(same(weights(found[0]), weights(other)) for other in found[1:])
    with pytest.raises(ValueError, match="the data has no labels; set method.classes to 0"):
        fluvial.train(tiny(), tmp_path / "run", data=given[0], device="cpu")


class Stream(IterableDataset):
    def __iter__(self):
        return iter(())


class Floats(Pictures):
    def __getitem__(self, index):
        return self.pixels[index] / 255, int(self.labels[index])


class Words(Pictures):
    def __getitem__(self, index):
        return self.pixels[index], NAMES[self.labels[index]]


class Partly(Pictures):
    def __getitem__(self, index):
        return self.pixels[index], None if index > 50 else int(self.labels[index])


class Sizes(Pictures):
    def __getitem__(self, index):
        return self.pixels[index][..., : 8 - (index == 3)], int(self.labels[index])


REFUSED = [
    (lambda x, y: x / 255, "images: pixels must be a uint8 tensor .*, got float32"),
    (lambda x, y: (x.float(), y), "images: pixels must be a uint8 tensor .*, got float32"),
    (lambda x, y: (x[:, 0], y), "images: pixels must be a uint8 tensor"),
    (lambda x, y: (x, y.float()), "images: labels .*float"),
    (lambda x, y: (x, y[:-1]), "images: .*labels"),
    (lambda x, y: (x, y[:, None]), "images: .*labels"),
    (lambda x, y: (x, y - 1), "labels must be a tensor of 60 whole numbers from 0, or None, got -1"),
    (lambda x, y: (x, y + 1), "the labels run from 1 to 10, the model has 10 classes"),
    (lambda x, y: Stream(), "images: got Stream, expected the path of a folder, .*Dataset with a length"),
    (lambda x, y: Floats(x, y), r"images: item 0 must be a PIL image, .* got torch.float32 of \(1, 8, 8\); leave out"),
    (lambda x, y: Words(x, y), "images: the label of item 0 must be a class id, got 'zero'"),
    (lambda x, y: Partly(x, y), "images: 9 of 60 items have no label, all or none are expected to have one"),
    (lambda x, y: Sizes(x, y), r"images: item 3 is \(1, 8, 7\), item 0 is \(1, 8, 8\); bring all to one size"),
    (lambda x, y: Pictures(x[:0], y[:0]), "images: the data set has no images"),
    (lambda x, y: "no/such/folder", "no/such/folder"),
]


@pytest.mark.parametrize(("wrong", "reason"), REFUSED)
def test_data_that_is_not_as_described_is_refused_before_anything_is_written(given, tmp_path, wrong, reason):
    with pytest.raises(ValueError, match=reason):
        fluvial.train(tiny(), tmp_path / "run", data=wrong(*given), device="cpu")
    assert not (tmp_path / "run").exists()


def test_a_run_on_given_data_goes_on_with_the_same_data_only(tmp_path):
    pixels, labels = digits("train").pixels[:200], digits("train").labels[:200]
    run = tiny(steps=2)
    fluvial.train(run, tmp_path / "run", data=(pixels, labels), device="cpu")
    longer = replace(run, train=replace(run.train, steps=3))
    others = [(255 - pixels, labels), (pixels, (labels + 1) % 10), (pixels[:150], labels[:150])]
    for other in others:
        with pytest.raises(ValueError, match=r"the images are not those that .* was trained on"):
            fluvial.train(longer, tmp_path / "run", data=other, device="cpu")
    assert fluvial.train(longer, tmp_path / "run", data=(pixels, labels), device="cpu").step == 3


def files_and_items(folder, make):
    """Pixels of an image as a file of a folder, and as an item of a dataset."""
    image = make()
    image.save(folder / "a.png", **({"exif": image.getexif()} if image.getexif() else {}))
    config = DataConfig(path=str(folder), channels=1 if image.mode in ("I;16", "L", "LA", "1") else 3)

    class One(Dataset):
        def __len__(self):
            return 1

        def __getitem__(self, index):
            return Image.open(folder / "a.png") if image.getexif() else make()

    return load(config, "train").rows(torch.tensor([0])), image_set(One()).rows(torch.tensor([0]))


def turned():
    image = Image.fromarray(np.arange(64 * 3, dtype=np.uint8).reshape(8, 8, 3))
    image.getexif()[0x0112] = 6  # orientation: a quarter turn
    return image


@pytest.mark.parametrize(
    "make",
    [
        lambda: Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000),
        lambda: Image.new("LA", (8, 8), (100, 50)),
        lambda: Image.new("RGBA", (8, 8), (200, 0, 0, 0)),
        lambda: Image.new("1", (8, 8), 1),
        turned,
    ],
)
def test_an_image_of_a_dataset_is_read_as_one_of_a_file(make, tmp_path):
    in_file, item = files_and_items(tmp_path, make)
    assert torch.equal(in_file, item)


def test_an_image_without_a_known_range_is_refused():
    class One(Dataset):
        def __len__(self):
            return 1

        def __getitem__(self, index):
            return Image.new("F", (8, 8), 0.5)

    with pytest.raises(ValueError, match=r"item 0: 32-bit pixels \(mode F\) have no known range"):
        image_set(One())


@pytest.mark.parametrize("seed", [-1, 2**63, True])
def test_a_seed_that_is_another_ones_is_refused(sampler, seed):
    with pytest.raises(ValueError, match="seed must be a whole number from 0, below 2"):
        sampler.sample(2, seed=seed)


@pytest.mark.parametrize("indices", [[2**63], [3, -1], []])
def test_indices_are_whole_numbers_with_random_numbers_of_their_own(sampler, indices):
    with pytest.raises(ValueError, match="indices must be"):
        sampler.sample(indices=indices)


def test_pictures_are_removed_beside_a_record_of_samples_alone(sampler, tmp_path):
    (tmp_path / "trajectory.gif").write_text("mine")
    sampler.sample(4).save(tmp_path)
    assert (tmp_path / "trajectory.gif").read_text() == "mine"
    sampler.sample(4, trajectory=True).save(tmp_path)
    sampler.sample(4).save(tmp_path)
    assert not (tmp_path / "trajectory.gif").exists() and (tmp_path / "grid.png").exists()


def test_training_on_given_data_goes_on_where_it_stopped(given, tmp_path):
    class Enough(Exception):
        pass

    def stop(number, metrics):
        if number == 3:
            raise Enough

    data = Pictures(*given)
    with pytest.raises(Enough):
        fluvial.train(tiny(), tmp_path / "run", data=data, on_step=stop, device="cpu")
    numbers = []
    resumed = fluvial.train(
        tiny(), tmp_path / "run", data=data, on_step=lambda number, metrics: numbers.append(number), device="cpu"
    )
    whole = fluvial.train(tiny(), tmp_path / "whole", data=data, device="cpu")
    assert numbers == [3, 4] and same(weights(resumed), weights(whole))
    with pytest.raises(ValueError, match="holds another run: data.name is given there and digits here"):
        fluvial.train(tiny(), tmp_path / "run", device="cpu")
    again = "trained on images given to it in Python; pass them again"
    with pytest.raises(ValueError, match=again):
        fluvial.train(resumed.run, tmp_path / "run", device="cpu")
    with pytest.raises(ValueError, match=again):
        fluvial.score(tmp_path / "run", count=20, device="cpu")
    held_out = Tensors(*digits("test")[:2])
    card = fluvial.score(tmp_path / "run", count=20, data=data, validation=held_out, features="pixels", device="cpu")
    assert card["reference"]["count"] == len(held_out)


class Negative(Pixels):
    """Latents are the images with black and white exchanged."""

    identity = hash = "negative"

    def moments(self, images):
        return -images

    def decode(self, latents):
        return -latents.clamp(-1, 1)


def test_an_autoencoder_given_as_an_object_encodes_and_decodes(given, tmp_path):
    pixels, labels = given
    out, run = tmp_path / "run", tiny(steps=2)
    trained = fluvial.train(run, out, data=(pixels, labels), autoencoder=Negative(), device="cpu")
    plain = fluvial.train(run, tmp_path / "plain", data=(255 - pixels, labels), device="cpu")
    for name, value in weights(trained).items():
        torch.testing.assert_close(value, weights(plain)[name], atol=1e-4, rtol=1e-3)
    difference = trained.sample(8).images.int() - (255 - plain.sample(8).images.int())
    assert difference.abs().max() <= 1
    again = fluvial.load(out, autoencoder=Negative(), device="cpu")
    assert torch.equal(again.sample(8).images, trained.sample(8).images)
    cards = [
        fluvial.score(source, count=20, data=given, reference="train", features="pixels", device="cpu", **options)
        for source, options in ((out, {"autoencoder": Negative()}), (trained, {}))
    ]
    assert cards[0]["scores"] == cards[1]["scores"]
    with pytest.raises(ValueError, match="an autoencoder whose weights have the hash negative, 'pixels' has pixels"):
        fluvial.load(out, device="cpu")
    for call in (fluvial.load, lambda *a, **k: fluvial.train(run, *a, data=given, **k)):
        with pytest.raises(ValueError, match="whose hash is negative, got Pixels whose hash is pixels; give the one"):
            call(out, autoencoder=Pixels(), device="cpu")
    assert fluvial.train(run, out, data=given, autoencoder=Negative(), device="cpu").step == 2


class Scaled(Pixels):
    """An autoencoder with a shift and a scale that are measured, and so known to the run alone."""

    channels = 1
    identity = hash = "scaled"

    def standardised(self, shift, scale):
        self.shift, self.scale = shift, scale
        return self

    def latents(self, moments, generator=None, part=None):
        return (moments - self.shift[0]) * self.scale[0]

    def decode(self, latents):
        return (latents / self.scale[0] + self.shift[0]).clamp(-1, 1)


def test_an_object_decodes_with_the_shift_and_scale_of_the_run(given, tmp_path):
    run = tiny(steps=2)
    run = replace(run, autoencoder=replace(run.autoencoder, statistics="measured"))
    trained = fluvial.train(run, tmp_path / "run", data=given, autoencoder=Scaled(), device="cpu")
    assert trained.run.autoencoder.scale != (1.0,)
    again = fluvial.load(tmp_path / "run", autoencoder=Scaled(), device="cpu")
    assert torch.equal(again.sample(8).images, trained.sample(8).images)
    resumed = fluvial.train(run, tmp_path / "run", data=given, autoencoder=Scaled(), device="cpu")
    assert torch.equal(resumed.sample(8).images, trained.sample(8).images)


PUBLIC = [
    *("Run", "Sampler", "Samples", "__version__", "distill", "edit", "load", "plan", "recipes", "sample", "score"),
    *("train", "walk", "weights"),
]


def test_the_public_names_are_these():
    assert dir(fluvial) == PUBLIC == sorted(fluvial.__all__)
    assert all(getattr(fluvial, name) is not None for name in PUBLIC)
    with pytest.raises(AttributeError, match="module 'fluvial' has no attribute 'draw'"):
        fluvial.draw  # noqa: B018


def without_torch(script):
    """Runs a script in a process in which torch cannot be imported."""
    script = f"import sys\nsys.modules['torch'] = None\n{script}"
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT / "tests")


def test_importing_fluvial_needs_no_torch():
    ended = without_torch("import fluvial\nprint(dir(fluvial), fluvial.__version__)")
    assert (ended.returncode, ended.stdout.strip()) == (0, f"{PUBLIC} {fluvial.__version__}"), ended.stderr
    assert without_torch("import fluvial\nfluvial.train").returncode == 1  # or the first would show nothing


@pytest.mark.parametrize(
    ("arguments", "code", "printed"),
    [
        (["--help"], 0, "fluvial train RECIPE"),
        ([], 0, "fluvial train RECIPE"),
        (["train", "--help"], 0, "--steps N"),
        (["sample", "-h"], 0, "--classes NAME"),
        (["score", "--help"], 0, "--reference PLACE"),
        (["--version"], 0, f"fluvial {fluvial.__version__}"),
        (["trian"], 2, "unknown command 'trian'. Did you mean train?"),
    ],
)
def test_the_command_line_answers_without_torch(arguments, code, printed):
    ended = without_torch(f"sys.argv = ['fluvial', *{arguments}]\nfrom fluvial.__main__ import main\nsys.exit(main())")
    assert ended.returncode == code and printed in ended.stdout + ended.stderr
    assert "Traceback" not in ended.stderr and bool(ended.stderr) == (code > 0)


RIGHT = """
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

import fluvial


class Own(Dataset[tuple[torch.Tensor, int]]):
    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.zeros(1, 8, 8, dtype=torch.uint8), 0


run: fluvial.Run = fluvial.recipes.get("digits-arflow")
sampler: fluvial.Sampler = fluvial.train(run, "runs/digits")
fluvial.train(fluvial.recipes.smoke(run), Path("runs"), data=(torch.zeros(1), torch.zeros(1)), validation=Own())
fluvial.train(run, "runs", data=Own(), on_step=lambda number, metrics: print(number + 1, metrics.loss.item()))
fluvial.train(run, "runs", data="photos", validation=Path("photos"), start="other", device="cpu", start_over=True)
sampler = fluvial.load(Path("runs/digits"), device="cuda", precision="bf16", average="model")
samples: fluvial.Samples = sampler.sample(16, classes=["3", 7], steps=12, guidance=1.5, solver="heun", seed=0)
samples = sampler.sample(indices=[1, 2], classes="cat", steps=[1, 2, 3], trajectory=True)
files: list[Path] = samples.save("out")
size: tuple[int, int] = samples.grid().size
samples.gif().save("a.gif")
images: torch.Tensor = samples.images
card: dict[str, Any] = fluvial.score(sampler, count=1000)
card = fluvial.score("runs/digits", reference=Path("photos"), nearest="n.png", features="pixels", channels=1)
version: str = fluvial.__version__
"""
WRONG = """
import fluvial

run = fluvial.recipes.get(3)
sampler = fluvial.train(run, out=7)
fluvial.train(run, "runs", epochs=3)
fluvial.load("runs", precision="fp8")
samples = sampler.sample(16, solver="hune")
sampler.sample(classes=[1.5])
sampler.sample(steps="12")
samples.show()
fluvial.score(sampler, count="all")
fluvial.draw
number: int = samples.grid()
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """An environment with fluvial as its wheel installs it, and all else from this one."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder / "env", symlinks=True)
    site = next(folder.glob("env/lib/python*/site-packages"), folder / "env" / "Lib" / "site-packages")
    (site / "rest.pth").write_text(str(Path(torch.__file__).parents[1]))
    if importlib.util.find_spec("hatchling"):
        build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", str(folder)]
        subprocess.run([*build, str(ROOT)], check=True)
        zipfile.ZipFile(next(folder.glob("fluvial-*.whl"))).extractall(site)
    else:  # the folder that pyproject.toml says the wheel is made of
        shutil.copytree(ROOT / "src" / "fluvial", site / "fluvial", ignore=shutil.ignore_patterns("__pycache__"))
    return folder, site


def checked(folder, text):
    """The line and message of each error that pyright, in its strict mode, finds in a script of a user."""
    (folder / "script.py").write_text(text)
    python = next((folder / "env").glob("bin/python"), folder / "env" / "Scripts" / "python.exe")
    settings = {"typeCheckingMode": "strict", "include": ["script.py"]}
    (folder / "pyrightconfig.json").write_text(json.dumps(settings))
    command = ["-m", "pyright", "--outputjson", "--pythonpath", str(python), "--project", str(folder)]
    ended = subprocess.run([sys.executable, *command], capture_output=True, text=True, cwd=folder)
    report = json.loads(ended.stdout)
    assert report["summary"]["filesAnalyzed"] == 1
    return [(e["range"]["start"]["line"], e["message"]) for e in report["generalDiagnostics"]]


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("pyright") is None, reason="pyright is not installed")
def test_a_script_of_a_user_is_type_checked_against_the_installed_package(installed):
    folder, site = installed
    assert (site / "fluvial" / "py.typed").exists()
    assert checked(folder, RIGHT) == []
    lines = [i for i, line in enumerate(WRONG.splitlines()) if i > 2 and line]
    found = checked(folder, WRONG)
    assert sorted({line for line, _ in found}) == lines, found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "files", "untrained"),
    [  # with the loss of a velocity of 0: E[(x1 - x0)^2] = 1 + E[x1^2]
        ("own_data", ["samples/disc/grid.png", "samples/square/grid.png"], 2.0),
        ("own_autoencoder", ["samples/grid.png", "samples/trajectory.gif"], 1.66),
    ],
)
def test_an_example_does_what_it_says(tmp_path, name, files, untrained):
    script = f"import sys; sys.path.insert(0, {str(ROOT / 'examples')!r}); import {name}; {name}.main('run', steps=60)"
    ended = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert all((tmp_path / "run" / file).exists() for file in files)
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    losses = [row["held_out_loss"] for row in rows if "held_out_loss" in row]
    assert losses[-1] < 0.95 * untrained, losses
    assert len((ROOT / "examples" / f"{name}.py").read_text().splitlines()) < 60


def test_the_wavelets_of_the_example_are_inverted_exactly():
    spec = importlib.util.spec_from_file_location("own_autoencoder", ROOT / "examples" / "own_autoencoder.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    images = torch.rand(2, 1, 8, 8) * 2 - 1
    haar = module.Haar()
    latents = haar.latents(haar.moments(images))
    assert latents.shape == (2, 4, 4, 4)
    torch.testing.assert_close(haar.decode(latents), images)
    torch.testing.assert_close(latents[:, 0], torch.nn.functional.avg_pool2d(images, 2)[:, 0] * 2)
