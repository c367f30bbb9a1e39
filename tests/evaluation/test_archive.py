import io
import tracemalloc
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch

from fluvial.evaluation import archive
from fluvial.evaluation.opening import open_images
from fluvial.evaluation.reference import open_reference
from fluvial.evaluation.statistics import FORMAT, load, statistics
from fluvial.metrics.features import extractor
from fluvial.utils.tensors import write_tensors


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
        accepted += 1  # such as a time in the zip's directory
        np.testing.assert_array_equal(pixels.numpy(), arrays["arr_0"].transpose(0, 3, 1, 2))
        assert labels is not None and labels.tolist() == arrays["arr_1"].tolist()
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
        "its header says uint8 of .0, 4, 4, 3., 128 bytes, and it has 138": {
            **plain,
            "shape": (0, 4, 4, 3),
            "fortran_order": True,
        },
        "must be a plain array, got object": {**plain, "descr": "|O", "shape": (0, 4, 4, 3)},
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
        (np.zeros(3, int), np.eye(3), "mu is int64; expected floats"),
        (np.zeros(3), np.eye(3) * np.nan, "are not finite"),
        (np.zeros(3), np.triu(np.ones((3, 3))), "is not symmetric"),
        (np.zeros(3), -np.eye(3), "a variance is -1"),
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
        assert reference._read(file, "") is None and "computed again" in capsys.readouterr().err
    assert reference._read(tmp_path / "none.safetensors", "") is None and capsys.readouterr().err == ""
    assert statistics(open_images(str(tmp_path / "a.npz")), pixels).n == 6


def test_kept_statistics_of_other_images_are_not_taken(tmp_path, monkeypatch, capsys):
    from fluvial.evaluation import reference

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    look = replace(extractor("pixels"), hash="w")
    made = []
    for count in (6, 7):
        images(tmp_path / f"{count}.npz", count=count)
        made.append(reference.reference(open_images(str(tmp_path / f"{count}.npz")), look))
    a, b = (tmp_path / "cache").rglob("*.safetensors")
    a.rename(tmp_path / "swapped")
    b.rename(a)
    (tmp_path / "swapped").rename(b)
    for count, before in zip((6, 7), made, strict=True):
        found = reference.reference(open_images(str(tmp_path / f"{count}.npz")), look)
        assert torch.equal(found.statistics.features, before.statistics.features)
        assert "computed again" in capsys.readouterr().err
        reference.reference(open_images(str(tmp_path / f"{count}.npz")), look)
        assert capsys.readouterr().err == ""  # they have been written again


def test_saved_statistics_that_cannot_be_of_images_are_refused(tmp_path):
    eye, nan = torch.eye(3, dtype=torch.float64), torch.full((3,), torch.nan, dtype=torch.float64)
    tensors = {"mean": torch.zeros(3).double(), "covariance": eye, "features": torch.zeros(4, 3)}
    about = {"made": FORMAT, "count": "9", "shape": "[3, 2, 2]"}
    told = {"name": "x", "hash": "y", "cut": "z", "extractor": "pixels", "extractor_hash": ""}
    file = tmp_path / "s.safetensors"
    write_tensors(file, tensors, {**about, **told})
    assert open_reference(str(file), extractor("pixels")).statistics.n == 9
    for changed, reason in (
        ({"mean": nan}, "not finite"),
        ({"mean": torch.zeros(3)}, "must be float64"),
        ({"mean": torch.zeros(3, 1).double()}, r"must be \(d,\) and \(d, d\), got \(3, 1\)"),
        ({"covariance": eye - 2 * eye}, "a variance is -1"),
        ({"covariance": torch.zeros(2, 2).double()}, r"\(d, d\)"),
        ({"features": torch.zeros(4, 2)}, "rows of 3 finite numbers"),
        ({"features": torch.full((4, 3), torch.inf)}, "rows of 3 finite numbers"),
        ({"features": torch.zeros(10, 3)}, "features of 10 images but a count of 9"),
        ({"labels": torch.zeros(3, dtype=torch.long)}, "a class id for each row"),
        ({"labels": torch.zeros(4)}, "a class id for each row"),
        ({"spatial.mean": torch.zeros(3).double()}, "spatial.covariance"),
        ({"features": None}, "'features'"),
    ):
        kept = {name: value for name, value in (tensors | changed).items() if value is not None}
        write_tensors(file, kept, {**about, **told})
        with pytest.raises(ValueError, match=f"s.safetensors.*{reason}"):
            load(file)
    for changed, reason in (
        ({"count": "-3"}, "but a count of -3"),
        ({"count": "many"}, "many"),
        ({"shape": "[3, -2, 2]"}, "shape of an image"),
        ({"shape": "7"}, "shape of an image"),
        ({"shape": "[" * 9999}, "s.safetensors"),
    ):
        write_tensors(file, tensors, {**about, **told, **changed})
        with pytest.raises(ValueError, match=reason):
            load(file)
    write_tensors(file, tensors, about)
    with pytest.raises(ValueError, match="lacks cut, extractor, extractor_hash, hash, name in its metadata"):
        open_reference(str(file), extractor("pixels"))
    write_tensors(file, tensors, {"made": FORMAT})
    with pytest.raises(ValueError, match=r"does not hold complete statistics \(KeyError: 'count'\)"):
        load(file)
    with pytest.raises(ValueError, match="is not a file"):
        load(tmp_path)


def npy(shape, descr="|u1", content=b"", version=(1, 0), text=None):
    """An array as numpy writes it, with any header."""
    head = (text or repr({"descr": descr, "fortran_order": False, "shape": shape})).encode() + b"\n"
    size = len(head).to_bytes(2 if version == (1, 0) else 4, "little")
    return b"\x93NUMPY" + bytes(version) + size + head + content


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (npy((-1, -1, 4, 3), content=bytes(12)), "its shape is"),
        (npy((True, 4, 4, 3), content=bytes(48)), "its shape is"),
        (npy((5, 0, 4, 3)), r"has the shape \(5, 0, 4, 3\)"),
        (npy((1, 4, 4, 3), content=bytes(48), version=(4, 0)), r"version \(4, 0\)"),
        (npy(0, text="((((" * 1000), "not a numpy array"),
        (npy(0, text="-" * 9000 + "1"), "not a numpy array"),
        (npy(0, text="  x\n y\n   z"), "not a numpy array"),
        (npy(0, text="__import__('os').abort()"), "not a numpy array: malformed"),
        (npy((2, 4, 4, 3), "zzz"), "not a numpy array"),
        (b"", "not a numpy array"),
    ],
)
def test_headers_that_are_none_are_refused(tmp_path, content, reason):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as file:
        file.writestr("arr_0.npy", content)
    with pytest.raises(ValueError, match=f"a.npz: .*{reason}"):
        open_images(str(tmp_path / "a.npz"))


def test_what_unpacks_to_much_more_is_refused_before_it_is(tmp_path, monkeypatch):
    """A header that claims to be long, and arrays that are read whole: each is a few MB of zeros in the file."""
    size = 2**26
    with zipfile.ZipFile(tmp_path / "header.npz", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("arr_0.npy", b"\x93NUMPY\x02\x00" + size.to_bytes(4, "little") + bytes(size))
    np.savez_compressed(tmp_path / "sigma.npz", mu=np.zeros(2000), sigma=np.zeros((2000, 2000)))
    monkeypatch.setattr(archive, "LARGEST", 2**24)
    tracemalloc.start()
    with pytest.raises(ValueError, match="not a numpy array: EOF"):
        open_images(str(tmp_path / "header.npz"))
    with pytest.raises(ValueError, match="sigma would take 32,000,128 bytes; at most 16,777,216 are read"):
        open_reference(str(tmp_path / "sigma.npz"), replace(extractor("pixels"), name="inception"))
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


def test_of_a_pair_both_or_none_are_wanted(tmp_path):
    np.savez(
        tmp_path / "a.npz", mu=np.zeros(3), sigma=np.asfortranarray(np.cov(np.random.rand(3, 9))), mu_s=np.zeros(3)
    )
    look = replace(extractor("pixels"), name="inception")
    with pytest.raises(ValueError, match="has mu, mu_s, sigma; expected mu and sigma, both or none"):
        open_reference(str(tmp_path / "a.npz"), look)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as file:
        file.writestr("arr_0", b"no array")
    with pytest.raises(ValueError, match="has no arr_0 but no array"):
        open_reference(str(tmp_path / "a.npz"), look)


def test_negative_class_ids_are_refused(tmp_path):
    for ids in (np.array([0, -1]), np.array([0, 2**63], dtype=np.uint64)):
        np.savez(tmp_path / "a.npz", np.zeros((2, 4, 4, 3), np.uint8), ids)
        with pytest.raises(ValueError, match="class ids from 0 on, got -"):
            open_images(str(tmp_path / "a.npz"))
