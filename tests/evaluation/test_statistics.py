"""Statistics in batches against those of all images at once; what is refused; files of statistics."""

import dataclasses

import pytest
import torch

from fluvial.evaluation import scores as scoring
from fluvial.evaluation import statistics as module
from fluvial.evaluation.images import Images
from fluvial.evaluation.scores import scores
from fluvial.evaluation.statistics import kept_order, load, save, statistics
from fluvial.metrics import Estimate
from fluvial.metrics.classifier_score import classified, splits
from fluvial.metrics.features import Features, extractor
from fluvial.metrics.frechet import fit


def images_of(pixels, labels=None, name="given"):
    def read(wanted):
        return pixels[list(wanted)], None if labels is None else labels[list(wanted)]

    return Images(name, len(pixels), read, lambda wanted: "digest", {})


def all_three(images):
    """An extractor of pooled and spatial features, and logits."""
    x = images.flatten(1).float() / 255
    return Features(x[:, :6], x[:, 2:11], x[:, :4] * 3)


LOOK = dataclasses.replace(extractor("pixels"), name="mine", extract=all_three)


@pytest.fixture
def pixels():
    return torch.randint(0, 256, (103, 3, 4, 4), dtype=torch.uint8)


def test_batches_make_no_difference(pixels):
    found = statistics(images_of(pixels, torch.arange(103)), LOOK, batch=10)
    whole = all_three(pixels)
    for gaussian, features in ((found.pooled, whole.pooled), (found.spatial, whole.spatial)):
        torch.testing.assert_close(gaussian.mean, fit(features).mean, rtol=1e-12, atol=0)
        torch.testing.assert_close(gaussian.covariance, fit(features).covariance, rtol=1e-10, atol=1e-14)
    for part, expected in zip(found.classes, classified(whole.logits, splits(103)), strict=True):
        torch.testing.assert_close(part, expected, rtol=1e-12, atol=1e-12)
    order = kept_order(103)
    assert torch.equal(found.features, whole.pooled[order]) and torch.equal(found.labels, order)
    assert (found.n, found.shape) == (103, (3, 4, 4))


def test_as_many_features_are_kept_as_there_is_room_for(pixels):
    whole, some = (statistics(images_of(pixels), LOOK, batch=10, kept=kept) for kept in (200, 40))
    assert torch.equal(some.features, whole.features[:40]) and torch.equal(some.pooled.mean, whole.pooled.mean)
    first = whole.first(40)
    torch.testing.assert_close(first.pooled.covariance, fit(whole.features[:40]).covariance)
    assert first.n == 40 and first.spatial is None and whole.first(103) is whole


def test_features_that_are_not_finite_are_named(pixels):
    def broken(images):
        features = all_three(images).pooled
        return Features(torch.where((images[:, 0, 0, 0] == pixels[37, 0, 0, 0])[:, None], torch.nan, features))

    first = int((pixels[:, 0, 0, 0] == pixels[37, 0, 0, 0]).nonzero()[0])
    with pytest.raises(ValueError, match=f"mine gives features that are not finite, first for image {first} of given"):
        statistics(images_of(pixels), dataclasses.replace(LOOK, extract=broken), batch=10)


def test_images_of_one_colour_are_counted(pixels):
    pixels[[3, 50, 102]] = torch.tensor([7, 200, 7], dtype=torch.uint8)[:, None, None]  # a colour, not one grey
    pixels[60] = 0
    pixels[70, 0] = 5  # one channel of three
    assert statistics(images_of(pixels), LOOK, batch=10).flat == 4


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda pixels: pixels.zero_(), "all samples have the same features: "),
        (lambda pixels: pixels.copy_(pixels[:1].clone()), "all samples have the same features: "),
        (lambda pixels: pixels.zero_(), "103 of 103 samples are a single colour"),
        (lambda pixels: pixels[:2].fill_(255), "2 of 103 samples are a single colour"),
    ],
)
def test_samples_that_say_nothing_are_warned_of(pixels, change, says):
    real = statistics(images_of(pixels.clone()), LOOK)
    usual = scores(real, real, "mine").warnings
    assert not any("same features" in text or "single colour" in text for text in usual)
    change(pixels)
    found = scores(statistics(images_of(pixels), LOOK), real, "mine").warnings
    assert any(text.startswith(says) for text in found)


def test_a_score_that_is_not_finite_is_warned_of(pixels, monkeypatch):
    real = statistics(images_of(pixels), LOOK)
    monkeypatch.setattr(scoring, "frechet", lambda *_: Estimate(float("nan"), 0.0))
    assert "frechet_distance is not finite" in scores(real, real, "mine").warnings


def test_images_of_several_sizes_and_single_images_are_refused(pixels):
    def mixed(wanted):
        return (pixels if 50 not in wanted else pixels[:, :, :3])[list(wanted)], None

    with pytest.raises(ValueError, match=r"given: images of \(3, 3, 4\) .* after images of \(3, 4, 4\)"):
        statistics(images_of(pixels)._replace(read=mixed), LOOK, batch=10)
    seen = []
    look = dataclasses.replace(LOOK, extract=lambda images: seen.append(1) or all_three(images))
    with pytest.raises(
        ValueError, match=r"of \(3, 4, 4\) .*, the reference of \(3, 8, 8\): resizing changes every score"
    ):
        statistics(images_of(pixels), look, shape=(3, 8, 8), batch=10)
    assert not seen  # it is told before anything is computed
    with pytest.raises(ValueError, match="given has 1 images; statistics need at least 2"):
        statistics(images_of(pixels[:1]), LOOK)


def test_a_file_of_statistics_is_read_back(pixels, tmp_path):
    found = statistics(images_of(pixels, torch.arange(103)), LOOK, batch=10)
    save(found, tmp_path / "a.safetensors", {"extractor": "mine"})
    read, about = load(tmp_path / "a.safetensors")
    assert about["extractor"] == "mine" and (read.n, read.shape) == (103, (3, 4, 4))
    assert torch.equal(read.features, found.features) and torch.equal(read.labels, found.labels)
    for a, b in ((read.pooled, found.pooled), (read.spatial, found.spatial)):
        assert torch.equal(a.mean, b.mean) and torch.equal(a.covariance, b.covariance)
    (tmp_path / "b.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match="cannot be read"):
        load(tmp_path / "b.safetensors")
    module.write_tensors(tmp_path / "c.safetensors", {"x": torch.zeros(2)})
    with pytest.raises(ValueError, match="does not hold statistics of this version"):
        load(tmp_path / "c.safetensors")


def test_a_large_npz_is_measured_in_little_memory(tmp_path):
    """Memory is that of a batch, though the file is 200 MB."""
    import subprocess
    import sys

    import numpy as np

    np.savez(tmp_path / "a.npz", np.random.default_rng(0).integers(0, 256, (1040, 256, 256, 3), dtype=np.uint8))
    program = """
import sys, torch
from fluvial.evaluation.opening import open_images
from fluvial.evaluation.statistics import statistics
from fluvial.metrics.features import extractor
def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024
torch.set_num_threads(1)
look = extractor(lambda images: images[:, :, ::32, ::32].flatten(1).float())
look.extract(torch.zeros(16, 3, 256, 256, dtype=torch.uint8))
before = peak()
statistics(open_images(sys.argv[1]), look, batch=16)
print(peak() - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "a.npz")], capture_output=True, text=True, check=True
    )
    assert float(done.stdout) < 60
