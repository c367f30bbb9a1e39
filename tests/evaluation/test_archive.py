import io
import zipfile

import numpy as np
import pytest
import torch

from fluvial.evaluation import archive
from fluvial.evaluation.images import open_images
from fluvial.evaluation.reference import open_reference
from fluvial.evaluation.statistics import load, statistics
from fluvial.metrics.features import extractor


def images(path, compressed=False, count=6):
    rng = np.random.default_rng(0)
    arrays = {"arr_0": rng.integers(0, 256, (count, 4, 4, 3), dtype=np.uint8), "arr_1": np.arange(count)}
    (np.savez_compressed if compressed else np.savez)(path, **arrays)
    return arrays


@pytest.mark.parametrize("compressed", [False, True])
def test_no_flipped_bit_changes_what_is_read(tmp_path, compressed):
    arrays, path = images(tmp_path / "a.npz", compressed), tmp_path / "a.npz"
    whole, accepted = path.read_bytes(), 0
    for place in range(0, len(whole) * 8, 7):
        changed = bytearray(whole)
        changed[place // 8] ^= 1 << place % 8
        path.write_bytes(changed)
        try:
            opened = open_images(str(path))
            pixels, labels = opened.read(range(opened.n))
        except ValueError as error:
            assert str(path) in str(error)
            continue
        accepted += 1  # such as a time in the zip's directory, or the label array's name
        np.testing.assert_array_equal(pixels.numpy(), arrays["arr_0"].transpose(0, 3, 1, 2))
        assert labels is None or labels.tolist() == arrays["arr_1"].tolist()
    assert accepted < len(whole) * 8 / 7 / 4


def forged(path, header, content=b"", name="arr_0.npy", declared=None):
    """An .npz whose array has this header, as numpy would write it of a shape that is not there."""
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, header)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr(name, head.getvalue() + content)
    return str(path)


def test_a_header_that_claims_more_than_there_is_is_refused_before_anything_is_allocated(tmp_path):
    plain = {"descr": "|u1", "fortran_order": False}
    cases = {
        "its header says uint8 of .10+, 1, 1, 3., 3,000,000,000,128 bytes": {**plain, "shape": (10**12, 1, 1, 3)},
        "its header says": {**plain, "shape": (2, 4, 4, 3)},
        "must be a plain array in C order": {**plain, "shape": (0, 4, 4, 3), "fortran_order": True},
        "must be a plain array in C order, got object": {**plain, "descr": "|O", "shape": (0, 4, 4, 3)},
    }
    for reason, header in cases.items():
        with pytest.raises(ValueError, match=reason):
            open_images(forged(tmp_path / "a.npz", header, bytes(10)))
    with pytest.raises(ValueError, match="its header says"):  # a small header before very much
        open_images(forged(tmp_path / "a.npz", {**plain, "shape": (2, 4, 4, 3)}, bytes(10**7)))
    (tmp_path / "b.npz").write_bytes(b"PK\x03\x04")
    for name in ("b.npz", "nowhere.npz"):
        with pytest.raises(ValueError, match="cannot be read as .npz"):
            open_images(str(tmp_path / name))


def test_two_arrays_of_one_name_are_refused(tmp_path):
    images(tmp_path / "a.npz")
    with zipfile.ZipFile(tmp_path / "a.npz", "a") as file, pytest.warns(UserWarning):
        file.writestr("arr_0.npy", b"other")
    with pytest.raises(ValueError, match="two arrays of one name"), archive.opened(tmp_path / "a.npz"):
        pass


@pytest.mark.parametrize(
    ("mu", "sigma", "reason"),
    [
        (np.zeros(3), np.zeros((3, 2)), r"must be \(d,\) and \(d, d\)"),
        (np.zeros(()), np.zeros((1, 1)), r"must be \(d,\) and \(d, d\)"),
        (np.zeros(3, int), np.eye(3), "mu is int64; floats are wanted"),
        (np.zeros(3), np.eye(3) * np.nan, "are not finite"),
        (np.zeros(3), np.triu(np.ones((3, 3))), "is not symmetric"),
    ],
)
def test_statistics_that_are_none_are_refused(tmp_path, mu, sigma, reason):
    np.savez(tmp_path / "a.npz", mu=mu, sigma=sigma)
    inception = extractor("pixels")
    object.__setattr__(inception, "name", "inception")
    with pytest.raises(ValueError, match=reason):
        open_reference(str(tmp_path / "a.npz"), inception)


def test_changed_statistics_are_refused_and_those_of_the_cache_computed_anew(tmp_path, capsys):
    from fluvial.evaluation import reference

    images(tmp_path / "a.npz")
    pixels, file = extractor("pixels"), tmp_path / "s.safetensors"
    made = reference.reference(open_images(str(tmp_path / "a.npz")), pixels)
    reference.save_reference(made, pixels, file)
    whole = file.read_bytes()
    assert torch.equal(load(file)[0].pooled.mean, made.statistics.pooled.mean)
    for place in range(0, len(whole) * 8, 801):
        changed = bytearray(whole)
        changed[place // 8] ^= 1 << place % 8
        file.write_bytes(changed)
        with pytest.raises(ValueError, match=r"s\.safetensors"):
            load(file)
        assert reference._read(file) is None and "computed anew" in capsys.readouterr().err
    assert reference._read(tmp_path / "none.safetensors") is None and capsys.readouterr().err == ""
    assert statistics(open_images(str(tmp_path / "a.npz")), pixels).n == 6
