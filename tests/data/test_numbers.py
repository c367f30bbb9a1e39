"""Parquet columns whose rows are lists of numbers: the pixels are the oracle."""

import datasets
import numpy as np
import pytest
from datasets import Array2D, Array3D, LargeList, List, Value

from fluvial.data.images import DataConfig, load

RNG = np.random.default_rng(0)
GREY, COLOUR = RNG.integers(0, 256, (5, 7, 6)), RNG.integers(0, 256, (5, 7, 6, 3))
FIRST = np.moveaxis(COLOUR, -1, 1)


def opened(tmp_path, rows, feature=None, **options):
    features = None if feature is None else datasets.Features({"image": feature})
    datasets.Dataset.from_dict({"image": rows}, features=features).to_parquet(tmp_path / "a.parquet")
    return load(DataConfig(path=str(tmp_path / "a.parquet"), **options), "train")


@pytest.mark.parametrize(
    ("array", "feature"),
    [
        (GREY, List(List(Value("uint8")))),
        (GREY, List(List(Value("uint8"), length=6), length=7)),
        (GREY, LargeList(LargeList(Value("int32")))),
        (GREY, None),  # int64, as of lists in Python
        (GREY, Array2D((7, 6), "uint8")),
        (GREY[..., None], List(List(List(Value("uint8"))))),
        (GREY[:, None], List(List(List(Value("uint8"))))),
        (COLOUR, List(List(List(Value("uint8"))))),
        (COLOUR, Array3D((7, 6, 3), "uint8")),
        (FIRST, List(List(List(Value("uint8"))))),
        (FIRST, Array3D((3, 7, 6), "int64")),
    ],
)
def test_lists_of_numbers_are_images(tmp_path, array, feature):
    expected = FIRST if array.size == COLOUR.size else np.repeat(GREY[:, None], 3, 1)
    images = opened(tmp_path, array.tolist(), feature)
    assert np.array_equal(images.pixels.numpy(), expected)
    assert opened(tmp_path, array.tolist(), feature).digest == images.digest
    changed = array.copy()
    changed.flat[-1] = 255 - changed.flat[-1]
    assert opened(tmp_path, changed.tolist(), feature).digest != images.digest


def test_rows_that_are_no_image_are_named(tmp_path):
    rows = [GREY[0].tolist(), None, [[1, 2], [3]], [[1, None]], [[300, 1]], [[-1, 1]], [], GREY[1].tolist()]
    with pytest.raises(
        ValueError, match=r"6 unreadable images: .*row 1: .*empty.*row 2: .*row 3: .*row 4: numbers fro"
    ):
        opened(tmp_path, rows)
    images = opened(tmp_path, rows, unreadable="skip")
    assert np.array_equal(images.pixels[:, 0].numpy(), GREY[:2])


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ((COLOUR / 255).tolist(), "numbers of the type float64; wanted whole numbers in 0 ... 255"),
        ((GREY > 99).tolist(), "numbers of the type bool"),
        (GREY.reshape(5, -1).tolist(), r"numbers of shape \(42,\)"),
    ],
)
def test_numbers_that_have_no_known_range_or_shape_are_refused(tmp_path, rows, says):
    with pytest.raises(ValueError, match=says):
        opened(tmp_path, rows)


def test_lists_of_other_things_are_no_images(tmp_path):
    with pytest.raises(ValueError, match="column 'image' holds .*not images; set data.image_column"):
        opened(tmp_path, [["a", "b"]])
