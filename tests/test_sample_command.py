"""fluvial sample: at once with pictures, in parts, on ranks, and into folders that hold something else."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import fluvial
from fluvial import recipes
from fluvial.cli import main
from fluvial.flow.guidance import Guidance
from fluvial.run.folder import RunFolder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sample") / "run"
    tiny = recipes.smoke(recipes.get("digits-arflow"))
    train = replace(tiny.train, steps=1, batch=2, validate_every=0, sample_every=0, first_sample=0)
    fluvial.train(replace(tiny, train=train), folder, device="cpu")
    return str(folder)


@pytest.fixture
def drawn(run, capsys):
    """A function that samples with these words and returns the exit code and what was printed."""

    def call(*words):
        code = main(["sample", run, "--steps", "2", *map(str, words)])
        captured = capsys.readouterr()
        return code, captured.out if code == 0 else captured.err

    return call


def test_the_usual_samples_are_drawn_at_once_with_pictures(run, drawn):
    code, said = drawn("--count", 12)
    assert code == 0 and said.startswith("12 images (") and "images/s: network" in said
    assert "NFE 4: 2 conditional, 2 null" in said
    names = {path.name for path in RunFolder(run).samples.iterdir()}
    assert {"grid.png", "trajectory.gif", "samples.npz", "samples.json"} <= names
    assert drawn("--count", 3, "--seed", 7)[0] == 0  # the run's own folder has the newest


def test_many_images_go_to_a_folder_of_their_own_in_parts(run, drawn):
    code, said = drawn("--count", 25, "--shard", 10)
    folder = Path(run) / "samples-25"
    assert code == 0 and f"{folder}: 25 images as npz\n" in said
    assert np.load(folder / "samples.npz")["arr_0"].shape == (25, 8, 8, 3)
    assert main(["data", "verify", str(folder)]) == 0
    assert f"{folder}: 25 images as npz, which was there already" in drawn("--count", 25, "--shard", 10)[1]


def test_ranks_of_torchrun_share_the_images(drawn, tmp_path, monkeypatch):
    words = ["--count", 7, "--form", "png", "--out", tmp_path / "set"]
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert "rank 1 of 2: 3 images" in drawn(*words)[1]
    monkeypatch.setenv("RANK", "0")
    code, said = drawn(*words)
    assert code == 0 and "rank 0 of 2: 4 images" in said and "7 images as png" in said
    assert main(["data", "verify", str(tmp_path / "set")]) == 0


def test_chosen_images_are_those_of_the_whole(drawn, tmp_path):
    assert drawn("--count", 9, "--form", "png", "--out", tmp_path / "all")[0] == 0
    assert drawn("--indices", 8, 3, "--form", "png", "--out", tmp_path / "two")[0] == 0
    for name in ("000003.png", "000008.png"):
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "all" / name).read_bytes()
    assert "give --count or --indices, got both" in drawn("--count", 3, "--indices", 1)[1]


def test_a_folder_with_something_else_is_refused_before_work(drawn, tmp_path):
    assert drawn("--count", 2, "--out", tmp_path / "a")[0] == 0
    assert drawn("--count", 3, "--out", tmp_path / "a")[0] == 0  # more of the same
    code, said = drawn("--count", 2, "--out", tmp_path / "a", "--seed", 1)
    assert code == 1 and "holds other samples: seed is 0 there and 1 here. Choose another folder" in said
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").touch()
    code, said = drawn("--count", 2, "--out", tmp_path / "photos")
    assert code == 1 and "holds other files, such as cat.jpg" in said
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["cat.jpg"]


def test_damage_is_found_and_mended_by_the_same_command(drawn, tmp_path, capsys):
    words = ["--count", 5, "--form", "tar", "--shard", 2, "--out", tmp_path / "set"]
    assert drawn(*words)[0] == 0
    shard = tmp_path / "set" / "shard-00001.tar"
    content = bytearray(shard.read_bytes())
    content[600] ^= 1
    shard.write_bytes(content)
    assert main(["data", "verify", str(tmp_path / "set")]) == 1
    said = capsys.readouterr().err
    assert "is damaged" in said and ("000002.png was altered" in said or "shard-00001.tar was altered" in said)
    shard.unlink()
    assert drawn(*words)[0] == 0 and main(["data", "verify", str(tmp_path / "set")]) == 0


def test_a_score_of_a_set_tells_how_it_was_sampled(drawn, tmp_path):
    assert drawn("--count", 20, "--form", "png", "--out", tmp_path / "set", "--seed", 3)[0] == 0
    words = ["--reference", "digits:test", "--features", "pixels", "--out", str(tmp_path / "card.json")]
    assert main(["score", str(tmp_path / "set"), *words]) == 0
    card = json.loads((tmp_path / "card.json").read_bytes())
    assert card["sampling"]["seed"] == 3 and card["images"]["count"] == 20 and card["images"]["shape"] == [1, 8, 8]


def test_another_step_of_a_run_guides(run, drawn, tmp_path):
    assert drawn("--count", 2, "--out", tmp_path / "a", "--guide", f"{run}:1", "--guidance", 2)[0] == 0
    about = json.loads((tmp_path / "a" / "samples.json").read_bytes())
    assert "run at step 1, average of decay" in about["sampling"]["guide"]
    code, said = drawn("--count", 2, "--out", tmp_path / "a", "--guidance", 2)
    assert code == 1 and "guide is" in said
    assert "--guide is RUN or RUN:STEP, got nowhere:x" in drawn("--count", 2, "--guide", "nowhere:x")[1]
    assert "nowhere is not a run folder" in drawn("--count", 2, "--guide", "nowhere")[1]


def test_a_budget_of_evaluations_is_spent(run, capsys, tmp_path):
    def call(*words):
        code = main(["sample", run, *map(str, words), "--count", "2", "--out", str(tmp_path / "-".join(words))])
        return code, "".join(capsys.readouterr())

    assert "NFE 24: 12 conditional, 12 null" in call("--nfe", "24")[1]
    assert "NFE 8: 4 conditional, 4 null" in call("--nfe", "9", "--solver", "heun")[1]
    assert call("--nfe", "1") == (
        2,
        "fluvial: error: --nfe must be at least 2 with the solver ab2 and guidance, got 1\n",
    )
    assert call("--nfe", "9", "--steps", "3") == (2, "fluvial: error: give --steps or --nfe, got both\n")
    assert "dopri5 chooses its own steps" in call("--nfe", "9", "--solver", "dopri5")[1]
    words = ["--features", "pixels", "--reference", "digits:test", "--out", str(tmp_path / "card.json")]
    assert main(["score", run, "--count", "20", "--nfe", "6", *words]) == 0
    assert json.loads((tmp_path / "card.json").read_bytes())["sampling"]["nfe"] == 3


def test_samples_at_once_replace_no_set_and_no_samples_of_another_run(run, drawn, tmp_path):
    assert drawn("--count", 5, "--form", "png", "--out", tmp_path / "set")[0] == 0
    code, said = drawn("--count", 2, "--out", tmp_path / "set")
    assert code == 1 and "holds samples that were made in parts; choose another folder" in said
    assert main(["data", "verify", str(tmp_path / "set")]) == 0
    assert drawn("--count", 2, "--out", tmp_path / "a")[0] == 0
    code, said = drawn("--count", 2, "--out", tmp_path / "a", "--average", "raw")
    assert code == 1 and "holds other samples" in said and "weights" in said


def test_a_run_without_label_drop_is_guided_by_another(tmp_path, capsys):
    tiny = recipes.smoke(recipes.get("digits-sit"))
    train = replace(tiny.train, steps=1, batch=2, validate_every=0, sample_every=0, first_sample=0)
    alone = {"method": replace(tiny.method, label_drop=0.0), "sample": replace(tiny.sample, guidance=Guidance())}
    fluvial.train(replace(tiny, train=train, **alone), tmp_path / "a", device="cpu")
    words = ["sample", str(tmp_path / "a"), "--count", "2", "--steps", "2", "--guidance", "2"]
    assert main(words) == 2 and "guidance needs a model that was trained without labels" in capsys.readouterr().err
    assert main([*words, "--guide", str(tmp_path / "a")]) == 0
    assert "NFE 4: 2 conditional, 2 null" in capsys.readouterr().out


def test_a_set_whose_npz_is_gone_is_told_by_score(drawn, tmp_path, capsys):
    assert drawn("--count", 4, "--shard", 2, "--out", tmp_path / "set")[0] == 0
    (tmp_path / "set" / "samples.npz").unlink()
    assert main(["score", str(tmp_path / "set"), "--reference", "digits:test", "--features", "pixels"]) == 1
    assert "samples.npz" in capsys.readouterr().err


def test_a_preview_is_drawn_beside_the_trajectory_or_alone(run, drawn, tmp_path):
    assert drawn("--count", 3, "--preview", "--out", tmp_path / "a")[0] == 0
    assert {"trajectory.gif", "preview.gif"} <= {path.name for path in (tmp_path / "a").iterdir()}
    assert drawn("--count", 3, "--preview", "--no-gif", "--out", tmp_path / "b")[0] == 0
    names = {path.name for path in (tmp_path / "b").iterdir()}
    assert "preview.gif" in names and "trajectory.gif" not in names


def test_a_preview_of_images_in_parts_is_refused_before_work(drawn, tmp_path):
    for words in (["--form", "png"], ["--shard", 2], ["--count", 1001]):
        code, said = drawn("--preview", "--out", tmp_path / "a", *words)
        assert code == 2 and "--preview is drawn of at most" in said and not (tmp_path / "a").exists()
