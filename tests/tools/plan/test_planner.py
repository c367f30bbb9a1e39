"""Plans, with the speed of a machine that is made up: a step takes its FLOPs over a rate."""

import math
import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import fluvial
from fluvial.tools import estimate
from fluvial.tools.plan import network, pace
from fluvial.tools.plan.dataset import asymmetry, config_of, look_at, name_of
from fluvial.tools.plan.draft import applied
from fluvial.tools.plan.fitting import BATCHES, autoencoder_seconds, compiled, flops_an_image, picture_seconds
from fluvial.tools.plan.network import pixel_side
from fluvial.tools.plan.planner import plan
from fluvial.utils.pictures import preview

CPU = torch.device("cpu")


def at(rate):
    """The speed of a machine of so many FLOP/s."""
    return lambda run, device: flops_an_image(run) * run.images_per_step / rate


def photos(folder, *, classes=("cat", "dog"), each=40, size=(32, 32), draw=None, ending="png"):
    """A folder of noise images; `draw(rng, h, w)` makes their pixels."""
    rng = np.random.default_rng(0)
    for name in classes:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(each):
            shape = (size[1], size[0], 3)
            pixels = rng.integers(0, 255, shape) if draw is None else draw(rng, size[1], size[0])
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{i}.{ending}")
    return folder


@pytest.mark.parametrize("method", ["arflow", "flowar", "sit"])
def test_steps_fill_the_time_at_the_speed_that_was_measured(tmp_path, method):
    found = plan(photos(tmp_path / "photos"), method=method, minutes=20.0, device="cpu", speed=at(5e10))
    flops = estimate.flops(found.run).total * found.run.train.steps
    assert found.seconds == pytest.approx(flops / 5e10, rel=0.02)
    assert found.seconds + found.beside == pytest.approx(20 * 60, rel=0.02) and found.beside < 0.15 * 20 * 60
    assert fluvial.methods.name_of(type(found.run.method)) == method
    assert found.run.data.validation == 0.05 and found.images == 76


def test_more_time_and_faster_machines_take_larger_networks():
    sizes = [
        plan("digits", minutes=m, device="cpu", speed=at(r)).parameters
        for m, r in ((2.0, 1e10), (30.0, 1e11), (30.0, 1e13))
    ]
    assert sizes[0] < sizes[1] < sizes[2]


def test_tokens_in_training_are_about_twenty_a_parameter():
    found = plan("digits", minutes=30.0, device="cpu", speed=at(1e11))
    tokens = 4 * found.run.train.steps * found.run.images_per_step  # of 4 x 4 pixels
    assert 7 < tokens / found.parameters < 60


def test_settings_given_stay_and_the_rest_follows_from_them():
    given = {"train.batch": 7, "method.depth": 5, "optim.lr": 1e-3, "data.flip": True, "train.log_every": 3}
    found = plan("digits", minutes=5.0, device="cpu", settings=given, speed=at(1e11))
    run = found.run
    assert (run.train.batch, run.method.depth, run.optim.lr) == (7, 5, 1e-3)
    assert run.data.flip and run.train.log_every == 3
    seconds = estimate.flops(run).total * run.train.steps / 1e11
    assert found.seconds == pytest.approx(seconds, rel=0.01)
    assert 0 < found.beside < 0.2 * 300 and found.seconds + found.beside == pytest.approx(300, rel=0.02)
    whys = {choice.what: choice.why for choice in found.choices}
    assert whys["batch"] == whys["learning rate"] == "as given" and whys["precision"] != "as given"


def test_a_setting_that_does_not_exist_is_refused_by_name():
    with pytest.raises(ValueError, match=r"no setting train\.batsch; here there are .*batch"):
        plan("digits", device="cpu", settings={"train.batsch": 7}, speed=at(1e11))
    with pytest.raises(ValueError, match="no setting methods"):
        applied(plan("digits", device="cpu", speed=at(1e11)).run, {"methods": 3})


def test_steps_and_epochs_are_what_was_asked_for():
    assert plan("digits", steps=123, device="cpu", speed=at(1e11)).run.train.steps == 123
    found = plan("digits", epochs=4.0, device="cpu", speed=at(1e11))
    assert found.run.train.steps == math.ceil(4 * 1257 / found.run.images_per_step)
    with pytest.raises(ValueError, match="one of minutes, steps and epochs, got minutes 3, steps 5"):
        plan("digits", minutes=3.0, steps=5, device="cpu", speed=at(1e11))
    for length in ({"minutes": 0.0}, {"steps": -1}, {"epochs": math.nan}):
        with pytest.raises(ValueError, match=f"{next(iter(length))} must be a number above 0, got"):
            plan("digits", device="cpu", speed=at(1e11), **length)


def test_a_time_too_short_for_an_epoch_is_refused_with_the_time_that_is_enough():
    with pytest.raises(ValueError, match="is too short for 1,257 images") as refused:
        plan("digits", minutes=0.01, size="large", device="cpu", speed=at(1e10))
    needed = int(str(refused.value).split("Give --minutes ")[1].split()[0])
    assert plan("digits", minutes=float(needed), size="large", device="cpu", speed=at(1e10)).epochs >= 1
    assert plan("digits", steps=1, size="large", device="cpu", speed=at(1e10)).epochs < 1


def test_the_batch_grows_with_the_images_there_is_time_for():
    slow, fast = (plan("digits", minutes=10.0, size="small", device="cpu", speed=at(r)).run for r in (2e9, 1e13))
    assert BATCHES[0] - 5 < slow.images_per_step <= BATCHES[0] < fast.images_per_step <= BATCHES[1]


def test_the_learning_rate_is_near_those_that_have_worked():
    rates = {width: network.learning_rate(width) for width in (128, 256, 384, 768)}
    assert rates == {128: 4e-3, 256: 1e-3, 384: 4.4e-4, 768: 1.1e-4}
    assert network.learning_rate(256, trained=True) == 5e-4


def test_the_quickest_precision_is_taken_if_it_is_worth_it(monkeypatch):
    monkeypatch.setattr("fluvial.tools.plan.pace.precisions", lambda device: ("fp32", "bf16"))
    for gain, taken in ((1.05, "fp32"), (1.5, "bf16")):

        def speed(run, device, gain=gain):
            return at(1e11)(run, device) / (gain if run.train.precision == "bf16" else 1)

        assert plan("digits", minutes=5.0, device="cpu", speed=speed).run.train.precision == taken


@pytest.mark.parametrize(
    "device, training, gain, given, taken",
    [
        ("cuda", 900.0, 1.5, {}, True),
        ("cuda", 900.0, 1.05, {}, False),
        ("cuda", 300.0, 1.5, {}, False),
        ("cuda", 900.0, 1.5, {"train.compile": False}, False),
        ("cpu", 900.0, 1.5, {}, False),
    ],
)
def test_a_network_is_compiled_on_a_gpu_if_that_is_worth_it(device, training, gain, given, taken):
    run = plan("digits", minutes=5.0, device="cpu", speed=at(1e11)).run
    run, seconds = compiled(run, 1.0, training, lambda run: 1 / gain, torch.device(device), given)
    assert run.train.compile == taken and seconds == (1 / gain if taken else 1.0)


def test_a_first_picture_just_before_a_regular_one_is_left_out():
    run = plan("digits", minutes=5.0, device="cpu", speed=at(1e11)).run
    for seconds, first in ((0.1, 200), (0.089, 500)):
        found = pace.timed(replace(run, train=replace(run.train, steps=5330)), seconds, pace.Costs(1e-3, 1e-3)).train
        assert found.sample_every == 533 and found.first_sample == (first if first < 400 else 0)


def test_intervals_follow_from_the_steps():
    run = plan("digits", minutes=10.0, device="cpu", speed=at(1e11)).run
    steps, train = run.train.steps, run.train
    assert train.validate_every == train.save_every == math.ceil(steps / 20)
    assert 0 < train.first_sample < train.sample_every and run.optim.warmup == min(500, steps // 20)
    assert train.ema_warmup and train.keep_best


def test_grey_images_stored_as_colour_are_grey(tmp_path):
    def grey(rng, h, w):
        return np.repeat(rng.integers(0, 255, (h, w, 1)), 3, axis=2)

    assert look_at(config_of(photos(tmp_path / "grey", draw=grey, ending="jpg"))).channels == 1
    assert look_at(config_of(photos(tmp_path / "colour"))).channels == 3


def test_images_that_differ_from_their_mirror_images_are_not_flipped(tmp_path):
    def lit_from_the_left(rng, h, w):
        light = np.linspace(200, 20, w)[None, :, None] + rng.normal(0, 20, (h, w, 3))
        return light.clip(0, 255)

    one_sided, either = photos(tmp_path / "left", draw=lit_from_the_left), photos(tmp_path / "any")
    assert not plan(one_sided, device="cpu", speed=at(1e11)).run.data.flip
    assert plan(either, device="cpu", speed=at(1e11)).run.data.flip
    told = {c.what: c for c in plan(one_sided, device="cpu", speed=at(1e11)).choices}["mirror images"]
    assert told.chosen == "no" and "--data.flip" in told.option


def test_asymmetry_is_the_share_of_the_variance():
    rng = np.random.default_rng(0)
    mean = np.zeros((8, 8))
    mean[:, :4] = 1.0  # |mean - its mirror image|^2 is 64
    pixels = mean + rng.normal(0, 2.0, (40_000, 8, 8))  # of variance 4 in 64 pixels
    assert asymmetry(pixels, None) == pytest.approx(64 / 256, rel=0.03)
    assert asymmetry(pixels - mean, None) == pytest.approx(0, abs=0.002)


@pytest.mark.parametrize(
    ("size", "side", "patch"),
    [((28, 28), 28, 4), ((37, 37), 36, 6), ((100, 80), 64, 8), ((48, 40), 40, 5), ((9, 9), 8, 4)],
)
def test_the_side_and_the_patch(tmp_path, size, side, patch):
    run = plan(photos(tmp_path / "photos", size=size, each=10), method="sit", device="cpu", speed=at(1e11)).run
    assert (run.data.size, run.method.size, run.method.patch) == (side, (side, side), patch)


def test_patches_become_coarser_up_to_48_numbers():
    assert [network.coarser(*given) for given in ((8, 2, 1), (28, 4, 1), (30, 2, 3), (64, 8, 3))] == [4, 4, 3, 8]
    assert plan("digits", device="cpu", settings={"method.patch": 2}, speed=at(1e11)).run.method.patch == 2


def test_labels_that_do_not_help_are_left_aside(tmp_path):
    one = plan(photos(tmp_path / "one", classes=("cat",)), device="cpu", speed=at(1e11))
    many = plan(photos(tmp_path / "many", classes=[f"c{i}" for i in range(40)], each=2), device="cpu", speed=at(1e11))
    told = [next(c for c in found.choices if c.what == "classes") for found in (one, many)]
    assert one.run.method.classes == many.run.method.classes == 0
    assert "one class only" in told[0].why and "40 classes have too few images" in told[1].why
    assert one.run.sample.guidance.is_off


def test_classes_smaller_than_a_sequence_are_repeated_and_said(tmp_path):
    photos(tmp_path / "photos", classes=("cat", "dog"), each=40)
    photos(tmp_path / "photos", classes=("emu",), each=4)
    found = plan(tmp_path / "photos", device="cpu", speed=at(1e11))
    assert found.run.data.small_classes == "repeat"
    assert "the smallest has 4, repeated" in next(c.why for c in found.choices if c.what == "classes")


def test_too_few_and_no_images_are_refused(tmp_path):
    with pytest.raises(ValueError, match="has 1 image, and a model needs at least 10"):
        plan(photos(tmp_path / "few", classes=("cat",), each=1), device="cpu", speed=at(1e11))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="has no images"):
        plan(tmp_path / "empty", device="cpu", speed=at(1e11))
    with pytest.raises(ValueError, match="did you mean .*few"):
        plan(tmp_path / "fwe", device="cpu", speed=at(1e11))


def test_a_folder_that_is_called_as_a_built_in_set_is_a_folder(tmp_path, monkeypatch):
    photos(tmp_path / "digits")
    monkeypatch.chdir(tmp_path)
    found = plan(Path("digits"), device="cpu", speed=at(1e11))
    assert found.run.data.place == "./digits" and found.run.data.validation == 0.05 and found.images == 76


def test_a_file_that_is_no_image_is_left_out_and_named(tmp_path):
    folder = photos(tmp_path / "photos")
    (folder / "cat" / "text.png").write_text("not an image")
    found = plan(folder, device="cpu", speed=at(1e11))
    assert len(found.dataset.unreadable) == 1 and "text.png" in found.dataset.unreadable[0]
    assert found.run.data.unreadable == "skip"
    for name in ("cat", "dog"):
        for file in (folder / name).glob("*.png"):
            file.write_text("not an image either")
    with pytest.raises(ValueError, match="most of the images cannot be read"):
        plan(folder, device="cpu", speed=at(1e11))


def test_a_disk_without_room_for_the_checkpoints_is_refused(tmp_path, monkeypatch):
    found = plan("digits", device="cpu", speed=at(1e11))
    assert found.checkpoints == found.parameters * 16 * 4
    found.check_disk(tmp_path / "not" / "there")
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(found.checkpoints - 1))
    with pytest.raises(ValueError, match=r"checkpoints need about .* free; make room"):
        found.check_disk(tmp_path / "not" / "there")


def test_images_given_in_python_are_planned_and_trained(tmp_path):
    pixels = torch.randint(0, 256, (60, 3, 16, 16), dtype=torch.uint8)
    labels = torch.arange(60) % 3
    found = plan((pixels, labels), steps=2, size="small", device="cpu", speed=at(1e11))
    assert found.run.method.classes == 3 and found.images == 57
    settings = {"train.batch": 2, "method.width": 32, "method.heads": 2, "method.depth": 1}
    sampler = fluvial.train(applied(found.run, settings), tmp_path / "run", data=(pixels, labels), device="cpu")
    assert sampler.step == 2 and sampler.run.data.validation == 0.05


def test_names_of_folders():
    names = {
        "data/Fashion-MNIST train.parquet": "fashion-mnist-train",
        "digits": "digits",
        "uoft-cs/cifar10": "cifar10",
    }
    names |= {"photos/*.tar": "images", "/": "images", "hub:owner/My_Set": "my-set"}
    assert {place: name_of(config_of(place)) for place in names} == names


@pytest.mark.parametrize("side", [22, 26, 34, 46, 58, 62])
def test_images_are_cropped_to_a_side_that_patches_divide(tmp_path, side):
    found = plan(photos(tmp_path / "photos", size=(side, side)), steps=5, device="cpu", speed=at(1e11))
    tokens = fluvial.methods.method_of(found.run.method).tokens(found.run.method)
    assert 25 <= tokens <= 64 and side - 10 <= found.run.data.size < side


def test_latents_have_enough_tokens():
    assert pixel_side((208, 208), most=256, multiple=16, stride=8) == 192  # 26 x 26 latents have patches of 2 or 13
    assert pixel_side((224, 224), most=256, multiple=16, stride=8) == 224


def test_a_size_that_patches_do_not_divide_is_refused_with_one_that_they_do(tmp_path):
    folder = photos(tmp_path / "photos")
    with pytest.raises(ValueError, match=r"data\.size 31 cannot be cut into patches .*give data\.size 32, or"):
        plan(folder, steps=5, device="cpu", settings={"data.size": 31}, speed=at(1e11))
    given = {"data.size": 31, "method.patch": 31}
    assert plan(folder, steps=5, device="cpu", settings=given, speed=at(1e11)).run.method.patch == 31


def test_the_number_of_steps_is_given_once():
    assert plan("digits", settings={"train.steps": 9}, device="cpu", speed=at(1e11)).run.train.steps == 9
    for length in ({"steps": 5}, {"minutes": 3.0}, {"epochs": 1.0}):
        with pytest.raises(ValueError, match=r"train\.steps is set, and minutes, steps or epochs"):
            plan("digits", settings={"train.steps": 9}, device="cpu", speed=at(1e11), **length)


def test_a_group_of_settings_is_refused():
    with pytest.raises(ValueError, match=r"train is a group of settings, got 3; give single ones, as train\.steps"):
        plan("digits", settings={"train": 3}, device="cpu", speed=at(1e11))
    run = plan("digits", settings={"sample.solver": "dopri5"}, steps=5, device="cpu", speed=at(1e11)).run
    assert run.sample.solver_settings.name == "dopri5"


def test_weights_to_start_from_are_looked_for_before_the_images(tmp_path):
    with pytest.raises(ValueError, match="is not a run folder"):
        plan(tmp_path / "nothing", start=tmp_path, device="cpu", speed=at(1e11))


def test_the_reasons_tell_what_was_given_and_short_times_in_seconds():
    given = {"method.depth": 3, "data.validation": 0.0}
    found = plan("digits", steps=2, settings=given, device="cpu", speed=at(1e11))
    told = {choice.what: choice for choice in found.choices}
    assert told["network"].why == "as given" and "about 0." in told["length"].why and " s at" in told["length"].why


def test_an_autoencoder_gives_the_latents_and_the_time_to_encode(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    shape = {"block_out_channels": (8, 8), "norm_num_groups": 4, "latent_channels": 4}
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    diffusers.AutoencoderKL(**shape, **blocks).save_pretrained(tmp_path / "vae")
    folder = photos(tmp_path / "photos", size=(70, 66))
    found = plan(folder, autoencoder=str(tmp_path / "vae"), device="cpu", speed=at(1e11))
    run = found.run
    assert (run.method.channels, run.method.size, run.data.size, run.data.cache) == (4, (32, 32), 64, True)
    assert found.encoding > 0 and plan(folder, device="cpu", speed=at(1e11)).encoding == 0
    assert picture_seconds(run, 1e11, 0.5) - picture_seconds(run, 1e11, 0.0) == pytest.approx(0.5 * preview(64))
    latents = replace(run, data=replace(run.data, cache=False))
    (encoding, decoding), pixels = autoencoder_seconds(latents, CPU), plan("digits", device="cpu", speed=at(1e11)).run
    assert encoding == 0 < decoding and autoencoder_seconds(pixels, CPU) == (0, 0)


def test_measures_and_training_fill_the_time():
    """With costs of seconds each, from a minute on; pictures and validations within their shares where they can be."""
    for minutes in (1.0, 2.0, 5.0, 10.0, 30.0, 120.0):
        for costs in (pace.Costs(0.01, 0.01), pace.Costs(4.0, 11.0), pace.Costs(1.0, 60.0)):
            found, total = pace.measures(60 * minutes, costs), 60 * minutes
            usable = pace.usable(minutes, costs)
            assert total / 2 <= usable and (usable == total / 2 or usable + found.seconds == pytest.approx(total))
            assert 2 <= found.validations <= 20 and 1 <= found.pictures <= 10
            assert found.validations == 2 or found.validations * costs.validation <= pace.VALIDATIONS * total
            assert found.pictures == 1 or found.pictures * costs.picture <= pace.PICTURES * total
            assert bool(found.first) == (total >= pace.EARLY)
    short = pace.measures(60.0, pace.Costs(4.0, 11.0))
    assert short == (2, 1, 0.0, pytest.approx(2 * 4 + 11 + 0.6))


def test_a_minute_of_an_arflow_is_not_spent_on_validation():
    """A validation of 256 sequences of 5 images costs as much as 427 images of training, which 20 times is too much."""
    found = plan("digits", minutes=1.0, device="cpu", speed=at(2e9), size="small")
    assert found.seconds + found.beside == pytest.approx(60, rel=0.05) and found.beside < 30
    count = math.ceil(found.run.train.steps / found.run.train.validate_every)
    cost = 256 * 5 * found.seconds / (found.run.train.steps * found.run.images_per_step) / 3
    assert count * cost < found.beside


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"minutes": 1e300}, "minutes must be at most 1,000,000, got 1e\\+300"),
        ({"epochs": 1e300}, "epochs must be at most 1,000,000"),
        ({"steps": 10**20}, "steps must be at most 1,000,000,000"),
        ({"settings": {"train.batch": 100_000}}, "train.batch is 100,000, and there are 1,257 images"),
        ({"settings": {"data.size": 100_000}}, "data.size must be at most 4,096, got 100,000"),
    ],
)
def test_lengths_and_sizes_beyond_sense_are_refused(asked, says):
    with pytest.raises(ValueError, match=says):
        plan("digits", device="cpu", speed=at(1e11), **asked)
