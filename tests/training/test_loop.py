import itertools
import json
import math
import os
import shutil
import signal
import time
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from fluvial.methods.method import Draws
from fluvial.training import checkpoint
from fluvial.training.config import TrainConfig
from fluvial.training.kept import best, superfluous
from fluvial.training.loop import FolderGone, train
from fluvial.training.optim import OptimConfig
from fluvial.training.step import begin
from fluvial.utils.errors import Stopped


def start():
    torch.manual_seed(0)
    model = nn.Linear(4, 4)
    model.config = None
    return model


def batch(step):
    return torch.randn(8, 1, 2, 2, generator=torch.Generator().manual_seed(step)), None


def draws(config, shape, *, generator, device):
    noise = torch.randn(shape, generator=generator, device=device)
    return Draws(t=torch.zeros(len(noise)), noise=noise, drop=torch.zeros(len(noise), dtype=torch.bool))


def loss(model, latents, labels, *, noise):
    return (model(noise.flatten(1)) - latents.flatten(1)).square().mean()


def method_with(loss):
    """A method whose loss that is: one part, of which every example has the mean."""

    def errors(model, latents, labels, draws):
        return loss(model, latents, labels, noise=draws.noise).expand(len(latents), 1)

    return SimpleNamespace(draws=draws, errors=errors, part_weights=lambda config: (1.0,))


def run(
    folder,
    model=None,
    loss=loss,
    held_out=None,
    preview=None,
    batches=lambda order: batch,
    start_over=False,
    **settings,
):
    folder.mkdir(exist_ok=True)
    model = start() if model is None else model
    defaults = {"steps": 20, "batch": 8, "ema_decay": 0.9, "log_every": 5, "save_every": 5}
    config = TrainConfig(**{**defaults, **settings})
    learner = begin(model, method=method_with(loss), config=config, optim=OptimConfig(lr=0.01), seed=0, empty=start)
    average = train(learner, batches, folder, validate=held_out, preview=preview, start_over=start_over)
    return model, average


def log(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def same(a, b):
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


@pytest.mark.parametrize("stop_at", [5, 13])
def test_a_run_that_stopped_ends_as_one_that_did_not(tmp_path, stop_at, monkeypatch):
    """Also where the first checkpoint is still being written when an error ends the training."""
    publish = checkpoint._publish
    monkeypatch.setattr(checkpoint, "_publish", lambda *a: (time.sleep(0.3), publish(*a)))
    whole, whole_average = run(tmp_path / "whole", log_every=2)

    class Killed(Exception):
        pass

    calls = 0

    def dying(*arguments, **chance):
        nonlocal calls
        calls += 1
        if calls > stop_at:
            raise Killed
        return loss(*arguments, **chance)

    with pytest.raises(Killed):
        run(tmp_path / "cut", loss=dying, log_every=2)
    resumed, resumed_average = run(tmp_path / "cut", log_every=2)
    assert same(whole, resumed) and same(whole_average, resumed_average)
    # each step once, though those after the checkpoint were taken twice
    steps = [[r["step"] for r in log(tmp_path / name)] for name in ("whole", "cut")]
    assert steps[0] == steps[1] == list(range(2, 21, 2))


@pytest.mark.parametrize("at", [4, 12])
@pytest.mark.parametrize("what", ["held_out", "preview"])
def test_what_a_killed_run_lacks_of_its_checkpoints_step_is_made_again(tmp_path, at, what):
    """Killed between the checkpoint of a step and the rest of that step; also of the last."""

    def measured(model):
        return {"held_out_loss": float(model.weight.sum())}

    def drawn(model, path):
        path.parent.mkdir(exist_ok=True)
        path.write_text(str(model.weight.tolist()))

    options = {"steps": 12, "save_every": 4, "validate_every": 4, "sample_every": 4, "log_every": 2}
    options |= {"ema_lengths": (0.05, 0.1), "ema_every": 4}
    run(tmp_path / "whole", held_out=measured, preview=drawn, **options)

    class Killed(BaseException):
        pass

    calls = []

    def killed(function):
        def call(*arguments):
            calls.append(arguments)
            if len(calls) == at // 4:
                while not (tmp_path / "cut" / "checkpoints" / f"step-{at:08d}").exists():
                    time.sleep(0.001)  # the checkpoint is written in the background
                raise Killed
            return function(*arguments)

        return call

    with pytest.raises(Killed):
        functions = {"held_out": measured, "preview": drawn}
        run(tmp_path / "cut", **{**functions, what: killed(functions[what])}, **options)
    for snapshot in (tmp_path / "cut" / "ema").glob(f"step-{at:08d}-0.1*"):
        snapshot.unlink()  # as if it had been killed while these were written
    run(tmp_path / "cut", held_out=measured, preview=drawn, **options)
    untimed = [
        [{k: v for k, v in row.items() if k not in ("time", "images_per_second")} for row in log(tmp_path / name)]
        for name in ("whole", "cut")
    ]
    assert untimed[0] == untimed[1]
    for folder in ("samples", "ema"):
        files = [
            {path.name: path.read_bytes() for path in (tmp_path / name / folder).iterdir()} for name in ("whole", "cut")
        ]
        assert files[0] == files[1] and len(files[0]) == (3 if folder == "samples" else 6)


@pytest.mark.parametrize("how", ["removed", "renamed", "replaced"])
@pytest.mark.parametrize("when", [7, 20])
def test_a_run_whose_folder_is_gone_saves_beside_it_and_stops(tmp_path, how, when):
    whole, _ = run(tmp_path / "whole")
    out, calls = tmp_path / "run", 0
    out.mkdir()
    (out / "run.json").write_text("{}")

    def losing(*arguments, **chance):
        nonlocal calls
        calls += 1
        if calls == when:
            while (out / "checkpoints").exists() and list((out / "checkpoints").glob(".*")):
                time.sleep(0.001)
            out.rename(tmp_path / "moved")
            if how == "removed":
                shutil.rmtree(tmp_path / "moved")
            if how == "replaced":
                out.mkdir()
        return loss(*arguments, **chance)

    with pytest.raises(FolderGone, match=rf"run was removed or renamed.*checkpoint of step {when} is in .*run-rescued"):
        run(out, loss=losing)
    assert out.exists() == (how == "replaced")
    rescued = tmp_path / "run-rescued"
    assert (rescued / "run.json").read_text() == "{}"
    assert checkpoint.load_meta(checkpoint.newest(rescued))["step"] == when
    resumed, _ = run(rescued)
    assert same(whole, resumed)


def test_a_run_of_damaged_checkpoints_is_not_trained_from_scratch(tmp_path):
    run(tmp_path, steps=10, keep=2)
    for file in (tmp_path / "checkpoints").glob("*/*.safetensors"):
        file.write_bytes(file.read_bytes()[:-8])
    rows = (tmp_path / "log.jsonl").read_bytes()
    for _ in range(2):  # they stay damaged
        with pytest.raises(checkpoint.CheckpointError, match=r"whole: damaged-step-00000005, damaged-step-00000010\. "):
            run(tmp_path, steps=10)
        assert (tmp_path / "log.jsonl").read_bytes() == rows
    shutil.rmtree(tmp_path / "checkpoints")  # as earlier versions advised
    with pytest.raises(checkpoint.CheckpointError, match="has none now; its log goes to step 10"):
        run(tmp_path, steps=10, save_every=4)
    model, _ = run(tmp_path, steps=10, start_over=True)
    assert same(model, run(tmp_path / "new", steps=10)[0])


def test_micro_batches_give_the_same_weights(tmp_path):
    whole, _ = run(tmp_path / "whole")
    split, _ = run(tmp_path / "split", accumulate=4)
    for p, q in zip(whole.parameters(), split.parameters(), strict=True):
        torch.testing.assert_close(p, q, atol=1e-6, rtol=1e-5)
    losses = [[r["loss"] for r in log(tmp_path / name)] for name in ("whole", "split")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_the_log_and_the_callbacks(tmp_path):
    previews = []
    run(
        tmp_path,
        steps=12,
        validate_every=4,
        sample_every=6,
        save_every=100,
        held_out=lambda model: {"held_out_loss": 0.25, "held_out_by_time": [0.5, None]},
        preview=lambda model, path: previews.append(path.name),
    )
    records = log(tmp_path)
    assert [r["step"] for r in records if "loss" in r] == [5, 10, 12]
    assert [r["step"] for r in records if "held_out_loss" in r] == [4, 8, 12]
    assert previews == ["step-00000006.png", "step-00000012.png"]
    assert {"loss", "lr", "grad_norm", "images_per_second"} <= set(records[-2])
    assert checkpoint.load_meta(checkpoint.newest(tmp_path))["step"] == 12  # the end is always saved


def test_the_first_pictures_are_at_doubling_steps(tmp_path):
    previews = []
    drawn = {"preview": lambda model, path: previews.append(int(path.stem.removeprefix("step-")))}
    run(tmp_path / "a", steps=24, sample_every=10, first_sample=2, **drawn)
    assert previews == [2, 4, 8, 10, 20, 24]
    previews.clear()
    run(tmp_path / "b", steps=8, sample_every=0, first_sample=2, **drawn)
    run(tmp_path / "c", steps=12, sample_every=5, first_sample=7, **drawn)
    assert previews == [5, 10, 12]


@pytest.mark.parametrize("die_at", [None, 12, 13])
def test_the_checkpoint_of_the_lowest_validation_loss_stays(tmp_path, die_at):
    """Also when the run is killed after a checkpoint and before its validation, and goes on."""
    losses = {4: 3.0, 8: 1.0, 12: 2.0, 16: 0.5, 20: 4.0, 24: 0.7}
    options = {"steps": 24, "save_every": 4, "validate_every": 4, "keep": 1, "keep_best": True, "log_every": 4}
    seen, calls = [], 0

    def held_out(model):
        (step,) = (step for step in losses if torch.equal(model.weight, averages[step]))
        if step == die_at and not calls:
            while not (tmp_path / "run" / "checkpoints" / f"step-{step:08d}").exists():
                time.sleep(0.001)
            raise Killed
        seen.append(sorted(int(p.name[5:]) for p in (tmp_path / "run" / "checkpoints").glob("step-*")))
        return {"held_out_loss": losses[step]}

    class Killed(Exception):
        pass

    def dying(*arguments, **chance):
        nonlocal calls
        calls += 1
        if calls == die_at:
            raise Killed
        return loss(*arguments, **chance)

    averages, record = {}, iter(losses)
    run(
        tmp_path / "other",
        held_out=lambda model: averages.__setitem__(next(record), model.weight.clone()) or {"held_out_loss": 0.0},
        **options,
    )
    if die_at:
        with pytest.raises(Killed):
            run(tmp_path / "run", held_out=held_out, **({"loss": dying} if die_at == 13 else {}), **options)
        calls = 1000
    run(tmp_path / "run", held_out=held_out, **options)
    left = sorted(int(p.name[5:]) for p in (tmp_path / "run" / "checkpoints").glob("step-*"))
    assert left == [16, 24] and best(tmp_path / "run", left) == 16
    assert all(8 in there for there in seen[2:4])


def test_a_lowest_validation_loss_that_was_undone_or_is_not_finite_counts_for_nothing(tmp_path):
    rows = [
        {"step": 4, "held_out_loss": 2.0},
        {"step": 8, "held_out_loss": 1.0},
        {"step": 9, "rolled_back_to": 4},
        {"step": 12, "held_out_loss": math.nan},
        {"step": 16, "held_out_loss": 2.0},
    ]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert best(tmp_path, [4, 8, 12, 16]) == 4 and best(tmp_path, [8, 12]) is None
    assert superfluous(tmp_path, [4, 8, 12, 16], keep=1, keep_every=8, keep_best=True) == [12]
    assert superfluous(tmp_path, [4, 8, 12, 16], keep=1, keep_every=0, keep_best=False) == [4, 8, 12]


def test_the_logged_loss_is_the_mean_over_the_steps_since_the_last_line(tmp_path):
    model, losses = start(), []

    def recording(*arguments, **chance):
        value = loss(*arguments, **chance)
        losses.append(value.item())
        return value

    run(tmp_path, model, loss=recording, steps=10)
    assert [r["loss"] for r in log(tmp_path)] == pytest.approx([sum(losses[:5]) / 5, sum(losses[5:]) / 5], rel=1e-6)


def poisoned(steps):
    """The loss, not finite on the batches of these steps."""

    def value(model, latents, labels, *, noise):
        bad = any(torch.equal(latents, batch(step)[0]) for step in steps)
        return loss(model, latents, labels, noise=noise) * (float("nan") if bad else 1.0)

    return value


def test_a_step_that_is_not_finite_is_skipped_and_nothing_else_changes(tmp_path):
    """Without the sixth batch: the weights stay, the moments stay, the logged loss leaves it out."""
    seen = []

    def watching(model, *arguments, **chance):
        seen.append(model.weight.detach().clone())
        return poisoned([5])(model, *arguments, **chance)

    model, _ = run(tmp_path, loss=watching, steps=10)
    assert torch.equal(seen[5], seen[6]) and not torch.equal(seen[6], seen[7])
    assert torch.isfinite(model.weight).all()
    lines = log(tmp_path)
    assert [line["skipped"] for line in lines if "skipped" in line] == [1]
    assert all(torch.isfinite(torch.tensor(line["loss"])) for line in lines if "loss" in line)
    state = checkpoint.load(checkpoint.newest(tmp_path), "optimizer")
    assert state["weight/step"] == 9


def test_after_several_in_a_row_the_run_goes_back_and_takes_the_data_in_another_order(tmp_path, capsys):
    asked = []

    def batches(order):
        asked.append(order)
        return batch if order == 0 else lambda step: batch(100 + step)

    model, _ = run(tmp_path, loss=poisoned(range(7, 20)), batches=batches, patience=3, steps=12, save_every=4)
    assert asked == [0, 1] and torch.isfinite(model.weight).all()
    (event,) = (line for line in log(tmp_path) if "rolled_back_to" in line)
    assert (event["rolled_back_to"] == 8 and event["step"] in (12,)) or event["rolled_back_to"] == 4
    assert "the loss itself" in event["first_non_finite"] and "another order" in capsys.readouterr().out
    assert checkpoint.load_meta(checkpoint.newest(tmp_path))["order"] == 1
    run(tmp_path, batches=batches, steps=14)
    assert asked == [0, 1, 1]  # a run that is resumed keeps the order


def test_steps_that_are_not_finite_now_and_then_are_no_reason_to_go_back(tmp_path):
    run(tmp_path, loss=poisoned([3, 5, 7, 9, 11]), patience=3, steps=12, save_every=2)
    assert not any("rolled_back_to" in line for line in log(tmp_path))
    assert [line["skipped"] for line in log(tmp_path) if "skipped" in line] == [1, 4, 5]


def test_going_back_to_weights_alone_begins_with_a_new_optimizer(tmp_path):
    checkpoint.write_weights(tmp_path, 0, start().state_dict(), {})
    other = {0: batch, 1: lambda step: batch(100 + step)}
    run(tmp_path, loss=poisoned(range(2, 20)), batches=other.get, patience=2, steps=6, save_every=100)
    assert checkpoint.load(checkpoint.newest(tmp_path), "optimizer")["weight/step"] == 6


def test_if_no_order_helps_the_run_ends_with_the_reason(tmp_path):
    run(tmp_path, steps=5)
    with pytest.raises(RuntimeError, match="3 other orders of the data did not help.*Lower optim.lr"):
        run(tmp_path, loss=lambda *a, **k: loss(*a, **k) * float("nan"), patience=2)
    assert checkpoint.load_meta(checkpoint.newest(tmp_path))["step"] == 5
    with pytest.raises(RuntimeError, match="there is no checkpoint yet"):
        run(tmp_path / "new", loss=lambda *a, **k: loss(*a, **k) * float("nan"), patience=2)


def test_a_stop_request_saves_and_the_run_goes_on_to_the_same_weights(tmp_path):
    whole, whole_average = run(tmp_path / "whole")
    for name, number in (("SIGTERM", signal.SIGTERM), ("SIGINT", signal.SIGINT)):
        calls = 0

        def asking(*arguments, number=number, **chance):
            nonlocal calls
            calls += 1
            if calls == 7:
                os.kill(os.getpid(), number)
            return loss(*arguments, **chance)

        with pytest.raises(Stopped, match=f"stopped by {name} after step 7"):
            run(tmp_path / name, loss=asking)
        assert checkpoint.load_meta(checkpoint.newest(tmp_path / name))["step"] == 7
        resumed, average = run(tmp_path / name)
        assert same(whole, resumed) and same(whole_average, average)


def test_block_norms_and_further_averages(tmp_path):
    class Two(nn.Module):
        config = None

        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(4, 4)) for _ in range(2))

        def forward(self, x):
            return self.blocks[1](self.blocks[0](x))

    before = {}

    def recording(model, *arguments, **chance):
        before.update({name: p.detach().clone() for name, p in model.named_parameters()})
        return loss(model, *arguments, **chance)

    model = Two()
    config = TrainConfig(
        steps=4, batch=8, blocks_every=4, log_every=4, save_every=4, ema_decays=(0.5,), activation_checkpointing=1
    )
    options = {"config": config, "optim": OptimConfig(lr=0.01, clip="none"), "seed": 0, "empty": Two}
    train(begin(model, method=method_with(recording), **options), lambda order: batch, tmp_path)
    (line,) = (line["blocks"] for line in log(tmp_path) if "blocks" in line)
    for name, block in (("blocks.0", model.blocks[0]), ("blocks.1", model.blocks[1])):
        moved = torch.cat([(p - before[f"{name}.{n}"]).flatten() for n, p in block.named_parameters()]).norm()
        size = torch.cat([p.flatten() for p in block.parameters()]).norm()
        assert line[name]["update"] == pytest.approx((moved / size).item(), rel=0.02) and line[name]["grad_norm"] > 0
    newest = checkpoint.newest(tmp_path)
    slow, quick, weights = (checkpoint.load(newest, part) for part in ("ema", "ema-0.5", "model"))
    key = "blocks.0.0.weight"
    assert (quick[key] - weights[key]).norm() < (slow[key] - weights[key]).norm()


def test_a_clock_that_jumps_changes_no_speed(tmp_path, monkeypatch):
    jumps = itertools.count(10**9, -(10**7))
    monkeypatch.setattr(time, "time", lambda: float(next(jumps)))
    run(tmp_path)
    assert all(0 < line["images_per_second"] < 1e7 for line in log(tmp_path))


def test_bf16_trains_close_to_fp32_and_keeps_float32_weights(tmp_path):
    exact, _ = run(tmp_path / "fp32")
    rough, _ = run(tmp_path / "bf16", precision="bf16")
    assert all(p.dtype == torch.float32 for p in rough.parameters())
    assert 0 < (exact.weight - rough.weight).abs().max() < 0.02


def test_dropout_is_a_function_of_the_step(tmp_path):
    def dropping(model, latents, labels, *, noise):
        return loss(lambda x: model(nn.functional.dropout(x)), latents, labels, noise=noise)

    whole, _ = run(tmp_path / "whole", loss=dropping)
    torch.manual_seed(7)
    run(tmp_path / "cut", loss=dropping, steps=10)
    resumed, _ = run(tmp_path / "cut", loss=dropping)
    assert same(whole, resumed)


def test_a_finished_run_is_left_alone(tmp_path):
    model, _ = run(tmp_path)
    again, _ = run(tmp_path)
    assert same(model, again) and len(log(tmp_path)) == 4


@pytest.mark.parametrize(
    "wrong", [{"steps": 0}, {"batch": 9, "accumulate": 2}, {"ema_decay": 1.0}, {"validate_every": -1}]
)
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ValueError, match="must be|cannot be split"):
        TrainConfig(**wrong)


def test_weights_that_are_not_finite_replace_no_checkpoint(tmp_path, capsys):
    run(tmp_path, steps=4, save_every=2, keep=1)
    model = start()

    def spoiling(model, *arguments, **chance):
        with torch.no_grad():
            model.weight.fill_(float("nan"))
        return loss(model, *arguments, **chance)

    run(tmp_path, model, loss=spoiling, steps=8, save_every=2, keep=1)
    assert [folder.name for folder in (tmp_path / "checkpoints").iterdir()] == ["step-00000004"]
    assert "no checkpoint is written" in capsys.readouterr().out


def test_a_run_whose_checkpoints_are_gone_does_not_start_over_in_silence(tmp_path):
    run(tmp_path, steps=4, save_every=100)
    shutil.rmtree(tmp_path / "checkpoints")
    with pytest.raises(checkpoint.CheckpointError, match="has had checkpoints, and has none now"):
        run(tmp_path, steps=4, save_every=100)
    run(tmp_path, steps=4, save_every=100, start_over=True)


def test_the_mean_loss_of_a_line_counts_the_steps_before_a_stop(tmp_path):
    run(tmp_path / "whole", steps=20, log_every=10, save_every=6)

    def dying(*arguments, **chance):
        dying.left -= 1
        if not dying.left:
            raise KeyboardInterrupt
        return loss(*arguments, **chance)

    dying.left = 9
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", loss=dying, steps=20, log_every=10, save_every=6)
    while not (tmp_path / "cut" / "checkpoints" / "step-00000006").exists():
        time.sleep(0.001)  # the checkpoint is written in the background
    run(tmp_path / "cut", steps=20, log_every=10, save_every=6)
    whole, cut = ([row["loss"] for row in log(tmp_path / name) if "loss" in row] for name in ("whole", "cut"))
    assert whole == cut and len(whole) == 2
