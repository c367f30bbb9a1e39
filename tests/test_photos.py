"""fluvial train IMAGES: options, and bad ones, which are refused before anything is written."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from fluvial.cli import main, photos
from fluvial.run.folder import RunFolder


@pytest.fixture
def images(tmp_path, monkeypatch):
    """A folder of 40 noise images in two classes, in an empty working folder."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(20):
            pixels = rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{i}.png")
    return tmp_path / "images"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("--minutes -1", "--minutes must be above 0, got -1"),
        ("--minutes nan", "--minutes must be above 0, got nan"),
        ("--steps 0", "--steps must be above 0, got 0"),
        ("--epochs inf", "--epochs must be above 0, got inf"),
        ("--minuts 3", "unknown option --minuts; did you mean --minutes?"),
        ("--name ../other", "--name must be the name of a folder in runs, got '../other'"),
        ("--name a/b", "--name must be the name of a folder in runs, got 'a/b'"),
        ("--name=", "--name must be the name of a folder in runs, got ''"),
        ("--name a --out b", "--out b and --name a are two folders: give one of them"),
        ("--method sit --from run", "the run of --from decides on --method: leave that out"),
        ("more --minutes 1", "train takes one place, got images and more: give the folder that holds them"),
        ("--out file", "file is there and is no folder"),
        ("--out file/run", "file is there and is no folder"),
    ],
)
def test_a_bad_option_is_refused_before_the_images_are_looked_at(images, options, told, capsys):
    (images.parent / "file").write_text("a file")
    assert main(["train", "images", *options.split()]) != 0
    printed = capsys.readouterr()
    assert told in printed.err and "looking" not in printed.out
    assert sorted(path.name for path in images.parent.iterdir()) == ["file", "images"]


def test_a_file_in_the_place_of_runs_is_refused(images, capsys):
    (images.parent / "runs").write_text("a file")
    assert main(["train", "images", "--steps", "2"]) != 0
    assert "runs is there and is no folder" in capsys.readouterr().err


def test_switches_that_are_off_are_settings():
    run = photos.neutral("arflow")
    found = photos.settings_of(run, ["--data.no-flip", "--train.no-compile", "--no-train.keep-best", "--out", "x"])
    assert sorted(found) == ["data.flip", "train.compile", "train.keep_best"]


def test_the_help_shows_no_defaults_of_another_run(images, capsys):
    assert main(["train", "images", "--help"]) == 0
    printed = capsys.readouterr().out
    shown = [line for line in printed.splitlines() if "default:" in line]
    assert len(shown) == 2 and "30" in shown[0] and "arflow" in shown[1]
    assert "--data PLACE" not in printed and "--smoke" not in printed


def test_the_plan_tells_of_another_run_and_of_unreadable_files_once(images, capsys):
    (images / "cat" / "bad.png").write_text("no image")
    (images.parent / "runs" / "arflow-images").mkdir(parents=True)
    (images.parent / "runs" / "arflow-images" / "run.json").write_text('{"config": {}}')
    assert main(["train", "images", "--steps", "2", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "runs/arflow-images-2, as runs/arflow-images has the run of another command" in " ".join(printed.split())
    assert printed.count("bad.png") == 1


def test_a_run_from_weights_has_the_name_of_their_method_and_their_size(images, capsys):
    assert main(["train", "images", "--method", "sit", "--steps", "1", "--name", "first", "--size", "small"]) == 0
    for file in images.rglob("*.png"):
        Image.open(file).resize((24, 24)).save(file)
    capsys.readouterr()
    assert main(["train", "images", "--from", "runs/first", "--steps", "1", "--dry-run"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "the run goes to runs/sit-images" in printed and "16 x 16 colour: as the weights know" in printed


def test_a_longer_run_has_no_more_pictures(tmp_path, monkeypatch):
    run, folder = photos.neutral("sit"), RunFolder(tmp_path)
    nothing: photos.Asked = {"minutes": None, "epochs": None}
    run = replace(run, train=replace(run.train, steps=10, sample_every=1, save_every=2, validate_every=2))
    record = {"plan": {}}
    assert photos.lengthened(run, folder, nothing) == run  # another run, in a new folder
    monkeypatch.setattr(RunFolder, "exists", lambda self: True)
    monkeypatch.setattr(RunFolder, "run", lambda self: run)
    monkeypatch.setattr(RunFolder, "record", lambda self: {"config": record})
    monkeypatch.setattr(photos, "steps_of_epochs", lambda run, epochs: 105)
    given = replace(run, train=replace(run.train, save_every=3))
    longer = photos.lengthened(given, folder, {"minutes": None, "epochs": 3.0}).train
    assert (longer.steps, longer.sample_every, longer.validate_every, longer.save_every) == (105, 11, 21, 3)
    more = replace(run, train=replace(run.train, steps=100))
    assert photos.lengthened(more, folder, nothing).train.sample_every == 10
    record.clear()  # the run of a recipe keeps its intervals
    assert photos.lengthened(given, folder, {"minutes": None, "epochs": 3.0}).train.sample_every == 1
