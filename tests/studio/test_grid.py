"""A grid of two settings: each image is that of its own settings."""

from dataclasses import replace

import numpy as np
import pytest

import fluvial
from fluvial import recipes
from fluvial.studio.grid import MOST, grid, values_of
from fluvial.studio.scene import Scene
from fluvial.studio.work import Stopped
from fluvial.utils import pictures


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("grid")
    run = recipes.smoke(recipes.get("digits-sit"))
    train = replace(run.train, steps=5, batch=8, validate_every=0, sample_every=0)
    fluvial.train(replace(run, train=train), root / "digits", device="cpu")
    return root


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("steps", "4 8,16", [4, 8, 16]),
        ("weight", "1, 1.5", [1.0, 1.5]),
        ("label", "cat dog", ["cat", "dog"]),
        ("label", "polar bear, dog", ["polar bear", "dog"]),
    ],
)
def test_values_are_read(name, text, expected):
    assert values_of(name, text) == expected


@pytest.mark.parametrize(
    ("name", "text", "usual"),
    [
        ("steps", "4 many", "whole numbers, such as 4 8 16"),
        ("steps", "1.5", "whole numbers, such as 4 8 16"),
        ("weight", "", "such as 1 1.5 2"),
        ("x", " , ", "such as 1 1.5 2"),
        ("x", "inf", "numbers, such as 1 1.5 2"),
        ("weight", "1 nan", "numbers, such as 1 1.5 2"),
    ],
)
def test_what_is_no_value_is_refused(name, text, usual):
    with pytest.raises(ValueError, match=usual):
        values_of(name, text)


def test_labels_name_the_seeds_and_every_row_is_drawn(root, monkeypatch):
    shown = {}
    monkeypatch.setattr(pictures, "labelled_rows", lambda rows, top: shown.update(rows=list(rows), top=list(top)))
    grid(root, Scene(run="digits", y=2.0), ("weight", [1.0, 1.0, 1.0000001]), ("x", [5.0, 1e6 + 1, 1e6 + 2, 5.0]))
    assert shown == {"rows": ["seed 205", "seed 1000201", "seed 1000202"], "top": ["guidance 1", "guidance 1.0000001"]}
    grid(root, Scene(run="digits", y=0.2), ("x", [0.0, 3.0]), ("steps", [1]))
    assert shown == {"rows": ["steps 1"], "top": ["x 0", "x 3"]}


def test_each_image_is_that_of_its_settings(root):
    scene, sampler = Scene(run="digits", count=9, label="3"), fluvial.load(root / "digits", device="cpu")
    drawn = grid(root, scene, ("steps", [2, 6]), ("x", [0.0, 5.0, 7.0]))
    array, found = np.asarray(drawn), []
    for seed in (0, 5, 7):
        for steps in (2, 6):
            image = sampler.sample(1, classes="3", seed=seed, steps=steps).images[0, 0].numpy()
            found.append(image)
    assert len({image.tobytes() for image in found}) > 3
    across = array[:, :, 0]
    for image in found:  # somewhere in the picture, upsampled by six
        assert any(
            (across[top : top + 48 : 6, left : left + 48 : 6] == image).all()
            for top in range(across.shape[0] - 47)
            for left in range(across.shape[1] - 47)
            if across[top, left] == image[0, 0]
        )


def test_what_makes_no_grid_is_refused(root):
    scene = Scene(run="digits")
    with pytest.raises(ValueError, match="two different settings, got steps twice"):
        grid(root, scene, ("steps", [1]), ("steps", [2]))
    with pytest.raises(ValueError, match=f"at most {MOST} images, got 101 x 1"):
        grid(root, scene, ("x", [0.0] * 101), ("steps", [2]))
    with pytest.raises(ValueError, match="is no run in"):
        grid(root, scene, ("run", ["../other"]), ("steps", [2]))

    def stop(done):
        if done == 2:
            raise Stopped("a test")

    with pytest.raises(Stopped):
        grid(root, scene, ("x", [0.0, 1.0, 2.0, 3.0]), ("steps", [1]), check=stop)
