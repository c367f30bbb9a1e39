"""Averages of any length, against closed forms, explicit sums and averages that were tracked."""

import json
import math
import os

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

import fluvial
from conftest import randomise
from fluvial import cli
from fluvial.config import Run
from fluvial.methods.sit import SiTConfig
from fluvial.run.folder import RunFolder, record_of
from fluvial.run.train import build
from fluvial.sampling.settings import SampleConfig
from fluvial.training import power_ema
from fluvial.training.config import TrainConfig
from fluvial.utils.tensors import write_tensors

LENGTHS = (0.05, 0.1)
STEPS, EVERY = 640, 20


def start(named, lengths):
    named = list(named)
    return {length: [tensor.detach().clone() for _, tensor in named] for length in lengths}


def update(tracks, tensors, step):
    for length, averages in tracks.items():
        share = 1 - power_ema.decay(step, power_ema.exponent(length))
        torch._foreach_lerp_(averages, list(tensors), share)


def walk(steps=STEPS, width=500):
    """Weights that walk at random, in float64: step i is row i - 1."""
    return torch.randn(steps, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).cumsum(0)


def explicit(weights, length):
    """The mean of rows 1 to t with the integrals of the profile over [i - 1, i]."""
    t, k = len(weights), power_ema.exponent(length) + 1
    i = torch.arange(1, t + 1, dtype=torch.float64)
    shares = (i / t) ** k - ((i - 1) / t) ** k
    return shares @ weights


def tracked(weights, lengths, folder=None, every=EVERY, dtype=torch.float64):
    """Runs the averages over the rows, with a snapshot every so often."""
    tensors = [weights[0].clone().to(dtype), torch.zeros(2, 3, dtype=dtype)]
    tracks = start(zip(("weight", "other"), tensors, strict=True), lengths)
    for step, row in enumerate(weights, 1):
        tensors[0].copy_(row)
        tensors[1].fill_(step)
        update(tracks, tensors, step)
        if folder is not None and step % every == 0:
            power_ema.save(folder, step, ("weight", "other"), tracks)
    return tracks


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """32 snapshots of 0.05 and of 0.1."""
    folder = tmp_path_factory.mktemp("averages") / "ema"
    tracked(walk(), LENGTHS, folder)
    return folder


def made(rebuilt):
    return {name: tensor.make() for name, tensor in rebuilt.tensors.items()}


# ---- the profile


@pytest.mark.parametrize(("length", "gamma"), [(0.05, 16.97), (0.1, 6.94), (0.25, 0.72)])
def test_the_papers_exponents(length, gamma):
    assert round(power_ema.exponent(length), 2) == gamma


@pytest.mark.parametrize("length", [1e-6, 0.001, 0.013, 0.05, 0.1, 0.2, 0.288, 0.2886])
def test_the_exponent_solves_its_equation(length):
    """Equation 123, and the largest root that numpy finds of the cubic."""
    gamma, t = power_ema.exponent(length), length**-2
    assert gamma > 0
    assert math.sqrt((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3))) == pytest.approx(length, rel=1e-12)
    assert gamma == pytest.approx(np.roots([1, 7, 16 - t, 12 - t]).real.max(), rel=1e-9)


@pytest.mark.parametrize("length", [-0.1, 0.0, power_ema.LONGEST, 0.3, math.nan])
def test_lengths_out_of_range(length):
    with pytest.raises(ValueError, match=r"must be above 0 and below 1 / sqrt\(12\) = 0.289, got"):
        power_ema.exponent(length)


def test_decays():
    assert power_ema.decay(1, 7.0) == 0
    assert power_ema.decay(2, 1.0) == 0.25
    assert [power_ema.decay(t, 0.0) for t in (2, 10)] == [0.5, 0.9]  # gamma 0 is the plain mean
    for step, gamma in ((0, 7.0), (-3, 7.0), (3, -0.5)):
        with pytest.raises(ValueError, match=f"got step {step} and gamma {gamma}"):
            power_ema.decay(step, gamma)


# ---- the running average


def test_the_running_average_is_the_explicit_sum():
    weights = walk(steps=200, width=7)
    tracks = tracked(weights, LENGTHS)
    for length, (average, _) in tracks.items():
        torch.testing.assert_close(average, explicit(weights, length), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("length", [0.02, 0.05, 0.1, 0.2])
def test_its_standard_deviation_is_the_length(length):
    """What an average holds of the step it took in, read off by averaging the step and its square."""
    steps = 4000
    tracks = start([("tau", torch.zeros(2, dtype=torch.float64))], [length])
    for step in range(1, steps + 1):
        first, last = (step - 1) / steps, step / steps  # the mean of tau and of tau^2 over the step
        moments = torch.tensor([(first + last) / 2, (last**3 - first**3) * steps / 3], dtype=torch.float64)
        update(tracks, [moments], step)
    mean, square = tracks[length][0].tolist()
    gamma = power_ema.exponent(length)
    assert mean == pytest.approx((gamma + 1) / (gamma + 2), rel=1e-3)
    assert math.sqrt(square - mean**2) == pytest.approx(length, rel=1e-3)


def test_the_weights_before_the_first_step_are_not_in_it():
    tracks = start([("a", torch.full((3,), 1e30))], [0.1])
    update(tracks, [torch.tensor([1.0, 2.0, 3.0])], 1)
    assert torch.equal(tracks[0.1][0], torch.tensor([1.0, 2.0, 3.0]))


def test_what_cannot_be_tracked():
    for lengths, says in (
        ((0.0505,), "three decimals at most, got 0.0505"),
        ((0.1, 0.4), "got 0.4"),
        ((0.1, 0.05, 0.1), "must differ"),
    ):
        with pytest.raises(ValueError, match=says):
            TrainConfig(ema_lengths=lengths)


@pytest.fixture
def mesh():
    """A process group of this process alone."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield torch.distributed.init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


def test_sharded_tensors(mesh, tmp_path):
    """A DTensor is averaged in its shards and gathered to be written."""
    weights = walk(steps=20, width=6).float().view(20, 3, 2)
    tracks = start([("weight", distribute_tensor(weights[0], mesh, [Shard(0)]))], LENGTHS)
    for step, row in enumerate(weights, 1):
        update(tracks, [distribute_tensor(row, mesh, [Shard(0)])], step)
    assert all(isinstance(average, DTensor) for (average,) in tracks.values())
    assert not any(file.exists() for file in power_ema.save(tmp_path / "ema", 20, ["weight"], tracks, writes=False))
    for file, length in zip(power_ema.save(tmp_path / "ema", 20, ["weight"], tracks), LENGTHS, strict=True):
        expected = explicit(weights.double().flatten(1), length).view(3, 2).float()
        torch.testing.assert_close(load_file(file)["weight"], expected)


# ---- the fit


def profile(tau, step, gamma):
    return np.where(tau <= step, (gamma + 1) * (tau / step) ** gamma / step, 0)


def test_the_fit_is_the_least_squares_one():
    """Against numpy's least squares on a fine grid of the profiles themselves, scaled to a sum of 1."""
    pairs = [(step, power_ema.exponent(length)) for step in (400, 700, 1000) for length in LENGTHS]
    tau = (np.arange(200_000) + 0.5) / 200
    basis = np.stack([profile(tau, *pair) for pair in pairs], axis=1)
    for step, length in ((1000, 0.07), (700, 0.13), (1000, 0.03)):
        gamma = power_ema.exponent(length)
        target = profile(tau, step, gamma)
        expected = np.linalg.lstsq(basis, target, rcond=None)[0]
        expected /= expected.sum()
        found = power_ema.weights(pairs, step, gamma)
        assert found.dtype == np.float64 and found == pytest.approx(expected, abs=1e-3)
        error = np.linalg.norm(basis @ found - target) / np.linalg.norm(target)
        assert power_ema.residual(pairs, found, step, gamma) == pytest.approx(error, rel=1e-3)


def test_a_stored_profile_is_its_own_fit():
    pairs = [(step, power_ema.exponent(length)) for step in range(20, 660, 20) for length in LENGTHS]
    for i in (0, 21, 62, 63):
        found = power_ema.weights(pairs, *pairs[i])
        assert found == pytest.approx(np.eye(64)[i], abs=1e-9)
        assert power_ema.residual(pairs, found, *pairs[i]) < 1e-7


def test_a_fit_of_very_many_and_of_repeated_snapshots():
    pairs = [(step, power_ema.exponent(length)) for step in range(1, 513) for length in LENGTHS]
    few = [pair for pair in pairs if pair[0] % 16 == 0]
    for given in (pairs, few, [*few, *few]):
        found = power_ema.weights(given, 512, power_ema.exponent(0.07))
        assert power_ema.residual(given, found, 512, power_ema.exponent(0.07)) < 1e-3 and abs(found).sum() < 2


def test_bad_pairs():
    with pytest.raises(ValueError, match="there are no stored averages"):
        power_ema.weights([], 10, 7.0)
    with pytest.raises(ValueError, match=r"got \(step, gamma\) \[\(0, 7.0\)\]"):
        power_ema.weights([(5, 7.0), (0, 7.0)], 10, 7.0)
    far = power_ema.weights([(1, 900.0), (2, 900.0)], 10_000, 900.0)  # overlaps that underflow
    assert not power_ema.residual([(1, 900.0), (2, 900.0)], far, 10_000, 900.0) < 0.99


# ---- snapshots and what is rebuilt of them


def test_snapshots_are_listed_by_step_and_length(stored):
    found = power_ema.snapshots(stored)
    assert [(step, length) for _, step, length in found] == [
        (step, length) for step in range(EVERY, STEPS + 1, EVERY) for length in LENGTHS
    ]
    assert found[0][0].name == "step-00000020-0.050.safetensors"
    assert power_ema.snapshots(stored / "nothing") == []


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("step", [None, 20, 400])
def test_a_stored_length_comes_back_exactly(stored, length, step):
    rebuilt = power_ema.rebuild(stored, length=length, step=step)
    assert (rebuilt.step, rebuilt.snapshots) == (step or STEPS, 1) and rebuilt.residual < 1e-7
    kept = load_file(stored / f"step-{step or STEPS:08d}-{length:.3f}.safetensors")
    assert all(torch.equal(tensor, kept[name]) for name, tensor in made(rebuilt).items())


@pytest.mark.parametrize(
    ("length", "largest"), [(0.03, 2e-3), (0.04, 4e-4), (0.07, 1e-4), (0.08, 1e-4), (0.15, 5e-4), (0.2, 4e-3)]
)
def test_other_lengths_are_what_tracking_them_would_have_given(stored, length, largest):
    """The error, as a share of the distance between the average and the last weights."""
    rebuilt = power_ema.rebuild(stored, length=length)
    weights = walk()
    average, steps = tracked(weights, [length])[length]
    found = made(rebuilt)
    error = (found["weight"] - average).norm() / (weights[-1] - average).norm()
    assert error < largest and rebuilt.snapshots == 64
    torch.testing.assert_close(found["other"], steps, rtol=1e-3, atol=0)


def test_an_earlier_step(stored):
    weights = walk()
    found = made(power_ema.rebuild(stored, length=0.07, step=320))["weight"]
    average = tracked(weights[:320], [0.07])[0.07][0]
    assert (found - average).norm() / (weights[319] - average).norm() < 1e-3


def test_float32_snapshots(tmp_path):
    tracked(walk(width=50), LENGTHS, tmp_path, dtype=torch.float32)
    found = made(power_ema.rebuild(tmp_path, length=0.07))["weight"]
    assert found.dtype == torch.float32
    average = tracked(walk(width=50), [0.07])[0.07][0]
    assert (found - average).norm() / (walk(width=50)[-1] - average).norm() < 2e-4


def test_only_one_tensor_is_read_at_a_time(stored, monkeypatch):
    read = []
    real = power_ema._read
    monkeypatch.setattr(power_ema, "_read", lambda file, name: read.append(name) or real(file, name))
    tensors = power_ema.rebuild(stored, length=0.07).tensors
    assert not read
    tensors["other"].make()
    assert read == ["other"] * 64


@pytest.mark.parametrize(
    ("length", "step", "says"),
    [
        (
            0.01,
            None,
            r"64 snapshots .* of lengths 0.050, 0.100 at steps 20 to 640, do not span .* leaves \d+\.\d% of it",
        ),
        (0.07, 333, "length 0.07 at step 333"),
        (0.1, 660, "up to 640, got step 660"),
        (0.1, 0, "got step 0"),
        (0.5, None, "got 0.5"),
    ],
)
def test_what_the_snapshots_do_not_span(stored, length, step, says):
    with pytest.raises(ValueError, match=says):
        power_ema.rebuild(stored, length=length, step=step)


def test_too_few_damaged_and_foreign_snapshots(tmp_path):
    with pytest.raises(ValueError, match="has 0 snapshots of averages, and 2 are needed"):
        power_ema.rebuild(tmp_path, length=0.1)
    tracked(walk(steps=8, width=2), [0.1], tmp_path, every=8)
    with pytest.raises(ValueError, match="has 1 snapshots"):
        power_ema.rebuild(tmp_path, length=0.1)
    tracked(walk(steps=8, width=2), LENGTHS, tmp_path, every=1)
    last = tmp_path / "step-00000008-0.100.safetensors"
    whole = last.read_bytes()
    last.write_bytes(whole[:-8])
    with pytest.raises(ValueError, match=f"{last.name} is damaged"):
        power_ema.rebuild(tmp_path, length=0.08)
    last.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ValueError, match=f"{last.name} is damaged: its content is not what was written"):
        power_ema.rebuild(tmp_path, length=0.08)
    foreign = {"weight": torch.zeros(3, dtype=torch.float64), "other": torch.zeros(2, 3)}
    write_tensors(last, foreign, {"step": "8", "length": "0.100", "run": "{}"})
    with pytest.raises(ValueError, match=rf"{last.name} is of another model .*: weight is \(3,\) there and \(2,\)"):
        power_ema.rebuild(tmp_path, length=0.08)


def run_json(folder, seed=0, **method):
    settings = {"method": {"width": 16, **method}, "optim": {"lr": 1e-3}, "data": {"digest": ""}, "seed": seed}
    (folder / "run.json").write_text(json.dumps({"run": settings}))


@pytest.mark.parametrize("to", ["step-00000007-0.100", "step-00000009-0.050", "step-00000009-0.100"])
def test_a_renamed_snapshot_is_refused(tmp_path, to):
    tracked(walk(steps=8, width=2), LENGTHS, tmp_path, every=1)
    power_ema.rebuild(tmp_path, length=0.08)
    (tmp_path / "step-00000008-0.050.safetensors").rename(tmp_path / f"{to}.safetensors")
    step, length = int(to[5:13]), to[14:]
    says = rf"{to}.safetensors says that it is of step 8 and length 0.050, expected step {step} and length {length}"
    for wanted, at in ((float(length), step), (0.08, 7)):
        with pytest.raises(ValueError, match=says):
            power_ema.rebuild(tmp_path, length=wanted, step=at)


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"seed": 1}, "it says seed 1, expected 0"),
        ({"width": 32}, "it says method.width 32, expected 16"),
        ({"later": 1}, None),  # a setting of another version
    ],
)
def test_a_snapshot_of_another_run_is_refused(tmp_path, other, says):
    for name, settings in (("mine", {}), ("theirs", other)):
        (tmp_path / name).mkdir()
        run_json(tmp_path / name, **settings)
        tracked(walk(steps=8, width=2), LENGTHS, tmp_path / name / "ema", every=1)
    copied = tmp_path / "mine" / "ema" / "step-00000005-0.100.safetensors"
    copied.write_bytes((tmp_path / "theirs" / "ema" / copied.name).read_bytes())
    rebuilt = power_ema.rebuild(tmp_path / "mine" / "ema", length=0.05)  # for which it is not needed
    assert rebuilt.snapshots == 1
    if says is None:
        assert power_ema.rebuild(tmp_path / "mine" / "ema", length=0.08).snapshots == 16
    else:
        with pytest.raises(ValueError, match=rf"{copied.name} is of another run .*: {says}. Move it away"):
            power_ema.rebuild(tmp_path / "mine" / "ema", length=0.08)


def test_a_snapshot_that_does_not_say_what_it_is_is_refused(tmp_path):
    tracked(walk(steps=8, width=2), LENGTHS, tmp_path, every=1)
    last = tmp_path / "step-00000008-0.100.safetensors"
    write_tensors(last, {name: value.clone() for name, value in load_file(last).items()})
    says = rf"{last.name} does not say its length, run, step.*earlier version of fluvial\. Move it away"
    with pytest.raises(ValueError, match=says):
        power_ema.rebuild(tmp_path, length=0.1)


def test_a_snapshot_is_there_whole_or_not_at_all(tmp_path, monkeypatch):
    tracks = start([("weight", torch.ones(3))], LENGTHS)
    first = power_ema.save(tmp_path / "ema", 5, ["weight"], tracks)
    kept = {file: file.read_bytes() for file in first}
    assert list(load_file(first[0])["weight"]) == [1, 1, 1]

    def half(path, tensors, metadata=None):
        write_tensors(path, tensors, metadata)
        path.write_bytes(path.read_bytes()[:-4])
        raise OSError("no space left on device")

    tracks[0.05][0].fill_(2)
    monkeypatch.setattr(power_ema, "write_tensors", half)
    for step in (5, 6):
        with pytest.raises(OSError, match="no space left"):
            power_ema.save(tmp_path / "ema", step, ["weight"], tracks)
    assert {file: file.read_bytes() for file in (tmp_path / "ema").iterdir()} == kept
    monkeypatch.undo()
    (tmp_path / "ema" / ".step-00000007-0.100.12345678.tmp.safetensors").write_bytes(b"of a run that was killed")
    power_ema.save(tmp_path / "ema", 5, ["weight"], tracks)  # a run that is repeated from a checkpoint before
    assert list(load_file(first[0])["weight"]) == [2, 2, 2] and len(os.listdir(tmp_path / "ema")) == 2
    with pytest.raises(ValueError, match="step 1 or later, got 0"):
        power_ema.save(tmp_path / "ema", 0, ["weight"], tracks)


# ---- the command


@pytest.fixture
def run(tmp_path):
    """A run folder whose weights went from those of one seed to those of another, over 8 snapshots."""
    config = SiTConfig(size=(8, 8), channels=1, classes=3, patch=2, depth=1, width=16, heads=2)
    run = Run(method=config, sample=SampleConfig(solver="euler", steps=2))
    model, folder = build(run), tmp_path / "runs" / "tiny"
    named = dict(model.named_parameters())
    tracks = start(named.items(), LENGTHS)
    for step in range(1, 81):
        randomise(model, seed=step, std=0.2)
        update(tracks, named.values(), step)
        if step % 10 == 0:
            power_ema.save(folder / "ema", step, list(named), tracks)
    record = record_of(run, "mine", imported={"file": "x.pt"})
    RunFolder(folder).create(record, model.state_dict(), step=80, seconds=8.0)
    return folder


def test_the_command_makes_a_run_to_sample_from(run, capsys):
    assert cli.main(["ema", str(run), "--length", "0.08"]) == 0
    printed, out = capsys.readouterr().out, run.with_name("tiny-ema-0.080")
    assert "residual of the fit: 1." in printed and "from 16 snapshots" in printed and str(out) in printed
    before, record = (json.loads((folder / "run.json").read_text()) for folder in (run, out))
    assert record.pop("ema") == {"length": 0.08, "step": 80, "from": str(run)}
    assert RunFolder(out).run() == RunFolder(run).run() and before.pop("sha256") != record.pop("sha256")
    assert record == before
    made = fluvial.load(out, device="cpu")
    assert (made.step, made.seconds) == (80, 8.0)
    expected = {name: tensor.make() for name, tensor in power_ema.rebuild(run / "ema", length=0.08).tensors.items()}
    assert all(torch.equal(tensor, expected[name]) for name, tensor in made.model.state_dict().items())
    assert cli.main(["sample", str(out), "--count", "3", "--device", "cpu", "--gif", "False"]) == 0
    assert (out / "samples" / "grid.png").exists()


def test_the_commands_step_and_folder(run, tmp_path, monkeypatch):
    monkeypatch.chdir(run)
    assert cli.main(["ema", ".", "--length", "0.1", "--step", "40"]) == 0
    assert fluvial.load(run.with_name("tiny-ema-0.100"), device="cpu").seconds == 4.0
    assert cli.main(["ema", str(run), "--length", "0.0755", "--out", str(tmp_path / "there")]) == 0
    assert RunFolder(tmp_path / "there").record()["ema"]["length"] == 0.0755


def test_what_the_command_refuses(run, tmp_path, capsys):
    for arguments, code, says in (
        ([], 2, "usage: fluvial ema RUN"),
        ([str(run), "--length", "0.4"], 2, "the length of an average must be above 0"),
        ([str(run), "--length", "0.1", "--step", "0"], 2, "--step counts from 1"),
        ([str(run)], 2, "length"),
        ([str(tmp_path), "--length", "0.1"], 1, "not a run folder"),
        ([str(run), "--length", "0.01"], 1, "do not span an average of length 0.01"),
        ([str(run), "--length", "0.1", "--out", str(run)], 1, "choose another with --out"),
    ):
        assert cli.main(["ema", *arguments]) == code, arguments
        assert says in " ".join("".join(capsys.readouterr()).replace("|", " ").split()), arguments
    (file, _, _), *_ = power_ema.snapshots(run / "ema")
    weights = {name: value.clone() for name, value in load_file(file).items()}
    weights["extra"] = torch.zeros(1)
    for file, step, length in power_ema.snapshots(run / "ema"):
        write_tensors(file, weights, {"step": str(step), "length": f"{length:.3f}", "run": "{}"})
    assert cli.main(["ema", str(run), "--length", "0.08"]) == 1
    assert "averages of another model than" in capsys.readouterr().err
    assert sorted(path.name for path in run.parent.iterdir()) == ["tiny"]
    assert cli.main(["ema", "--help"]) == 0 and "--length" in capsys.readouterr().out
