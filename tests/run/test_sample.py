"""Sets of samples: the same files however they are divided, interrupted and continued, and in whatever batch."""

import hashlib
import io
import json
import tarfile
from collections import namedtuple
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from conftest import randomise
from fluvial.autoencoders.pixels import Pixels
from fluvial.config import Run
from fluvial.evaluation.opening import open_images
from fluvial.flow.guidance import Guidance
from fluvial.methods import arflow, flowar, method_of, sit
from fluvial.run import sample as module
from fluvial.run.load import Sampler
from fluvial.run.sample import sample
from fluvial.sampling import sets
from fluvial.sampling.settings import Dopri5, SampleConfig

SHAPE = {"size": (8, 8), "channels": 3, "classes": 3}
DIT = {**SHAPE, "patch": 4, "depth": 2, "width": 32, "heads": 2}
FLOWAR = {**SHAPE, "scales": (1, 2), "patch": 4, "depth": 2, "width": 32, "heads": 2}
METHODS = {
    "sit": sit.Config(**DIT),
    "arflow": arflow.Config(**DIT),
    "flowar": flowar.Config(**FLOWAR, head_width=32, head_heads=2, head_depth=2),
}
COUNT, SHARD = 11, 4


def sampler_of(name="arflow", **settings):
    config = METHODS[name]
    model = method_of(config).Model(config).eval().requires_grad_(False)
    randomise(model, std=0.1)
    chosen = SampleConfig(**{"steps": 2, "guidance": Guidance(weight=2.0), "batch": 3, **settings})
    return Sampler(model=model, run=Run(method=config, sample=chosen), autoencoder=Pixels())


@pytest.fixture(scope="module")
def sampler():
    return sampler_of()


@pytest.fixture(scope="module")
def expected(sampler):
    return sampler.sample(COUNT, seed=5)


def made(sampler, out, form, **options):
    return sample(sampler, out, **{"count": COUNT, "form": form, "shard": SHARD, "seed": 5, **options})


def files(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def without_batch(sampling):
    """The record of sampling without the batch, which has no effect on the images of a set."""
    values = json.loads(json.dumps(sampling))
    values["settings"].pop("batch")
    return values


def png(content):
    return torch.from_numpy(np.array(Image.open(io.BytesIO(content)))).permute(2, 0, 1)


@pytest.mark.parametrize("name", METHODS)
def test_an_image_has_the_same_bytes_in_any_batch(name):
    """On this CPU; `FEW` of nn/layers.py is what makes it so."""
    whole = sampler_of(name, batch=24).sample(24).images
    for batch in (1, 2, 3, 5, 7):
        assert torch.equal(sampler_of(name, batch=batch).sample(24).images, whole), batch


def test_latents_have_the_same_bits_in_any_batch(sampler):
    draws = {}
    for batch in (24, 1, 2, 3, 5):
        steps = []
        settings = replace(sampler.run.sample, batch=batch)
        sampler.sample(24, settings=settings, on_step=steps.append)
        draws[batch] = torch.cat([step.x for step in steps if step.t > 1 - 1e-9])
    assert all(torch.equal(found, draws[24]) for found in draws.values())


def test_every_form_holds_the_images(sampler, expected, tmp_path):
    for form in ("npz", "png", "tar", "latents"):
        assert made(sampler, tmp_path / form, form).images == COUNT
        assert sets.verify(tmp_path / form) == []
    stored = np.load(tmp_path / "npz" / "samples.npz")
    assert np.array_equal(stored["arr_0"], expected.images.permute(0, 2, 3, 1).numpy())
    assert stored["arr_1"].tolist() == expected.labels.tolist()
    for i in range(COUNT):
        assert torch.equal(png((tmp_path / "png" / f"{i:06d}.png").read_bytes()), expected.images[i])
    with tarfile.open(tmp_path / "tar" / "shard-00001.tar") as tar:
        assert tar.getnames() == [f"{i:06d}.{end}" for i in range(4, 8) for end in ("png", "cls")]
        assert torch.equal(png(tar.extractfile("000005.png").read()), expected.images[5])
        assert tar.extractfile("000005.cls").read() == str(int(expected.labels[5])).encode()
    latents = load_file(tmp_path / "latents" / "latents-00002.safetensors")
    assert latents["index"].tolist() == [8, 9, 10] and latents["labels"].tolist() == expected.labels[8:].tolist()
    rounded = ((latents["latents"].clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    assert torch.equal(rounded, expected.images[8:])


def test_an_npz_in_parts_is_the_one_that_is_saved_at_once(sampler, expected, tmp_path):
    made(sampler, tmp_path / "parts", "npz")
    expected.save(tmp_path / "whole")
    assert files(tmp_path / "parts")["samples.npz"] == files(tmp_path / "whole")["samples.npz"]
    record, other = (json.loads((tmp_path / name / "samples.json").read_bytes()) for name in ("parts", "whole"))
    assert record["sampling"] == without_batch(other["sampling"]) and record["file_sha256"] == other["file_sha256"]


@pytest.mark.parametrize("form", ["npz", "png", "tar", "latents"])
def test_ranks_share_the_parts_and_the_files_are_the_same(sampler, tmp_path, form):
    made(sampler, tmp_path / "one", form)
    other = made(sampler, tmp_path / "two", form, rank=1, world=2, settings=replace(sampler.run.sample, batch=1))
    assert other.images == 4 and other.record is None  # part 1 of 3
    assert made(sampler, tmp_path / "two", form, rank=0, world=2).images == 7
    assert files(tmp_path / "one") == files(tmp_path / "two")
    assert sets.verify(tmp_path / "two") == []


@pytest.mark.parametrize("form", ["npz", "png", "tar", "latents"])
def test_an_interrupted_set_goes_on_with_what_is_missing(sampler, tmp_path, monkeypatch, form):
    made(sampler, tmp_path / "whole", form)
    write = sets.write_part

    def stop(folder, plan, number, *rest):
        if number == 1:
            raise KeyboardInterrupt
        write(folder, plan, number, *rest)

    monkeypatch.setattr(sets, "write_part", stop)
    with pytest.raises(KeyboardInterrupt):
        made(sampler, tmp_path / "killed", form)
    monkeypatch.undo()
    assert not (tmp_path / "killed" / "samples.json").exists()
    with pytest.raises(ValueError, match="has not finished there: repeat its command"):
        sets.verify(tmp_path / "killed")
    assert made(sampler, tmp_path / "killed", form).images == COUNT - SHARD  # part 0 was there
    assert files(tmp_path / "killed") == files(tmp_path / "whole")
    assert made(sampler, tmp_path / "killed", form).images == 0


def test_a_part_that_is_gone_is_made_again(sampler, tmp_path):
    made(sampler, tmp_path, "png")
    before = files(tmp_path)
    (tmp_path / "000005.png").unlink()
    assert sets.verify(tmp_path) == ["000005.png is missing"]
    assert made(sampler, tmp_path, "png").images == SHARD
    assert files(tmp_path) == before


def test_what_was_altered_is_found(sampler, tmp_path):
    made(sampler, tmp_path, "png")
    (tmp_path / "000003.png").write_bytes((tmp_path / "000002.png").read_bytes())
    Image.new("RGB", (8, 8)).save(tmp_path / "more.png")
    wrong = sets.verify(tmp_path)
    assert any("000003.png" in line or "000000.png to 000003.png" in line for line in wrong)
    assert "more.png is not one of these samples" in wrong
    images = open_images(str(tmp_path))
    images.read([2])
    with pytest.raises(ValueError, match=r"000003.png in .* is not the image that was written"):
        images.read([3])


@pytest.mark.parametrize("form", ["npz", "png", "tar"])
def test_a_score_knows_how_the_images_of_a_set_were_sampled(sampler, expected, tmp_path, form):
    made(sampler, tmp_path, form)
    images = open_images(str(tmp_path))
    found, labels = images.read([0, 9, 4])
    assert images.n == COUNT and torch.equal(found, expected.images[[0, 9, 4]])
    assert labels.tolist() == expected.labels[[0, 9, 4]].tolist()
    assert images.about["sampling"] == without_batch(expected.about["sampling"]) and "set" not in images.about


def test_latents_are_not_scored(sampler, tmp_path):
    made(sampler, tmp_path, "latents")
    with pytest.raises(ValueError, match="holds latents, and a score needs images"):
        open_images(str(tmp_path))


def test_another_set_and_other_files_are_refused_before_any_work(sampler, tmp_path, monkeypatch):
    made(sampler, tmp_path / "set", "png")
    for options, says in (
        ({"seed": 6}, "seed is 5 there and 6 here"),
        ({"steps": 3}, "settings.steps is 2 there and 3 here"),
        ({"classes": [1]}, r"classes is \[0, 1, 2\] there and \[1\] here"),
        ({"count": 12}, "count is 11 there and 12 here"),
        ({"form": "tar"}, 'form is "png" there and "tar" here'),
    ):
        with pytest.raises(ValueError, match=rf"holds other samples: .*{says}"):
            made(sampler, tmp_path / "set", **{"form": "png", **options})
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").touch()
    with pytest.raises(ValueError, match="holds other files, such as cat.jpg"):
        made(sampler, tmp_path / "photos", "npz")
    usage = namedtuple("usage", "free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(100))
    with pytest.raises(ValueError, match="11 images need about 0 MB, and the disk of .* has 0 MB free"):
        made(sampler, tmp_path / "new", "npz")
    assert not (tmp_path / "new").exists()


def test_other_weights_are_another_set(sampler, tmp_path):
    made(sampler, tmp_path, "png")
    other = sampler_of()
    with torch.no_grad():
        next(other.model.parameters()).add_(0.01)
    with pytest.raises(ValueError, match="weights_sha256 is .* there and .* here"):
        made(other, tmp_path, "png")


def test_chosen_images_are_drawn_again(sampler, expected, tmp_path):
    made(sampler, tmp_path, "png", count=None, indices=[9, 2])
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["000002.png", "000009.png"]
    assert torch.equal(png((tmp_path / "000009.png").read_bytes()), expected.images[9])
    with pytest.raises(ValueError, match="indices must differ"):
        made(sampler, tmp_path / "twice", "png", count=None, indices=[2, 2])


def test_evaluations_of_an_adaptive_solver_do_not_depend_on_who_made_which_part(tmp_path):
    sampler = sampler_of(solver=Dopri5(atol=1e-2, rtol=1e-2))
    made(sampler, tmp_path / "one", "png")
    for rank in (2, 0, 1):
        made(sampler, tmp_path / "three", "png", rank=rank, world=3)
    assert files(tmp_path / "one") == files(tmp_path / "three")


def test_a_batch_that_does_not_fit_is_halved(sampler, expected, tmp_path, monkeypatch, capsys):
    model, draw = sampler.computing(sampler.run.sample)

    def greedy(model, labels, *, noise, **rest):
        if len(noise) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return draw(model, labels, noise=noise, **rest)

    monkeypatch.setattr(Sampler, "computing", lambda self, settings: (model, greedy))
    settings = replace(sampler.run.sample, batch=8)
    assert torch.equal(sampler.sample(COUNT, seed=5, settings=settings).images, expected.images)
    said = "out of memory: going on in batches of 4; the images are the same\n"
    assert capsys.readouterr().err == said + said.replace("4", "2")
    made(sampler, tmp_path, "npz", settings=settings)
    assert capsys.readouterr().err == "out of memory: going on in batches of 2; the images are the same\n"  # once
    assert np.array_equal(np.load(tmp_path / "samples.npz")["arr_0"], expected.images.permute(0, 2, 3, 1).numpy())


def test_an_error_in_the_thread_that_writes_ends_sampling(sampler, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.sets, "write_part", full)
    with pytest.raises(OSError, match="No space left"):
        made(sampler, tmp_path, "png")


@pytest.mark.parametrize("form", ["npz", "png", "tar", "latents"])
def test_parts_are_as_long_on_any_number_of_ranks(sampler, tmp_path, form):
    made(sampler, tmp_path / "one", form, shard=None, count=40)
    made(sampler, tmp_path / "two", form, shard=None, count=40, rank=1, world=2)
    made(sampler, tmp_path / "two", form, shard=None, count=40)  # alone
    assert files(tmp_path / "one") == files(tmp_path / "two")
    begun = sets.plan_of(tmp_path / "two")
    assert begun is not None and begun.shard == 3


def test_an_npz_that_is_gone_or_cut_short_is_made_again(sampler, tmp_path):
    made(sampler, tmp_path, "npz")
    before, file = files(tmp_path), tmp_path / "samples.npz"
    for damage in (file.unlink, lambda: file.write_bytes(file.read_bytes()[:500])):
        damage()
        assert sets.verify(tmp_path) != []
        assert made(sampler, tmp_path, "npz").images == COUNT and files(tmp_path) == before


def test_ranks_that_begin_and_end_together(sampler, tmp_path, monkeypatch):
    """Another rank writes plan.json, and ends the set, between this one's look and its own."""
    empty = sets._check_empty

    def late(folder, known=()):
        monkeypatch.setattr(sets, "_check_empty", empty)
        made(sampler, folder, "npz", rank=1, world=2)
        empty(folder, known)

    monkeypatch.setattr(sets, "_check_empty", late)
    assert made(sampler, tmp_path / "a", "npz", rank=0, world=2).record is not None
    monkeypatch.undo()
    join = sets.forms.join

    def beaten(parts, labels, out):
        monkeypatch.setattr(sets.forms, "join", join)
        sets.finish(out.parent, sets.plan_of(out.parent))
        join(parts, labels, out)

    monkeypatch.setattr(sets.forms, "join", beaten)
    assert made(sampler, tmp_path / "b", "npz").record is not None
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_a_part_of_another_plan_is_made_again(sampler, tmp_path):
    made(sampler, tmp_path / "right", "png")
    made(sampler, tmp_path / "other", "png", seed=6, rank=0, world=2)
    made(sampler, tmp_path / "mixed", "png", rank=1, world=2)
    for path in (tmp_path / "other").glob("*0000[0-3].*"):
        (tmp_path / "mixed" / path.name).write_bytes(path.read_bytes())
    assert made(sampler, tmp_path / "mixed", "png").images == COUNT - SHARD
    assert files(tmp_path / "mixed") == files(tmp_path / "right")


@pytest.mark.parametrize("damage", [b"", b"{", None])
def test_a_damaged_or_lost_plan_is_written_again(sampler, tmp_path, damage):
    made(sampler, tmp_path / "whole", "png")
    made(sampler, tmp_path / "half", "png", rank=0, world=2)
    plan = tmp_path / "half" / "plan.json"
    plan.unlink() if damage is None else plan.write_bytes(damage)
    with pytest.raises(ValueError, match="has not finished there"):
        open_images(str(tmp_path / "half"))
    with pytest.raises(ValueError, match="holds parts of other samples"):
        made(sampler, tmp_path / "half", "png", seed=6)
    assert made(sampler, tmp_path / "half", "png").images == SHARD
    assert files(tmp_path / "half") == files(tmp_path / "whole")


def test_a_plan_of_which_nothing_was_made_blocks_no_other(sampler, tmp_path, monkeypatch):
    def stop(*_):
        raise RuntimeError("the velocity is not finite")

    monkeypatch.setattr(sets, "write_part", stop)
    with pytest.raises(RuntimeError):
        made(sampler, tmp_path, "png")
    monkeypatch.undo()
    assert made(sampler, tmp_path, "png", seed=9).images == COUNT


def test_a_huge_count_is_refused_by_its_size_at_once(sampler, tmp_path):
    with pytest.raises(ValueError, match="1,000,000,000,000 images need about .* MB, and the disk of"):
        made(sampler, tmp_path / "huge", "png", count=10**12)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"shard": 0}, "shard must be a whole number of at least 1, got 0"),
        ({"world": 0}, "world must be a whole number of at least 1"),
        ({"rank": 5, "world": 2}, "rank must be below world, got 5 of 2"),
        ({"rank": -1}, "rank must be a whole number of at least 0"),
    ],
)
def test_wrong_arguments_are_refused_and_nothing_is_written(sampler, tmp_path, wrong, says):
    with pytest.raises(ValueError, match=says):
        made(sampler, tmp_path / "new", **{"form": "png", **wrong})
    assert not (tmp_path / "new").exists()


def test_a_process_that_ends_after_the_set_was_finished_leaves_nothing_of_its_own(tmp_path):
    """Two processes that make the same npz set: the parts that the second wrote after the first had joined them."""
    sampler = sampler_of()
    sample(sampler, tmp_path / "set", 6, shard=2, steps=1)
    before = {path.name for path in (tmp_path / "set").iterdir()}
    plan = sets.plan_of(tmp_path / "set")
    sets.write_part(tmp_path / "set", plan, 1, torch.zeros(2, *plan.shape, dtype=torch.uint8), {"conditional": 1})
    assert sets.finish(tmp_path / "set", plan) == sets.complete_record(tmp_path / "set")
    assert {path.name for path in (tmp_path / "set").iterdir()} == before
