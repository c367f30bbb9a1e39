"""fluvial train --dry-run: the checks of training, and nothing written."""

import re
from dataclasses import replace
from functools import partial

import pytest
from PIL import Image

import fluvial
from fluvial import recipes
from fluvial.autoencoders import AutoencoderConfig
from fluvial.cli import main
from fluvial.data.images import DataConfig
from fluvial.run.folder import RunFolder, record_of
from fluvial.run.train import build, check
from fluvial.utils.atomic import only_one


def dry(*arguments):
    return main(["train", *map(str, arguments), "--dry-run", "--device", "cpu"])


@pytest.fixture
def photos(tmp_path):
    """Two classes of four images of 8 x 8 pixels, and one that is left out."""
    for i in range(8):
        folder = tmp_path / "photos" / "ab"[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (9 * i, 200 - 9 * i, 50)).save(folder / f"{i}.png")
    (tmp_path / "photos" / "a" / "x.heic").write_bytes(b"?")
    return tmp_path / "photos"


def test_a_dry_run_prints_the_estimate_and_what_is_wrong(tmp_path, photos, capsys):
    fits = ["digits-sit", f"--data.path={photos}", "--method.channels=3", f"--out={tmp_path / 'run'}"]
    assert dry(*fits, "--method.classes=2") == 0
    printed = capsys.readouterr().out
    assert f"checked: training would start in {tmp_path / 'run'}" in printed and "1 file left out: 1 .heic" in printed
    assert "images an epoch" in printed and "│           8 │" in printed
    assert dry(*fits, "--method.classes=3") == 1
    captured = capsys.readouterr()
    assert "training would not start: the data has 2 classes, the model 3" in captured.err
    assert "parameters" in captured.out and "checked" not in captured.out
    assert not (tmp_path / "run").exists()


def test_the_checks_are_those_of_training(tmp_path, photos):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    (tmp_path / "empty").mkdir()
    sit, arflow = (recipes.smoke(recipes.get(f"digits-{name}")) for name in ("sit", "arflow"))

    def run(recipe=sit, path=photos, autoencoder="pixels", out="run", **method):
        run = replace(
            recipe,
            method=replace(recipe.method, **{"channels": 3, "classes": 2, **method}),
            data=DataConfig(path=str(path)),
            autoencoder=AutoencoderConfig(name=str(autoencoder)),
        )
        return run, tmp_path / out

    def both_refuse(run, out, says):
        for start in (check, partial(fluvial.train, device="cpu")):
            with pytest.raises(ValueError, match=re.escape(says)):
                start(run, out)

    assert check(*run()) == 8
    both_refuse(*run(channels=1), "latents of (3, 8, 8) (channels, height, width), the model takes (1, 8, 8)")
    both_refuse(*run(path=tmp_path / "gone"), "gone does not exist")
    both_refuse(*run(path=tmp_path / "empty"), "has no images")
    both_refuse(*run(autoencoder=tmp_path / "gone.ckpt"), "gone.ckpt is not there")
    both_refuse(*run(out="full"), "is not empty and not a run folder")
    both_refuse(*run(recipe=arflow, images_per_sequence=5), "fewer: a (4), b (4)")
    (photos / "b" / "3.png").write_bytes(b"")
    both_refuse(*run(), "1 unreadable image: ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "full", "photos"]


def test_nothing_is_downloaded_and_the_rest_is_checked(tmp_path, photos):
    recipe, said = recipes.get("imagenet256-sit-xl2"), []
    assert check(recipe, tmp_path / "run", tell=said.append) is None
    assert said == [
        "not checked: the images hub:ILSVRC/imagenet-1k, on the hub; name files here with --data.path",
        "not checked: the autoencoder stabilityai/sd-vae-ft-ema, on the hub; name its folder with --autoencoder.name",
    ]
    here = replace(recipe, data=replace(recipe.data, path=str(photos), size=64))
    with pytest.raises(ValueError, match="the data has 2 classes, the model 1000"):
        check(here, tmp_path / "run")
    said.clear()
    fits = replace(here, method=replace(here.method, classes=2))
    assert check(fits, tmp_path / "run", tell=said.append) == 8
    assert "the autoencoder stabilityai/sd-vae-ft-ema" in said[0] and "1 file left out: 1 .heic" in said[1]
    assert len(said) == 2 and not (tmp_path / "run").exists()


def test_a_dry_run_sees_that_the_folder_is_of_another_run_or_in_use(tmp_path, capsys):
    folder = tmp_path / "run"
    run = recipes.smoke(recipes.get("digits-sit"))
    RunFolder(folder).create(record_of(run), build(run).state_dict())
    assert dry("digits-sit", "--out", folder) == 1 and "holds another run" in capsys.readouterr().err
    assert dry(folder) == 0 and "not checked: the checkpoints" in capsys.readouterr().out
    assert dry(folder, "--out", tmp_path / "other") == 0
    assert f"starts from the weights in {folder}" in capsys.readouterr().out
    with only_one(folder):
        assert dry(folder) == 1 and "another process is training" in capsys.readouterr().err
