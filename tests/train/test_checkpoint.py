import errno

import pytest
import torch
from torch import nn

from fluvial.train import checkpoint
from fluvial.train.checkpoint import CheckpointError
from fluvial.train.optim import OptimConfig, adamw


def save(run, step, value=0.0, keep=2):
    return checkpoint.save(run, step, {"model": {"w": torch.full((1000,), value)}}, {"seconds": 1.5}, keep=keep)


def test_what_is_saved_is_loaded_and_old_ones_go(tmp_path):
    for step in (5, 10, 15):
        save(tmp_path, step, value=float(step))
    assert [p.name for p in sorted((tmp_path / "checkpoints").iterdir())] == ["step-00000010", "step-00000015"]
    newest = checkpoint.newest(tmp_path)
    assert checkpoint.load_meta(newest) == {"format": 1, "step": 15, "seconds": 1.5}
    assert (checkpoint.load(newest, "model")["w"] == 15).all()
    assert checkpoint.newest(tmp_path / "nowhere") is None


@pytest.mark.parametrize("damage", ["cut", "garbage", "gone"])
def test_a_damaged_file_is_named(tmp_path, damage):
    file = save(tmp_path, 5) / "model.safetensors"
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:1000] if damage == "cut" else b"x" * 5000)
    with pytest.raises(CheckpointError, match=r"step-00000005/model\.safetensors is missing, truncated or damaged"):
        checkpoint.load(file.parent, "model")


@pytest.mark.parametrize("text", ["", '{"step": 3}', "[]", '{"format": 1}', '{"format": 99}'])
def test_a_damaged_description_is_named(tmp_path, text):
    folder = save(tmp_path, 5)
    (folder / "checkpoint.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"checkpoint\.json (is missing or damaged|has format 99)"):
        checkpoint.load_meta(folder)


def test_a_failed_write_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    save(tmp_path, 5, value=5.0)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_tensors", full)
    with pytest.raises(CheckpointError, match=r"step 10 .*No space left on device.*last good one is .*step-00000005"):
        save(tmp_path, 10)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-00000005"]
    assert (checkpoint.load(checkpoint.newest(tmp_path), "model")["w"] == 5).all()


def test_another_models_checkpoint_is_refused(tmp_path):
    model = nn.Linear(3, 2)
    for tensors, reason in (
        ({"weight": torch.zeros(2, 4), "bias": torch.zeros(2)}, r"weight is \(2, 4\) there and \(2, 3\) in the model"),
        ({"weight": torch.zeros(2, 3)}, "bias is missing"),
        ({**model.state_dict(), "extra": torch.zeros(1)}, "extra is not in the model"),
    ):
        with pytest.raises(CheckpointError, match=f"holds another model: .*{reason}"):
            checkpoint.fill(model, tensors, tmp_path)


def test_optimizer_state_survives_the_round_trip(tmp_path):
    def step(model, optimizer):
        model(torch.ones(1, 3)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimizer = adamw(model, OptimConfig(lr=0.1))
    for _ in range(3):
        step(model, optimizer)
    twin = nn.Linear(3, 2)
    twin.load_state_dict(model.state_dict())
    twin_optimizer = adamw(twin, OptimConfig(lr=0.1))
    tensors = {k: v.clone() for k, v in checkpoint.optimizer_tensors(model, optimizer).items()}
    checkpoint.fill_optimizer(twin, twin_optimizer, tensors, tmp_path)
    step(model, optimizer), step(twin, twin_optimizer)
    assert torch.equal(model.weight, twin.weight) and torch.equal(model.bias, twin.bias)
    for change, reason in (
        ({"bias/exp_avg": torch.zeros(3)}, r"optimizer state of bias \(3,\), the model has \(2,\)"),
        ({"gate/exp_avg": torch.zeros(3)}, r"optimizer state of gate \(3,\), the model has none"),
    ):
        with pytest.raises(CheckpointError, match=reason):
            checkpoint.fill_optimizer(twin, twin_optimizer, {**tensors, **change}, tmp_path)
