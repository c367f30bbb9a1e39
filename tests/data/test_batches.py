import numpy as np
import pytest
import torch
from PIL import Image

from fluvial.data.batches import ahead, batches, shuffled
from fluvial.data.images import DataConfig, ImageSet, digits, load
from fluvial.data.pixels import to_signed


def identity(pixels, generator, part):
    return to_signed(pixels)


def test_every_image_once_an_epoch_in_a_new_order():
    seen = torch.cat([shuffled(10, seed=0, step=s, batch=4) for s in range(5)])
    epochs = seen.reshape(2, 10)
    for epoch in epochs:
        assert sorted(epoch.tolist()) == list(range(10))
    assert not torch.equal(*epochs)


def test_images_come_with_their_labels():
    data = digits("train")
    latents, labels = batches(data, identity, batch=16, seed=0)(7)
    chosen = shuffled(len(data.pixels), 0, 7, 16)
    assert torch.equal(latents, to_signed(data.pixels[chosen])) and torch.equal(labels, data.labels[chosen])


def test_sequences_come_with_one_label():
    data = digits("train")
    latents, labels = batches(data, identity, batch=6, seed=0, images_per_sequence=5)(7)
    assert latents.shape == (6, 5, 1, 8, 8) and labels.shape == (6,)
    by_pixels = {tuple(p.flatten().tolist()): int(y) for p, y in zip(to_signed(data.pixels), data.labels, strict=True)}
    assert [[by_pixels[tuple(i.flatten().tolist())] for i in row] for row in latents] == [
        [y] * 5 for y in labels.tolist()
    ]


def test_flips_mirror_about_half_of_the_images():
    pixels = torch.arange(64, dtype=torch.uint8).reshape(1, 1, 8, 8).expand(200, -1, -1, -1)
    latents, labels = batches(ImageSet(pixels, None, ()), identity, batch=200, seed=0, flip=True)(0)
    original = to_signed(pixels[:1])
    mirrored = (latents == original.flip(-1)).flatten(1).all(1)
    assert labels is None
    assert torch.equal(~mirrored, (latents == original).flatten(1).all(1)) and 70 < mirrored.sum() < 130


def test_unlabelled_images_make_sequences_too():
    data = ImageSet(digits("train").pixels[:20], None, ())
    latents, labels = batches(data, identity, batch=2, seed=0, images_per_sequence=5)(0)
    assert latents.shape == (2, 5, 1, 8, 8) and labels is None


def test_no_images_is_an_error():
    with pytest.raises(ValueError, match="no images"):
        batches(ImageSet(torch.zeros(0, 1, 8, 8, dtype=torch.uint8), None, ()), identity, batch=2, seed=0)


def test_what_is_made_ahead_is_what_is_asked_for():
    at = ahead(lambda step: 10 * step)
    assert [at(step) for step in (0, 1, 2, 7, 8, 8, 3)] == [0, 10, 20, 70, 80, 80, 30]

    def fails(step):
        raise ValueError(f"step {step}")

    with pytest.raises(ValueError, match="step 4"):
        ahead(fails)(4)


def test_random_crops_differ_from_step_to_step(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 36, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    images = load(DataConfig(path=str(tmp_path), size=8, crop="random"), "train")
    at = batches(images, identity, batch=2, seed=0)
    assert torch.equal(at(3)[0], batches(images, identity, batch=2, seed=0)(3)[0])
    assert not torch.equal(at(3)[0], at(4)[0])
    assert not torch.equal(at(3)[0], batches(images, identity, batch=2, seed=1)(3)[0])
