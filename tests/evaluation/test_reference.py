"""References: the ADM suite's .npz, saved statistics, and the cache."""

import numpy as np
import pytest
import torch
from PIL import Image

from fluvial.evaluation import reference as module
from fluvial.evaluation.opening import open_images
from fluvial.evaluation.reference import open_reference, save_reference
from fluvial.evaluation.statistics import statistics
from fluvial.metrics.features import Extractor, Features, extractor
from fluvial.metrics.frechet import fit


def look_as(name, scale=1.0, weights="w"):
    """An extractor that counts what it sees."""

    def extract(images):
        extract.seen += len(images)
        x = images.flatten(1).float() * scale
        return Features(x[:, :5], x[:, 5:9])

    extract.seen = 0
    return Extractor(name=name, hash=weights, resize="none", extract=extract), extract


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (30, 4, 4, 3), dtype=np.uint8)


def test_adms_statistics_are_taken_and_its_images_are_for_neighbours(tmp_path, pixels):
    """The statistics are of the whole data set, the images a part of it."""
    of_all = fit(torch.randn(50, 5, dtype=torch.float64)), fit(torch.randn(50, 4, dtype=torch.float64))
    pairs = {
        "mu": of_all[0].mean,
        "sigma": of_all[0].covariance,
        "mu_s": of_all[1].mean,
        "sigma_s": of_all[1].covariance,
    }
    np.savez(tmp_path / "adm.npz", arr_0=pixels, **{name: value.numpy() for name, value in pairs.items()})
    look, _ = look_as("inception")
    found = open_reference(str(tmp_path / "adm.npz"), look).statistics
    assert torch.equal(found.pooled.covariance, of_all[0].covariance) and torch.equal(
        found.spatial.mean, of_all[1].mean
    )
    expected = look.extract(torch.from_numpy(pixels).permute(0, 3, 1, 2)).pooled
    assert torch.equal(found.features.sort(dim=0).values, expected.sort(dim=0).values)
    assert found.shape == (3, 4, 4) and found.n == 0  # of how many the statistics are, the file does not say
    look, seen = look_as("inception")
    open_reference(str(tmp_path / "adm.npz"), look)
    assert seen.seen == 0  # the images have been looked at before
    with pytest.raises(ValueError, match="statistics of Inception's features, the extractor is pixels"):
        open_reference(str(tmp_path / "adm.npz"), extractor("pixels"))


def test_statistics_without_images_and_images_without_statistics(tmp_path, pixels):
    np.savez(tmp_path / "a.npz", mu=np.zeros(5), sigma=np.eye(5))
    look, _ = look_as("inception")
    found = open_reference(str(tmp_path / "a.npz"), look).statistics
    assert found.features.shape == (0, 5) and found.spatial is None and found.n == 0 and found.shape == ()
    np.savez(tmp_path / "b.npz", pixels)
    assert open_reference(str(tmp_path / "b.npz"), look).statistics.n == 30
    np.savez(tmp_path / "c.npz", mu=np.zeros(5))
    with pytest.raises(ValueError, match="c.npz has mu; expected mu and sigma"):
        open_reference(str(tmp_path / "c.npz"), look)
    np.savez(tmp_path / "d.npz", mu=np.zeros(5), sigma=np.eye(4))
    np.savez(tmp_path / "e.npz", mu=np.zeros(5), sigma=np.full((5, 5), np.nan))
    with pytest.raises(ValueError, match="mu and sigma are not finite"):
        open_reference(str(tmp_path / "e.npz"), look)
    with pytest.raises(ValueError, match=r"must be \(d,\) and \(d, d\), got \(5,\) and \(4, 4\)"):
        open_reference(str(tmp_path / "d.npz"), look)


def test_what_was_kept_is_a_reference_for_the_same_extractor(tmp_path, pixels):
    np.savez(tmp_path / "a.npz", pixels)
    look, seen = look_as("mine")
    made = open_reference(str(tmp_path / "a.npz"), look)
    save_reference(made, look, tmp_path / "kept.safetensors")
    before = seen.seen
    again = open_reference(str(tmp_path / "kept.safetensors"), look)
    assert seen.seen == before and again.hash == made.hash and again.name == made.name
    assert torch.equal(again.statistics.pooled.covariance, made.statistics.pooled.covariance)
    other, _ = look_as("mine", weights="v")
    with pytest.raises(ValueError, match=r"holds statistics by mine \(w\), the extractor is mine \(v\)"):
        open_reference(str(tmp_path / "kept.safetensors"), other)


def test_statistics_are_computed_once_for_a_content_and_an_extractor(tmp_path, pixels, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        for i, image in enumerate(pixels):
            Image.fromarray(image).save(tmp_path / folder / f"{i:02}.png")
    look, seen = look_as("mine")
    first = open_reference(str(tmp_path / "a"), look).statistics
    assert seen.seen == 30
    again = open_reference(str(tmp_path / "b"), look).statistics  # the same images elsewhere
    assert seen.seen == 30 and torch.equal(first.features, again.features)
    for other, count in ((look_as("mine", weights="v"), 30), (look_as("other"), 30), (look_as("mine", weights=""), 30)):
        open_reference(str(tmp_path / "a"), other[0])
        assert other[1].seen == count
    Image.fromarray(255 - pixels[3]).save(tmp_path / "b" / "03.png")
    assert not torch.equal(open_reference(str(tmp_path / "b"), look).statistics.pooled.mean, first.pooled.mean)
    assert seen.seen == 60
    open_images(str(tmp_path / "a"))
    module.reference(open_images(str(tmp_path / "a")), look, kept=7)  # fewer features are another file
    assert seen.seen == 90


def test_a_damaged_cache_is_made_again(tmp_path, pixels, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    np.savez(tmp_path / "a.npz", pixels)
    look, _ = look_as("mine")
    first = open_reference(str(tmp_path / "a.npz"), look)
    (file,) = (tmp_path / "cache").rglob("*.safetensors")
    file.write_bytes(b"cut short")
    assert not list(file.parent.glob(".*"))
    assert torch.equal(open_reference(str(tmp_path / "a.npz"), look).statistics.features, first.statistics.features)
    assert statistics(open_images(str(tmp_path / "a.npz")), look).n == 30
