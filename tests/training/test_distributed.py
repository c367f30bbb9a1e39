"""One, two and four ranks (gloo, CPU): the same training; checkpoints that move; ranks that die or hang."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from fluvial.cli import main
from fluvial.training import checkpoint, distributed
from fluvial.training.distributed import World

SCRIPT = Path(__file__).parent / "ranks.py"


def launch(ranks, out, *settings, restarts=0, **more):
    """Starts it under torchrun, or alone for one rank."""
    torchrun = [
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={ranks}",
        f"--max-restarts={restarts}",
    ]
    command = [sys.executable, *(torchrun if ranks > 1 else []), str(SCRIPT), str(out), *settings]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **more}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def run(*arguments, code=0, **more):
    process = launch(*arguments, **more)
    printed, _ = process.communicate(timeout=150)
    assert process.returncode == code, printed[-3000:]
    return printed


def losses(out):
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


def weights(out, part="model"):
    return checkpoint.load(checkpoint.newest(out), part)


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "ranks", "parallel"), [
    ("digits-arflow", 2, "ddp"),
    ("digits-arflow", 4, "fsdp nodes=2"),
    ("digits-flowar", 2, "fsdp"),
    ("digits-flowar", 4, "ddp"),
])  # fmt: skip
def test_any_number_of_ranks_follows_the_same_curve(tmp_path, recipe, ranks, parallel):
    """Also where their parts of the batch differ in size, and in micro-batches."""
    settings = [f"recipe={recipe}", "steps=8", "batch=10", "accumulate=2", "save_every=8"]
    run(1, tmp_path / "one", *settings)
    run(ranks, tmp_path / "many", *settings, *f"parallel={parallel}".split())
    assert losses(tmp_path / "many") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
    for part in ("model", "ema", "optimizer"):
        one, many = weights(tmp_path / "one", part), weights(tmp_path / "many", part)
        assert one.keys() == many.keys()
        for name in one:
            torch.testing.assert_close(many[name], one[name], atol=1e-4, rtol=1e-3, msg=name)


@pytest.mark.slow
def test_a_checkpoint_is_continued_at_another_number_of_ranks(tmp_path):
    run(1, tmp_path / "whole", "steps=12", "save_every=4")
    for steps, ranks, parallel in ((4, 2, "fsdp"), (8, 1, "auto"), (12, 2, "ddp")):
        run(ranks, tmp_path / "parts", f"steps={steps}", "save_every=4", f"parallel={parallel}")
    assert losses(tmp_path / "parts") == pytest.approx(losses(tmp_path / "whole"), rel=1e-4)


@pytest.mark.slow
def test_a_rank_that_is_killed_costs_the_steps_since_the_last_checkpoint(tmp_path):
    """Five times in a run, at other steps and on both ranks; the weights are bit for bit those of a run left alone."""
    settings = ["steps=60", "save_every=5"]
    run(2, tmp_path / "left-alone", *settings)
    kills = "kills=7,9,3,12,8"
    printed = run(2, tmp_path / "killed", *settings, kills, restarts=5)
    assert printed.count("exitcode: -9") == 5
    for part in ("model", "ema", "optimizer"):
        alone, killed = weights(tmp_path / "left-alone", part), weights(tmp_path / "killed", part)
        assert all(torch.equal(alone[name], killed[name]) for name in alone), part
    assert losses(tmp_path / "killed") == losses(tmp_path / "left-alone")


@pytest.mark.slow
def test_sigterm_saves_and_ends_with_0(tmp_path):
    out = tmp_path / "run"
    command = [sys.executable, "-m", "fluvial", "train", "digits-arflow", "--smoke", "--out", str(out)]
    command += ["--train.steps", "100000", "--train.log-every", "50", "--device", "cpu"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 60
    while not (out / "log.jsonl").exists():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.05)
    second = subprocess.run([*command[:-2], "--device", "cpu"], capture_output=True, text=True)
    assert second.returncode == 1 and f"another process is training in {out}" in second.stderr  # meanwhile
    process.send_signal(signal.SIGTERM)
    asked = time.monotonic()
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and time.monotonic() - asked < 30, printed
    step = int(re.search(r"stopped by SIGTERM after step (\d+)", printed)[1])
    assert checkpoint.load_meta(checkpoint.newest_whole(out))["step"] == step


@pytest.mark.slow
def test_a_rank_that_hangs_at_the_start_is_named(tmp_path, monkeypatch):
    source = SCRIPT.read_text().replace("fluvial.train(run", "patched(); fluvial.train(run")
    patch = "\n\ndef patched():\n    from functools import partial\n    from fluvial.training import distributed\n"
    patch += "    distributed.world = partial(distributed.world, timeout=5.0)\n"
    script = tmp_path / "hanging.py"
    script.write_text(source.replace("\n\ndef _die_at", f"{patch}\n\ndef _die_at"))
    monkeypatch.setattr(sys.modules[__name__], "SCRIPT", script)
    printed = run(3, tmp_path / "run", "hang=1", "steps=1", code=1)
    assert "rank 1 of 3 did not start within 5 s" in printed


@pytest.mark.parametrize(
    "given",
    [
        {"RANK": "1"},
        {"RANK": "5", "WORLD_SIZE": "2"},
        {"RANK": "-1", "WORLD_SIZE": "2"},
        {"RANK": "x", "WORLD_SIZE": "2"},
        {"RANK": "0", "WORLD_SIZE": ""},
        {"WORLD_SIZE": "0"},
        {"WORLD_SIZE": "2"},
    ],
    ids=str,
)
def test_ranks_that_torchrun_does_not_set_are_refused(tmp_path, monkeypatch, given, capsys):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert distributed.ranks() == (0, 1)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    got = " and ".join(f"{name}={given.get(name, ' (not set)')}" for name in ("RANK", "WORLD_SIZE"))
    says = f"the environment has {got}; expected whole numbers, 0 <= RANK < WORLD_SIZE"
    with pytest.raises(ValueError, match=re.escape(says)), distributed.world(torch.device("cpu")):
        pass
    (tmp_path / "data").mkdir()
    out = str(tmp_path / "out")
    encode = ["encode", str(tmp_path / "data"), "--autoencoder", "pixels", "--out", out]
    for arguments in (encode, ["train", "digits-arflow", "--out", out]):
        assert main(arguments) == 1 and says in capsys.readouterr().err
    assert not Path(out).exists()


def test_ranks_of_torchrun_are_taken(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert distributed.ranks() == (1, 2)


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").touch()
    printed = run(1, tmp_path / "file" / "run", "steps=1", code=1)
    assert "file is there and is no folder; choose another name" in printed


def test_parts_of_a_batch_differ_by_one_row_at_most():
    for size in (1, 2, 3, 4, 7):
        for count in (7, 8, 20):
            parts = [World(rank, size).share(count) for rank in range(size)]
            rows = [row for part in parts for row in range(count)[part]]
            assert rows == list(range(count))
            sizes = [part.stop - part.start for part in parts]
            assert max(sizes) - min(sizes) <= 1


class Stack(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.norms = nn.ModuleList(nn.RMSNorm(8) for _ in range(2))
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Dropout(0.5)) for _ in range(4))

    def forward(self, x):
        for block in self.blocks:
            x = x + block(x)
        return x


def test_blocks_are_found():
    assert list(distributed.blocks(Stack())) == [f"blocks.{i}" for i in range(4)]


@pytest.mark.parametrize(("every", "again"), [(0, 0), (1, 4), (2, 2), (3, 2)])
def test_recomputing_changes_no_gradient(every, again):
    x, calls = torch.randn(3, 8), []
    plain, model = Stack(), Stack()
    distributed.checkpoint_activations(model, every)
    for block in model.blocks:
        block[0].register_forward_hook(lambda *_: calls.append(1))
    for each in (plain, model):
        torch.manual_seed(1)
        each(x).square().sum().backward()
    assert len(calls) == 4 + again
    for a, b in zip(plain.parameters(), model.parameters(), strict=True):
        assert (a.grad is None and b.grad is None) or torch.equal(a.grad, b.grad)
    calls.clear()
    model.eval()(x)
    assert len(calls) == 4
