import numpy as np
import pytest
import torch
from PIL import Image

from fluvial.utils import pictures


def images(n, c, side):
    return torch.randint(0, 256, (n, c, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("c", "side", "factor"), [(1, 8, 6), (3, 32, 1), (3, 64, 1)])
def test_every_image_is_where_the_grid_says(tmp_path, c, side, factor):
    x = images(7, c, side)
    picture = np.array(Image.open(pictures.save_grid(x, tmp_path / "a" / "grid.png", columns=3)))
    cell = (side + 1) * factor
    assert picture.shape[:2] == (3 * cell + factor, 3 * cell + factor)
    for i, image in enumerate(x):
        top, left = i // 3 * cell + factor, i % 3 * cell + factor
        part = picture[top : top + side * factor : factor, left : left + side * factor : factor]
        assert np.array_equal(part, image.permute(1, 2, 0).squeeze(-1).numpy() if c == 1 else image.permute(1, 2, 0))
    assert (picture[:factor] == 255).all() and (picture[-cell:, -cell:] == 255).all()  # gaps and empty cells are white


def test_a_gif_has_a_frame_a_step(tmp_path):
    frames = [images(4, 1, 8) // (i + 1) for i in range(5)]
    gif = Image.open(pictures.save_gif(frames, tmp_path / "t.gif", columns=2))
    assert gif.n_frames == 5
    for i, frame in enumerate(frames):
        gif.seek(i)
        assert np.array_equal(np.array(gif.convert("L")), np.array(pictures.grid(frame, 2)))
    assert gif.info["duration"] == 12 * 80


@pytest.mark.parametrize("c", [1, 3])
def test_the_npz_is_what_evaluators_read(tmp_path, c):
    x, labels = images(6, c, 8), torch.arange(6)
    stored = np.load(pictures.save_npz(x, labels, tmp_path / "x.npz"))
    assert stored["arr_0"].dtype == np.uint8 and stored["arr_0"].shape == (6, 8, 8, 3)
    assert np.array_equal(stored["arr_0"][2, :, :, 1], x[2, -1 if c == 1 else 1]) and stored["arr_1"].tolist() == list(
        range(6)
    )


def test_two_channels_are_no_picture():
    with pytest.raises(ValueError, match="1 or 3 channels, got 2"):
        pictures.grid(images(1, 2, 8))
