"""The images that a run learns from: facts, unreadable ones, and what the autoencoder makes of them."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import fluvial
from fluvial import recipes
from fluvial.data.images import ImageSet
from fluvial.studio.dataset import as_seen, look_at, psnr
from fluvial.studio.work import Job, Stopped


@pytest.fixture
def photos(tmp_path):
    """A folder of two classes, 12 images of sizes from 8 to 19 pixels, and one that is damaged."""
    for i in range(12):
        (tmp_path / "photos" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 256, (8 + i, 9 + i), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / "ab"[i % 2] / f"{i}.png")
    (tmp_path / "photos" / "a" / "bad.png").write_bytes(b"\x89PNG and no more")
    return tmp_path / "photos"


def trained(photos, out):
    run = recipes.smoke(recipes.get("digits-sit"))
    data = replace(run.data, size=8, unreadable="skip")
    method = replace(run.method, classes=2)
    run = replace(run, method=method, data=data, train=replace(run.train, steps=1, batch=2))
    fluvial.train(run, out, data=photos, device="cpu")
    return out


def job(stopped=False):
    made = Job("a test", lambda job: None)
    if stopped:
        made.stop()
    return made


def test_facts_and_faults_are_told(photos, tmp_path):
    found = look_at(trained(photos, tmp_path / "run"), job())
    assert found.classes == {"a": 7, "b": 6} and found.facts["classes"] == "2"
    assert found.facts["size in pixels"] == "9 x 8 to 20 x 19"
    assert found.facts["cropped to"] == "8 x 8 (centre)"
    assert len(found.unreadable) == 1 and "a/bad.png: cannot be decoded" in found.unreadable[0]
    assert found.sheet.startswith(b"\x89PNG") and found.seen.startswith(b"\x89PNG") and found.psnr == ()


def test_images_that_moved_say_so(photos, tmp_path):
    run = trained(photos, tmp_path / "run")
    with pytest.raises(Stopped):
        look_at(run, job(stopped=True))
    photos.rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="photos"):
        look_at(run, job())


def test_psnr_is_that_of_the_formula():
    one = torch.zeros(1, 4, 4, dtype=torch.uint8)
    assert psnr(one, one) == math.inf
    assert psnr(one, one + 255) == pytest.approx(0.0)
    assert psnr(one, one + 51) == pytest.approx(20 * math.log10(5))


def test_the_autoencoder_is_asked():
    class Halving:
        stride = 2

        def moments(self, images):
            return images[:, :, ::2, ::2]

        def latents(self, moments, draw):
            return moments

        def decode(self, latents):
            return latents.repeat_interleave(2, 2).repeat_interleave(2, 3)

    pixels = torch.arange(3 * 16, dtype=torch.uint8).reshape(3, 1, 4, 4)
    seen, after = as_seen(ImageSet(pixels, None, ()), Halving())
    assert torch.equal(seen, pixels)
    assert torch.equal(after, pixels[:, :, ::2, ::2].repeat_interleave(2, 2).repeat_interleave(2, 3))
