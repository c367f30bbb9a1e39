import json
import math
import re
import shlex
from dataclasses import replace

import pytest
import torch

from conftest import loss
from fluvial import recipes
from fluvial.cli import main
from fluvial.config import to_json
from fluvial.flow.guidance import Guidance
from fluvial.methods import flowar, sit
from fluvial.recipes.expected import BAND, EXPECTED, MEASURED
from fluvial.tools.doctor import changed, doctor, examine
from fluvial.tools.doctor.check import worst_first
from fluvial.tools.doctor.latents import training_latents
from fluvial.tools.doctor.level import level
from fluvial.tools.doctor.losses import full_rate_steps
from fluvial.tools.doctor.mend import command, trained_again
from fluvial.tools.doctor.settings import at_start, slower, usual_rates

LATENTS = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))
RUN = recipes.get("digits-sit")
LINES, EVERY = 60, 20


def healthy():
    """The log of a run as it should be: 60 lines, validation losses at every fifth, the loss from 1.6 down to 0.4."""
    rows = []
    for i in range(1, LINES + 1):
        loss = 0.4 + 1.2 * math.exp(-i / 10)
        line = {"step": EVERY * i, "loss": loss, "lr": 1e-3, "grad_norm": 0.5 + 0.1 * (i % 3)}
        rows.append(line | {"images_per_second": 1000.0 + i % 5, "time": 1000.0 + i})
        if i % 5 == 0:
            by_time = [loss + 0.1 + 0.01 * b for b in range(10)]
            rows.append(
                {"step": EVERY * i, "held_out_loss": loss + 0.1, "held_out_by_time": by_time, "time": 1000.0 + i}
            )
    return rows


def changed_rows(change, rows=None):
    """The healthy log, every line of a loss passed through `change(number of the line, line)`."""
    rows = [dict(row) for row in rows or healthy()]
    for row in rows:
        if "loss" in row:
            row.update(change(row["step"] // EVERY, row))
    return rows


def with_(run, **parts):
    return replace(run, **{part: replace(getattr(run, part), **values) for part, values in parts.items()})


def verdicts(run=RUN, rows=None, latents=LATENTS, **options):
    checks = examine(run, healthy() if rows is None else rows, latents=latents, **options)
    return {check.name: check for check in checks}


def test_a_healthy_run_has_nothing_to_look_at():
    found = verdicts()
    assert {name: check.verdict for name, check in found.items() if check.verdict != "ok"} == {
        "loss of the recipe": "not checked"
    }
    assert not any(check.advice for check in found.values() if check.verdict == "ok")


def overfitted():
    rows = healthy()
    for row in rows:
        if "held_out_loss" in row and row["step"] > 600:
            rise = (row["step"] - 600) / 600
            row["held_out_loss"] *= 1 + 0.5 * rise
            row["held_out_by_time"] = [
                v * (1 + (1.5 if b == 7 else 0.4) * rise) for b, v in enumerate(row["held_out_by_time"])
            ]
    return rows


ROLL_BACKS = [
    {"step": 700 + i, "rolled_back_to": 600, "first_non_finite": "blocks.2.attention", "time": 2000.0} for i in range(3)
]
DEFECTS = {
    "not a number": ("finite numbers", {"rows": changed_rows(lambda i, row: {"loss": math.nan} if i == 30 else {})}),
    "no gradient": (
        "finite numbers",
        {"rows": changed_rows(lambda i, row: {"grad_norm": math.inf if i == 30 else 1.0})},
    ),
    "starts too high": ("loss at the start", {"rows": changed_rows(lambda i, row: {"loss": 2.5} if i == 1 else {})}),
    "learns nothing": (
        "fall of the loss",
        {"rows": changed_rows(lambda i, row: {"loss": 1.95}, [r for r in healthy() if "loss" in r])},
    ),
    "comes off": (
        "rise of the loss",
        {"rows": changed_rows(lambda i, row: {"loss": 0.403 + 0.02 * (i - 50)} if i > 50 else {})},
    ),
    "overfits": ("validation loss", {"rows": overfitted()}),
    "spikes": ("gradient spikes", {"rows": changed_rows(lambda i, row: {"grad_norm": 60.0} if i == 40 else {})}),
    "is always clipped": ("clipping", {"rows": changed_rows(lambda i, row: {"grad_norm": 20.0 + i % 3})}),
    "skips": ("skipped steps", {"rows": [*healthy(), {"step": 1200, "skipped": 40, "time": 1100.0}]}),
    "rolls back": ("roll-backs", {"rows": [*healthy()[:50], *ROLL_BACKS, *healthy()[50:]]}),
    "slows down": (
        "images/s",
        {"rows": changed_rows(lambda i, row: {"images_per_second": 300.0} if i > 40 else {})},
    ),
    "is not scaled": ("latents", {"latents": 3 * LATENTS, "run": with_(RUN, autoencoder={"name": "vae"})}),
    "is blank": ("pixels", {"latents": torch.full((64, 1, 8, 8), -1.0)}),
    "has a hot rate": ("learning rate", {"run": with_(RUN, optim={"lr": 0.5})}),
    "has a cold rate": ("learning rate", {"run": with_(RUN, optim={"lr": 1e-7})}),
    "only warms up": (
        "schedule",
        {"run": with_(RUN, optim={"warmup": 1200}), "rows": [{**r, "lr": 1e-3} for r in healthy()]},
    ),
    "rises at the end": ("schedule", {"run": with_(RUN, optim={"final_lr": 0.01})}),
    "averages the start": ("moving average", {"run": with_(RUN, train={"ema_decay": 0.9999})}),
    "guides by nothing": ("settings together", {"run": with_(RUN, method={"label_drop": 0.0})}),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_one_defect_is_one_wrong_check(defect):
    name, given = DEFECTS[defect]
    found = verdicts(**given)
    assert {n: c.verdict for n, c in found.items() if c.verdict not in ("ok", "not checked")} == {name: "wrong"}
    assert len(found[name].advice) > 20


def test_overfitting_is_dated_and_placed():
    found = verdicts(rows=overfitted())["validation loss"]
    assert "at step 600" in found.found and "most at t from 0.7 to 0.8" in found.found
    last, then = 0.5 + 1.2 * math.exp(-6), 0.5 + 1.2 * math.exp(-3)
    assert f"{100 * (last * 1.5 / then - 1):.1f} %" in found.found
    assert "overfitting from step 600" in found.advice
    both = changed_rows(lambda i, row: {"loss": row["loss"] * (1 + i / 30)}, overfitted())
    assert "not overfitting" in verdicts(rows=both)["validation loss"].advice


def test_a_run_that_blew_up_did_not_overfit():
    rows = changed_rows(lambda i, row: {"loss": 800.0 - 10 * i} if i > 5 else {}, overfitted())
    found = verdicts(rows=rows)
    assert found["rise of the loss"].verdict == found["fall of the loss"].verdict == "wrong"
    assert (
        "not overfitting" in found["validation loss"].advice and "times the minimum" in found["rise of the loss"].found
    )
    early = verdicts(rows=[row for row in rows if row["step"] <= 300])["fall of the loss"]
    assert early.verdict == "wrong" and "nothing of the way" in early.expected


def test_what_happened_is_named_with_its_module():
    found = verdicts(**DEFECTS["rolls back"][1])["roll-backs"]
    assert found.found.startswith("3, from step 700 to 600") and "blocks.2.attention" in found.found
    assert "skipped steps" not in verdicts()


def test_the_recipes_own_losses_are_compared_unless_settings_differ():
    rows = [{"step": step, "loss": loss} for step, loss in MEASURED["digits-sit"].items()]
    assert verdicts(rows=rows, recipe="digits-sit")["loss of the recipe"].verdict == "ok"
    rows[2]["loss"] *= 1 + 1.1 * BAND
    found = verdicts(rows=rows, recipe="digits-sit")["loss of the recipe"]
    assert found.verdict == "wrong" and found.found.endswith("at 200") and "400" not in found.found
    other = with_(RUN, optim={"lr": 1e-3}, train={"keep": 7}, data={"digest": "abc"})
    assert changed(other, "digits-sit") == ["optim.lr"]
    assert "optim.lr" in verdicts(other, rows=rows, recipe="digits-sit")["loss of the recipe"].advice
    assert verdicts(rows=rows, recipe="mnist-arflow")["loss of the recipe"].verdict == "not checked"


def test_expected_losses_are_of_recipes_and_their_lines():
    for name, bands in EXPECTED.items():
        run = recipes.get(name)
        assert all(step % run.train.log_every == 0 and step <= run.train.steps for step in bands)
        assert all(low < MEASURED[name][step] < high for step, (low, high) in bands.items())


def test_the_level_is_that_of_a_zero_output_and_of_the_best_multiple():
    linear = level(sit.Config())
    assert linear.zero == pytest.approx(2, rel=1e-6) and linear.multiple == pytest.approx(math.pi / 2, rel=2e-3)
    # on the cosine path alpha' alpha + sigma' sigma = 0, so that x_t says nothing of u_t where m = 1
    assert level(sit.Config(interpolant="gvp")) == pytest.approx((math.pi**2 / 4, math.pi**2 / 4), rel=1e-6)
    assert level(sit.Config(channels=1, size=(8, 8)), 2 * LATENTS).zero == pytest.approx(1 + 4, rel=0.05)


@pytest.mark.parametrize("weight", ["token", "scale"])
def test_the_level_is_the_loss_itself(weight):
    """Of an untrained model, whose output is zero, and of a model that multiplies x_t, both on white latents."""
    config = flowar.Config(
        size=(8, 8), channels=1, classes=0, patch=2, scales=(1, 2, 4), depth=2, width=16, heads=2, head_depth=1,
        head_width=16, head_heads=2, loss_weight=weight,
    )  # fmt: skip
    x1 = torch.randn(4000, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(2)
    model = flowar.Model(config).eval()
    expected = level(config, x1)

    def drawn():
        return vars(flowar.draws(config, x1.shape, generator=generator, device="cpu"))

    with torch.no_grad():
        measured = float(loss(model, x1, None, **drawn()))
    assert measured == pytest.approx(expected.zero, rel=0.02)

    moments = torch.tensor([float(m.square().mean()) for m in flowar.pyramid(x1, config)])

    def best(x, t, labels, inputs, level=None):
        m = moments.repeat_interleave(torch.tensor(config.sizes))
        time = t.repeat_interleave(torch.tensor(config.sizes), dim=1)
        return ((m * time - (1 - time)) / (m * time**2 + (1 - time) ** 2)).unsqueeze(-1) * x

    class Best(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.config = config

        def forward(self, *arguments):
            return best(*arguments)

    measured = float(loss(Best(), x1, None, **drawn()))
    assert measured == pytest.approx(expected.multiple, rel=0.03)
    assert level(config).zero > expected.zero  # without latents an upper bound: pooling takes variance away


@pytest.mark.parametrize(
    "change",
    [
        {"time_sampling": "logit-normal"},
        {"contrast": 0.3},
        {"interpolant": "gvp", "contrast": 0.2, "time_sampling": "logit-normal"},
    ],
)
def test_the_level_knows_the_objective(change):
    """The loss of an untrained model is that of its zero output, on white latents."""
    shape = {"size": (8, 8), "channels": 1, "classes": 0, "patch": 4, "depth": 1, "width": 16, "heads": 2}
    config = sit.Config(**shape, **change)
    x1 = torch.randn(20_000, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    draws = vars(sit.draws(config, x1.shape, generator=torch.Generator().manual_seed(2), device="cpu"))
    with torch.no_grad():
        measured = float(loss(sit.Model(config).train(), x1, None, **draws))
    expected = level(config, x1)
    assert measured == pytest.approx(expected.zero, rel=0.02)
    assert expected.multiple < expected.zero


def test_steps_are_counted_by_their_rate():
    constant = with_(RUN, optim={"schedule": "constant", "warmup": 0})
    assert full_rate_steps(constant, 700) == pytest.approx(700)
    warm = with_(constant, optim={"warmup": 700})
    assert full_rate_steps(warm, 700) == pytest.approx(350.5)
    assert full_rate_steps(with_(RUN, optim={"warmup": 0}), 1200) == pytest.approx(600, rel=2e-3)


def test_what_cannot_be_judged_is_not():
    rows = [{"step": 20, "loss": 1.9, "lr": 1e-3}]  # an older, shorter log
    found = verdicts(rows=rows, latents="the data is elsewhere", continued=True)
    for name in ("loss at the start", "fall of the loss", "rise of the loss", "validation loss", "gradient spikes"):
        assert found[name].verdict == "not checked", name
    assert found["latents"].verdict == "not checked" and found["latents"].advice == "the data is elsewhere"
    assert found["images/s"].verdict == found["clipping"].verdict == "not checked"


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_no_recipe_has_wrong_settings(name):
    run = recipes.get(name)
    rows = [{"step": run.train.steps, "loss": 1.0}]
    checks = verdicts(run, rows=rows, latents="not here")
    for check in ("learning rate", "schedule", "moving average", "settings together"):
        assert checks[check].verdict in ("ok", "look"), checks[check]


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_nothing_is_told_at_the_start_of_a_recipe(name):
    run = recipes.get(name)
    assert at_start(run, run) == [] and at_start(recipes.smoke(run), recipes.smoke(run)) == []


@pytest.mark.parametrize(
    ("part", "settings", "told"),
    [
        ("train", {"steps": 400}, "schedule: warm-up 100 of 400 .* shorten --optim.warmup"),
        ("optim", {"warmup": 1300}, "schedule: .* never reaches its peak"),
        ("optim", {"lr": 0.5}, "learning rate: .* lower --optim.lr"),
        ("train", {"ema_decay": 0.9999}, "moving average: over 10,000 steps, of 1,200: .* let it begin short"),
        ("train", {"keep_best": True, "validate_every": 0}, "--train.keep-best with --train.validate-every 0"),
    ],
)
def test_a_setting_that_spoils_a_run_is_one_line_at_its_start(part, settings, told):
    run = recipes.get("digits-sit")
    found = at_start(with_(run, **{part: settings}), run)
    (line,) = (line for line in found if not line.startswith("moving average: over 100 steps, of 400"))
    assert re.match(told, line)


def test_a_warm_up_of_the_average_keeps_it_shorter_than_the_run():
    """(1 + n) / (10 + n) is an average over (10 + n) / 9 steps: 12 % of 120, and never of the first weights."""
    run = with_(RUN, train={"ema_decay": 0.9999, "ema_warmup": True})
    found = verdicts(run, rows=[{"step": 120, "loss": 1.0}])["moving average"]
    assert found.verdict == "ok" and found.found == "over 14 steps, of 120"


def test_contradictions_are_told_together():
    run = with_(RUN, method={"label_drop": 0.0}, data={"flip": True})
    run = with_(run, sample={"guidance": Guidance(weight=2.0, channels=3)})
    found = verdicts(run)["settings together"]
    assert found.found.count(";") >= 2 and "--method.label-drop" in found.found and "flip" in found.found
    assert verdicts(with_(run, sample={"guidance": Guidance()}))["settings together"].verdict == "look"


def folder(path, run, rows):
    path.mkdir()
    (path / "run.json").write_text(json.dumps({"run": to_json(run), "recipe": None}))
    (path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_command_leads_with_what_is_wrong_and_its_code_says_whether_something_is(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    good, bad = folder(tmp_path / "good", RUN, healthy()), folder(tmp_path / "bad", RUN, DEFECTS["spikes"][1]["rows"])
    checks = {check.name: check for check in doctor(good)}
    assert checks["pixels"].verdict == "ok" and "std 0.7" in checks["pixels"].found  # of the digits themselves
    assert main(["doctor", str(good)]) == 0
    assert capsys.readouterr().out == "13 checks passed, 1 not made; --all shows them\n"
    assert main(["doctor", str(good), "--all"]) == 0
    assert "likely cause" in capsys.readouterr().out
    assert main(["doctor", str(bad)]) == 1
    first, then, mend, last = capsys.readouterr().out.splitlines()
    assert first.startswith("wrong gradient spikes: largest") and "a bad batch" in first
    assert then.startswith("train again") and last.startswith("1 wrong, 12 checks passed")
    assert mend.strip() == f"fluvial train {bad} --optim.lr 0.0007 --out {bad}-2"
    assert main(["doctor", str(tmp_path)]) == 1 and "not a run folder" in capsys.readouterr().err
    assert main(["doctor"]) == 2 and main(["doctor", "--help"]) == 0


def test_a_diverged_run_is_mended_by_a_rate_within_the_rule():
    far = replace(RUN, optim=replace(RUN.optim, lr=1e12, warmup=0))
    assert slower(far)["optim.lr"] == pytest.approx(usual_rates(far)[1], rel=0.1) and slower(far)["optim.warmup"] > 0
    near = replace(RUN, optim=replace(RUN.optim, lr=1e-3))
    assert slower(near) == {"optim.lr": 3e-4}


def test_a_run_that_has_not_begun_is_told_how_to(tmp_path, capsys):
    there = folder(tmp_path / "new", RUN, [])
    assert main(["doctor", str(there)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("wrong steps: no line of log") and lines[1].strip() == f"fluvial train {there}"


@pytest.mark.parametrize("defect", DEFECTS)
def test_commands_that_mend_are_commands(defect, tmp_path, capsys):
    """Training itself takes the options, and the defect is gone or another setting is."""
    _, given = DEFECTS[defect]
    run, found = given.get("run", RUN), worst_first(list(verdicts(**given).values()))
    words = trained_again([check.settings for check in found], tmp_path / "run", run, "digits-sit")
    if not words:
        assert any(check.command or check.name in ("images/s", "fall of the loss", "pixels") for check in found)
        return
    assert words.startswith("fluvial train digits-sit --") and words.endswith(f"--out {tmp_path / 'run-2'}")
    if run.autoencoder.name == "pixels":
        assert main([*shlex.split(words)[1:], "--dry-run", "--device", "cpu"]) == 0, capsys.readouterr().err


def test_a_training_again_has_the_options_of_the_run_and_a_folder_of_its_own(tmp_path):
    run = with_(RUN, train={"steps": 100, "ema_decay": 0.9999}, optim={"lr": 3e-3})
    (tmp_path / "run-2").mkdir()
    words = trained_again([{"train.ema_decay": 0.8}, {"train.ema_decay": 0.5}], tmp_path / "run", run, "digits-sit")
    expected = (
        f"fluvial train digits-sit --optim.lr 0.003 --train.steps 100 --train.ema-decay 0.8 --out {tmp_path}/run-3"
    )
    assert sorted(words.split()) == sorted(expected.split())
    assert trained_again([{}], tmp_path, run, None) == ""
    assert (
        trained_again([{"optim.lr": 1e-4}], "a b", run, None) == "fluvial train 'a b' --optim.lr 0.0001 --out 'a b-2'"
    )
    assert command("fluvial sample RUN", "a b") == "fluvial sample 'a b'"


def test_an_average_longer_than_the_steps_so_far_is_no_fault_where_more_are_to_come():
    run = with_(RUN, train={"steps": 50_000, "ema_decay": 0.999})
    found = verdicts(run)["moving average"]
    assert found.verdict == "look" and found.command == "fluvial train RUN"


def test_latents_are_of_the_runs_own_data_and_nothing_is_fetched(tmp_path):
    plain = training_latents(RUN, tmp_path)
    assert plain.shape == (64, 1, 8, 8) and -1 <= plain.min() and plain.max() <= 1 and len(plain.unique()) == 17
    assert training_latents(recipes.get("digits-arflow"), tmp_path).shape == (60, 1, 8, 8)
    for name in ("cifar10-sit", "imagenet256-sit-xl2", "photos-256"):
        with pytest.raises(ValueError, match=r"not on this machine|not there"):
            training_latents(recipes.get(name), tmp_path)
