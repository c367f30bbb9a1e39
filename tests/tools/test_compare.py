import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from fluvial import recipes
from fluvial.cli import main
from fluvial.cli.runs import _compared
from fluvial.data.images import DataConfig
from fluvial.run.folder import RunFolder
from fluvial.tools import compare
from fluvial.tools.compare import check_same_data

STORED = Path(__file__).parents[1] / "folders" / "run"


def files(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}


def test_runs_are_measured_as_they_are_and_recipes_are_trained(tmp_path, capsys, monkeypatch):
    run = shutil.copytree(STORED, tmp_path / "a" / "digits-sit")
    small = recipes.smoke(recipes.get("digits-sit"))
    small = replace(small, train=replace(small.train, steps=3), sample=replace(small.sample, steps=2))
    monkeypatch.setitem(recipes.RECIPES, "digits-sit", lambda: small)
    monkeypatch.setattr(compare, "_for_seconds", lambda run, seconds, device: run)
    before, out = files(run), tmp_path / "out"
    options = ["--count", "20", "--out", str(out), "--device", "cpu"]
    assert main(["compare", str(run), "digits-sit", "--seconds", "1", *options]) == 0
    rows = json.loads((out / "compare.json").read_text())
    assert [row["method"] for row in rows] == [str(run), "digits-sit"] and [row["steps"] for row in rows] == [2, 3]
    assert files(run) == before and RunFolder(out / "digits-sit").exists()
    mine, other = (json.loads(file.read_text()) for file in (*out.glob("score-*.json"), out / "digits-sit/score.json"))
    assert mine["reference"]["hash"] == other["reference"]["hash"] and mine["images"]["count"] == 20
    assert rows[0]["Frechet distance"] == pytest.approx(mine["scores"]["frechet_distance"]["value"], abs=1e-3)
    assert (out / "compare.png").exists() and (out / "budget.json").exists()

    copy, out = shutil.copytree(run, tmp_path / "b"), tmp_path / "new"
    options[3] = str(out)
    assert main(["compare", str(run), str(copy), "--seconds", "1", *options]) == 2
    assert "only runs are compared" in capsys.readouterr().err and not out.exists()
    assert main(["compare", str(run), str(copy), *options]) == 0
    first, second = json.loads((out / "compare.json").read_text())
    assert (first["method"], second["method"]) == ("digits-sit", "b") and not (out / "budget.json").exists()
    assert first["Frechet distance"] == second["Frechet distance"]


def test_runs_of_different_images_are_refused_before_anything_is_written(tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["compare", "digits-sit", "mnist-flowar", "--out", str(out)]) == 1
    told = capsys.readouterr().err
    assert "digits-sit and mnist-flowar are of different images" in told and "data.place is digits and mnist-5k" in told
    assert not out.exists()


def test_the_same_images_may_stand_in_two_places(tmp_path):
    a = DataConfig(path=str(tmp_path / "x"), size=32)
    check_same_data({"a": a, "b": replace(a, path=str(tmp_path / "y" / ".." / "x"), flip=True, cache=True)})
    with pytest.raises(ValueError, match=r"data\.place is .*x and .*y"):
        check_same_data({"a": a, "b": replace(a, path=str(tmp_path / "y"))})
    moved = replace(a, path=str(tmp_path / "y"), digest="1")
    check_same_data({"a": replace(a, digest="1"), "b": moved})
    with pytest.raises(ValueError, match=r"data\.digest is 1 and 2"):
        check_same_data({"a": replace(a, digest="1"), "b": replace(moved, digest="2")})
    for changed in ({"size": 64}, {"channels": 1}, {"test_path": "z"}, {"test_split": "test"}):
        with pytest.raises(ValueError, match=f"c are of different images.*data.{next(iter(changed))}"):
            check_same_data({"a": a, "b": a, "c": replace(a, **changed)})
    check_same_data({"a": DataConfig(), "b": DataConfig(channels=1)})  # the digits are always grey


def test_names_that_are_not_clear_are_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(STORED, tmp_path / "digits-sit")
    for names, told in (
        (["digits-sit", "digits-arflow"], "is a recipe, and also a run folder here"),
        (["digits-flowar", "digits-flowar"], "is named twice"),
        (["./digits-sit", "digits-sit/."], "got one of them twice"),
        (["digits-flowar", "digits-flowra"], "Did you mean digits-flowar?"),
        (["digits-flowar"], "name at least two"),
    ):
        assert main(["compare", *names]) == 2 and told in capsys.readouterr().err, names
    assert list(_compared(["./digits-sit", "digits-flowar"])) == ["digits-sit", "digits-flowar"]
    assert list(tmp_path.iterdir()) == [tmp_path / "digits-sit"]
