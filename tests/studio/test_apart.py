"""The steps of a drawing: they are those of the sampler, and what is drawn otherwise is what the edits draw."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

import fluvial
from fluvial import recipes
from fluvial.flow.guidance import Guidance
from fluvial.methods import method_of
from fluvial.nn.attention import HybridLinearAttention
from fluvial.run.inputs import open_autoencoder
from fluvial.run.load import Sampler
from fluvial.studio import apart
from fluvial.studio.apart import Recording, fork_time, forked, gates, pictures_of, record, redrawn, strip_of, weights_of
from fluvial.studio.apart_drawn import beside, difference
from fluvial.studio.apart_lines import Change, Choice, as_command, as_python, from_query, to_query
from fluvial.studio.draw import png_of
from fluvial.studio.work import Stopped

METHODS = ("sit", "arflow", "flowar")


@pytest.fixture(scope="module", params=METHODS)
def sampler(request):
    return made(request.param)


def made(method, **sample):
    """A sampler of random weights, whose velocities are not zero."""
    run = recipes.smoke(recipes.get(f"digits-{method}"))
    run = replace(run, sample=replace(run.sample, **sample))
    torch.manual_seed(0)
    model = method_of(run.method).Model(run.method).requires_grad_(False).eval()
    for parameter in model.parameters():
        parameter.add_(0.05 * torch.randn_like(parameter))
    return Sampler(model=model, run=run, autoencoder=open_autoencoder(run.autoencoder))


def test_the_images_are_the_samplers(sampler):
    drawn = record(sampler, count=3, seed=5)
    samples = sampler.sample(3, seed=5, trajectory=True, preview=True)
    assert torch.equal(drawn.samples.images, samples.images)
    assert pictures_of(sampler, drawn.frames[-1]) == (png_of(samples.images, 3),) * 2 + (b"",)
    steps = [frame for frame in drawn.frames if frame.velocity is not None]
    assert len(steps) == len(samples.trajectory)
    for frame, preview in zip(steps, samples.preview[:-1], strict=True):
        assert pictures_of(sampler, frame)[1] == png_of(preview, 3)
    ends = [png_of(stage, 1) for stage in samples.stages]
    assert [png for _, png in strip_of(sampler, drawn)] == ends


def test_estimate_and_velocity_are_those_of_the_path(sampler):
    """Of the linear path: x1 = x + (1 - t) v, and one Euler step leads to the next point."""
    sampler = replace(sampler, run=replace(sampler.run, sample=replace(sampler.run.sample, solver="euler")))
    frames = record(sampler, count=2, label="3").frames
    for before, after in pairwise(frames):
        if before.velocity is None:
            continue
        t = before.t.view(-1, 1, 1, 1)
        torch.testing.assert_close(apart.estimate(sampler, before), before.x + (1 - t) * before.velocity)
        step = (after.t - before.t).view(-1, 1, 1, 1)
        torch.testing.assert_close(after.x, before.x + step * before.velocity)


def test_a_history_of_none_is_that_setting():
    sampler = made("arflow")
    first = record(sampler, count=2, seed=1)
    for points in (0, 1):
        drawn = record(sampler, count=2, seed=1, history=points)
        expected = sampler.sample(2, seed=1, settings=replace(sampler.run.sample, history=points)).images
        assert torch.equal(drawn.samples.images, expected)
        assert torch.equal(drawn.frames[0].x, first.frames[0].x), "from the same noise"
        mean = (expected.double() - first.samples.images.double()).abs().mean()
        assert difference(first, drawn) == pytest.approx(float(mean)) and mean > 0


def test_scales_are_kept_and_drawn_again_as_by_vary():
    sampler = made("flowar")
    first = record(sampler, count=2, label="3")
    for keep, label in ((0, ""), (1, ""), (2, "7")):
        drawn = redrawn(sampler, first, keep=keep, seed=9, label=label)
        expected = fluvial.edit.vary(sampler, first.samples.images, keep=keep, seed=9, classes=int(label or 3))
        assert torch.equal(drawn.samples.images, expected.images)
        assert len(drawn.ends) == 3 and {frame.scale for frame in drawn.frames[keep:]} == {
            frame.scale for frame in drawn.ends[keep:]
        }
        assert [f.number for f in drawn.ends[:keep]] == [0] * keep, "no step was taken"
    other = redrawn(sampler, first, keep=2, seed=10)
    ours, theirs = strip_of(sampler, drawn), strip_of(sampler, other)
    assert ours[:2] == theirs[:2] and ours[2] != theirs[2]
    places = [beside(drawn, frame) for frame in first.frames]
    assert places == [0] * 6 + [1] * 6 + list(range(2, 8)), "5 steps and an end a scale, of which two are kept"
    with pytest.raises(ValueError, match="keep must be from 0 to 2"):
        redrawn(sampler, first, keep=3, seed=0)


@pytest.mark.parametrize("method", ["sit", "arflow"])
def test_a_fork_is_the_edits(method):
    sampler = made(method)
    first = record(sampler, count=2, seed=4)
    at = fork_time(sampler, first.frames[2])
    assert at == sampler.run.sample.times().tolist()[2]
    drawn = forked(sampler, first, at=at, seed=4, index=1)
    expected = fluvial.edit.fork(sampler, 1, apart.FORKS, at=at, seed=4, classes=1).images
    assert torch.equal(drawn.samples.images, expected)
    for frame in drawn.frames[:2]:
        assert torch.equal(frame.x, frame.x[:1].expand_as(frame.x)), "one until the fork"
    torch.testing.assert_close(drawn.frames[1].x[0], first.frames[1].x[1])
    assert len(drawn.frames) == len(first.frames)
    assert difference(first, drawn) is None
    mean = (expected.double() - first.samples.images[1:].double()).abs().mean()
    assert difference(first, drawn, 1) == pytest.approx(float(mean))


def test_what_cannot_be_forked_has_no_time_for_it():
    for sampler in (made("flowar"), made("sit", solver="euler-maruyama"), made("sit", steps=1)):
        assert {fork_time(sampler, frame) for frame in record(sampler).frames} == {None}
    sampler = made("sit", steps=2)
    assert [fork_time(sampler, frame) for frame in record(sampler).frames] == [None, 0.5, None]
    sampler = made("sit", solver="dopri5")
    assert 0 < fork_time(sampler, record(sampler).frames[1]) < 0.5


def test_a_recording_is_bounded_and_keeps_first_step_and_ends(monkeypatch):
    sampler = made("flowar", steps=(40, 3, 5))
    whole = record(sampler).frames
    monkeypatch.setattr(apart, "MOST_FRAMES", 20)
    frames = record(sampler).frames
    assert len(whole) == 48 + 3 and len(frames) <= 20
    assert torch.equal(frames[0].x, whole[0].x) and torch.equal(frames[-1].x, whole[-1].x)
    assert [f.scale for f in frames if f.velocity is None] == ["1x1", "2x2", "4x4"]
    gaps = {b.number - a.number for a, b in pairwise(frames) if a.velocity is not None}
    assert max(gaps) <= 4
    monkeypatch.setattr(apart, "MOST_BYTES", 1)
    assert len(record(sampler).frames) <= apart.LEAST_FRAMES


def test_a_recording_is_stopped():
    def check():
        raise Stopped

    with pytest.raises(Stopped):
        record(made("sit"), check=check)
    assert Recording().frames == []


def test_weights_of_guidance_are_those_of_the_interval():
    sampler = made("sit", steps=4, guidance=Guidance(weight=2.0, interval=(0.25, 0.5)))
    assert weights_of(sampler, record(sampler)) == [1.0, 2.0, 2.0, 1.0, None]
    sampler = made("flowar", steps=1, guidance=Guidance(weight=3.0, ramp="linear"))
    assert weights_of(sampler, record(sampler)) == [1.0, None, 2.0, None, 3.0, None]
    sampler = made("sit", guidance=Guidance(weight=1.0))
    assert weights_of(sampler, record(sampler)) == []


def test_velocities_are_shown_around_grey():
    velocity = torch.tensor([-10.0, -apart.VELOCITY, 0.0, apart.VELOCITY]).view(1, 1, 2, 2)
    assert apart.velocity_images(velocity).flatten().tolist() == [0, 0, 128, 255]
    five = torch.arange(5.0).view(1, 5, 1, 1).expand(1, 5, 2, 3)
    shown = apart.velocity_images(five)
    assert shown.shape == (1, 1, 4, 9)
    assert shown[0, 0, ::2, ::3].tolist() == [[128, 159, 191], [223, 255, 128]]


def test_the_decay_is_that_of_the_attention():
    """The history after an image is linear in the one before it, and the factor is the decay."""
    torch.manual_seed(0)
    for image_decay in ("mean", "sum"):
        attention = HybridLinearAttention(8, 2, image_decay=image_decay)
        x, condition, before = torch.randn(3, 1, 5, 8), torch.randn(3, 1, 8), torch.randn(3, 2, 4, 4)
        with gates(attention) as decays:
            _, after = attention(x, condition, before)
        factor = (after - attention(x, condition)[1]) / before
        expected = factor.mean((2, 3)).log().mean(0).exp()
        torch.testing.assert_close(torch.tensor(decays()[0]), expected, rtol=1e-3, atol=1e-4)
    assert apart.half_life(0.5) == 1 and apart.half_life(0.5**0.25) == pytest.approx(4)


def test_only_arflow_has_a_decay(sampler):
    decays, config = record(sampler).decays, sampler.run.method
    assert len(decays) == (config.depth if config.images_per_sequence else 0)
    assert all(len(heads) == config.heads and all(0 < part < 1 for part in heads) for heads in decays)


def test_links_restore_what_was_chosen():
    choice = Choice(run="a/b", label="polar bear", seed=7, count=3)
    assert from_query(to_query(choice)) == choice
    assert to_query(Choice(run="a")) == {"run": "a"}
    assert from_query({"seed": "-1", "count": "99", "other": "1"}) == Choice()
    assert from_query({"seed": "9" * 30, "count": "x"}) == Choice()


def test_lines_quote_what_they_are_given():
    choice, folder = Choice(label="polar bear", seed=2, count=2), Path("a b")
    assert as_command(choice, folder) == (
        "fluvial sample 'a b' --seed 2 --count 2 --columns 2 --classes 'polar bear' --out picture"
    )
    assert as_command(choice, folder, Change(history=0)).endswith("--sample.history 0 --out changed")
    assert as_command(choice, folder, Change(keep=1, seed=3)).count("\n") == 1
    for change in (None, Change(history=3), Change(keep=1), Change(at=0.5, index=1)):
        compile(as_python(choice, folder, 0, change), "lines", "exec")
