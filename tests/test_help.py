"""Short names of options, switches, help that fits a screen, hints for what is misspelled, and completion."""

import os
import subprocess
from dataclasses import replace

import pytest
import torch

from fluvial import recipes
from fluvial.cli import main
from fluvial.cli.arguments import parse
from fluvial.cli.completion import OPTIONS, SCRIPTS, options
from fluvial.cli.distill import DistillOptions
from fluvial.cli.edit import EditOptions
from fluvial.cli.guide import GuideOptions
from fluvial.cli.known import options_of
from fluvial.cli.likelihood import LikelihoodOptions
from fluvial.cli.photos import BUDGETS, OF_IMAGES
from fluvial.cli.sample import SampleOptions
from fluvial.cli.score import MeasuredRun
from fluvial.cli.short import FLAGS, SHORT
from fluvial.cli.train import TrainOptions
from fluvial.cli.walk import WalkOptions
from fluvial.run.folder import RunFolder, record_of
from fluvial.sampling.settings import SampleConfig


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run folder with the settings of a recipe, and no weights: enough to look at options."""
    monkeypatch.chdir(tmp_path)
    folder = RunFolder("runs/digits-arflow")
    folder.path.mkdir(parents=True)
    folder.write(record_of(recipes.get("digits-arflow"), "digits-arflow"))
    return str(folder)


def trained(*words, recipe="digits-arflow"):
    """The settings of `fluvial train RECIPE` with these words."""
    return parse(TrainOptions, TrainOptions(run=recipes.get(recipe)), list(words), "fluvial train x", "")


def refused(capsys, *words):
    """The message for a wrong command line."""
    assert main(list(words)) == 2, words
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1, said
    return said.removeprefix("fluvial: error: ").strip()


@pytest.mark.parametrize("words", [*((each,) for each in SHORT), *(("train", name) for name in recipes.RECIPES)])
def test_help_fits_a_screen(words, capsys):
    assert main([*words, "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 40 and max(map(len, lines)) <= 80
    for short in SHORT[words[0]]:
        assert sum(line.startswith(f"  --{short.name} ") for line in lines) == bool(short.about), short.name
    assert f"`fluvial {' '.join(words)}" in " ".join(lines) and "--help all`" in " ".join(lines)


def test_help_of_a_run_has_its_own_defaults_and_all_is_all(run, capsys):
    record = recipes.get("digits-arflow")
    changed = replace(record, sample=replace(record.sample, steps=77))
    RunFolder(run).write(record_of(changed, "digits-arflow"))
    assert main(["sample", run, "-h"]) == 0 and "(default: 77)" in capsys.readouterr().out
    for words in (["sample", run, "--help", "all"], ["sample", "--help", "all"], ["score", "-h", "all"]):
        assert main(words) == 0
        assert "--sample.guidance.interval" in capsys.readouterr().out, words
    assert main(["train", "--help", "all"]) == 0 and "--optim.betas" in capsys.readouterr().out


OF_PLANS = (*BUDGETS, *OF_IMAGES)  # which are taken before the settings of a run are parsed


def test_short_names_stand_for_options_that_there_are():
    kinds = {
        "train": options_of(TrainOptions, TrainOptions(run=recipes.get("digits-sit"))),
        "sample": options_of(SampleOptions, SampleOptions(sample=SampleConfig())),
        "edit": options_of(EditOptions, EditOptions(sample=SampleConfig())),
        "walk": options_of(WalkOptions, WalkOptions(sample=SampleConfig())),
        "score": options_of(MeasuredRun, MeasuredRun(sample=SampleConfig())),
        "likelihood": options_of(LikelihoodOptions, LikelihoodOptions()),
        "guide": options_of(GuideOptions, GuideOptions(sample=SampleConfig())),
        "distill": options_of(DistillOptions, DistillOptions(sample=SampleConfig())),
    }
    for command, shorts in SHORT.items():
        for short in (short for short in shorts if short.setting not in OF_PLANS):
            assert short.setting in {*kinds[command], *FLAGS}, short
            assert short.name == short.setting or short.name not in kinds[command], f"{short} hides another option"
            assert (short.value == "") == (short.name in FLAGS or kinds[command][short.setting].is_switch), short


def test_a_short_name_sets_what_its_long_name_sets():
    short = trained("--steps", "7", "--batch=3", "--lr", "0.5", "--data", "photos", "--seed", "4")
    long = trained("--train.steps=7", "--train.batch", "3", "--optim.lr", "0.5", "--data.path", "photos", "--seed=4")
    assert short == long and (short.run.train.steps, short.run.optim.lr, short.run.data.path) == (7, 0.5, "photos")
    words = {"--steps": "3", "--guidance": "2.5", "--solver": "heun"}
    for kind, command in ((SampleOptions, "sample"), (MeasuredRun, "score")):
        given = [word for pair in words.items() for word in pair]
        found = parse(kind, kind(sample=SampleConfig()), given, f"fluvial {command} RUN", "").sample
        assert found == SampleConfig(steps=3, solver="heun", guidance=replace(found.guidance, weight=2.5))
    found = parse(MeasuredRun, MeasuredRun(sample=SampleConfig()), ["--extractor", "clip"], "fluvial score RUN", "")
    assert found.features == "clip"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--steps", "3", "--train.steps", "4"], "given more than once: --steps and --train.steps;"),
        (["--lr=1", "--optim.lr=1"], "given more than once: --lr and --optim.lr;"),
        (["--train.compile", "--train.no-compile"], "given more than once: --train.compile and --train.no-compile;"),
        (["--smoke", "--no-smoke"], "given more than once: --no-smoke and --smoke;"),
        (["--steps", "0"], "--steps must be at least 1, got 0"),
        (["--train.steps", "0"], "--train.steps must be at least 1, got 0"),
        (["--lr", "nan"], "--lr: must be finite, got nan"),
        (["--steps", "many"], "--steps: must be a whole number, got 'many'"),
        (["--lr", "much"], "--lr: must be a number, got 'much'"),
        (["--steps", "3", "4"], "no option takes 4"),
        (["--data", "x", "--data.name", "y"], "--data.name y and --data x are two data sets"),
        (["--train.precision", "fp64"], "invalid choice 'fp64' for argument '--train.precision'"),
        (["--smoke", "perhaps"], "--smoke is a switch: give --smoke or --no-smoke, without 'perhaps'"),
        (["--no-train.compile", "True"], "--train.compile is a switch: give --train.compile or --train.no-compile"),
    ],
)
def test_errors_name_options_as_they_were_written(words, says, capsys):
    assert refused(capsys, "train", "digits-sit", "--dry-run", *words).startswith(says)


@pytest.mark.parametrize(
    ("command", "what"),
    [
        *[(command, "RUN") for command in ("sample", "doctor", "export", "ema")],
        *[(command, "DATA") for command in ("data inspect", "encode")],
        *[("score", "WHAT"), ("data verify", "LATENTS|SAMPLES"), ("import", "FILE")],
        *[("config", "RECIPE|RUN|FILE"), ("bench train", "RECIPE")],
    ],
)
def test_a_second_argument_is_refused(command, what, capsys):
    said = refused(capsys, *command.split(), "a", "b", "--seed", "1")
    assert said == f"fluvial {command} takes one {what}, got a and b"


def test_errors_of_sampling_name_options_as_they_were_written(run, capsys):
    assert refused(capsys, "sample", run, "--count", "0") == "--count must be at least 1, got 0"
    assert refused(capsys, "sample", run, "--steps", "3", "2").startswith("--steps must be one number")
    assert refused(capsys, "sample", run, "--sample.steps", "3", "2").startswith("sample.steps must be one number")
    said = refused(capsys, "score", run, "--solver", "dopri5", "--steps", "3")
    assert said == "the solver dopri5 chooses its own steps: leave out --steps"
    assert refused(capsys, "score", run, "--solver", "rk4").startswith("invalid choice 'rk4' for argument '--solver'")


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["train", "digits-sit", "--stpes", "3"], "--steps"),
        (["train", "digits-sit", "--smke"], "--smoke"),
        (["train", "digits-sit", "--warmup", "3"], "--optim.warmup"),
        (["train", "digits-sit", "--train.step=3"], "--train.steps"),
        (["train", "digits-sit", "--train.presicion", "bf16"], "--train.precision"),
        (["sample", "runs/digits-arflow", "--guidence", "3"], "--guidance"),
        (["sample", "runs/digits-arflow", "--clases", "3"], "--classes"),
        (["score", "runs/digits-arflow", "--refrence", "test"], "--reference"),
        (["encode", "x", "--autoencodr", "pixels"], "--autoencoder"),
        (["plot", "x", "--outt", "y"], "--out"),
    ],
)
def test_a_misspelled_option_names_the_closest(words, meant, run, capsys):
    assert f"; did you mean {meant}?" in refused(capsys, *words)


def test_options_of_something_else_say_so(run, capsys):
    said = refused(capsys, "sample", run, "--sample.solver.atol", "1")
    assert "--sample.solver.atol: it is a setting of the solver dopri5" in said
    assert "--steps: it is for run folders" in refused(capsys, "score", "digits:test", "--steps", "3")
    assert "fluvial encode DATA needs --autoencoder and --out" in refused(capsys, "encode", "x")


def test_switches_have_two_forms_and_the_former_one():
    def gif(*words):
        return parse(SampleOptions, SampleOptions(sample=SampleConfig()), list(words), "fluvial sample RUN", "").gif

    assert gif() and gif("--gif") and gif("--gif", "True") and gif("--gif=True")
    assert not gif("--no-gif") and not gif("--no_gif") and not gif("--gif", "False") and not gif("--gif=False")
    for words in (["--train.compile"], ["--train.compile", "True"], ["--train.compile=True", "--steps", "3"]):
        assert trained(*words).run.train.compile
    for words in (["--data.no-flip"], ["--no-data.flip"], ["--data.flip", "False"]):
        assert not trained(*words, recipe="cifar10-sit").run.data.flip
    assert trained(recipe="cifar10-sit").run.data.flip


def test_the_flags_of_training_are_switches(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for words in (["--smoke", "--dry-run"], ["--no-start-over", "--smoke=True", "--dry_run", "True"]):
        assert main(["train", "digits-sit", *words]) == 0
        assert "training would start in runs/digits-sit-smoke" in capsys.readouterr().out
    assert main(["train", "digits-sit", "--no-smoke", "--dry-run"]) == 0
    assert "training would start in runs/digits-sit\n" in capsys.readouterr().out and not os.listdir()


@pytest.mark.parametrize("name", ["cuda", "cuda:1", "mps", "gpu"])
def test_a_device_that_is_not_here_is_refused_before_anything_else(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert main(["train", "digits-sit", "--device", name]) == 1
    captured = capsys.readouterr()
    assert name in captured.err and not captured.out and not os.listdir()


@pytest.fixture(scope="module")
def found():
    return options()


def test_completion_knows_every_command_and_option(found):
    from fluvial.cli import COMMANDS

    assert OPTIONS.keys() == COMMANDS.keys() - {"recipes", "runs"}
    every = options_of(TrainOptions, trained())
    assert {f"--{name}" for name, option in every.items() if not option.found} <= found["train"].keys()
    assert {"--steps", "--no-smoke", "--train.no-compile", "--sample.solver.atol"} <= found["train"].keys()
    assert "dopri5" in found["sample"]["--solver"] and "--data.digest" not in found["train"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["tr"], {"train"}),
        (["train", "digits-a"], {"digits-arflow"}),
        (["train", "x", "--ste"], {"--steps"}),
        (["train", "x", "--train.prec"], {"--train.precision"}),
        (["sample", "ru"], {"runs/digits-arflow"}),
        (["sample", "x", "--solver", "he"], {"heun"}),
        (["sample", "x", "--no-g"], {"--no-gif"}),
        (["bench", "train", "mnist-f"], {"mnist-flowar"}),
        (["encode", "ru"], set()),  # which leaves it to the shell
        (["train", "x", "--steps", ""], set()),
        (["--completion", "f"], {"fish"}),
    ],
)
def test_bash_completes(words, expected, run, found, tmp_path):
    (tmp_path / "fluvial.bash").write_text(SCRIPTS["bash"](found))
    script = 'source fluvial.bash; COMP_WORDS=(fluvial "$@"); COMP_CWORD=$#; _fluvial; printf "%s\\n" "${COMPREPLY[@]}"'
    ended = subprocess.run(
        ["bash", "-c", script, "bash", *words], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert set(ended.stdout.split()) == expected and not ended.stderr


def test_a_script_for_another_shell_is_refused(capsys):
    assert "one of bash, zsh, fish; got tcsh" in refused(capsys, "--completion", "tcsh")
