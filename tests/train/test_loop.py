import json

import pytest
import torch
from torch import nn

from fluvial.train import checkpoint
from fluvial.train.loop import TrainConfig, train
from fluvial.train.optim import OptimConfig


def start():
    torch.manual_seed(0)
    return nn.Linear(4, 4)


def batch(step):
    return torch.randn(8, 1, 2, 2, generator=torch.Generator().manual_seed(step)), None


def draws(shape, *, generator, device):
    return {"noise": torch.randn(shape, generator=generator, device=device)}


def loss(model, latents, labels, *, noise):
    return (model(noise.flatten(1)) - latents.flatten(1)).square().mean()


def run(folder, model=None, loss=loss, held_out=None, preview=None, **settings):
    folder.mkdir(exist_ok=True)
    model = start() if model is None else model
    defaults = {"steps": 20, "batch": 8, "ema_decay": 0.9, "log_every": 5, "save_every": 5}
    config = TrainConfig(**{**defaults, **settings})
    average = train(
        model,
        loss=loss,
        draws=draws,
        batch=batch,
        config=config,
        optim=OptimConfig(lr=0.01),
        seed=0,
        run=folder,
        held_out=held_out,
        preview=preview,
    )
    return model, average


def log(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def same(a, b):
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


@pytest.mark.parametrize("stop_at", [5, 13])
def test_a_run_that_stopped_ends_as_one_that_did_not(tmp_path, stop_at):
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
        eval_every=4,
        sample_every=6,
        save_every=100,
        held_out=lambda model: 0.25,
        preview=lambda model, path: previews.append(path.name),
    )
    records = log(tmp_path)
    assert [r["step"] for r in records if "loss" in r] == [5, 10, 12]
    assert [r["step"] for r in records if "held_out_loss" in r] == [4, 8, 12]
    assert previews == ["step-00000006.png", "step-00000012.png"]
    assert {"loss", "lr", "grad_norm", "images_per_second"} <= set(records[-2])
    assert checkpoint.load_meta(checkpoint.newest(tmp_path))["step"] == 12  # the end is always saved


def test_the_logged_loss_is_the_mean_over_the_steps_since_the_last_line(tmp_path):
    model, losses = start(), []

    def recording(*arguments, **chance):
        value = loss(*arguments, **chance)
        losses.append(value.item())
        return value

    run(tmp_path, model, loss=recording, steps=10)
    assert [r["loss"] for r in log(tmp_path)] == pytest.approx([sum(losses[:5]) / 5, sum(losses[5:]) / 5], rel=1e-6)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(tmp_path):
    run(tmp_path, steps=5)
    with pytest.raises(RuntimeError, match=r"the loss is nan .*at step 10.*last good checkpoint is .*step-00000005"):
        run(tmp_path, loss=lambda *a, **k: loss(*a, **k) * float("nan"))
    assert checkpoint.load_meta(checkpoint.newest(tmp_path))["step"] == 5


def test_a_bad_checkpoint_never_pushes_out_a_good_one(tmp_path):
    run(tmp_path, steps=5)
    with pytest.raises(RuntimeError, match=r"at step 7.*last good checkpoint is .*step-00000006"):
        run(
            tmp_path,
            loss=lambda model, latents, **rest: loss(model, latents, **rest) / (latents != batch(6)[0]).all(),
            log_every=20,
            save_every=1,
        )
    newest = checkpoint.newest(tmp_path)
    assert (
        checkpoint.load_meta(newest)["step"] == 6 and torch.isfinite(checkpoint.load(newest, "model")["weight"]).all()
    )


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


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"batch": 9, "accumulate": 2}, {"ema_decay": 1.0}, {"eval_every": -1}])
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ValueError, match="must be|cannot be split"):
        TrainConfig(**wrong)
