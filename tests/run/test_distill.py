"""Distilled runs: made, continued, sampled in their steps alone, and what is refused."""

import html
import json
import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import fluvial
from fluvial import cli, recipes
from fluvial.cli.distill import DistillOptions
from fluvial.flow.guidance import Guidance
from fluvial.methods import method_of
from fluvial.run import distill as module
from fluvial.run import distillation_plan
from fluvial.run.distill import distill
from fluvial.run.likelihood import LikelihoodConfig, check_likelihood
from fluvial.run.trajectories import Trajectories
from fluvial.sampling import sets
from fluvial.sampling.settings import Dopri5, SampleConfig
from fluvial.tools.clean import Keeping, plan
from fluvial.tools.doctor import doctor
from fluvial.tools.guide.settings import axes_of
from fluvial.tools.guide.sweep import check_guidable
from fluvial.tools.runs import look
from fluvial.training.checkpoint import CheckpointError
from fluvial.training.config import Distillation
from fluvial.training.distributed import ALONE, World
from fluvial.utils.errors import Stopped

RECIPES = ("digits-sit", "digits-arflow", "digits-flowar")
FEW = {"trajectories": 40, "updates": 6, "batch": 4}


def trained(recipe, out):
    run = recipes.smoke(recipes.get(recipe))
    steps = (4, 4, 2) if recipe == "digits-flowar" else 4
    train = replace(run.train, steps=4, batch=8, ema_decay=0.5, validate_every=0, sample_every=0)
    sample = replace(run.sample, steps=steps, guidance=Guidance(weight=2.0), batch=16)
    fluvial.train(
        replace(run, train=train, sample=sample, optim=replace(run.optim, lr=2e-2, warmup=0)), out, device="cpu"
    )
    return out


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    """Run folders by recipe, trained when they are first asked for."""
    folder, made = tmp_path_factory.mktemp("teachers"), {}

    def of(recipe):
        if recipe not in made:
            made[recipe] = trained(recipe, folder / recipe)
        return made[recipe]

    return of


@pytest.fixture(scope="module")
def distilled(teachers, tmp_path_factory):
    """A run that samples in two steps, with its sampler."""
    out = tmp_path_factory.mktemp("distilled") / "two"
    return out, distill(teachers("digits-sit"), out, steps=2, **FEW)


def weights(folder):
    return fluvial.load(folder, device="cpu").model.state_dict()


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_distilled_run_samples_in_its_steps_without_a_null_branch(teachers, tmp_path, recipe):
    teacher = fluvial.load(teachers(recipe), device="cpu")
    out = tmp_path / "few"
    distill(teacher, out, steps=2, **FEW, lr=1e-3)
    sampler = fluvial.load(out, device="cpu")
    samples = sampler.sample(3)
    by_scale = method_of(sampler.run.method).scales(sampler.run.method) or ("",)
    calls = {f"conditional {scale}".strip(): 2 for scale in by_scale}
    assert {name: n for name, n in samples.nfe.items() if not name.startswith("transformer")} == calls
    assert sampler.run.sample.steps == 2 and sampler.run.sample.guidance.is_off
    about = samples.about["sampling"]["distilled"]
    assert about == f"to 2 steps, from {teacher.described}, with guidance.weight 2"
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    losses = [row["held_out_loss"] for row in log if "held_out_loss" in row]
    assert len(losses) == 6 and losses[-1] < losses[0]
    before, after = teacher.model.state_dict(), sampler.model.state_dict()
    changed = {name.partition(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"head"} if recipe == "digits-flowar" else "blocks" in changed


def test_what_a_distilled_model_has_not_learned_is_refused(distilled, teachers, tmp_path):
    out, sampler = distilled
    for wrong, says in (
        ({"steps": 4}, "distilled to 2 steps and is sampled in as many: got sample.steps 4"),
        ({"nfe": 1}, "got sample.steps 1"),
        ({"guidance": 1.5}, "has its teacher's guidance.*weight 1.5"),
        ({"solver": "heun"}, "no context noise: got sample.solver heun"),
        ({"settings": SampleConfig(steps=2, shift=2.0)}, "got sample.shift 2"),
    ):
        with pytest.raises(ValueError, match=says):
            sampler.sample(1, **wrong)
    images = sampler.sample(2, classes=[1, 2]).images
    with pytest.raises(ValueError, match="make no ODE"):
        fluvial.edit.invert(sampler, images, classes=[1, 2])
    with pytest.raises(ValueError, match=r"at must be where one begins: 0.5; got 0.3"):
        fluvial.edit.redraw(sampler, images, at=0.3, classes=[1, 2])
    assert fluvial.edit.redraw(sampler, images, at=0.5, classes=[1, 2]).nfe == {"conditional": 1}
    with pytest.raises(ValueError, match="draws nothing without a class"):
        fluvial.edit.redraw(sampler, images, at=0.5)
    with pytest.raises(ValueError, match="was distilled itself"):
        distill(sampler, tmp_path / "twice", steps=1, **FEW)
    with pytest.raises(ValueError, match="`fluvial distill` trains it"):
        fluvial.train(sampler.run, out, device="cpu")
    teacher = fluvial.load(teachers("digits-sit"), device="cpu")
    asked = replace(teacher.run, train=replace(teacher.run.train, distillation=Distillation(steps=2)))
    with pytest.raises(ValueError, match="is set by `fluvial distill`"):
        fluvial.train(asked, tmp_path / "asked", device="cpu")
    for settings, says in ((Dopri5(), "dopri5 chooses its own"), ("euler-maruyama", "no solver of an ODE")):
        with pytest.raises(ValueError, match=says):
            distill(teacher, tmp_path / "x", steps=1, settings=replace(teacher.run.sample, solver=settings))
    axes = axes_of((1.0, 2.0), ((0.0, 1.0),), ("ema",), (), sampler.run.sample)
    with pytest.raises(ValueError, match="find that of its teacher"):
        check_guidable(sampler.run, axes, sampler.run.sample)
    for wrong, says in (
        ({"steps": 5}, "steps must be at most the 4 of the teacher, got 5"),
        ({"steps": 1, "batch": 10**6}, "batch must be a whole number from 1 to 100,000, got 1000000"),
        ({"steps": 0}, "steps must be a whole number from 1"),
        ({"steps": 1, "seed": 2**63}, "seed must be a whole number from 0 to 9,223,372,036,854,775,807, got"),
        ({"steps": 1, "minutes": 0.0}, "minutes must be a number above 0"),
        ({"steps": 1, "minutes": 1.0, "updates": 3}, "give minutes or updates, got 1.0 and 3"),
        ({"steps": 1, "lr": -1.0}, "lr and clip_at must be above 0"),
    ):
        with pytest.raises(ValueError, match=says):
            distill(teacher, tmp_path / "wrong", **wrong)
    assert not (tmp_path / "wrong").exists()
    with pytest.raises(ValueError, match="a guide has velocities at points"):
        teacher.guided_by(sampler)
    with pytest.raises(ValueError, match="make no ODE"):
        check_likelihood(sampler.run, LikelihoodConfig(), labelled=True)
    fall = next(check for check in doctor(out) if check.name == "fall of the loss")
    assert fall.verdict == "not checked"


def test_a_stopped_distillation_goes_on_to_the_same_weights(teachers, distilled, tmp_path, monkeypatch):
    teacher, out = teachers("digits-sit"), tmp_path / "again"
    write, count = sets.write_part, []

    def stop(*arguments):
        count.append(1)
        if len(count) == 3:
            raise KeyboardInterrupt
        write(*arguments)

    monkeypatch.setattr(sets, "write_part", stop)
    with pytest.raises(KeyboardInterrupt):
        distill(teacher, out, steps=2, **FEW)
    monkeypatch.undo()
    assert (out / "trajectories" / "part-00001.json").exists()

    def interrupt(step, metrics):
        if step == 3:
            raise Stopped(step, "a test")

    with pytest.raises(Stopped):
        distill(teacher, out, steps=2, **FEW, on_step=interrupt)
    found = distill(teacher, out, steps=2)
    assert found.step == FEW["updates"] and same(weights(out), weights(distilled[0]))
    stored = sorted(path.name for path in (out / "trajectories").iterdir())
    assert sets.verify(out / "trajectories") == [] and "plan.json" not in stored
    longer = distill(teacher, out, steps=2, updates=8)
    assert longer.step == 8


def test_another_distillation_in_the_folder_is_refused(teachers, distilled, tmp_path):
    out, _ = distilled
    teacher = fluvial.load(teachers("digits-sit"), device="cpu")
    for wrong, says in (
        ({"steps": 4}, "steps is 2 there and 4 here"),
        ({"steps": 2, "seed": 3}, "seed is 0 there and 3 here"),
        ({"steps": 2, "trajectories": 50}, "trajectories is 40 there and 50 here"),
        ({"steps": 2, "settings": replace(teacher.run.sample, steps=8)}, "steps is 4 there and 8 here"),
    ):
        with pytest.raises(ValueError, match=says):
            distill(teacher, out, **wrong)
    with pytest.raises(ValueError, match="weights_sha256"):
        distill(fluvial.load(teachers("digits-sit"), device="cpu", average="raw"), out, steps=2)
    with pytest.raises(ValueError, match="holds a run that was not distilled"):
        distill(teacher, teachers("digits-sit"), steps=2)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="not empty and not a run folder"):
        distill(teacher, tmp_path / "other", steps=2)


def test_altered_trajectories_are_named(teachers, tmp_path):
    distill(teachers("digits-sit"), tmp_path / "run", steps=1, **FEW)
    file = tmp_path / "run" / "trajectories" / "latents-00003.safetensors"
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    with pytest.raises(
        ValueError,
        match=r"latents-00003.safetensors is damaged.*remove .*latents-00003.safetensors, and the same command",
    ):
        distill(teachers("digits-sit"), tmp_path / "run", steps=1, updates=8)
    file.unlink()
    assert distill(teachers("digits-sit"), tmp_path / "run", steps=1, updates=8).step == 8


def test_parts_of_other_trajectories_are_not_learned_from(teachers, tmp_path):
    for name, seed in (("run", 0), ("other", 1)):
        distill(teachers("digits-sit"), tmp_path / name, steps=1, **FEW, seed=seed)
    file = "trajectories/latents-00002.safetensors"
    (tmp_path / "run" / file).write_bytes((tmp_path / "other" / file).read_bytes())
    with pytest.raises(ValueError, match="latents-00002.safetensors was altered: the SHA-256 is another; remove"):
        distill(teachers("digits-sit"), tmp_path / "run", steps=1, updates=8)
    (tmp_path / "run" / "trajectories" / "samples.json").unlink()
    with pytest.raises(ValueError, match="trajectories: the same command draws the trajectories again"):
        distill(teachers("digits-sit"), tmp_path / "run", steps=1, updates=8)
    shutil.rmtree(tmp_path / "run" / "trajectories")
    assert distill(teachers("digits-sit"), tmp_path / "run", steps=1, updates=8).step == 8


def test_what_other_commands_say_of_a_distilled_run(distilled, teachers, tmp_path, capsys):
    out, sampler = distilled
    teacher = str(teachers("digits-sit"))
    checks = [check for check in doctor(out) if check.settings or check.command.startswith("fluvial train")]
    assert not checks
    assert cli.main(["report", str(out), "--out", str(tmp_path / "report.html")]) == 0
    page = html.unescape((tmp_path / "report.html").read_text())
    assert f"fluvial distill TEACHER --steps 2 --out {out}" in page and f"fluvial train {out}" not in page
    assert f"distilled {sampler.run.train.distillation.told}" in page
    capsys.readouterr()
    assert cli.main(["train", str(out), "--dry-run"]) != 0
    assert "`fluvial distill` trains it" in capsys.readouterr().err
    assert look(out).method == "sit, 2 steps" and look(Path(teacher)).method == "sit"
    removable = {each.path.name for each in plan(out, Keeping()).removable}
    assert "trajectories" in removable
    assert "trajectories" not in {each.path.name for each in plan(Path(teacher), Keeping()).removable}


def test_numbers_of_numpy_and_the_intervals_of_more_updates(teachers, tmp_path):
    assert all(type(module._whole("batch", number)) is int for number in (np.int64(2), np.int32(2), np.uint8(2)))
    found = distill(teachers("digits-sit"), tmp_path / "run", steps=2, trajectories=20, updates=3, batch=4)
    assert found.run.train.save_every == 1
    longer = distill(teachers("digits-sit"), tmp_path / "run", steps=2, updates=40)
    assert longer.step == 40 and longer.run.train.save_every == longer.run.train.sample_every == 4
    pictures = {int(path.stem[5:]) for path in (tmp_path / "run" / "samples").glob("step-*.png")}
    assert pictures == {1, 2, 3, *range(4, 41, 4)}


def test_a_run_without_a_whole_checkpoint_starts_over_when_told(teachers, tmp_path):
    out = tmp_path / "run"
    first = distill(teachers("digits-sit"), out, steps=2, **FEW)
    before = {name: value.clone() for name, value in first.model.state_dict().items()}
    for shard in (out / "checkpoints").glob("*/*.safetensors"):
        shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="--start-over"):
        distill(teachers("digits-sit"), out, steps=2)
    distill(teachers("digits-sit"), out, steps=2, start_over=True)
    assert same(weights(out), before)
    with pytest.raises(ValueError, match="is whole; leave it out"):
        distill(teachers("digits-sit"), out, steps=2, start_over=True)


def source(teacher, folder, count=40):
    settings = teacher.run.sample
    return Trajectories(*teacher.computing(settings), settings, module._drawing(teacher), 2, count, folder, 0)


def test_trajectories_are_the_same_on_any_number_of_ranks(teachers, tmp_path):
    teacher = fluvial.load(teachers("digits-sit"), device="cpu")
    source(teacher, tmp_path / "one").make(ALONE)
    for rank in (1, 0):
        part = source(teacher, tmp_path / "two")
        begun = sets.begin(part.folder, part.plan)
        part._make_parts(begun, World(rank, 2))
    sets.finish(tmp_path / "two", source(teacher, tmp_path / "two").plan)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()
    one, two = (source(teacher, tmp_path / "one").batches(6, World(rank, 2).share, 0)(1) for rank in (0, 1))
    both = source(teacher, tmp_path / "one").batches(6, ALONE.share, 0)(1)
    for first, second, whole in zip(one, two, both, strict=True):
        assert torch.equal(torch.cat([first, second]), whole)


def test_new_trajectories_are_those_that_would_be_stored(teachers, tmp_path):
    teacher = fluvial.load(teachers("digits-sit"), device="cpu")
    source(teacher, tmp_path).make(ALONE)
    stored, labels = source(teacher, tmp_path)._stored([3, 30])
    drawn, ids = source(teacher, tmp_path, 0).drawn([3, 30])
    assert torch.equal(stored, drawn) and labels.tolist() == ids.tolist() == [3, 0]
    out = tmp_path / "run"
    fresh = distill(teacher, out, steps=2, trajectories=0, updates=2, batch=4)
    assert fresh.step == 2 and not (out / "trajectories").exists()


def test_without_room_none_are_stored(teachers, tmp_path, monkeypatch, capsys):
    def no_room(*arguments, **options):
        raise ValueError("no room")

    monkeypatch.setattr(Trajectories, "check_room", no_room)
    found = distill(teachers("digits-sit"), tmp_path / "run", steps=2, **FEW)
    assert found.run.train.distillation.trajectories == 0
    assert "no room. They are not stored: every training step draws new ones" in capsys.readouterr().out
    again = distill(teachers("digits-sit"), tmp_path / "run", steps=2, **{**FEW, "updates": 8})
    assert again.step == 8


def given(**options):
    return {name: None for name in ("trajectories", "updates", "batch", "lr", "seed")} | {"images": False} | options


def test_minutes_decide_on_trajectories_and_training_steps(teachers, monkeypatch):
    plan = distillation_plan
    monkeypatch.setattr(plan, "seconds_of", lambda call, device, calls=1: (call(), 5.0 / calls)[1])
    monkeypatch.setattr(plan, "TRIED", 2)
    teacher, options = fluvial.load(teachers("digits-sit"), device="cpu"), given(batch=4)
    draft = plan.draft(teacher.run, teacher.described, 2, options)
    trial = module._trial(draft, teacher, module._drawing(teacher), None, 1)
    model = plan.student(draft, teacher.model)
    run = plan.planned(draft, model, trial, time.perf_counter() + 600, options)
    each, of_step = 5.0 / plan.FEWEST_TRIED, 5.0 / 2
    drawn = run.train.distillation.trajectories
    assert drawn == pytest.approx(0.25 * 600 / each, rel=0.02)
    assert run.train.steps == pytest.approx(plan.TRAINING * (600 - drawn * each) / of_step, rel=0.02)


def test_trajectories_are_timed_in_batches_that_take_long_enough(monkeypatch):
    drawn = []

    def draw(indices):
        drawn.append(len(indices))

    def seconds(call, device):
        call()
        return 0.1 + drawn[-1] * 0.002

    monkeypatch.setattr(distillation_plan, "seconds_of", seconds)
    timed = distillation_plan.seconds_each
    assert timed(draw, 2000, torch.device("cpu")) == pytest.approx((0.1 + 1024 * 0.002) / 1024)
    assert drawn == [16, 64, 256, 1024]
    assert timed(draw, 100, torch.device("cpu")) == pytest.approx(0.3 / 100)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_run_learns_from_images_and_goes_on_to_the_same_weights(teachers, tmp_path, recipe):
    few = {"steps": 2, "images": True, "updates": 4, "batch": 4, "lr": 1e-3}
    whole = distill(teachers(recipe), tmp_path / "whole", **few)
    assert whole.run.train.distillation.images and " on images, from " in whole.run.train.distillation.told
    assert not (tmp_path / "whole" / "trajectories").exists()
    log = [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    assert sum("held_out_loss" in row for row in log) == 4

    def interrupt(step, metrics):
        if step == 1:
            raise Stopped(step, "a test")

    with pytest.raises(Stopped):
        distill(teachers(recipe), tmp_path / "parts", **few, on_step=interrupt)
    distill(teachers(recipe), tmp_path / "parts", steps=2, images=True)
    assert same(weights(tmp_path / "parts"), weights(tmp_path / "whole"))
    assert sum(n for name, n in whole.sample(2).nfe.items() if not name.startswith("transformer")) in (2, 6)


def test_images_can_be_given(teachers, tmp_path):
    images, labels = torch.randint(0, 256, (12, 1, 8, 8), dtype=torch.uint8), torch.arange(12) % 10
    few = {"steps": 4, "updates": 1, "batch": 4}
    found = distill(teachers("digits-sit"), tmp_path / "given", images=(images, labels), **few)
    assert found.run.data.name == "given" and found.run.train.distillation.images
    with pytest.raises(ValueError, match="too few|at least|fewer"):
        distill(teachers("digits-arflow"), tmp_path / "small", images=(images[:10], labels[:10]), **few)
    assert not (tmp_path / "small" / "run.json").exists()
    for i, image in enumerate(images):
        (tmp_path / "grey" / str(i % 10)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0].numpy()).save(tmp_path / "grey" / str(i % 10) / f"{i}.png")
    of_files = distill(teachers("digits-sit"), tmp_path / "files", images=tmp_path / "grey", **few)
    assert of_files.run.data.path == str(tmp_path / "grey") and of_files.run.data.channels == 1
    with pytest.raises(ValueError, match="give images or trajectories to learn from"):
        distill(teachers("digits-sit"), tmp_path / "both", images=True, trajectories=0, **few)
    with pytest.raises(ValueError, match="images is True there and False here"):
        distill(teachers("digits-sit"), tmp_path / "given", **few)
    with pytest.raises(ValueError, match="8 x 4|4 x 8|size"):
        distill(teachers("digits-sit"), tmp_path / "other", images=(images[..., :4], labels), **few)
    with pytest.raises(ValueError, match="a training step of it needs its teacher"):
        found.run.objective  # noqa: B018


def test_images_that_moved_are_named_and_others_told(tmp_path, capsys):
    photos, moved, teacher, out = (tmp_path / name for name in ("photos", "moved", "teacher", "few"))
    for i in range(20):
        (photos / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8), 9 * i, np.uint8)).save(photos / "ab"[i % 2] / f"{i}.png")
    run = recipes.smoke(recipes.get("digits-sit"))
    run = replace(run, method=replace(run.method, classes=2), train=replace(run.train, steps=1, batch=4))
    fluvial.train(run, teacher, data=photos, device="cpu")
    words = ["distill", str(teacher), "--images", "--steps", "2", "--batch", "4", "--device", "cpu", "--out"]
    assert cli.main([*words, str(out), "--updates", "3"]) == 0
    told = capsys.readouterr().out
    assert "3 training steps of 4 on 12 images of 20" in told and "not the images" not in told

    latents = tmp_path / "latents"
    grey = ["--autoencoder", "pixels", "--channels", "1", "--image-size", "8", "--dtype", "fp32"]
    assert cli.main(["encode", str(photos), *grey, "--out", str(latents)]) == 0
    assert cli.main([*words, str(tmp_path / "of-latents"), "--updates", "1", "--data", str(latents)]) == 0
    photos.rename(moved)
    assert cli.main([*words, str(out)]) == 0, "finished: its images are not needed"
    assert "has taken all of its 3 training steps" in capsys.readouterr().out
    assert cli.main([*words, str(out), "--updates", "7"]) != 0
    refused = capsys.readouterr().err
    assert "photos does not exist" in refused and "--data" in refused
    assert cli.main([*words, str(out), "--updates", "7", "--data", str(moved)]) == 0
    assert "7 training steps of 4 on 20 images, each of them 1.4 times" in capsys.readouterr().out
    assert fluvial.load(out, device="cpu").step == 7

    (moved / "b" / "19.png").unlink()
    assert cli.main([*words, str(out), "--updates", "9", "--data", str(moved)]) != 0
    refused = capsys.readouterr().err
    assert "files were added, removed" in refused and "distil into another folder" in refused
    moved.rename(photos)
    assert cli.main([*words, str(tmp_path / "others"), "--updates", "1"]) == 0
    assert "not the images that the teacher was trained on" in capsys.readouterr().out
    for name, new in (("a", "cat"), ("b", "dog")):
        (photos / name).rename(photos / new)
    assert cli.main([*words, str(tmp_path / "classes"), "--updates", "1", "--data", str(photos)]) != 0
    assert not (tmp_path / "classes" / "latents").exists()
    assert "the classes are cat, dog, those of the teacher are a, b" in capsys.readouterr().err
    assert not (tmp_path / "classes" / "run.json").exists()
    with pytest.raises(ValueError, match="--data names images to learn from"):
        DistillOptions(data="photos", sample=SampleConfig())


def test_a_refused_start_leaves_nothing_and_built_in_images_are_named(teachers, tmp_path, capsys):
    words = ["distill", str(teachers("digits-sit")), "--images", "--steps", "2", "--batch", "4", "--device", "cpu"]
    (tmp_path / "empty").mkdir()
    assert cli.main([*words, "--out", str(tmp_path / "none"), "--updates", "1", "--data", str(tmp_path / "empty")]) != 0
    assert not (tmp_path / "none").exists()
    few = tmp_path / "few"
    assert cli.main([*words, "--out", str(few), "--updates", "1"]) == 0
    assert cli.main([*words, "--out", str(few), "--updates", "2", "--data", "digits"]) == 0, "the same by their name"
    capsys.readouterr()
    assert cli.main([*words, "--out", str(few), "--data", "digits"]) == 0
    assert "these are not looked at" in capsys.readouterr().out
    assert cli.main([*words, "--data", ""]) != 0
    assert "data must be a folder" in capsys.readouterr().err


def test_nothing_is_no_images(teachers, tmp_path):
    with pytest.raises(ValueError, match="images must be True for those of the run, a folder, or images, got ''"):
        distill(teachers("digits-sit"), tmp_path / "none", steps=2, images="", updates=1)
    assert not (tmp_path / "none").exists()
    assert module._images(np.False_) == (False, None) and module._images(True) == (True, None)


def test_minutes_decide_on_training_steps_on_images(teachers, tmp_path, monkeypatch):
    monkeypatch.setattr(distillation_plan, "seconds_of", lambda call, device, calls=1: (call(), 60.0)[1])
    found = distill(teachers("digits-arflow"), tmp_path, steps=2, images=True, batch=4, minutes=5.0)
    assert found.step == int(0.93 * 5)  # a minute each


def test_the_command(teachers, tmp_path, capsys):
    out, teacher = tmp_path / "few", str(teachers("digits-arflow"))
    words = ["distill", teacher, "--out", str(out), "--steps", "1", "--trajectories", "20", "--updates", "2"]
    assert cli.main([*words, "--device", "cpu", "--guidance", "3"]) == 0
    printed = capsys.readouterr().out
    assert "distilled to 1 step: 20 trajectories" in printed and f"fluvial sample {out}" in printed
    assert json.loads((out / "run.json").read_text())["config"]["teacher"]["sampling"]["guidance"] == 3.0
    assert cli.main(["sample", str(out), "--count", "4", "--device", "cpu"]) == 0
    assert "NFE 1: 1 conditional" in capsys.readouterr().out
    for wrong, says in (
        (["distill", str(out)], "was distilled itself"),
        (["distill", teacher, "--out", teacher], "is the run itself"),
        ([*words, "--minutes", "1"], "give --minutes or --updates, got both"),
        (["distill", teacher, "--steps", "0"], "steps must be at least 1"),
    ):
        assert cli.main(wrong) != 0
        assert says in capsys.readouterr().err, wrong
