"""The weights of one run as the start of another."""

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image
from torch.nn import functional as F

import fluvial
from conftest import randomise
from fluvial import cli
from fluvial.autoencoders import AutoencoderConfig
from fluvial.config import Run
from fluvial.data.images import DataConfig, ImageSet
from fluvial.methods import arflow, flowar, sit
from fluvial.run import finetune
from fluvial.run.folder import RunFolder
from fluvial.run.train import build
from fluvial.sampling.settings import SampleConfig
from fluvial.training import checkpoint
from fluvial.training.config import TrainConfig
from fluvial.training.optim import OptimConfig

SHAPE = {"size": (8, 8), "channels": 1, "patch": 2, "depth": 2, "width": 16, "heads": 2}
METHODS = {
    "sit": sit.SiTConfig(**SHAPE, classes=4),
    "arflow": arflow.ARFlowConfig(**SHAPE, classes=4, images_per_sequence=2),
    "flowar": flowar.FlowARConfig(
        **SHAPE, classes=4, scales=(1, 2, 4), head_depth=1, head_width=16, head_heads=2, dropout=0.0
    ),
}
TRAIN = TrainConfig(steps=2, batch=8, ema_decay=0.5, log_every=1, save_every=2, sample_every=0)


def run_of(method, names=(), **changes):
    data = DataConfig(class_names=names)
    optim = OptimConfig(lr=1e-3)
    return Run(
        method=method,
        data=data,
        autoencoder=AutoencoderConfig(),
        optim=optim,
        train=TRAIN,
        sample=SampleConfig(solver="euler", steps=2),
        **changes,
    )


def images(classes, side=8, names=()):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (4 * classes, 1, side, side), dtype=torch.uint8, generator=generator)
    return ImageSet(pixels, torch.arange(4 * classes) % classes, names)


def weights_of(run):
    model = build(run)
    randomise(model, seed=1)
    return model.state_dict()


@pytest.fixture(params=METHODS)
def method(request):
    return METHODS[request.param]


def adapt(start, run):
    weights, initial = weights_of(start), build(run).state_dict()
    return (weights, initial, *finetune.adapted(weights, start, run, initial))


def test_nothing_changes_for_the_same_run(method):
    weights, _, ours, changes = adapt(run_of(method), run_of(method))
    assert not changes and all(torch.equal(ours[key], value) for key, value in weights.items())


@pytest.mark.parametrize(
    ("before", "after", "kept", "says"),
    [
        (
            ("a", "b", "c", "d"),
            ("d", "x", "b"),
            {0: 3, 2: 1},
            "3 classes in place of 4, 2 found by name, 1 initialised",
        ),
        ((), ("d", "x", "b"), {}, "3 classes in place of 4, all initialised"),
        (("a", "b", "c", "d"), (), {}, "2 classes in place of 4, all initialised"),
        (("a", "b", "c", "d"), ("d", "c", "b", "a"), {0: 3, 1: 2, 2: 1, 3: 0}, "4 found by name, 0 initialised"),
        ((), ("p", "q", "r", "s"), {0: 0, 1: 1, 2: 2, 3: 3}, "no names to tell them by: each keeps the row of its id"),
        (("a", "b", "c", "d"), ("a", "b", "c", "d"), {0: 0, 1: 1, 2: 2, 3: 3}, ""),
    ],
)
def test_labels_are_mapped_by_name_or_initialised(method, before, after, kept, says):
    start, run = run_of(method, before), run_of(replace(method, classes=len(after) or 2), after)
    weights, initial, ours, changes = adapt(start, run)
    table = ours["embed_label.table.weight"]
    assert len(table) == run.method.classes + 1
    assert torch.equal(table[-1], weights["embed_label.table.weight"][-1])
    for row in range(run.method.classes):
        source, old = (weights, kept[row]) if row in kept else (initial, row)
        assert torch.equal(table[row], source["embed_label.table.weight"][old]), row
    assert all(torch.equal(ours[key], value) for key, value in weights.items() if key != "embed_label.table.weight")
    assert bool(changes) == bool(says) and says in "".join(changes)


@pytest.mark.parametrize("name", ["sit", "arflow"])
def test_fixed_positions_are_stretched(name):
    start = run_of(METHODS[name])
    run = finetune.fitted(run_of(replace(METHODS[name], size=(16, 24))), start)
    assert run.method.position_size == (8, 8)
    weights, _, ours, changes = adapt(start, run)
    assert all(torch.equal(ours[key], value) for key, value in weights.items())
    assert changes == ["positions: resampled from a latent of 8 x 8 to 16 x 24"]
    old = build(start).embed.positions.unflatten(0, (4, 4))
    new = build(run).embed.positions.unflatten(0, (8, 12))
    torch.testing.assert_close(new[::2, ::3], old)  # the same places of the image
    again = finetune.fitted(run_of(replace(METHODS[name], size=(32, 32))), run)
    assert again.method.position_size == (8, 8)  # still the frame that the weights were trained in
    assert finetune.fitted(run_of(METHODS[name]), start) == run_of(METHODS[name])


def test_learned_positions_are_resampled():
    before = METHODS["flowar"]
    after = replace(before, size=(16, 16), scales=(1, 2, 4, 8))
    start, run = run_of(before), run_of(after)
    weights, _, ours, changes = adapt(start, finetune.fitted(run, start))
    old, new = weights["positions"], ours["positions"]
    assert torch.equal(new[:, :21], old)
    grid = old[:, 5:].unflatten(1, (4, 4)).permute(0, 3, 1, 2)
    larger = F.interpolate(grid, (8, 8), mode="bicubic").permute(0, 2, 3, 1).flatten(1, 2)
    torch.testing.assert_close(new[:, 21:], larger)
    assert changes == ["positions: resampled from maps of 1x1 2x2 4x4 to 1x1 2x2 4x4 8x8"]
    model = flowar.FlowAR(after)
    model.load_state_dict(ours)


@pytest.mark.parametrize("change", [{"width": 32}, {"heads": 4}, {"depth": 4}, {"channels": 3}])
def test_another_network_is_refused(method, change):
    name, value = next(iter(change.items()))
    with pytest.raises(ValueError, match=f"{name} is {getattr(method, name)} there and {value} here; only classes"):
        finetune.fitted(run_of(replace(method, **change)), run_of(method))


def test_another_method_or_path_is_refused():
    with pytest.raises(ValueError, match="weights of sit cannot start a run of arflow"):
        finetune.fitted(run_of(METHODS["arflow"]), run_of(METHODS["sit"]))
    with pytest.raises(ValueError, match="interpolant is linear there and gvp here"):
        finetune.fitted(run_of(replace(METHODS["sit"], interpolant="gvp")), run_of(METHODS["sit"]))


def test_weights_that_are_not_whole_are_refused(method):
    run = run_of(method)
    weights = weights_of(run)
    name = next(name for name in weights if name.startswith("blocks."))
    del weights[name]
    with pytest.raises(ValueError, match=f"the weights do not fit the run: {name} is missing"):
        finetune.adapted(weights, run, run, build(run).state_dict())


def started(tmp_path, method):
    """A trained run to start from."""
    names = ("a", "b", "c", "d")
    fluvial.train(run_of(method, names), tmp_path / "start", data=images(4, names=names), device="cpu")
    return tmp_path / "start"


def test_a_run_starts_from_another_and_is_continued(tmp_path, method, capsys):
    start = started(tmp_path, method)
    names = ("b", "new")
    run = run_of(replace(method, classes=2), names)
    few = images(2, names=names)
    with pytest.raises(ValueError, match="width is 16 there and 32 here"):
        wrong = replace(run, method=replace(method, width=32))
        fluvial.train(wrong, tmp_path / "wrong", start=start, data=few, device="cpu")
    assert not (tmp_path / "wrong").exists()
    capsys.readouterr()
    fluvial.train(run, tmp_path / "tuned", start=start, data=few, device="cpu")
    said = capsys.readouterr().out
    assert f"starts from the weights in {start}" in said and "2 classes in place of 4, 1 found by name" in said
    assert json.loads((tmp_path / "tuned" / "run.json").read_text())["start"] == str(start)
    # the first loss is that of the adapted weights
    tensors, _ = finetune.adapted(
        checkpoint.load(checkpoint.newest(start), "ema"),
        RunFolder(start).run(),
        run,
        build(run).state_dict(),
    )
    first = checkpoint.load(tmp_path / "tuned" / "checkpoints" / "step-00000000", "ema")
    assert all(torch.equal(first[key], value) for key, value in tensors.items())
    # the same command again, and the run alone, go on
    longer = replace(run, train=replace(TRAIN, steps=4))
    by_start = fluvial.train(longer, tmp_path / "tuned", start=start, data=few, device="cpu")
    assert by_start.step == 4 and "starts from" not in capsys.readouterr().out
    assert fluvial.train(replace(longer, train=replace(TRAIN, steps=5)), tmp_path / "tuned", data=few).step == 5


def test_a_crash_before_the_first_checkpoint_does_not_lose_the_start(tmp_path):
    method = METHODS["sit"]
    start, few = started(tmp_path, method), images(4, names=("a", "b", "c", "d"))
    run = run_of(method, ("a", "b", "c", "d"))
    whole = fluvial.train(run, tmp_path / "whole", start=start, data=few, device="cpu")
    fluvial.train(run, tmp_path / "cut", start=start, data=few, device="cpu")
    for file in (tmp_path / "cut" / "checkpoints").rglob("*.*"):
        file.unlink()
    for folder in (tmp_path / "cut" / "checkpoints").iterdir():
        folder.rmdir()
    (tmp_path / "cut" / checkpoint.SAVED).unlink()
    again = fluvial.train(RunFolder(tmp_path / "cut").run(), tmp_path / "cut", data=few, device="cpu")
    for a, b in zip(again.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_command(tmp_path, capsys, monkeypatch):
    """train RUN goes on; train RUN --out starts another, on digits of 16 x 16 with three classes."""
    monkeypatch.chdir(tmp_path)
    small = ["--device", "cpu", "--train.steps", "2", "--train.sample-every", "0"]
    assert cli.main(["train", "digits-sit", "--smoke", *small]) == 0
    run = "runs/digits-sit-smoke"
    assert cli.main(["train", run, *small]) == 0  # all done
    other = ["--device", "cpu", "--train.steps", "3", "--train.sample-every", "0"]
    assert cli.main(["train", run, *other]) == 0
    assert "goes on from step 2 to 3: the learning rate goes from" in capsys.readouterr().out
    assert cli.main(["train", run, *small]) == 1
    assert "has taken 3 steps, and train.steps 2 are fewer" in capsys.readouterr().err
    folder = tmp_path / "photos"
    for name in ("0", "7", "cat"):
        (folder / name).mkdir(parents=True)
        for i in range(3):
            Image.new("L", (16, 16), 20 * i).save(folder / name / f"{i}.png")
    capsys.readouterr()
    tuned = ["train", run, "--out", "runs/tuned", *small, "--data.path", str(folder), "--data.size", "16"]
    tuned += ["--data.channels", "1"]
    assert cli.main([*tuned, "--method.size", "16", "16", "--method.classes", "3"]) == 0
    said = capsys.readouterr().out
    assert "3 classes in place of 10, 2 found by name, 1 initialised" in said
    assert "positions: resampled from a latent of 8 x 8 to 16 x 16" in said
    there = RunFolder("runs/tuned").run()
    assert there.method.position_size == (8, 8) and there.data.class_names == ("0", "7", "cat")
    assert cli.main(["train", "runs/tuned"]) == 0  # all done
    assert cli.main(["train", run, "--smoke"]) == 2
    assert cli.main(["train", run, "--out", "runs/other", "--method.width", "96"]) == 1
    assert "width is 64 there and 96 here" in capsys.readouterr().err
    assert not (tmp_path / "runs/other").exists()
