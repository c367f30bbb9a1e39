"""Studies: files, budgets, statistics, and a small study from its file to its page."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

import fluvial
from fluvial import methods, recipes
from fluvial.cli import main, plugins
from fluvial.tools.study import files, scores, speed, tables, work
from fluvial.tools.study.files import slug
from fluvial.tools.study.plan import read_study
from fluvial.tools.study.run import StudyError, study
from fluvial.tools.study.study import Budget, Speed, scheduled
from fluvial.tools.study.tables import Table, Told, markdown
from fluvial.utils.atomic import check_unlocked

SMALL = """
question: Does width help?
seeds: [0, 1]
budget.images: 480
measure: {count: 40, points: 2}
common: {train.batch: 40, method.depth: 1}
runs:
  Narrow: {base: digits-sit, method.width: 32}
  Wide: {base: digits-sit, method.width: 64}
samplings:
  guided: {sample.steps: 2}
  plain: {sample.steps: 2, sample.guidance.weight: 1}
"""


def written(folder: Path, text: str) -> Path:
    (folder / "small.yaml").write_text(text)
    return folder / "small.yaml"


def test_a_file_names_runs_by_their_base_and_what_differs(tmp_path):
    plan = read_study(written(tmp_path, SMALL.replace("runs:", "variants:\n  a: {optim.lr: 0.1}\n  b:\nruns:")))
    assert list(plan.runs) == ["Narrow, a", "Narrow, b", "Wide, a", "Wide, b"]
    base = recipes.get("digits-sit")
    method = replace(base.method, depth=1, width=64)
    expected = replace(base, method=method, train=replace(base.train, batch=40))
    assert plan.runs["Wide, b"] == expected
    assert plan.runs["Wide, a"] == replace(expected, optim=replace(base.optim, lr=0.1))
    assert plan.compared_with == "Narrow, a" and plan.seeds == (0, 1) and plan.measure.points == 2
    guided, plain = plan.samplings["Wide, a"].values()
    assert guided == replace(base.sample, steps=2)
    assert plain == replace(guided, guidance=replace(guided.guidance, weight=1.0))


def test_a_run_may_have_samplings_of_its_own(tmp_path):
    more = "  Wide: {base: digits-sit, method.width: 64, samplings.fast: {sample.steps: 1}}"
    plan = read_study(written(tmp_path, SMALL.replace("  Wide: {base: digits-sit, method.width: 64}", more)))
    assert [*plan.samplings["Narrow"]] == ["guided", "plain"]
    assert [*plan.samplings["Wide"]] == ["guided", "plain", "fast"]
    assert plan.samplings["Wide"]["fast"].steps == 1 and plan.samplings["Wide"]["guided"].steps == 2
    assert plan.runs["Wide"].sample == plan.runs["Narrow"].sample, "a run is trained with its own settings alone"
    wrong = SMALL.replace("method.width: 64}", "method.width: 64, samplings.fast: {train.batch: 1}}")
    with pytest.raises(ValueError, match=r"line 9: a sampling has settings of sample alone, and fast has train.batch"):
        read_study(written(tmp_path, wrong))


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("budget.images: 480", "", "a budget is one of seconds, images and flops, got none"),
        ("budget.images: 480", "budget: {images: 1, flops: 2}", "got images, flops"),
        ("budget.images: 480", "budget.images: 0", "images must be a number above 0, got 0"),
        ("budget.images: 480", "budget.image: 1", "line 4: there is no budget.image; did you mean budget.images?"),
        ("seeds: [0, 1]", "seeds: [0, 0]", "seeds must be different whole numbers from 0, got 0 0"),
        ("seeds: [0, 1]", "seeds: 0", "line 3: seeds must be a list of whole numbers"),
        ("seeds: [0, 1]", "baseline: Broad", "baseline must be one of the runs (Narrow, Wide), got 'Broad'"),
        ("points: 2", "points: 0", "measure: must be at least 1: {'points': 0}"),
        ("train.batch: 40", "train.steps: 40", "line 6: train.steps follows from the budget"),
        ("train.batch: 40", "seed: 40", "line 6: seed is one of the seeds"),
        ("method.width: 64", "method.widht: 64", "run Wide, cannot be used: line 9: method.widht"),
        ("base: digits-sit, method.width: 64", "", "run Wide, cannot be used: it says no model"),
        ("base: digits-sit, method.width: 64", "base: cifar10-sit", "of different images"),
        ("{base: digits-sit, method.width: 64}", "3", "line 9: Wide must have settings below it"),
        ("  Wide", "  narrow", "run 'Narrow' needs another name: its folder would be 'narrow'"),
        ("  Wide", "  Results", "run 'Results' needs another name"),
        ("plain: {sample.steps: 2", "plain: {train.batch: 2", "line 12: a sampling has settings of sample alone"),
        (SMALL[SMALL.index("runs:") :], "", "it has no runs"),
    ],
)
def test_a_file_that_is_no_study_is_refused(tmp_path, old, new, told):
    assert old in SMALL
    file = written(tmp_path, SMALL.replace(old, new))
    with pytest.raises(ValueError) as raised:
        read_study(file)
    assert str(raised.value).startswith(str(file)) and told in str(raised.value)


def test_a_budget_is_a_number_of_steps():
    run, speed = recipes.get("digits-arflow"), Speed(seconds=0.25, flops=1000, parameters=1, sampling={})
    assert Budget(seconds=60).steps(run, speed) == 240
    assert Budget(images=1600).steps(run, speed) == 1600 / run.images_per_step
    assert Budget(flops=1e6).steps(run, speed) == 1000
    assert Budget(seconds=0.001).steps(run, speed) == 1


@pytest.mark.parametrize("steps", [1, 7, 8, 100, 788, 1234, 98_765])
@pytest.mark.parametrize("seconds", [1e-4, 0.03, 0.2285, 5.0])
@pytest.mark.parametrize("points", [1, 3, 4])
def test_checkpoints_fall_on_the_points_of_the_curves(steps, seconds, points):
    train = scheduled(recipes.get("digits-sit"), 3, steps, seconds, points).train
    part = train.steps // points
    assert train.steps == part * points and train.keep_every == part and part % train.save_every == 0
    saves = part // train.save_every
    assert 0 <= steps - train.steps < points * (saves + 1) or train.steps == points > steps
    assert train.save_every * seconds <= max(1.6 * 60, seconds)
    assert not (train.validate_every or train.sample_every or train.score_every)


def test_errors_are_those_of_means_and_of_paired_differences():
    random = np.random.default_rng(0)
    values, others = random.normal(size=(2, 5))
    found = scores.mean(list(values))
    assert found.value == pytest.approx(values.mean()) and found.error == pytest.approx(stats.sem(values))
    apart = scores.difference(dict(enumerate(values)), dict(enumerate(others)) | {9: 5.0}, "recall")
    test = stats.ttest_rel(values, others)
    assert apart.mean.seeds == 5 and apart.mean.value / apart.mean.error == pytest.approx(test.statistic)
    assert scores.mean([1.0]).error is None and scores.difference({0: 1.0}, {1: 1.0}, "recall") is None
    for seeds, chance in tables.CHANCE.items():
        assert 100 * 2 * stats.t.sf(2, seeds - 1) == pytest.approx(chance, abs=0.6)


@pytest.mark.parametrize(
    ("values", "name", "verdict"),
    [
        ([1.0, 1.1, 0.9], "frechet_distance", "worse"),
        ([-1.0, -1.1, -0.9], "frechet_distance", "better"),
        ([1.0, 1.1, 0.9], "recall", "better"),
        ([-1.0, -1.1, -0.9], "class_accuracy", "worse"),
        ([1.0, -0.5, 0.2], "recall", ""),
        ([1.0], "recall", ""),
        ([0.0, 0.0, 0.0], "recall", ""),
    ],
)
def test_only_more_than_twice_the_error_is_called_better_or_worse(values, name, verdict):
    zeros = dict.fromkeys(range(len(values)), 0.0)
    assert scores.difference(dict(enumerate(values)), zeros, name).verdict == verdict


def test_speeds_are_those_of_training_and_drawing(monkeypatch):
    monkeypatch.setattr(speed, "TRIAL", 0.0)  # a quick machine would take more steps than the fewest
    monkeypatch.setattr(speed, "FEWEST", 6)
    run = recipes.smoke(recipes.get("digits-sit"))
    found, sampler = speed.speed_of(run, {"own": run.sample, "few": replace(run.sample, steps=1)})
    assert 1e-4 < found.seconds < 60 and found.flops > 6 * run.train.batch * found.parameters
    assert found.sampling["few"] > found.sampling["own"] > 0 and sampler.step == 6


def speeds_there(out: Path, file: Path) -> None:
    """Puts speeds in the folder, which tests do not measure."""
    plan = read_study(file)
    (out / "results").mkdir(parents=True)
    for name, run in plan.runs.items():
        speed = Speed(seconds=0.01, flops=10**6, parameters=10**4, sampling=dict.fromkeys(plan.samplings[name], 9.0))
        of = {"run": fluvial.config.to_json(run), "budget": plan.budget.given}
        (out / "results" / f"{slug(name)}-speed.json").write_text(json.dumps({"speed": vars(speed), "of": of}))


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> tuple[Path, Path, list[dict]]:
    """A small study that was done without a stop: its file, its folder and its results."""
    folder = tmp_path_factory.mktemp("study")
    file = written(folder, SMALL)
    speeds_there(folder / "out", file)
    return file, folder / "out", study(read_study(file), folder / "out", at_once=2, say=lambda line: None)


def numbers(results: list[dict]) -> list[tuple]:
    """What the results have measured."""
    return [
        (result["run"], result["seed"], row["step"], row["sampling"], row["evaluations"], row["scores"])
        for result in results
        for row in result["measured"]
    ]


def test_every_run_is_trained_with_every_seed_and_measured(done):
    _, _, results = done
    assert [(r["run"], r["seed"]) for r in results] == [("Narrow", 0), ("Narrow", 1), ("Wide", 0), ("Wide", 1)]
    for result in results:
        assert result["steps"] == 12 and result["images"] == 480 and result["seconds"] == pytest.approx(0.12)
        found = [(row["step"], row["sampling"], row["images"], row["evaluations"]) for row in result["measured"]]
        assert found == [(6, "guided", 240, 4), (12, "guided", 480, 4), (12, "plain", 480, 2)]
    seeds = [result["measured"][1]["scores"]["frechet_distance"]["value"] for result in results]
    assert len(set(seeds)) == len(seeds)


def test_a_score_is_that_of_fluvial_score(done):
    file, out, results = done
    settings = read_study(file).samplings["Wide"]["plain"]
    row = next(r for r in results if (r["run"], r["seed"]) == ("Wide", 1))["measured"][-1]
    card = fluvial.score(out / "wide" / "seed-1", count=40, settings=settings, device="cpu")
    for name, score in card["scores"].items():
        assert row["scores"][name]["value"] == pytest.approx(score["value"], rel=1e-4), name


def test_the_page_has_what_the_results_have(done):
    _, out, results = done
    text = (out / "index.html").read_text()
    assert "Does width help?" in text and "Differences from Narrow" in text and text.count("<img") == 2
    summary = json.loads((out / "study.json").read_text())
    assert [(row["run"], row["sampling"]) for row in summary["rows"]] == [
        (run, sampling) for run in ("Narrow", "Wide") for sampling in ("guided", "plain")
    ]
    wide = [r["measured"][1]["scores"]["frechet_distance"]["value"] for r in results if r["run"] == "Wide"]
    narrow = [r["measured"][1]["scores"]["frechet_distance"]["value"] for r in results if r["run"] == "Narrow"]
    row = summary["rows"][2]
    assert row["scores"]["frechet_distance"]["value"] == pytest.approx(np.mean(wide))
    apart = np.subtract(wide, narrow)
    assert row["differences"]["frechet_distance"]["value"] == pytest.approx(apart.mean())
    assert row["differences"]["frechet_distance"]["error"] == pytest.approx(stats.sem(apart))
    assert summary["rows"][0]["differences"] == {}


def test_the_tables_as_markdown_have_the_numbers_of_the_summary(done):
    _, out, _ = done
    summary = json.loads((out / "study.json").read_text())["rows"]
    lines = [line.strip("| ").split(" | ") for line in (out / "tables.md").read_text().splitlines() if line[:1] == "|"]
    means, apart = lines[2:6], lines[8:]
    assert lines[0][:2] == ["run", "sampling"] and len(apart) == 2, lines
    place, other = (line.index("Fréchet distance") for line in (lines[0], lines[6]))
    for row, cells in zip(summary, means, strict=True):
        assert cells[:2] == [row["run"], row["sampling"]] and cells[3] == f"{row['steps']}"
        value, error = (float(part) for part in cells[place].replace("\N{NO-BREAK SPACE}", "").split("±"))
        found = row["scores"]["frechet_distance"]
        assert (value, error) == pytest.approx((found["value"], found["error"]), abs=found["error"] / 10)
    for row, cells in zip(summary[2:], apart, strict=True):
        found = row["differences"]["frechet_distance"]
        told = cells[other].replace("\N{NO-BREAK SPACE}", "").replace("\N{MINUS SIGN}", "-")
        value, error = told.split(" ")[0].split("±")
        assert float(value) == pytest.approx(found["value"], abs=float(error) / 10)
        assert told.endswith(found["verdict"] or "(no difference seen)")


def test_names_do_not_break_the_tables():
    table = Table("T", ["run"], [["a|b"], [Told("1", "", "one seed")]], "n")
    assert markdown([table]).splitlines()[4:6] == ["| a\\|b |", "| 1 (one seed) |"]


def test_what_is_there_is_not_done_again(done, capsys):
    file, out, results = done
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.suffix in (".jsonl", ".npy")}
    again = study(read_study(file), out, say=print)
    assert numbers(again) == numbers(results) and "0 to do" in capsys.readouterr().out
    assert times == {path: path.stat().st_mtime_ns for path in times}


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("method.width: 64", "method.width: 96", "Wide has other settings in {out} than method.width 96"),
        ("budget.images: 480", "budget.images: 960", "Narrow has another budget in {out}"),
    ],
)
def test_a_folder_of_another_study_is_refused(done, tmp_path, old, new, told):
    _, out, _ = done
    before = (out / "study.yaml").read_bytes()
    with pytest.raises(ValueError) as raised:
        study(read_study(written(tmp_path, SMALL.replace(old, new))), out, say=lambda line: None)
    assert told.format(out=out) in str(raised.value) and (out / "study.yaml").read_bytes() == before


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_no_process_of_a_study_outlives_it(tmp_path, how):
    file = written(tmp_path, SMALL.replace("images: 480", "images: 4_800_000"))
    speeds_there(tmp_path / "out", file)
    words = [sys.executable, "-m", "fluvial", "study", str(file), "--out", str(tmp_path / "out"), "--device", "cpu"]
    process = subprocess.Popen([*words, "--at-once", "1"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    folder = tmp_path / "out" / "narrow" / "seed-0"
    until(lambda: (folder / "log.jsonl").exists() and (folder / "log.jsonl").read_text())
    process.send_signal(how)
    _, told = process.communicate(timeout=120)
    assert process.returncode != 0 and ("the same command goes on" in told) is (how == signal.SIGTERM)
    until(lambda: is_free(folder))
    assert any((folder / "checkpoints").iterdir())  # it has saved


def is_free(folder: Path) -> bool:
    try:
        check_unlocked(folder)
    except ValueError:
        return False
    return True


def until(condition, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.05)


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_study_that_is_killed_goes_on_and_comes_to_the_same(done, tmp_path):
    file, _, results = done
    out = tmp_path / "out"
    speeds_there(out, file)
    words = [
        sys.executable,
        "-m",
        "fluvial",
        "study",
        str(file),
        "--out",
        str(out),
        "--device",
        "cpu",
        "--at-once",
        "1",
    ]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, start_new_session=True)
    first = out / "results" / "narrow-seed-0.json"
    until(first.exists)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert len(json.loads(first.read_text())["measured"]) < 3 or not (out / "wide" / "seed-1").exists()
    found = study(read_study(file), out, at_once=2, say=lambda line: None)
    assert numbers(found) == numbers(results)


def test_a_run_that_fails_is_told_and_the_others_are_done(done, tmp_path, capsys):
    file, _, results = done
    out = tmp_path / "out"
    speeds_there(out, file)
    (out / "wide").mkdir()
    (out / "wide" / "seed-1").write_text("no folder")
    assert main(["study", str(file), "--out", str(out), "--device", "cpu"]) == 1
    said = capsys.readouterr()
    assert "1 of the runs failed: Wide, seed 1" in said.err and "3 of 4 are done" in (out / "index.html").read_text()
    (out / "wide" / "seed-1").unlink()
    assert main(["study", str(file), "--out", str(out), "--device", "cpu"]) == 0
    assert numbers(study(read_study(file), out, say=lambda line: None)) == numbers(results)


def test_more_samplings_measure_the_runs_that_are_there(done, tmp_path):
    import shutil

    file, out, results = done
    copy = tmp_path / "out"
    shutil.copytree(out, copy)
    more = written(tmp_path, SMALL + "  one: {sample.steps: 1, sample.guidance.weight: 1}\n")
    speed = copy / "results" / "narrow-speed.json"
    for file in (speed, speed.with_name("wide-speed.json")):
        there = json.loads(file.read_text())
        there["speed"]["sampling"]["one"] = 1.0
        file.write_text(json.dumps(there))
    found = study(read_study(more), copy, say=lambda line: None)
    assert all(math.isclose(a[4], b[4]) for a, b in zip(numbers(results), numbers(results), strict=True))
    assert [row for row in numbers(found) if row[3] != "one"] == numbers(results)
    assert [row[4] for row in numbers(found) if row[3] == "one"] == [1] * 4


def test_a_method_of_a_plugin_is_studied(tmp_path, monkeypatch):
    """The processes of the study, and of any other command, import the files that the command was given."""
    monkeypatch.setattr(methods, "METHODS", dict(methods.METHODS))  # what is registered is forgotten after it
    monkeypatch.setattr(recipes, "RECIPES", dict(recipes.RECIPES))
    plugin = tmp_path / "studied.py"  # a file that no other test has imported
    example = Path(__file__).parents[2] / "examples" / "pixel_flow.py"
    plugin.write_text(example.read_text().replace("pixel-flow", "studied-flow"))
    text = "seeds: [0]\nbudget.images: 80\nmeasure: {count: 20, points: 1}\nruns: {Own: {base: digits-studied-flow}}\n"
    file, words = written(tmp_path, text), [sys.executable, "-m", "fluvial", "recipes"]
    with plugins.loaded([str(plugin)]):
        speeds_there(tmp_path / "out", file)
        assert "digits-studied-flow" in subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert "digits-studied-flow" not in subprocess.run(words, capture_output=True, text=True, check=True).stdout
    out = ["--out", str(tmp_path / "out"), "--at-once", "1", "--device", "cpu"]
    assert main(["study", str(file), *out, "--plugin", str(plugin)]) == 0
    assert (tmp_path / "out" / "results" / "own-seed-0.json").exists()


def test_damaged_results_are_named(tmp_path):
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(ValueError, match=r"a\.json cannot be read .*: remove it, and it is made again"):
        files.read(tmp_path / "a.json")
    assert files.read(tmp_path / "b.json") == {}


def test_runs_that_compute_alike_have_one_speed(tmp_path, capsys, monkeypatch):
    high = "{optim.lr: 0.01, method.time_sampling: logit-normal, method.contrast: 0.1}"
    text = SMALL.replace("runs:", f"variants:\n  low: {{optim.lr: 0.001}}\n  high: {high}\nruns:")
    monkeypatch.setattr("fluvial.tools.study.run._begun", fake := Begun(tmp_path / "out"))
    study(read_study(written(tmp_path, text)), tmp_path / "out", only_plan=True)
    assert fake.names == ["Narrow, low", "Wide, low"]
    said = capsys.readouterr().out
    assert said.count("measuring how fast") == 2 and "4 runs, 2 seeds each, 480 images seen; 8 to do" in said
    study(read_study(written(tmp_path, text)), tmp_path / "out", only_plan=True)
    assert len(fake.names) == 2
    speeds = [json.loads(file.read_text()) for file in sorted((tmp_path / "out" / "results").glob("*-speed.json"))]
    assert [speed["run"] for speed in speeds] == ["Narrow, high", "Narrow, low", "Wide, high", "Wide, low"]
    assert [speed["speed"]["seconds"] for speed in speeds] == [1, 1, 2, 2]


class Begun:
    """Stands in for a process that measures a speed: its seconds are how many there have been."""

    def __init__(self, out: Path) -> None:
        self.out, self.names = out, []

    def __call__(self, out: Path, name: str, what: str, device: str) -> "Begun":
        self.names.append(name)
        speed = Speed(seconds=float(len(self.names)), flops=10, parameters=10, sampling={"guided": 1.0, "plain": 1.0})
        files.speed_file(out, name).write_text(json.dumps({"run": name, "speed": vars(speed)}))
        return self

    def wait(self) -> int:
        return 0


def test_what_cannot_be_measured_is_refused_before_it_is_trained(tmp_path):
    for old, new, told in (
        ("points: 2", "points: 2, features: none.pt", "none.pt"),
        ("points: 2", "points: 2, reference: nowhere", "nowhere"),
    ):
        out = tmp_path / new[-4:]
        with pytest.raises(StudyError, match=f"the speed of Narrow cannot be measured: .*{told}"):
            study(read_study(written(tmp_path, SMALL.replace(old, new))), out, device="cpu", say=lambda line: None)
        assert not (out / "narrow" / "seed-0").exists()


def test_a_sampling_that_is_added_leaves_the_steps_as_they_are(tmp_path, monkeypatch):
    """Its speed is measured anew, and with it that of training, which steps of runs that are there follow from."""
    first = SMALL.replace("budget.images: 480", "budget.seconds: 10")
    more = first + "  one: {sample.steps: 1, sample.guidance.weight: 1}\n"
    out, seconds = tmp_path / "out", iter((0.5, 0.25, 0.2, 0.1))

    def speed_of(run, samplings, device):
        sampling = dict.fromkeys(samplings, 1.0)
        return Speed(seconds=next(seconds), flops=10, parameters=10, sampling=sampling), None

    def process(out, name, what, device):
        monkeypatch.setattr("sys.argv", ["work", str(out), name, what, device])
        work.main()
        return SimpleNamespace(wait=lambda: 0)

    monkeypatch.setattr(work, "speed_of", speed_of)
    monkeypatch.setattr(work, "score", lambda *told: None)
    monkeypatch.setattr("fluvial.tools.study.run._begun", process)
    steps = []
    for text in (first, more):
        plan = read_study(written(tmp_path, text))
        study(plan, out, only_plan=True, say=lambda line: None)
        speeds = [Speed(**files.read(files.speed_file(out, name))["speed"]) for name in plan.runs]
        steps.append([plan.run(name, 0, speed).train.steps for name, speed in zip(plan.runs, speeds, strict=True)])
        assert all(speed.sampling.keys() == set(plan.samplings["Wide"]) for speed in speeds)
    assert steps == [[20, 40], [20, 40]] and next(seconds, None) is None
