import io
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fluvial import recipes
from fluvial.cli import main
from fluvial.cli.arguments import parse
from fluvial.cli.train import TrainOptions
from fluvial.run.folder import RunFolder
from fluvial.sampling.settings import Dopri5, SampleConfig
from fluvial.training import checkpoint

SMALL = [
    "--method.width",
    "16",
    "--method.heads",
    "2",
    "--method.depth",
    "1",
    "--train.batch",
    "4",
    "--sample.steps",
    "2",
]
EVERY = [
    "--train.log-every",
    "5",
    "--train.save-every",
    "5",
    "--train.validate-every",
    "0",
    "--train.sample-every",
    "0",
]


def train(out, *options, steps=10):
    return ["train", "digits-arflow", *SMALL, *EVERY, "--train.steps", str(steps), "--out", str(out), *options]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "small"
    assert main(train(out)) == 0
    return out


def test_recipes_are_listed(capsys):
    assert main(["recipes"]) == 0
    printed = capsys.readouterr().out
    assert "digits-arflow\n    ARFlow on" in printed and "imagenet256-sit-xl2" in printed


def test_memory_that_does_not_suffice_is_told_with_what_takes_less(monkeypatch, capsys):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr("fluvial.cli.runs.list_recipes", full)
    assert main(["recipes"]) == 1
    told = capsys.readouterr().err
    assert "Tried to allocate 2.00 GiB. Training takes less with" in told and "--train.accumulate" in told


def test_help_shows_the_recipes_own_defaults(capsys):
    assert main(["train", "imagenet128-arflow-xl2", "--help"]) == 0
    printed = capsys.readouterr().out
    assert "(default: 400000)" in printed and "712M parameters" in printed and "--method.width" not in printed
    assert main(["train", "imagenet128-arflow-xl2", "--help", "all"]) == 0
    printed = capsys.readouterr().out
    assert "--method.width" in printed and "1152" in printed and "400000" in printed
    for arguments in ([], ["--help"], ["train", "--help"], ["sample", "--help"]):
        assert main(arguments) == 0
    for command in (["encode"], ["data", "inspect"]):
        capsys.readouterr()
        assert main([*command, "--help"]) == 0 and "--label-column" in capsys.readouterr().out


def test_train_sample_and_score(run, capsys):
    assert (run / "run.json").exists()
    assert main(["sample", str(run), "--count", "20", "--classes", "3", "7"]) == 0
    stored = np.load(run / "samples" / "samples.npz")
    assert stored["arr_0"].shape == (20, 8, 8, 3) and stored["arr_1"].tolist() == [3, 7] * 10
    assert {"grid.png", "trajectory.gif", "samples.npz"} <= {p.name for p in (run / "samples").iterdir()}
    assert main(["score", str(run), "--count", "30", "--sample.guidance.weight", "1.5"]) == 0
    card = json.loads((run / "score.json").read_text())
    assert card["sampling"]["guidance"] == 1.5 and card["images"]["count"] == 30
    assert "frechet distance (pixels)" in capsys.readouterr().out
    options = ["--reference", "digits:test", "--extractor", "pixels", "--against", str(run / "score.json")]
    assert main(["score", str(run / "samples"), *options]) == 1
    assert "images.count is 20 and 30" in capsys.readouterr().err
    before = (run / "score.json").read_bytes()
    assert main(["score", str(run), "--count", "20", "--against", str(run / "score.json")]) == 2
    assert "score.json cannot be compared with --count 20, where it has 30: give the same" in capsys.readouterr().err
    assert (run / "score.json").read_bytes() == before
    options[2] = "--features"
    assert main(["score", str(run / "samples"), *options, "--extractor", "pixels"]) == 2
    assert "given more than once: --extractor and --features" in capsys.readouterr().err


def test_compare_puts_the_methods_side_by_side(tmp_path, capsys):
    options = ["--seconds", "0.5", "--count", "20", "--out", str(tmp_path / "c")]
    assert main(["compare", "digits", *options]) == 0
    printed = capsys.readouterr().out
    rows = json.loads((tmp_path / "c" / "compare.json").read_text())
    assert [r["method"] for r in rows] == ["SiT", "ARFlow", "FlowAR"] and "Frechet distance" in printed
    for row in rows:
        run = RunFolder(tmp_path / "c" / row["method"]).run()
        assert row["steps"] == run.train.steps and row["images seen"] == row["steps"] * run.images_per_step
        card = json.loads((tmp_path / "c" / row["method"] / "score.json").read_text())
        assert row["of real data"] == pytest.approx(card["scores"]["frechet_distance"]["real"], abs=1e-3)
    assert Image.open(tmp_path / "c" / "compare.png").width > 500
    assert main(["compare", "digits", *options]) == 0  # what is there is not trained again
    assert [r["steps"] for r in json.loads((tmp_path / "c" / "compare.json").read_text())] == [r["steps"] for r in rows]
    assert main(["compare", "digits", "--seconds", "1", *options[2:]]) == 1
    assert "compares runs of 0.5 s" in capsys.readouterr().err
    (tmp_path / "c" / "budget.json").write_text("[0.5]")
    assert main(["compare", "digits", *options]) == 1 and "budget.json cannot be read" in capsys.readouterr().err
    assert main(["compare", "cifar"]) == 2 and "unknown data set 'cifar'" in capsys.readouterr().err


def test_flowar_draws_its_scales(tmp_path, capsys):
    small = ["--method.width", "16", "--method.depth", "2", "--method.head-width", "16", "--method.head-depth", "1"]
    out = str(tmp_path / "run")
    assert (
        main(["train", "digits-flowar", *small, *EVERY, "--train.steps", "3", "--train.batch", "4", "--out", out]) == 0
    )
    assert main(["sample", out, "--count", "4", "--sample.steps", "4", "3", "2"]) == 0
    strip = Image.open(tmp_path / "run" / "samples" / "scales.png")
    assert strip.size == ((3 * 9 + 1) * 6, (4 * 9 + 1) * 6)
    # a frame a step, but Pillow joins frames that do not differ, as in a model of three steps they hardly do
    assert 3 <= Image.open(tmp_path / "run" / "samples" / "trajectory.gif").n_frames <= 4 + 3 + 2
    capsys.readouterr()
    assert main(["sample", out, "--count", "1", "--sample.steps", "2"]) == 0, "in place of the recipe's, by scale"
    assert "2 conditional 1x1, 2 null 1x1" in capsys.readouterr().out
    for wrong in (
        ["steps", "4", "3"],
        ["steps"],
        ["guidance.scale-weights", "2"],
        ["guidance.channels", "1"],
        ["context-noise", "0.1"],
    ):
        assert main(["sample", out, f"--sample.{wrong[0]}", *wrong[1:]]) == 2, wrong


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["tain"], "unknown command 'tain'"),
        (["train"], "usage: fluvial train IMAGES|RUN|FILE|RECIPE"),
        (["train", "digits-arflov"], "did you mean digits-arflow?"),
        (["train", "digits-arflow", "--train.step", "3"], "--train.step"),
        (["train", "digits-arflow", "--train.steps", "many"], "many"),
        (["train", "digits-arflow", "--train.steps", "0"], "must be at least 1"),
        (["train", "digits-arflow", "--method.width", "30"], "width must be divisible"),
        (["train", "digits-arflow", "--method.history-decay", "slow"], "slow"),
        (["recipes", "now"], "takes no arguments"),
        (["sample"], "usage: fluvial sample RUN"),
    ],
)
def test_a_wrong_command_line_is_code_2(arguments, says, capsys):
    assert main(arguments) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "options", "says"),
    [
        ("sample", ["--classes", "10"], "(0 to 9), got 10"),
        ("sample", ["--classes", "3", "-1"], "(0 to 9), got 3, -1"),
        ("sample", ["--count", "0"], "--count must be at least 1, got 0"),
        ("sample", ["--columns", "0"], "--columns must be at least 1, got 0"),
        ("score", ["--count", "1"], "--count must be at least 2, got 1"),
        ("sample", ["--sample.context-noise", "0.1"], "sample.context_noise needs a method trained"),
        ("sample", ["--sample.steps", "3", "2"], "sample.steps must be one number"),
        ("score", ["--sample.guidance.ramp", "linear"], "sample.guidance.ramp needs a method with scales"),
    ],
)
def test_a_wrong_option_of_a_run_is_code_2(run, command, options, says, capsys):
    assert main([command, str(run), *options]) == 2
    assert says in "".join(capsys.readouterr().err.split("│")).replace("\n", "")


def offered(capsys, *arguments):
    """The options in the help of a command."""
    assert main([*arguments, "--help", "all"]) == 0
    return set(re.findall(r"^\W{0,2}(--[a-z][a-z0-9.-]*)", capsys.readouterr().out, re.MULTILINE))


def test_only_options_with_an_effect_are_offered(run, capsys):
    of_scales = {"--sample.guidance.ramp", "--sample.guidance.scale-weights"}
    flowar, sit = (offered(capsys, "train", f"digits-{name}") for name in ("flowar", "sit"))
    assert of_scales <= flowar and not of_scales & sit
    assert "--sample.guidance.channels" in sit - flowar and "--sample.context-noise" not in sit | flowar
    assert "--sample.history" not in sit | flowar
    for of_a_run in (offered(capsys, command, str(run)) for command in ("sample", "score")):  # of arflow
        sampling = {name for name in of_a_run if name.startswith("--sample.")}
        assert sampling == {"--sample.history"} | {name for name in sit if name.startswith("--sample.")}
    found = {"--data.digest", "--data.names-given", "--autoencoder.hash"}
    assert not found & sit and {"--data.class-names", "--autoencoder.shift"} <= sit


def test_an_option_that_the_method_has_a_use_for_in_the_end_is_taken(tmp_path, capsys):
    options = ["--dry-run", "--out", str(tmp_path / "run"), "--sample.context-noise", "0.1"]
    assert main(["train", "digits-flowar", "--method.context-noise", "0.2", *options]) == 0
    assert '"context_noise": 0.1' in capsys.readouterr().out
    assert main(["train", "digits-flowar", *options]) == 2
    assert "sample.context_noise needs a method trained with method.context_noise" in capsys.readouterr().err


OF_SOLVERS = {
    "dopri5": {"--sample.solver.atol", "--sample.solver.rtol"},
    "euler-maruyama": {f"--sample.solver.{name}" for name in ("diffusion", "norm", "last-step", "last-step-size")},
}


@pytest.mark.parametrize("solver", ["euler", "ab2", "heun", "midpoint", "dopri5", "euler-maruyama"])
def test_options_of_a_solver_are_offered_with_it_alone(run, solver, capsys):
    before = offered(capsys, "sample", str(run))
    after = offered(capsys, "sample", str(run), f"--sample.solver={solver}")
    adaptive = {"--sample.steps", "--sample.grid", "--sample.shift"} if solver == "dopri5" else set()
    assert after - before == OF_SOLVERS.get(solver, set()) and before - after == adaptive
    assert offered(capsys, "train", "digits-sit", "--sample.solver", solver) >= OF_SOLVERS.get(solver, set())


def test_a_solver_is_chosen_with_its_settings(run, tmp_path, capsys):
    out = ["--count", "2", "--out", str(tmp_path / "samples")]
    for chosen, recorded in (
        (["dopri5", "--sample.solver.atol", "0.5"], {"name": "dopri5", "atol": 0.5, "rtol": 1e-5}),
        (
            ["euler-maruyama", "--sample.solver.last-step", "none", "--sample.solver.diffusion=linear"],
            {"name": "euler-maruyama", "diffusion": "linear", "norm": 1, "last_step": "none", "last_step_size": 0.04},
        ),
        (["heun"], {"name": "heun"}),
    ):
        folder = tmp_path / chosen[0]
        assert main(["sample", str(run), "--count", "2", "--out", str(folder), "--sample.solver", *chosen]) == 0
        about = json.loads((folder / "samples.json").read_text())["sampling"]
        assert about["solver"] == recorded["name"] and about["settings"]["solver"] == recorded
    capsys.readouterr()
    for wrong, says in (
        (["--sample.solver", "rk4"], "rk4"),
        (["--sample.solver.atol", "1"], "--sample.solver.atol"),
        (["--sample.solver", "heun", "--sample.solver.atol", "1"], "--sample.solver.atol"),
        (
            ["--sample.solver", "dopri5", "--sample.steps", "7"],
            "dopri5 chooses its own steps: leave out --sample.steps",
        ),
        (["--sample.solver", "dopri5", "--sample.solver.atol", "0"], "--sample.solver.atol must be above 0, got 0.0"),
    ):
        assert main(["sample", str(run), *out, *wrong]) == 2, wrong
        assert says in capsys.readouterr().err


def test_settings_of_the_solver_of_a_run_stay_where_its_name_is_given(capsys):
    assert main(["train", "imagenet256-sit-xl2", "--sample.solver", "euler-maruyama", "--help-all"]) == 0
    assert "(default: 250)" in capsys.readouterr().out
    changed = replace(recipes.get("digits-sit"), sample=SampleConfig(solver=Dopri5(rtol=0.3)))
    options = parse(TrainOptions, TrainOptions(run=changed), ["--sample.solver", "dopri5"], "train", "")
    assert options.run == changed
    options = parse(TrainOptions, TrainOptions(run=changed), ["--sample.solver.atol", "0.2"], "train", "")
    assert options.run.sample.solver == Dopri5(rtol=0.3, atol=0.2)


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e999"])
@pytest.mark.parametrize("option", ["sample.guidance.weight", "sample.shift", "sample.solver.atol"])
def test_a_number_that_is_not_finite_is_refused_by_its_option(run, option, value, capsys):
    chosen = ["--sample.solver", "dopri5"] if option.endswith("atol") else []
    assert main(["sample", str(run), *chosen, f"--{option}", value]) == 2
    assert f"--{option}: must be finite, got" in "".join(capsys.readouterr().err.split("│"))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--optim.lr", "nan"], "--optim.lr: must be finite, got nan"),
        (["--optim.betas", "0.9", "inf"], "--optim.betas: must be finite, got inf"),
        (["--train.ema-decays", "nan"], "--train.ema-decays: must be finite, got nan"),
        (["--train.steps", "9" * 30], "--train.steps: must be below 2^63"),
        (["--sample.guidance.channels", "9" * 30], "--sample.guidance.channels: must be below 2^63"),
        (["--out", ""], "--out: must be a path, got ''"),
        (["--out="], "--out: must be a path, got ''"),
        (["--train.steps", "5", "--train.steps", "9"], "given more than once: --train.steps;"),
        (["--train.steps=5", "--train.log-every", "1", "--train.steps=5"], "given more than once: --train.steps;"),
        (["--train.log_every", "5", "--train.log-every=9"], "given more than once: --train.log-every;"),
        (["--data.class-names", "a", "--data.class_names", "b"], "given more than once: --data.class-names;"),
    ],
)
def test_numbers_paths_and_repeated_options_are_refused_by_name(options, says, capsys):
    assert main(["train", "digits-sit", "--dry-run", *options]) == 2
    assert says in "".join(capsys.readouterr().err.split("│"))


def test_an_option_is_repeated_in_no_command(run, capsys):
    for arguments in (
        ["sample", str(run), "--classes", "3", "--classes", "7"],
        ["score", str(run), "--count", "4", "--count=5"],
        ["plot", str(run), "--by", "steps", "--by", "hours"],
        ["encode", "x", "--autoencoder", "pixels", "--out", "y", "--out", "z"],
        ["import", "x", "--out", "a", "--out", "b"],
    ):
        assert main(arguments) == 2 and "given more than once: --" in capsys.readouterr().err, arguments
    main(["train", "digits-sit", "--data.path=--by=--by", "--data.test-path=--by", "--dry-run"])
    assert "given more than once" not in capsys.readouterr().err  # these are values


def test_help_is_printed_wherever_it_is_asked_for(run, capsys):
    for arguments in (
        ["recipes", "-h"],
        ["data", "verify", "x", "--help"],
        ["plot", "a", "b", "-h"],
        ["sample", str(run), "--count", "3", "-h"],
        ["train", str(run), "--help", "--help"],
    ):
        assert main(arguments) == 0 and "usage: fluvial" in capsys.readouterr().out, arguments


@pytest.mark.parametrize("command", ["train", "sample", "score", "plot", "import", "doctor", "encode"])
def test_an_empty_name_is_not_the_present_folder(command, capsys):
    assert main([command, ""]) == 2
    assert f"fluvial {command}: " in (error := capsys.readouterr().err) and "is ''" in error


@pytest.mark.parametrize(("typed", "meant"), [("trian", "train"), ("Sample", "sample"), ("scores", "score")])
def test_a_command_that_is_not_there_names_the_closest(typed, meant, capsys):
    assert main([typed, "x"]) == 2
    assert f"Did you mean {meant}?" in capsys.readouterr().err


class Panic(BaseException):
    """As libraries in Rust raise."""


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (KeyError("mean"), "fluvial: error: KeyError: 'mean' (--traceback shows where)"),
        (AssertionError(), "fluvial: error: AssertionError (--traceback shows where)"),
        (MemoryError(), "fluvial: error: MemoryError (--traceback shows where)"),
        (RecursionError("too deep"), "fluvial: error: RecursionError: too deep (--traceback shows where)"),
        (TypeError("a\n  b\n"), "fluvial: error: TypeError: a b (--traceback shows where)"),
        (zipfile.BadZipFile("no zip"), "fluvial: error: BadZipFile: no zip (--traceback shows where)"),
        (UnicodeError("caf\udce9"), "fluvial: error: UnicodeError: caf\\udce9 (--traceback shows where)"),
        (Panic("at line 3"), "fluvial: error: Panic: at line 3 (--traceback shows where)"),
        (BrokenPipeError(32, "of a socket"), "fluvial: error: [Errno 32] of a socket"),
        (RuntimeError("first\nsecond"), "fluvial: error: first second"),
        (ValueError("got 3,\nexpected 4"), "fluvial: error: got 3,\nexpected 4"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_whatever_goes_wrong_is_said_in_a_line_and_in_full_with_traceback(error, says, monkeypatch):
    def command(arguments):
        assert not arguments, "--traceback is not for the command"
        raise error

    monkeypatch.setattr("fluvial.cli.runs.list_recipes", command)
    for arguments in (["recipes"], ["recipes", "--traceback"], ["--traceback", "recipes"]):
        monkeypatch.setattr(sys, "stderr", stderr := io.TextIOWrapper(io.BytesIO(), encoding="utf-8"))
        assert main(arguments) == 1
        stderr.seek(0)
        told = stderr.read()
        if len(arguments) > 1:
            assert told.startswith("Traceback (most recent call last)") and "raise error" in told
        else:
            assert told == f"{says}\n"


def test_an_output_that_nobody_reads_ends_in_silence(monkeypatch, capsys):
    for arguments in (["recipes"], ["--help"], ["train", "digits-sit", "--help"]):
        reader, writer = os.pipe()
        os.close(reader)
        monkeypatch.setattr(sys, "stdout", stdout := os.fdopen(writer, "w"))
        assert main(arguments) == 141
        stdout.close()  # what is left of it goes nowhere
        assert capsys.readouterr().err == ""


def test_a_full_disk_behind_the_output_is_an_error(monkeypatch, capsys):
    with Path("/dev/full").open("w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        assert main(["recipes"]) == 1
    assert "No space left on device" in capsys.readouterr().err


def test_names_that_a_terminal_cannot_show_are_spelt_out(monkeypatch):
    monkeypatch.setattr(sys, "stderr", stderr := io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="strict"))
    assert main(["sample", "Z\xfcrich/caf\udce9"]) == 1
    assert b"Z\\xfcrich/caf\\udce9 is not a run folder" in stderr.buffer.getvalue()


def test_sampling_of_a_diverged_run_is_code_1(tmp_path, capsys):
    """Weights of 1e12, finite as they are: black images before, and scores of them."""
    out = str(tmp_path / "run")
    options = ["--optim.lr", "1e12", "--optim.clip", "none", "--optim.warmup", "0", "--train.ema-decay", "0"]
    main(train(out, *options, steps=3))
    capsys.readouterr()
    for command in ("sample", "score"):
        assert main([command, out, "--count", "2"]) == 1
        assert "the conditional velocity is not finite near t = " in capsys.readouterr().err
    assert not (tmp_path / "run" / "samples" / "samples.npz").exists()


def test_strong_guidance_that_leads_nowhere_is_code_1(run, capsys):
    assert main(["sample", str(run), "--count", "2", "--sample.guidance.weight", "1e30"]) == 1
    assert "the latents that were drawn are" in (error := capsys.readouterr().err) or "is not finite near t" in error


def test_guidance_without_a_null_branch_is_refused(run, tmp_path, capsys):
    assert main(["sample", str(run), "--sample.guidance.channels", "3", "--sample.guidance.weight", "2"]) == 2
    assert "sample.guidance.channels must be at most the model's 1 channels, got 3" in capsys.readouterr().err
    (tmp_path / "run").mkdir()
    record = json.loads((run / "run.json").read_text())
    record["run"]["method"]["label_drop"] = 0.0
    record.pop("sha256", None)
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    assert main(["sample", str(tmp_path / "run"), "--sample.guidance.weight", "2"]) == 2
    assert "method.label_drop 0 and sample.guidance.weight 2" in capsys.readouterr().err
    for more in ([], ["--dry-run"]):
        assert main(train(tmp_path / "new", "--method.label-drop", "0", *more)) == 1
        assert "method.label_drop 0 and sample.guidance.weight 1.5" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_what_is_not_there_is_code_1(tmp_path, capsys):
    for command, code in (("sample", 1), ("score", 2)):
        assert main([command, str(tmp_path)]) == code
        assert "not a run folder" in capsys.readouterr().err
    if not torch.cuda.is_available():
        assert main(train(tmp_path / "x", "--device", "cuda")) == 1
        assert "has no CUDA" in capsys.readouterr().err and not (tmp_path / "x").exists()
    for text in ("", "[]", '{"run": []}', '{"run": {}}'):
        (tmp_path / "run.json").write_text(text)
        assert main(["score", str(tmp_path)]) == 1
        assert "run.json cannot be read" in capsys.readouterr().err
    assert main(["train", "imagenet256-sit-xl2", "--out", str(tmp_path / "x")]) == 1
    assert "stabilityai/sd-vae-ft-ema" in capsys.readouterr().err and not (tmp_path / "x").exists()


def test_a_truncated_checkpoint_is_code_1_and_training_goes_on_from_the_one_before(tmp_path, capsys):
    assert main(train(tmp_path / "run")) == 0
    newest = checkpoint.newest(tmp_path / "run")
    (file,) = newest.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-100])
    assert main(["sample", str(tmp_path / "run")]) == 1
    error = capsys.readouterr().err
    assert f"{file} is damaged" in error and "The newest whole checkpoint is step-00000005: --step 5" in error
    for command in (
        ["sample"],
        ["score"],
        ["export", "--to", "safetensors"],
        ["train", "--out", str(tmp_path / "new")],
    ):
        assert main([command[0], str(tmp_path / "run"), *command[1:]]) == 1
        assert f"{file} is damaged" in capsys.readouterr().err
    assert not (tmp_path / "new" / "run.json").exists() and not (tmp_path / "run" / "score.json").exists()
    assert main(["sample", str(tmp_path / "run"), "--count", "2", "--step", "5"]) == 0
    assert main(train(tmp_path / "run")) == 0  # goes on from the one before, and says so
    assert f"{newest.name}/{file.name} is damaged" in (printed := capsys.readouterr().out)
    assert "renamed to damaged-step-00000010" in printed
    assert main(["sample", str(tmp_path / "run"), "--count", "2"]) == 0


def command(arguments, **settings):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "fluvial", *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **settings,
    )


def weights(out, part):
    return checkpoint.load(checkpoint.newest(out), part)


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_weights(tmp_path):
    steps = 400
    assert main(train(tmp_path / "whole", steps=steps)) == 0
    process = command(train(tmp_path / "killed", steps=steps))
    deadline = time.monotonic() + 120
    while not (found := checkpoint.newest(tmp_path / "killed")) or found.name < "step-00000030":
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    stopped_at = checkpoint.load_meta(checkpoint.newest(tmp_path / "killed"))["step"]
    assert 30 <= stopped_at < steps, "the run was over before it could be killed"
    assert main(train(tmp_path / "killed", steps=steps)) == 0
    for part in ("model", "ema", "optimizer"):
        whole, killed = weights(tmp_path / "whole", part), weights(tmp_path / "killed", part)
        assert whole.keys() == killed.keys() and all(torch.equal(whole[k], killed[k]) for k in whole)


@pytest.mark.parametrize("name", ["run.json", "checkpoint.json", "log.jsonl", ".lock"])
def test_a_pipe_in_a_run_folder_is_not_waited_for(run, tmp_path, name):
    out = tmp_path / "run"
    shutil.copytree(run, out)
    file = checkpoint.newest(out) / name if name == "checkpoint.json" else out / name
    file.unlink()
    os.mkfifo(file)
    commands = [train(out), ["sample", str(out), "--out", str(tmp_path / "samples")]]
    if name in ("log.jsonl", ".lock"):  # which sampling does not read
        commands.pop()
        shutil.rmtree(out / "checkpoints")
        (out / checkpoint.SAVED).unlink()
    says = "No such device or address" if name == ".lock" else "is a pipe, not a file"
    for arguments in commands:
        process = command(arguments)
        try:
            printed, _ = process.communicate(timeout=100)
        finally:
            process.kill()
        assert process.returncode == 1 and "Traceback" not in printed, printed
        assert says in printed and str(file) in printed, printed


def test_without_a_folder_for_temporary_files_the_error_is_one_line(tmp_path):
    """No file of any size can be written, which asks for no other user than root."""
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    process = subprocess.run(
        [sys.executable, "-m", "fluvial", "recipes"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)),
    )
    assert process.returncode == 1 and not process.stdout
    (line,) = process.stderr.splitlines()
    assert line.startswith("fluvial: error: ") and str(tmp_path) in line and "set TMPDIR" in line


@pytest.mark.slow
def test_a_full_disk_while_saving_is_code_1_and_loses_nothing(tmp_path):
    """A limit on the size of files stands in for the full disk: the write of the checkpoint fails half way."""
    out, constant = tmp_path / "run", ["--optim.schedule", "constant"]
    assert main(train(out, *constant, steps=5)) == 0
    before = {p: p.read_bytes() for p in checkpoint.newest(out).iterdir()}
    limit = min(len(b) for p, b in before.items() if p.suffix == ".safetensors") // 2
    process = command(
        train(out, *constant, steps=10), preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    )
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == 1, printed
    assert "cannot write the checkpoint of step 10" in printed and "step-00000005" in printed
    assert "Traceback" not in printed
    assert {p: p.read_bytes() for p in checkpoint.newest(out).iterdir()} == before
    assert [p.name for p in Path(out / "checkpoints").iterdir()] == ["step-00000005"]
    assert main(train(out, *constant, steps=10)) == 0


def test_settings_that_spoil_a_run_are_told_before_its_first_step(tmp_path, capsys):
    assert main(train(tmp_path / "run", steps=5)) == 0
    looks = [line for line in capsys.readouterr().out.splitlines() if line.startswith("look: ")]
    assert [line.split(":")[1] for line in looks] == [" schedule", " moving average"], looks
    assert main(train(tmp_path / "run", steps=6)) == 0
    printed = capsys.readouterr().out
    assert "look:" not in printed and "goes on from step 5 to 6: the learning rate goes from" in printed


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Twelve pictures: eight cats, two dogs, one rotated, and one damaged."""
    root, rng = tmp_path_factory.mktemp("data") / "photos", np.random.default_rng(0)
    for i in range(12):
        folder = root / ("cat" if i < 9 else "dog")
        folder.mkdir(parents=True, exist_ok=True)
        exif = Image.Exif()
        exif[0x0112] = 6 if i == 3 else 1
        pixels = rng.integers(0, 256, (24, 32 + i, 3), dtype=np.uint8)
        Image.fromarray(pixels).convert("L" if i == 4 else "RGB").save(folder / f"{i:02d}.png", exif=exif)
    (root / "dog" / "11.png").write_bytes(b"")
    return root


def test_inspect_tells_what_there_is(photos, tmp_path, capsys):
    sheet = tmp_path / "sheets" / "all.png"
    assert main(["data", "inspect", str(photos), "--sheet", str(sheet)]) == 0
    printed = capsys.readouterr().out
    table = {
        row[1].strip(): row[2].strip() for row in (line.split("│") for line in printed.splitlines()) if len(row) > 3
    }
    assert table["images"] == "12" and table["classes"] == "2" and table["unreadable"] == "1"
    assert table["width"] == "32 to 42, median 37" and table["height"] == "24 to 24, median 24"
    assert (table["RGB"], table["grey"], table["turned by EXIF"]) == ("10", "1", "1")
    assert (table["cat"], table["dog"]) == ("9", "3")
    assert "fewer than 5 images: dog (3)" in printed and "unreadable: " in printed and "dog/11.png" in printed
    assert Image.open(sheet).size == (10 * 65 + 1, 2 * 65 + 1)
    assert main(["data", "inspect", str(photos), "--most", "4", "--sequence", "3", "--sheet", str(sheet)]) == 0
    printed = capsys.readouterr().out
    assert "12 (looked at 4)" in printed and "fewer than" not in printed


def test_encode_then_verify_then_train(photos, tmp_path, capsys):
    out = tmp_path / "latents"
    encode = ["encode", str(photos), "--autoencoder", "pixels", "--image-size", "8", "--out", str(out), "--shard", "4"]
    assert main(encode) == 1 and "1 unreadable image: " in capsys.readouterr().err
    assert main([*encode, "--unreadable", "skip"]) == 0
    printed = capsys.readouterr().out
    assert "11 images in 3 shards" in printed and "left out: " in printed
    assert main(["data", "verify", str(out)]) == 0 and "all as they were written" in capsys.readouterr().out
    assert main(["data", "inspect", str(out)]) == 0 and "readable images" in capsys.readouterr().out
    options = [
        "--method.channels",
        "3",
        "--method.classes",
        "2",
        "--data.path",
        str(out),
        "--data.small-classes",
        "repeat",
    ]
    assert main(train(tmp_path / "run", *options, steps=2)) == 0
    assert main([*encode, "--dtype", "fp32"]) == 1 and "dtype is bf16 there and fp32 here" in capsys.readouterr().err
    shard = out / "shard-00001.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    assert main(["data", "verify", str(out)]) == 1 and "shard-00001.safetensors is" in capsys.readouterr().err
    assert main(train(tmp_path / "run", *options, steps=2)) == 1 and "shard-00001" in capsys.readouterr().err


def test_a_smoke_run_tries_everything(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "digits-flowar", "--smoke", "--train.steps", "3"]) == 0
    run = RunFolder(tmp_path / "runs" / "digits-flowar-smoke").run()
    assert run.method.width == 64 and run.train.steps == 3 and list(Path("runs/digits-flowar-smoke/samples").iterdir())
    assert main(["train", "cifar10-sit", "--smoke", "--help-all"]) == 0 and "--smoke tries" in capsys.readouterr().out
    assert main(["train", "cifar10-sit", "--smoke", "--data.path", "gone.parquet"]) == 1
    assert "gone.parquet does not exist" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["data"], "usage: fluvial data inspect|verify"),
        (["data", "look", "x"], "fluvial data has inspect and verify, got 'look'"),
        (["data", "inspect"], "usage: fluvial data inspect DATA"),
        (["data", "verify", "x", "--fast"], "takes no options, got --fast"),
        (["encode"], "usage: fluvial encode DATA"),
        (["encode", "x"], "--autoencoder"),
        (["data", "inspect", ".", "--sheet", "a.png"], "would become one of the images of .; set --sheet"),
        (["data", "inspect", "x", "--sheet", "a"], "--sheet must end in .png"),
        (["encode", "x", "--autoencoder", "pixels", "--out", "y", "--shard", "0"], "--shard must be at least 1, got 0"),
    ],
)
def test_a_wrong_data_command_is_code_2(arguments, says, capsys):
    assert main(arguments) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "digits-sit", "--dry-run", "--dry_run", "False"],
        ["train", "digits-sit", "--smoke", "True", "--smoke", "False"],
        ["plot", "{run}", "--out", "{run}/run.json"],
        ["plot", "{run}", "--out", "{run}/curves"],
        ["score", "{run}", "--out", "{run}/run.json"],
        ["score", "{run}", "--keep", "{run}/checkpoints/step-00000001/a.safetensors"],
    ],
)
def test_what_would_replace_files_of_a_run_or_is_given_twice_is_refused(tmp_path, arguments, capsys):
    (tmp_path / "checkpoints" / "step-00000001").mkdir(parents=True)
    for name in ("run.json", "checkpoints/step-00000001/checkpoint.json"):
        (tmp_path / name).write_text("precious")
    assert main([argument.format(run=tmp_path) for argument in arguments]) != 0
    assert "precious" in (tmp_path / "run.json").read_text()
    said = capsys.readouterr().err
    assert (
        "given more than once" in said
        or "among the files of a run" in said
        or "writes a .png" in said
        or "cannot be read" in said
    )


@pytest.mark.parametrize(
    ("former", "present"),
    [
        (["--train.eval-every", "7"], lambda run: run.train.validate_every == 7),
        (["--train.eval_every=7"], lambda run: run.train.validate_every == 7),
        (["--train.recompute", "1"], lambda run: run.train.activation_checkpointing == 1),
        (["--sample.solver", "dopri5", "--sample.atol", "0.5"], lambda run: run.sample.solver == Dopri5(atol=0.5)),
    ],
)
def test_options_of_version_0_1_0_are_taken_under_their_present_names(former, present):
    assert present(parse(TrainOptions, TrainOptions(run=recipes.get("digits-sit")), former, "", "").run)


def test_an_option_under_both_of_its_names_is_given_twice():
    both = ["--train.eval-every", "7", "--train.validate-every", "8"]
    with pytest.raises(ValueError, match="given more than once: --train.eval-every and --train.validate-every;"):
        parse(TrainOptions, TrainOptions(run=recipes.get("digits-sit")), both, "", "")
