"""fluvial config, and fluvial train with a file of settings."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest

from fluvial import recipes
from fluvial.cli import main
from fluvial.config import to_json
from fluvial.run.configuration import read_configuration
from fluvial.run.folder import RunFolder

SMALL = """# mine
base: digits-sit
method: {depth: 1, width: 16, heads: 2}
train: {steps: 2, batch: 4, save_every: 2, validate_every: 2, sample_every: 2, log_every: 2}
sample: {steps: 2, batch: 100}
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("my.yaml").write_text(SMALL)
    return tmp_path


def fails(capsys, code, *arguments):
    assert main(list(arguments)) == code
    told = capsys.readouterr().err
    assert told.startswith("fluvial: error: ") and told.count("\n") == 1
    return told


def test_what_is_printed_is_the_same_run(here, capsys):
    for name in ("digits-flowar", "my.yaml"):
        for base in ([], ["--base", "digits-arflow"]):
            assert main(["config", name, *base]) == 0
            Path("printed.yaml").write_text(capsys.readouterr().out)
            expected = read_configuration(name).run if name == "my.yaml" else recipes.get(name)
            assert read_configuration("printed.yaml").run == expected


def test_a_file_is_trained_and_gone_on_with_and_options_beat_it(here, capsys):
    assert main(["train", "my.yaml", "--device", "cpu", "--train.batch", "6"]) == 0
    folder = RunFolder("runs/my")
    run = read_configuration("my.yaml").run
    assert folder.run() == folder.completed(replace(run, train=replace(run.train, batch=6)))
    record = folder.record()
    assert record["recipe"] is None and record["config"] == {
        "file": "my.yaml",
        "sha256": hashlib.sha256(SMALL.encode()).hexdigest(),
        "text": SMALL,
        "options": ["--device", "cpu", "--train.batch", "6"],
    }
    Path("my.yaml").write_text(f"{SMALL}train.keep: 3\n")
    assert main(["train", "my.yaml", "--device", "cpu", "--train.batch", "6"]) == 0
    assert folder.run().train.keep == 3 and folder.record()["config"]["text"].endswith("keep: 3\n")
    assert "holds another run: train.batch is 6 there and 4 here" in fails(capsys, 1, "train", "my.yaml")
    assert main(["train", "runs/my/run.json", "--device", "cpu"]) == 0  # as its folder
    assert folder.record()["config"]["text"].endswith("keep: 3\n")
    capsys.readouterr()
    assert main(["config", "runs/my"]) == 0
    Path("full.yaml").write_text(capsys.readouterr().out)
    assert read_configuration("full.yaml").run == folder.run()


def test_a_dry_run_and_a_smoke_form_write_nothing_elsewhere(here, capsys):
    Path("a.py").write_text("import fluvial\ndef run():\n    return fluvial.recipes.get('digits-arflow')\n")
    for name in ("my.yaml", "a.py"):
        assert main(["train", name, "--dry-run", "--device", "cpu", "--smoke"]) == 0
        assert f"training would start in runs/{Path(name).stem}-smoke" in capsys.readouterr().out
        assert main(["train", name, "--help"]) == 0
        assert f"the run that {name} describes" in " ".join(capsys.readouterr().out.split())
    assert not Path("runs").exists()


def test_a_copy_of_a_run_json_starts_the_same_run(here, capsys):
    run = read_configuration("my.yaml").run
    Path("copy.json").write_text(json.dumps({"recipe": None, "run": to_json(run)}))
    assert main(["train", "copy.json", "--device", "cpu"]) == 0
    record = RunFolder("runs/copy").record()
    assert record["config"].keys() == {"file", "sha256", "options"}
    assert record["run"]["train"] == json.loads(json.dumps(to_json(run)))["train"]


def test_what_is_wrong_is_one_line_and_nothing_is_written(here, capsys):
    Path("bad.yaml").write_text("base: digits-sit\ntrain.step: 3\nseed: x\n")
    Path("folder.yaml").mkdir()
    told = fails(capsys, 1, "train", "bad.yaml")
    assert "bad.yaml cannot be used: line 2: train.step: there is no such setting; did you mean train.steps?" in told
    assert "; line 3: seed: must be a whole number, got 'x'" in told
    assert "did you mean bad.yaml?" in fails(capsys, 1, "train", "bat.yaml")
    assert "it is a folder" in fails(capsys, 1, "train", "folder.yaml")
    assert "did you mean digits-sit" in fails(capsys, 2, "config", "digit-sit").lower()
    assert "is a file, expected a recipe" in fails(capsys, 2, "config", "my.yaml", "--base", "my.yaml")
    assert "runs/no is not a run folder" in fails(capsys, 2, "config", "runs/no")
    assert not Path("runs").exists()
