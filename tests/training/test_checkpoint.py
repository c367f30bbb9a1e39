import errno
import json
import os
from pathlib import Path

import pytest
import torch
from torch import nn

from fluvial.training import checkpoint
from fluvial.training.checkpoint import CheckpointError, Saver
from fluvial.training.optim import OptimConfig, adamw, begin_optimizer, optimizer_tensors
from fluvial.utils.tensors import write_tensors


def save(run, step, value=0.0, **options):
    saver = Saver(run, **{"keep": 2, **options})
    saver.save(step, {"model": {"w": torch.full((1000,), value)}, "ema": {"w": torch.zeros(2)}}, {"seconds": 1.5})
    saver.wait()
    return checkpoint.newest(run)


def test_what_is_saved_is_loaded_and_old_ones_go(tmp_path):
    for step in (5, 10, 15):
        save(tmp_path, step, value=float(step))
    assert [p.name for p in sorted((tmp_path / "checkpoints").iterdir())] == ["step-00000010", "step-00000015"]
    newest = checkpoint.newest_whole(tmp_path)
    meta = checkpoint.load_meta(newest)
    assert (meta["format"], meta["step"], meta["seconds"], len(meta["files"])) == (3, 15, 1.5, 1)
    model = checkpoint.load(newest, "model")
    assert model.keys() == {"w"} and (model["w"] == 15).all() and len(checkpoint.load(newest, "ema")["w"]) == 2
    assert checkpoint.newest(tmp_path / "nowhere") is None and checkpoint.newest_whole(tmp_path / "nowhere") is None


def test_every_nth_stays(tmp_path):
    for step in (5, 10, 15, 20, 25):
        save(tmp_path, step, keep=1, keep_every=10)
    names = [p.name for p in sorted((tmp_path / "checkpoints").iterdir())]
    assert names == ["step-00000010", "step-00000020", "step-00000025"]


def test_what_changes_after_save_is_not_what_is_written(tmp_path):
    """Training goes on while a checkpoint is written: it holds a copy."""
    weights, saver = torch.zeros(3_000_000), Saver(tmp_path, keep=1)
    saver.save(1, {"model": {"w": weights}}, {"seconds": 0.0})
    weights.add_(1)
    saver.wait()
    assert (checkpoint.load(checkpoint.newest(tmp_path), "model")["w"] == 0).all()


@pytest.mark.parametrize("damage", ["cut", "garbage", "gone", "one bit"])
def test_a_damaged_one_is_named_and_left_aside(tmp_path, damage, capsys):
    save(tmp_path, 3)
    folder = save(tmp_path, 5)
    (file,) = folder.glob("*.safetensors")
    content = bytearray(file.read_bytes())
    if damage == "gone":
        file.unlink()
    elif damage == "one bit":
        content[-3] ^= 1
        file.write_bytes(content)
    else:
        file.write_bytes(content[:100] if damage == "cut" else b"x" * 5000)
    for read in (checkpoint.verify, lambda folder: checkpoint.load(folder, "model")):
        with pytest.raises(checkpoint.Damaged, match=rf"step-00000005/{file.name} is damaged"):
            read(folder)
    with pytest.raises(
        CheckpointError, match=r"damaged .*The newest whole checkpoint is step-00000003: --step 3 reads it"
    ):
        checkpoint.read(tmp_path, lambda folder: checkpoint.load(folder, "model"))
    assert checkpoint.read(tmp_path, lambda folder: checkpoint.load(folder, "ema"), step=3).keys() == {"w"}
    with pytest.raises(CheckpointError, match="has no checkpoint of step 4; there are those of 3, 5"):
        checkpoint.read(tmp_path, checkpoint.load_meta, step=4)
    assert checkpoint.newest_whole(tmp_path).name == "step-00000003"
    assert "renamed to damaged-step-00000005" in capsys.readouterr().out
    assert [path.name for path in checkpoint.damaged(tmp_path)] == ["damaged-step-00000005"]


def test_a_damaged_one_neither_outlives_nor_shadows_whole_ones(tmp_path):
    """Training goes on from step 3 and saves steps 4 and 5 again: of these the newest stays, not the damaged one."""
    save(tmp_path, 3)
    (save(tmp_path, 5) / "checkpoint.json").unlink()
    assert checkpoint.newest_whole(tmp_path).name == "step-00000003"
    assert save(tmp_path, 4, keep=1).name == "step-00000004"
    (save(tmp_path, 5, keep=1) / "checkpoint.json").unlink()
    assert checkpoint.newest_whole(tmp_path) is None
    names = {"damaged-step-00000005", "damaged-step-00000005-2"}
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == names
    with pytest.raises(CheckpointError, match=r"no whole checkpoint: damaged-step-00000005, damaged-step-00000005-2"):
        checkpoint.read(tmp_path, checkpoint.load_meta)


def test_what_cannot_be_read_is_not_called_damaged(tmp_path, monkeypatch):
    """A disk that does not answer, or permissions, are no reason to set a checkpoint aside."""
    save(tmp_path, 5)

    def unreadable(file):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(checkpoint, "checksum", unreadable)
    with pytest.raises(CheckpointError, match="cannot be read .Permission denied"):
        checkpoint.newest_whole(tmp_path)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000005"]


def test_a_shard_that_is_not_of_the_checkpoint_is_named(tmp_path):
    folder = save(tmp_path, 5)
    write_tensors(folder / "more.safetensors", {"ema/w": torch.ones(2)})
    with pytest.raises(checkpoint.Damaged, match=r"more\.safetensors is damaged .it was not written with"):
        checkpoint.load(folder, "ema")


def test_a_checkpoint_of_another_step_is_not_taken_for_this_one(tmp_path):
    save(tmp_path, 3).rename(tmp_path / "checkpoints" / "step-00000007")
    with pytest.raises(checkpoint.Damaged, match="of another step than its folder"):
        checkpoint.verify(tmp_path / "checkpoints" / "step-00000007")


def test_a_reader_whose_checkpoint_is_removed_takes_the_next(tmp_path):
    """Beside a training that keeps one."""
    save(tmp_path, 3)
    seen = []

    def slow(folder):
        seen.append(folder.name)
        if len(seen) < 3:
            save(tmp_path, 3 + len(seen), keep=1, value=float(len(seen)))
        return checkpoint.load(folder, "model")

    assert (checkpoint.read(tmp_path, slow)["w"] == 2).all()
    assert seen == ["step-00000003", "step-00000004", "step-00000005"]


def test_no_message_advises_to_remove(tmp_path):
    folder = save(tmp_path, 5)
    (folder / "checkpoint.json").write_text("{}")
    for read in (checkpoint.load_meta, lambda folder: checkpoint.read(tmp_path, checkpoint.load_meta)):
        with pytest.raises(CheckpointError) as error:
            read(folder)
        assert "remove" not in str(error.value).lower()


@pytest.mark.parametrize("text", ["", '{"step": 3}', "[]", '{"format": 3}', '{"format": 1}'])
def test_a_damaged_description_is_named(tmp_path, text):
    folder = save(tmp_path, 5)
    (folder / "checkpoint.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"checkpoint\.json (is damaged|has format 1)"):
        checkpoint.load_meta(folder)


@pytest.mark.parametrize("change", ['"step": 5', '"seconds": 1.5', '"bytes": ', '"sha256": "'])
def test_a_changed_description_is_noticed(tmp_path, change):
    file = save(tmp_path, 5) / "checkpoint.json"
    text = file.read_text()
    at = text.index(change) + len(change)
    digit = text[at - 1] if text[at - 1].isdigit() else text[at]
    place = at - 1 if text[at - 1].isdigit() else at
    file.write_text(text[:place] + ("1" if digit != "1" else "2") + text[place + 1 :])
    with pytest.raises(checkpoint.Damaged, match="not what was written"):
        checkpoint.load_meta(file.parent)


@pytest.mark.parametrize("when", ["writing", "publishing"])
def test_a_failed_write_leaves_the_last_checkpoint(tmp_path, monkeypatch, when):
    save(tmp_path, 5, value=5.0)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "flush" if when == "publishing" else "HuggingFaceStorageWriter", full)
    with pytest.raises((CheckpointError, OSError), match="No space left on device"):
        save(tmp_path, 10)
    monkeypatch.undo()
    assert checkpoint.newest_whole(tmp_path).name == "step-00000005"
    save(tmp_path, 10)  # what was left over is in nobody's way
    assert [p.name for p in sorted((tmp_path / "checkpoints").iterdir())] == ["step-00000005", "step-00000010"]


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "checkpoints").touch()
    with pytest.raises(CheckpointError, match="cannot write the checkpoint of step 5 .*There is none yet"):
        save(tmp_path, 5)


def test_another_models_checkpoint_is_refused(tmp_path):
    for tensors, reason in (
        ({"weight": torch.zeros(2, 4), "bias": torch.zeros(2)}, r"ema/weight is \(2, 4\) there and \(2, 3\) in"),
        ({"weight": torch.zeros(2, 3)}, "ema/bias is missing"),
        ({"weight": torch.zeros(2, 3), "bias": torch.zeros(2), "extra": torch.zeros(1)}, "ema/extra is not in"),
    ):
        checkpoint.write_weights(tmp_path, 1, tensors, {})
        model = {f"ema/{name}": value for name, value in nn.Linear(3, 2).state_dict().items()}
        with pytest.raises(CheckpointError, match=f"holds another model: .*{reason}"):
            checkpoint.fill(model, checkpoint.newest(tmp_path))


def test_weights_alone_say_so(tmp_path):
    checkpoint.write_weights(tmp_path, 7, {"w": torch.ones(3, dtype=torch.bfloat16)}, {"seconds": 2.0})
    folder = checkpoint.newest_whole(tmp_path)
    assert json.loads((folder / "checkpoint.json").read_text())["weights_only"]
    whole = torch.zeros(3)
    checkpoint.fill({"ema/w": whole}, folder)
    assert (whole == 1).all() and checkpoint.load(folder, "ema")["w"].dtype == torch.bfloat16


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
    saver = Saver(tmp_path, keep=1)
    saver.save(3, {"optimizer": optimizer_tensors(model, optimizer)}, {"seconds": 0.0})
    saver.wait()
    twin = nn.Linear(3, 2)
    twin.load_state_dict(model.state_dict())
    twin_optimizer = adamw(twin, OptimConfig(lr=0.1))
    folder = checkpoint.newest(tmp_path)
    fields = [name.removeprefix("optimizer/") for name in checkpoint.shapes(folder)]
    state = begin_optimizer(twin, twin_optimizer, fields)
    checkpoint.fill({f"optimizer/{name}": value for name, value in state.items()}, folder)
    step(model, optimizer), step(twin, twin_optimizer)
    assert torch.equal(model.weight, twin.weight) and torch.equal(model.bias, twin.bias)
    with pytest.raises(ValueError, match="optimizer state of gate, which the model has not"):
        begin_optimizer(twin, twin_optimizer, ["gate/exp_avg"])


def test_what_a_killed_process_left_is_removed_when_the_run_goes_on(tmp_path):
    for step in (1, 2, 3):
        save(tmp_path, step, keep=4)
    for name in (".step-00000004.partial", ".step-00000000.removed"):
        (tmp_path / "checkpoints" / name).mkdir()
    Saver(tmp_path, keep=1).tidy()
    assert os.listdir(tmp_path / "checkpoints") == ["step-00000003"]


def test_an_old_checkpoint_that_cannot_be_removed_does_not_fail_the_new_one(tmp_path, monkeypatch, capsys):
    rename = Path.rename

    def stuck(path, target):
        if path.name.startswith("step-"):
            raise PermissionError(errno.EACCES, "Permission denied")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", stuck)
    for step in (1, 2):
        save(tmp_path, step, keep=1)
    assert "step-00000001 cannot be removed (Permission denied), and is left" in capsys.readouterr().out
    assert checkpoint.newest(tmp_path).name == "step-00000002"


def test_links_are_removed_and_not_what_they_point_to(tmp_path):
    kept = save(tmp_path, 1)
    elsewhere = tmp_path / "elsewhere"
    kept.rename(elsewhere)
    kept.symlink_to(elsewhere)
    for step in (2, 3):
        save(tmp_path, step, keep=1)
    assert os.listdir(tmp_path / "checkpoints") == ["step-00000003"]
    assert (elsewhere / "checkpoint.json").exists()


def test_what_is_no_folder_is_no_checkpoint(tmp_path):
    whole = save(tmp_path, 1)
    (tmp_path / "checkpoints" / "step-00000008").write_text("hi")
    (tmp_path / "checkpoints" / "step-00000009").symlink_to("nowhere")
    assert checkpoint.newest_whole(tmp_path) == whole and checkpoint.read(tmp_path, lambda folder: folder) == whole
    odd = save(tmp_path, 2)
    (odd / "checkpoint.json").unlink()
    (odd / "checkpoint.json").mkdir()
    with pytest.raises(CheckpointError, match="it is no file.*The newest whole checkpoint is step-00000001"):
        checkpoint.read(tmp_path, checkpoint.verify)
    assert checkpoint.newest_whole(tmp_path) == whole


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    for name, seed, step in (("a", 0, 1), ("b", 5, 2)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(json.dumps({"run": {"method": {"width": 8}, "seed": seed}}))
        save(tmp_path / name, step)
    checkpoint.verify(checkpoint.newest(tmp_path / "a"))
    (tmp_path / "b" / "checkpoints" / "step-00000002").rename(tmp_path / "a" / "checkpoints" / "step-00000002")
    for use in (checkpoint.newest_whole, lambda run: checkpoint.read(run, checkpoint.verify)):
        with pytest.raises(CheckpointError, match="step-00000002 is of another run"):
            use(tmp_path / "a")
