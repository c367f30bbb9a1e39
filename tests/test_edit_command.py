"""fluvial edit: what it writes and says, and what it refuses before work."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file

import fluvial
from fluvial import recipes
from fluvial.cli import main
from fluvial.cli.edit import _read
from fluvial.data.images import DataConfig
from fluvial.evaluation.opening import open_images

RUNS = {}


@pytest.fixture(scope="module", autouse=True)
def runs(tmp_path_factory):
    for kind in ("sit", "arflow", "flowar"):
        folder = tmp_path_factory.mktemp(kind) / "run"
        tiny = recipes.smoke(recipes.get(f"digits-{kind}"))
        train = replace(tiny.train, steps=1, batch=2, validate_every=0, sample_every=0, first_sample=0)
        fluvial.train(replace(tiny, train=train), folder, device="cpu")
        RUNS[kind] = str(folder)


@pytest.fixture
def mask(tmp_path):
    """A PNG, white in the middle."""
    pixels = np.zeros((8, 8), np.uint8)
    pixels[2:6, 2:6] = 255
    Image.fromarray(pixels).save(tmp_path / "mask.png")
    return tmp_path / "mask.png"


def edited(capsys, kind, run, *words):
    code = main(["edit", kind, RUNS[run], *map(str, words)])
    captured = capsys.readouterr()
    return code, captured.out if code == 0 else captured.err


@pytest.mark.parametrize(
    ("kind", "run", "words"),
    [
        ("inpaint", "sit", ("--steps", 4, "--copies", 2)),
        ("inpaint", "flowar", ("--steps", 2)),
        ("vary", "flowar", ("--keep", 2, "--steps", 2, "--classes", 7)),
        ("redraw", "arflow", ("--at", 0.5, "--steps", 2)),
        ("invert", "arflow", ("--steps", 2)),
        ("context", "arflow", ("--steps", 2, "--count", 5)),
        ("fork", "sit", ("--at", 0.5, "--steps", 2, "--count", 4, "--classes", 3)),
    ],
)
def test_every_kind_writes_images_a_record_and_a_picture(capsys, mask, tmp_path, kind, run, words):
    out = tmp_path / "out"
    given = () if kind == "fork" else ("--images", "digits:test", "--indices", 0, 5, 7)
    given += ("--mask", mask) if kind == "inpaint" else ()
    code, said = edited(capsys, kind, run, *given, *words, "--out", out)
    assert code == 0 and f"{out / 'edit.png'}\n" in said
    images = np.load(out / "samples.npz")["arr_0"]
    record = json.loads((out / "samples.json").read_text())
    assert record["edit"]["edit"] == kind and record["sampling"]["nfe"] > 0
    assert len(images) == {"context": 5, "fork": 4}.get(kind, 6 if "--copies" in words else 3)
    assert (out / "noise.safetensors").exists() == (kind == "invert")
    if kind == "inpaint":
        real = fluvial.data.images.digits("test").pixels[[0, 5, 7]][:, 0].numpy()
        known = np.asarray(Image.open(mask)) == 0
        assert (images[:: len(images) // 3, :, :, 0][:, known] == real[:, known]).all()
        assert "known pixels change by 0 levels" in said
    if kind == "invert":
        assert load_file(out / "noise.safetensors")["noise"].shape == (3, 1, 8, 8)
    assert (record["labels"] == "none") == (kind == "context")  # the others have the classes of the images, or one
    code, said = edited(capsys, kind, run, *given, *words, "--out", out)
    assert code == 1 and "holds files already" in said


def test_small_images_are_grown_from_a_file(capsys, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 4), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "small.png")
    code, said = edited(capsys, "grow", "flowar", "--images", tmp_path / "small.png", "--agree", "--steps", 2)
    assert code == 0 and "pooled to 4 x 4, they differ from the images given by 0." in said
    grown = np.load(Path(RUNS["flowar"]) / "edit-grow" / "samples.npz")["arr_0"][0, :, :, 0]
    assert np.abs(grown.reshape(4, 2, 4, 2).mean((1, 3)) - pixels).max() <= 0.5


def test_images_and_masks_are_fitted_if_asked(capsys, tmp_path):
    large = np.zeros((40, 60, 3), np.uint8)
    large[:, 10:30] = 255
    Image.fromarray(large).save(tmp_path / "large.png")
    words = ("--images", tmp_path / "large.png", "--mask", tmp_path / "large.png", "--steps", 2)
    code, said = edited(capsys, "inpaint", "sit", *words)
    assert code == 2 and "is 40 x 60 (height, width), and the run draws 8 x 8: --fit crops and scales to that" in said
    exact = np.zeros((16, 24, 3), np.uint8)  # which is halved, and not interpolated
    exact[:, 4:12] = 255
    Image.fromarray(exact).save(tmp_path / "exact.png")
    words = ("--images", tmp_path / "exact.png", "--mask", tmp_path / "exact.png", "--steps", 2)
    assert edited(capsys, "inpaint", "sit", *words, "--fit")[0] == 0
    drawn = np.load(Path(RUNS["sit"]) / "edit-inpaint" / "samples.npz")["arr_0"][0, :, :, 0]
    assert (drawn[:, 4:] == 0).all()  # the square in the middle is white on its left half


def test_a_file_is_read_as_in_a_folder_of_images(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (24, 36, 3), np.uint8)
    turned = Image.Exif()
    turned[0x0112] = 3  # upside down
    (tmp_path / "folder").mkdir()
    Image.fromarray(pixels).save(tmp_path / "folder" / "image.png", exif=turned)
    for channels in (1, 3):
        there = open_images(str(tmp_path / "folder"), DataConfig(size=8, crop="centre", channels=channels)).read([0])[0]
        assert torch.equal(_read(tmp_path / "folder" / "image.png", channels, 8), there[0])


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("paint", "sit"), "a kind, one of inpaint, vary"),
        (("redraw", "sit", "--images", "digits:test"), "needs --at"),
        (("redraw", "sit", "--at", 0.5), "needs --images"),
        (("redraw", "sit", "--images", "digits:test", "--at", 0.5, "--keep", 1), "--keep is an option of vary, not of"),
        (("fork", "sit", "--images", "digits:test", "--at", 0.5), "takes no --images"),
        (
            ("vary", "flowar", "--images", "digits:test", "--keep", 1, "--indices", 999),
            "--indices must be from 0 to 539",
        ),
        (("redraw", "sit", "--images", "digits:test", "--at", 0.5, "--classes", 11), "--classes must be"),
        (("redraw", "sit", "--images", "digits:test", "--at", 2), "between 0 (noise) and 1 (image), got 2"),
        (("inpaint", "sit", "--images", "digits:test", "--mask", "no.png"), "no.png cannot be read as an image"),
        (("redraw", "sit", "--images", "digits:test", "--at", 0.5, "--copies", 0), "copies"),
        (("context", "arflow", "--images", "digits:test", "--copies", 2), "--copies is an option of inpaint and"),
        (("context", "arflow", "--images", "digits:test", "--steps", 1), "give more steps"),
        (("context", "arflow", "--images", "digits:test", "--sample.history", 0), "sample.history 0 leaves none"),
        (("fork", "sit", "--at", 0.5, "--classes", 1, 2), "are of one class, got 2 classes"),
        (("grow", "flowar", "--images", "digits:test", "--fit"), "--fit is an option of inpaint and"),
        (("redraw", "sit", "--images", "digits:test", "--at", "nan"), "--at: must be finite or None, got nan"),
    ],
)
def test_what_does_not_fit_is_refused(capsys, words, expected):
    code, said = edited(capsys, *words)
    assert code in (1, 2) and expected in said and "Traceback" not in said


@pytest.mark.parametrize("words", [["--help"], ["inpaint", "--help"], ["inpaint", "--help", "all"]])
def test_the_kinds_are_in_the_help(capsys, words):
    try:
        assert main(["edit", *words]) == 0
    except SystemExit as end:
        assert not end.code
    said = capsys.readouterr().out
    assert "usage: fluvial edit KIND RUN" in said
    assert all(kind in said for kind in ("inpaint", "vary", "grow", "redraw", "invert", "context", "fork"))


def test_masks_that_leave_nothing_to_do_are_refused(capsys, mask):
    words = ("--images", "digits:test", "--mask", mask)
    Image.fromarray(np.full((8, 8), 100, np.uint8)).save(mask)
    code, said = edited(capsys, "inpaint", "sit", *words)
    assert code == 2 and "no pixel is white (at least 128 of 255)" in said
    Image.fromarray(np.full((8, 8), 255, np.uint8)).save(mask)
    code, said = edited(capsys, "inpaint", "sit", *words)
    assert code == 1 and "leaves no part of the images known" in said
    Image.fromarray(np.full((9, 8), 255, np.uint8)).save(mask)
    code, said = edited(capsys, "inpaint", "sit", *words)
    assert code == 2 and "mask.png is 9 x 8 (height, width)" in said
    Image.fromarray(np.eye(8, dtype=np.uint8) * 255).save(mask)
    code, said = edited(capsys, "inpaint", "sit", *words, "--passes", 2)
    assert code == 1 and "passes need a method that draws by scales" in said
    code, said = edited(capsys, "inpaint", "sit", *words, "--repeats", 0, "--jump", 2)
    assert code == 2 and "--repeats 0 takes none again" in said


def test_class_ids_that_the_run_has_not_are_refused_unless_others_are_given(capsys, tmp_path):
    images = np.zeros((2, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "three.npz", images, np.array([1, 30]))
    words = ("--images", tmp_path / "three.npz", "--at", 0.5, "--steps", 2)
    code, said = edited(capsys, "redraw", "sit", *words)
    assert code == 2 and "class ids up to 30, and the run 10 classes" in said
    for classes in ("none", 3):
        assert edited(capsys, "redraw", "sit", *words, "--classes", classes)[0] == 0
        record = json.loads((Path(RUNS["sit"]) / "edit-redraw" / "samples.json").read_text())
        assert record["labels"] == ("none" if classes == "none" else "3 classes in turn")


def test_other_samples_leave_no_file_in_the_usual_folder(capsys, tmp_path):
    """What only an edit or a walk has goes when other samples take its place; other files stay."""
    folder = Path(RUNS["sit"]) / "walk"
    steps = ("--steps", 2)
    assert main(["walk", RUNS["sit"], "--from", "3:1", "--to", "5:2", "--frames", "3", *map(str, steps)]) == 0
    (folder / "mine.txt").write_text("")
    (folder / "noise.safetensors").write_bytes(b"")
    assert (folder / "walk.gif").exists()
    assert main(["walk", RUNS["sit"], "--corners", "1", "2", "3", "4", "--side", "2", *map(str, steps)]) == 0
    assert {path.name for path in folder.iterdir()} == {"samples.npz", "samples.json", "grid.png", "mine.txt"}
    capsys.readouterr()


def test_inverting_follows_guidance_if_it_is_asked_for(capsys, tmp_path):
    own = json.loads((Path(RUNS["sit"]) / "run.json").read_text())["run"]["sample"]["guidance"]["weight"]
    for given, used in (((), 1.0), (("--guidance", own), own)):
        code, _ = edited(capsys, "invert", "sit", "--images", "digits:test", "--indices", 1, "--steps", 2, *given)
        record = json.loads((Path(RUNS["sit"]) / "edit-invert" / "samples.json").read_text())["sampling"]
        assert code == 0 and own != 1 and record["guidance"] == used and (record["nfe_null"] > 0) == (used != 1)


def test_transparent_parts_of_a_mask_are_kept(capsys, mask, tmp_path):
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[2:6, 2:6] = 255
    Image.fromarray(pixels).save(tmp_path / "alpha.png")
    drawn = []
    for file in (mask, tmp_path / "alpha.png"):
        words = ("--images", "digits:test", "--indices", 3, "--steps", 2, "--mask", file)
        assert edited(capsys, "inpaint", "sit", *words)[0] == 0
        drawn.append(np.load(Path(RUNS["sit"]) / "edit-inpaint" / "samples.npz")["arr_0"])
    assert (drawn[0] == drawn[1]).all()


def test_an_archive_is_fitted_like_a_folder(capsys, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 28, 1), np.uint8).repeat(3, 2)
    Image.fromarray(pixels).save(tmp_path / "one.png")
    np.savez(tmp_path / "one.npz", pixels[None])
    given = []
    for name in ("one.png", "one.npz"):
        words = ("--images", tmp_path / name, "--fit", "--at", 0.9, "--steps", 2, "--classes", 3)
        assert edited(capsys, "redraw", "sit", *words)[0] == 0
        given.append(json.loads((Path(RUNS["sit"]) / "edit-redraw" / "samples.json").read_text())["edit"])
    assert given[0] == given[1]
