import dataclasses
import json
from collections import namedtuple

import pytest
import torch
from PIL import Image

import fluvial
from fluvial import recipes
from fluvial.config import differences
from fluvial.data.images import ImageSet, digits
from fluvial.data.pixels import to_signed
from fluvial.evaluation import scores
from fluvial.run.folder import RunFolder, record_of
from fluvial.run.train import build
from fluvial.training import checkpoint
from fluvial.training.log import rows_of, validated
from fluvial.training.optim import learning_rate

DIT = {"width": 16, "heads": 2, "depth": 1}
SIZES = {
    "digits-arflow": DIT,
    "digits-sit": DIT,
    "digits-flowar": {**DIT, "depth": 2, "head_width": 16, "head_heads": 2, "head_depth": 1},
}


def small(recipe="digits-arflow", *, steps=6, batch=4, method=None, **train):
    run = recipes.get(recipe)
    return dataclasses.replace(
        run,
        method=dataclasses.replace(run.method, **SIZES[recipe], **(method or {})),
        train=dataclasses.replace(
            run.train, steps=steps, batch=batch, log_every=2, save_every=3, validate_every=3, sample_every=6, **train
        ),
        sample=dataclasses.replace(run.sample, solver="euler", steps=2),
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "small"
    return out, fluvial.train(small(), out, recipe="digits-arflow", device="cpu")


def test_a_run_folder_says_what_made_it(trained):
    out, result = trained
    written = json.loads((out / "run.json").read_text())
    assert written["recipe"] == "digits-arflow" and {"fluvial", "torch", "python"} <= set(written["made_by"])
    assert RunFolder(out).run() == result.run and result.step == 6
    found = {"autoencoder.shift", "autoencoder.scale", "autoencoder.hash", "data.class_names"}  # no files to digest
    assert differences(small(), result.run).keys() == found  # and nothing else was changed
    assert {"log.jsonl", "checkpoints", "samples"} <= {p.name for p in out.iterdir()}
    grid = Image.open(out / "samples" / "step-00000006.png")
    assert grid.size == ((10 * 9 + 1) * 6,) * 2
    held_out = [r for r in map(json.loads, (out / "log.jsonl").read_text().splitlines()) if "held_out_loss" in r]
    assert [r["step"] for r in held_out] == [3, 6]


def test_samples_come_from_the_moving_average(trained):
    out, result = trained
    average = checkpoint.load(checkpoint.newest(out), "ema")
    for name, value in result.model.state_dict().items():
        assert torch.equal(value, average[name])
    assert not result.model.training


def test_the_same_seed_gives_the_same_images(trained):
    _, result = trained
    assert torch.equal(result.sample(12).images, result.sample(12).images)
    assert not torch.equal(result.sample(12).images, result.sample(12, seed=1).images)
    assert result.sample(12).labels.tolist() == [*range(10), 0, 1]
    assert result.sample(3, classes=(7,)).labels.tolist() == [7, 7, 7]


@pytest.mark.parametrize("classes", [(10,), (-1, 3)])
def test_a_class_that_is_not_there_is_refused(trained, classes):
    with pytest.raises(ValueError, match=r"class ids of the model.s 10 \(0 to 9\), got"):
        trained[1].sample(4, classes=classes)


def test_a_folder_of_another_run_is_refused(trained):
    out, _ = trained
    with pytest.raises(ValueError, match="another run: seed is 0 there and 1 here"):
        fluvial.train(dataclasses.replace(small(), seed=1), out, device="cpu")
    with pytest.raises(ValueError, match=r"another run: method\.width is 16 there and 32 here"):
        other = small()
        fluvial.train(dataclasses.replace(other, method=dataclasses.replace(other.method, width=32)), out, device="cpu")


def test_a_folder_that_is_no_run_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(ValueError, match="not empty and not a run folder"):
        fluvial.train(small(), tmp_path, device="cpu")
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(ValueError, match=r"has no run\.json"):
        fluvial.load(tmp_path)


@pytest.mark.parametrize(
    ("schedule", "told"),
    [
        ("constant", "goes on from step 4 to 8 at the learning rate 2.0e-03\n"),
        # cosine: 2e-3 (1 + cos(pi 3 / 4)) / 2, and (1 + cos(pi 4 / 8)) / 2; wsd: 2e-3 (1 - sqrt(1 / 2)), and the peak
        ("cosine", "goes on from step 4 to 8: the learning rate goes from 2.9e-04 to 1.0e-03, as the cosine now ends"),
        ("wsd", "goes on from step 4 to 8: the learning rate goes from 5.9e-04 to 2.0e-03, as the decay now ends"),
    ],
)
def test_more_steps_may_be_asked_of_a_run(tmp_path, capsys, schedule, told):
    def asked(steps):
        run = small("digits-sit", steps=steps)
        optim = dataclasses.replace(run.optim, schedule=schedule, warmup=0, decay=0.5)
        return dataclasses.replace(run, optim=optim)

    fluvial.train(asked(4), tmp_path / "run", recipe="mine", device="cpu")
    capsys.readouterr()
    longer = fluvial.train(asked(8), tmp_path / "run", device="cpu")
    assert longer.step == 8 and RunFolder(tmp_path / "run").run().train.steps == 8
    assert json.loads((tmp_path / "run" / "run.json").read_text())["recipe"] == "mine"
    assert told in capsys.readouterr().out
    rows = map(json.loads, (tmp_path / "run" / "log.jsonl").read_text().splitlines())
    rates = {row["step"]: row["lr"] for row in rows if "lr" in row}
    assert rates[8] == pytest.approx(learning_rate(asked(8).optim, 7, 8)), "the schedule of the new number of steps"
    fluvial.train(asked(8), tmp_path / "run", device="cpu")
    assert "goes on" not in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"has taken 8 steps, and train\.steps 6 are fewer: .* --step, .* --out"):
        fluvial.train(asked(6), tmp_path / "run", device="cpu")
    assert RunFolder(tmp_path / "run").run().train.steps == 8


def test_the_best_checkpoint_is_kept_and_told(tmp_path, capsys, monkeypatch):
    given = iter([0.9, 0.5, 0.7])  # at steps 3, 6 and 9
    monkeypatch.setattr("fluvial.run.train.validation_of", lambda *_: lambda model: {"held_out_loss": next(given)})
    fluvial.train(small("digits-sit", steps=9, keep=1, keep_best=True), tmp_path / "run", device="cpu")
    losses = validated(rows_of(tmp_path / "run"))
    best = RunFolder(tmp_path / "run").best()
    assert losses == {3: 0.9, 6: 0.5, 9: 0.7} and best == 6
    told = f"lowest validation loss {losses[best]:.4g} at step {best}, kept: fluvial sample {tmp_path / 'run'} --step"
    assert f"{told} {best}\n" in capsys.readouterr().out
    assert fluvial.load(tmp_path / "run", step=best, device="cpu").step == best
    assert len(list((tmp_path / "run" / "checkpoints").glob("step-*"))) == 2


@pytest.mark.parametrize("recipe", ["digits-arflow", "digits-sit", "digits-flowar"])
def test_labelled_images_may_be_trained_on_without_their_labels(tmp_path, recipe):
    trained = fluvial.train(small(recipe, steps=2, method={"classes": 0}), tmp_path / "run", device="cpu")
    assert trained.sample(3).labels is None


def test_a_score_that_cannot_be_had_is_told_before_anything_is_written(tmp_path):
    run = small(score_every=2, score_extractor=str(tmp_path / "missing.pt"))
    with pytest.raises(ValueError, match=r"missing\.pt"):
        fluvial.train(run, tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()


def test_samples_are_scored_while_training(tmp_path, monkeypatch):
    fitted, classifier = [], scores.classifier
    monkeypatch.setattr(scores, "classifier", lambda *real: fitted.append(1) or classifier(*real))
    run = small(steps=4, score_every=2, score_count=30)
    fluvial.train(run, tmp_path / "run", device="cpu")
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    logged = [row for row in rows if "score" in row]
    assert [row["step"] for row in logged] == [2, 4] and len(fitted) == 1  # the SVM is of real images only
    assert (logged[-1]["score"]["count"], logged[-1]["score"]["extractor"]) == (30, "pixels")
    assert logged[-1]["score"]["extractor_hash"] == ""  # pixels have no weights
    whole = fluvial.score(tmp_path / "run", count=30, device="cpu")["scores"]
    for name in ("frechet_distance", "class_accuracy", "precision"):
        assert logged[-1]["score"][name] == pytest.approx(whole[name]["value"], rel=1e-6)
        assert logged[-1]["score"][f"{name}_real"] == pytest.approx(whole[name]["real"], rel=1e-6)


def test_a_parameter_that_never_has_a_gradient_can_be_resumed(tmp_path):
    method = {"images_per_sequence": 1, "history_decay": "none"}
    fluvial.train(small(steps=4, method=method), tmp_path / "run", device="cpu")
    assert fluvial.train(small(steps=4, method=method), tmp_path / "run", device="cpu").step == 4


def test_images_of_four_channels_train_without_pictures(tmp_path):
    pixels = digits("train").pixels[:40].repeat(1, 4, 1, 1)
    run = small(steps=2, method={"channels": 4, "classes": 0})
    trained = fluvial.train(run, tmp_path / "run", data=ImageSet(pixels, None, ()), device="cpu")
    assert trained.sample(2).images.shape == (2, 4, 8, 8) and not (tmp_path / "run" / "samples").exists()


def test_held_out_images_that_do_not_fit_are_refused_at_the_start(tmp_path):
    data = digits("train")
    held_out = data._replace(pixels=data.pixels.repeat(1, 3, 1, 1))
    with pytest.raises(ValueError, match=r"latents of \(3, 8, 8\)"):
        fluvial.train(small(), tmp_path / "run", data=data, validation=held_out, device="cpu")


@pytest.mark.parametrize("recipe", ["digits-arflow", "digits-sit"])
def test_images_of_ones_own_without_labels(tmp_path, recipe):
    pixels = digits("train").pixels[:40].repeat(1, 3, 1, 1)
    run = small(recipe, steps=2, method={"channels": 3, "classes": 0})
    trained = fluvial.train(run, tmp_path / "run", data=ImageSet(pixels, None, ()), device="cpu")
    generated = trained.sample(5)
    assert generated.images.shape == (5, 3, 8, 8) and generated.labels is None
    assert "held_out_loss" not in (tmp_path / "run" / "log.jsonl").read_text()


def test_data_that_does_not_fit_the_model_is_refused_before_anything_is_written(tmp_path):
    data = digits("train")
    wrong = {
        r"latents of \(3, 8, 8\).*the model takes \(1, 8, 8\)": data._replace(pixels=data.pixels.repeat(1, 3, 1, 1)),
        "labels run from 5 to 14": data._replace(labels=data.labels + 5),
        "no labels; set method.classes to 0": data._replace(labels=None),
        r"fewer: 3 \(1\)": ImageSet(data.pixels[[0, 1]], torch.tensor([3, 4]), data.class_names),
    }
    for reason, images in wrong.items():
        with pytest.raises(ValueError, match=reason):
            fluvial.train(small(), tmp_path / "run", data=images, device="cpu")
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    fluvial.train(small(steps=3, method={"mlp_ratio": 2.0}), tmp_path / "run", device="cpu")
    written = json.loads((tmp_path / "run" / "run.json").read_text())
    written["run"]["method"]["mlp_ratio"] = 4.0
    with pytest.raises(ValueError, match="run.json is not as it was written"):
        (tmp_path / "run" / "run.json").write_text(json.dumps(written))
        fluvial.load(tmp_path / "run")
    del written["sha256"]  # an edit that is meant
    (tmp_path / "run" / "run.json").write_text(json.dumps(written))
    with pytest.raises(checkpoint.CheckpointError, match="step-00000003 is of another run, with another model"):
        fluvial.load(tmp_path / "run")


def damage(run):
    """Cuts every shard of every checkpoint short."""
    for file in (run / "checkpoints").glob("step-*/*.safetensors"):
        file.write_bytes(file.read_bytes()[:-8])


def test_a_run_of_imported_weights_is_never_trained_from_scratch(tmp_path):
    run = small("digits-sit", steps=2)
    record = record_of(run, imported={"file": "weights.pt"})
    RunFolder(tmp_path / "imported").create(record, build(run).state_dict())
    damage(tmp_path / "imported")
    with pytest.raises(checkpoint.CheckpointError, match="no checkpoint of .* is whole"):
        fluvial.train(run, tmp_path / "imported", device="cpu")
    for start_over in (False, True):
        with pytest.raises(ValueError, match="the weights that .* was made of are gone; make it again"):
            fluvial.train(run, tmp_path / "imported", device="cpu", start_over=start_over)
    with pytest.raises(ValueError, match="has no whole checkpoint"):
        fluvial.train(run, tmp_path / "new", start=tmp_path / "imported", device="cpu")
    assert not (tmp_path / "new" / "run.json").exists()


def test_a_fine_tuned_run_starts_over_from_its_first_weights_and_only_when_told(tmp_path):
    run = small("digits-sit", steps=3)
    fluvial.train(run, tmp_path / "first", device="cpu")
    tuned = fluvial.train(run, tmp_path / "tuned", start=tmp_path / "first", device="cpu")
    with pytest.raises(ValueError, match=r"--start-over is for runs without a whole checkpoint"):
        fluvial.train(run, tmp_path / "tuned", device="cpu", start_over=True)
    damage(tmp_path / "tuned")
    with pytest.raises(checkpoint.CheckpointError, match=r"no checkpoint of .* is whole.*--start-over"):
        fluvial.train(run, tmp_path / "tuned", device="cpu")
    again = fluvial.train(run, tmp_path / "tuned", device="cpu", start_over=True)
    for name, value in tuned.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name])


def test_another_checkpoint_than_the_newest_can_be_loaded(tmp_path):
    fluvial.train(small("digits-sit", steps=6), tmp_path / "run", device="cpu")
    older = fluvial.load(tmp_path / "run", step=3, device="cpu")
    assert older.step == 3
    there = checkpoint.load(tmp_path / "run" / "checkpoints" / "step-00000003", "ema")
    assert all(torch.equal(value, there[name]) for name, value in older.model.state_dict().items())


def test_a_changed_run_json_is_noticed(tmp_path):
    fluvial.train(small("digits-sit", steps=1), tmp_path / "run", device="cpu")
    file = tmp_path / "run" / "run.json"
    text = file.read_text()
    changes = {'"seed": 0': '"seed": 1', '"weight": ': '"weight": 1', '"sha256"': '"sha257"', '"recipe"': '"recipes"'}
    for old, new in changes.items():
        assert old in text
        file.write_text(text.replace(old, new, 1))
        with pytest.raises(ValueError, match=r"run\.json (is not as it was written|cannot be read)"):
            RunFolder(tmp_path / "run").run()


def test_floats_given_as_images_are_refused_before_they_become_black(tmp_path):
    data, run = digits("train"), small(steps=2)
    floats = data._replace(pixels=to_signed(data.pixels))
    with pytest.raises(ValueError, match="^images: pixels must be a uint8 tensor .* got float32"):
        fluvial.train(run, tmp_path / "run", data=floats, device="cpu")
    with pytest.raises(ValueError, match="validation images: pixels must be a uint8 tensor .* got float32"):
        fluvial.train(run, tmp_path / "run", data=data, validation=floats, device="cpu")
    with pytest.raises(ValueError, match="validation images were given without training images"):
        fluvial.train(run, tmp_path / "run", validation=data, device="cpu")
    assert not (tmp_path / "run").exists()
    fluvial.train(run, tmp_path / "run", data=data, device="cpu")
    for given in ({"data": floats}, {"data": data, "validation": floats}, {"validation": data}):
        with pytest.raises(ValueError, match="got float32|without training images"):
            fluvial.score(tmp_path / "run", count=4, device="cpu", **given)


def test_a_damaged_record_is_named(tmp_path):
    (tmp_path / "run.json").write_text('{"method": ')
    with pytest.raises(ValueError, match=r"run\.json cannot be read: .*; bring back a copy of it"):
        RunFolder(tmp_path).record()


def test_a_disk_without_room_for_checkpoints_is_refused_before_the_first_step(tmp_path, monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(1000))
    with pytest.raises(ValueError, match=r"the checkpoints need about .* and the disk of .* has 0 MB free"):
        fluvial.train(recipes.smoke(recipes.get("digits-sit")), tmp_path / "run", device="cpu")
    assert not (tmp_path / "run" / "run.json").exists()
