"""The sweep of guidance: rows are what a score says, nothing is drawn twice, and the choice follows its rule."""

import dataclasses
import json
import shutil
from itertools import product

import pytest
import torch

import fluvial
from fluvial import recipes
from fluvial.cli import main
from fluvial.config import fixed_differences
from fluvial.evaluation import better
from fluvial.flow.guidance import Guidance
from fluvial.metrics import report
from fluvial.run.folder import RunFolder
from fluvial.tools.guide import picture, sweep
from fluvial.tools.guide.result import Measured, Sweep
from fluvial.tools.guide.settings import Axes, Setting, axes_of

SWEPT = {"weights": (1.0, 2.0, 4.0), "intervals": ((0.0, 1.0), (0.4, 1.0)), "count": 30, "device": "cpu"}
OPTIONS = ["--weights", "1", "2", "4", "--intervals", "0", "1", "0.4", "1", "--count", "30", "--device", "cpu"]


def small(recipe="digits-arflow", **train):
    """A run of few steps that are long, so that guidance matters."""
    run = recipes.smoke(recipes.get(recipe))
    every = {"save_every": 4, "validate_every": 0, "sample_every": 0}
    return dataclasses.replace(
        run,
        optim=dataclasses.replace(run.optim, lr=2e-2, warmup=0, schedule="constant"),
        train=dataclasses.replace(run.train, **{"steps": 4, "batch": 8, "ema_decay": 0.5, **every, **train}),
        sample=dataclasses.replace(run.sample, solver="euler", steps=4, batch=20),
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp("guide") / "run"
    fluvial.train(small(), out, device="cpu")
    return out


@pytest.fixture
def run(trained, tmp_path):
    """A copy of a trained run."""
    return shutil.copytree(trained, tmp_path / "run")


@pytest.fixture
def drawn(monkeypatch):
    """The numbers of images of every call that draws some, which may be made to fail at the n-th."""
    calls, real = [], sweep.generate

    def generate(*given, **options):
        if len(calls) == drawn.fails_at:
            raise KeyboardInterrupt
        calls.append(len(options["indices"]))
        return real(*given, **options)

    monkeypatch.setattr(sweep, "generate", generate)
    drawn.fails_at = None
    drawn.calls = calls
    return drawn


def of(run, setting):
    """The sampling settings of a row, by hand."""
    own = RunFolder(run).run().sample
    return dataclasses.replace(own, guidance=Guidance(weight=setting.weight, interval=setting.interval))


@pytest.mark.slow
def test_a_row_is_what_a_score_of_its_settings_says(run):
    found = sweep.guide(run, **SWEPT)
    assert len(found.rows) == 5 and found.metric == "frechet_distance" and found.lower
    for row in found.rows:
        card = fluvial.score(run, count=30, settings=of(run, row.setting), device="cpu")
        assert row.scores == card["scores"], row.setting
        assert row.nfe == card["sampling"]["nfe"] + card["sampling"]["nfe_null"]
        assert row.error == card["scores"]["frechet_distance"]["error"]
    assert len({row.value for row in found.rows}) == 5
    assert found.made < found.asked == sum(2 * row.nfe for row in found.rows)  # two batches
    there = [report.read(file) for file in (run / "guide" / "rows").iterdir()]
    assert {card["sampling"]["guidance"] for card in there} == {1.0, 2.0, 4.0} and len(there) == 5
    assert report.differences(there[0], card) == []


def comparable(folder):
    values = json.loads((folder / "guide" / "guide.json").read_text())
    rows = [{k: v for k, v in row.items() if k not in ("asked", "made")} for row in values["rows"]]
    return {**{k: v for k, v in values.items() if k not in ("seconds", "run", "about", "sha256")}, "rows": rows}


@pytest.mark.slow
@pytest.mark.parametrize("fails_at", [0, 7])
def test_an_interruption_loses_nothing(run, trained, tmp_path, drawn, fails_at):
    whole = shutil.copytree(trained, tmp_path / "whole")
    sweep.guide(whole, **SWEPT)
    drawn.calls.clear()
    drawn.fails_at = fails_at
    with pytest.raises(KeyboardInterrupt):
        sweep.guide(run, **SWEPT)
    drawn.fails_at = None
    assert not (run / "guide" / "guide.json").exists()
    sweep.guide(run, **SWEPT)
    assert len(drawn.calls) == 10 and sum(drawn.calls) == 5 * 30
    assert comparable(run) == comparable(whole) and not (run / "guide" / "parts").exists()


@pytest.mark.slow
def test_what_is_there_is_not_drawn_again_and_what_is_not_is(run, drawn):
    first = sweep.guide(run, **SWEPT)
    drawn.calls.clear()
    assert sweep.guide(run, **SWEPT).rows == first.rows
    other = sweep.guide(run, **SWEPT, metric="precision")
    assert not drawn.calls and not other.lower and other.best.value == max(row.value for row in other.rows)
    assert sweep.guide(run, **{**SWEPT, "weights": (1.0, 3.0)}).rows[0] == first.rows[0]
    assert sum(drawn.calls) == 2 * 30  # weight 3 in both intervals
    for changed in ({"seed": 1}, {"count": 29}, {"averages": ("raw",)}, {"reference": "train"}, {"steps": (3,)}):
        drawn.calls.clear()
        sweep.guide(run, **{**SWEPT, "weights": (1.0,), **changed})
        assert sum(drawn.calls) == changed.get("count", 30), changed
    damaged = next(iter((run / "guide" / "rows").iterdir()))
    damaged.write_bytes(damaged.read_bytes()[:-20])
    drawn.calls.clear()
    sweep.guide(run, **SWEPT)
    assert sum(drawn.calls) in (0, 30)  # it may be of another sweep


REFUSED = [
    (["--intervals", "0", "1", "0.5"], "--intervals are pairs of times"),
    (["--intervals", "0.8", "0.2"], "intervals must be pairs of ascending times inside [0, 1], got (0.8, 0.2)"),
    (["--intervals", "0", "1.5"], "intervals must be pairs of ascending times inside [0, 1], got (0.0, 1.5)"),
    (["--weights", "1", "-2"], "weights of guidance are at least 0 (1 is none), got -2"),
    (["--weights", "2", "2"], "weights must be one or several different values"),
    (["--metric", "frechet_distanc"], "did you mean frechet_distance?"),
    (["--metric", "fid"], "fid is of the Inception network's features, and these are of pixels"),
    (["--metric", "classifier_score"], "there is no classifier_score to rank by: pixels is no classifier"),
    (["--metric", "spatial_frechet_distance"], "no spatial features"),
    (["--metric", "precision", "--count", "5"], "precision needs at least 6 images, got a count of 5"),
    (["--averages", "ema", "0.1"], "has no average '0.1'; it has ema, raw"),
    (["--averages", "raw", "--write"], "--write needs ema among --averages"),
    (["--sample.guidance.weight", "3"], "what is swept is given with --weights"),
    (["--steps", "0"], "at least 1"),
    (["--reference", "nowhere"], "nowhere"),
]


@pytest.mark.parametrize(("words", "told"), REFUSED)
def test_what_cannot_be_swept_is_refused_before_any_work(run, capsys, drawn, words, told):
    assert main(["guide", str(run), "--device", "cpu", *words]) in (1, 2)
    said = capsys.readouterr().err
    assert told in said and len(said.splitlines()) == 1
    assert not drawn.calls and not (run / "guide").exists()


@pytest.mark.parametrize(
    ("changed", "told"), [({"classes": 0}, "without classes"), ({"label_drop": 0.0}, "null branch")]
)
def test_a_run_that_cannot_be_guided_is_refused(tmp_path, changed, told):
    run = small()
    run = dataclasses.replace(run, sample=dataclasses.replace(run.sample, guidance=Guidance()))
    fluvial.train(dataclasses.replace(run, method=dataclasses.replace(run.method, **changed)), tmp_path / "run")
    with pytest.raises(ValueError, match=f"cannot be guided: .*{told}.*--guide RUN:STEP"):
        sweep.guide(tmp_path / "run", **SWEPT)


def row(weight, value, *, nfe=8, error=1.0, moves=(), average="ema"):
    at = Setting(average=average, steps=4, weight=weight, interval=(0.0, 1.0))
    return Measured(setting=at, value=value, error=error, nfe=nfe, scores={}, asked=9, made=6, moves=moves)


def made_up(*rows, lower=True, tmp_path=None):
    weights = tuple(dict.fromkeys(each.setting.weight for each in rows))
    averages = tuple(dict.fromkeys(each.setting.average for each in rows))
    axes = Axes(weights=weights, intervals=((0.0, 1.0),), averages=averages, steps=(4,))
    metric = "frechet_distance" if lower else "precision"
    return Sweep(axes=axes, rows=rows, metric=metric, lower=lower, about="run", seconds=1.0, folder=tmp_path)


def test_the_fewest_evaluations_are_chosen_of_what_is_not_told_apart(tmp_path):
    rows = row(1.0, 6.0, nfe=4), row(2.0, 5.2, nfe=6), row(3.0, 4.5), row(4.0, 4.9, nfe=6)
    found = made_up(*rows, tmp_path=tmp_path)
    assert found.best is rows[2] and found.alike == (rows[2], rows[3], rows[1]) and found.chosen is rows[3]
    assert (found.asked, found.made) == (36, 24)
    higher = made_up(*rows, lower=False, tmp_path=tmp_path)
    assert higher.best is rows[0] and higher.alike == (rows[0], rows[1]) and higher.chosen is rows[0]
    both = made_up(*rows, row(1.0, 1.0, average="raw"), tmp_path=tmp_path)
    assert both.chosen.setting.average == "raw" and both.chosen_of("ema") is rows[3] and both.chosen_of("0.1") is None


def test_differences_have_the_error_of_the_same_noise(tmp_path):
    """Moves of two rows that differ by a constant have no error of their difference, however large their own."""
    moves = torch.randn(50).double()
    near, apart = moves + 0.01 * torch.randn(50), moves + 10 * torch.randn(50)
    rows = (
        row(1.0, 5.0, moves=tuple(moves.tolist())),
        row(2.0, 5.5, moves=tuple(near.tolist()), nfe=1),
        row(3.0, 5.5, moves=tuple(apart.tolist()), nfe=2),
    )
    found = made_up(*rows, tmp_path=tmp_path)
    assert found.error_to_best(rows[1]) == pytest.approx(float((near - moves).std()) / 50**0.5)
    assert found.alike == (rows[0], rows[2]) and found.chosen is rows[2]  # the same values, told apart or not


def test_without_guidance_there_is_one_interval():
    axes = axes_of((1.0, 2.0), ((0.0, 1.0), (0.2, 1.0)), ("ema", 0.05), (3, 4), small().sample)
    groups = axes.groups()
    assert [(each[0].average, each[0].steps) for each in groups] == list(product(("ema", "0.05"), (3, 4)))
    assert [(at.weight, at.interval) for at in groups[0]] == [
        (1, (0, 1)),
        (2, (0, 1)),
        (2, (0.2, 1)),
    ]


def test_the_command_shows_marks_and_writes(run, capsys):
    before, sampling = RunFolder(run).run(), RunFolder(run).run().sample
    assert main(["guide", str(run), *OPTIONS, "--write"]) == 0
    said = capsys.readouterr().out
    assert "best" in said and "chosen" in said and "saved)" in said and str(run / "guide" / "guide.png") in said
    values = json.loads((run / "guide" / "guide.json").read_text())
    assert len(values["rows"]) == 5 and values["rows"][0]["value"] == min(row["value"] for row in values["rows"])
    chosen, after = values["chosen"], RunFolder(run).run()
    expected = Guidance(weight=chosen["weight"], interval=tuple(chosen["interval"]))
    assert after == dataclasses.replace(before, sample=dataclasses.replace(sampling, guidance=expected)) != before
    assert fixed_differences(before, after) == {}
    assert fluvial.load(run, device="cpu").sample(2).about["sampling"]["guidance"] == chosen["weight"]
    longer = dataclasses.replace(after, train=dataclasses.replace(after.train, steps=6))
    assert fluvial.train(longer, run, device="cpu").step == 6  # training goes on


def test_the_map_has_every_value_and_marks_the_best(tmp_path):
    rows = row(1.0, 6.0, nfe=4), row(2.0, 4.5), row(3.0, 5.0)
    found = made_up(*rows, tmp_path=tmp_path)
    drawn = picture.figure(found)
    panel = drawn.axes[0]
    texts = [text.get_text() for text in panel.texts]
    assert [text.split("\n")[0] for text in texts] == ["6", "4.5 *", "5"] and "±1, NFE 4" in texts[0]
    assert sorted(patch.get_linewidth() for patch in panel.patches) == [1.2, 3.0]
    several = made_up(*rows, row(2.0, 9.0, average="raw"), tmp_path=tmp_path)
    assert len(picture.figure(several).axes) == 2  # what could not be drawn is left grey
    assert picture.draw(several, tmp_path / "guide.png").read_bytes()[1:4] == b"PNG"


@pytest.mark.slow
def test_a_setting_that_diverges_does_not_end_the_sweep(run, capsys, monkeypatch):
    real = sweep.generate

    def generate(model, sample, decode, settings, **options):
        if settings.guidance.weight == 4:
            raise RuntimeError("the latents that were drawn are not finite")
        return real(model, sample, decode, settings, **options)

    monkeypatch.setattr(sweep, "generate", generate)
    assert main(["guide", str(run), *OPTIONS]) == 0
    assert "weight 4: not drawn, the latents that were drawn are not finite" in capsys.readouterr().out
    assert len(json.loads((run / "guide" / "guide.json").read_text())["failed"]) == 2


def test_every_score_of_a_card_can_be_ranked_by(trained):
    card = fluvial.score(trained, count=30, device="cpu")
    lower = {name: better.is_lower_better(name) for name in card["scores"]}
    assert lower.pop("frechet_distance") and lower.pop("kernel_distance") and not any(lower.values())
    for name, general in (
        ("fid", "frechet_distance"),
        ("kid", "kernel_distance"),
        ("sfid", "spatial_frechet_distance"),
    ):
        assert better.ranking(name) == general and better.is_lower_better(name)
        assert better.of_extractor(general, "inception") == name and better.of_extractor(general, "clip") == general
    assert not better.is_lower_better("inception_score")
