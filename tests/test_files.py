import hashlib
import os

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from fluvial.files import Lazy, check_tensors, tensors_checksum, whole_folder, write_tensors


def test_safetensors_reads_what_is_written(tmp_path):
    tensors = {
        "matrix": torch.randn(3, 4),
        "turned": torch.randn(3, 4).T,
        "number": torch.tensor(7),
        "none": torch.zeros(0, 3),
        "half": torch.randn(2, 3).bfloat16(),
    }
    lazy = Lazy((2,), torch.float16, lambda: torch.ones(2, dtype=torch.float16))
    for extra in ("", "x", "xx", "xxx"):  # headers of any length
        write_tensors(tmp_path / "a.safetensors", {**tensors, "lazy": lazy}, {"who": extra})
        read = load_file(tmp_path / "a.safetensors")
        assert all(torch.equal(read[name], value) for name, value in tensors.items())
        assert torch.equal(read["lazy"], lazy.make())
        with safe_open(tmp_path / "a.safetensors", "pt") as file:
            metadata = file.metadata()
        assert metadata.pop("sha256") and metadata == {"format": "pt", "who": extra}
        check_tensors(tmp_path / "a.safetensors")
        # the format wants the data to begin at a multiple of eight bytes
        assert int.from_bytes((tmp_path / "a.safetensors").read_bytes()[:8], "little") % 8 == 0


def test_no_changed_byte_of_a_safetensors_file_is_accepted(tmp_path):
    file = tmp_path / "a.safetensors"
    write_tensors(file, {"w": torch.randn(3, 4)}, {"sha256 of": "something", "text": '"sha256": "' + "0" * 64})
    whole = file.read_bytes()
    check_tensors(file)
    for place in range(len(whole)):
        changed = bytearray(whole)
        changed[place] ^= 1
        file.write_bytes(changed)
        with pytest.raises(ValueError, match=r"damaged"):
            check_tensors(file)
    for other in (b"", whole[:-1], whole + b"\0", whole[8:]):
        file.write_bytes(other)
        with pytest.raises(ValueError, match="damaged"):
            check_tensors(file)
    save_file({"w": torch.zeros(2)}, file)
    with pytest.raises(ValueError, match="carries no checksum"):
        check_tensors(file)


def test_a_folder_is_there_whole_or_not_at_all(tmp_path, monkeypatch):
    with pytest.raises(RuntimeError), whole_folder(tmp_path / "a") as folder:
        (folder / "half").touch()
        raise RuntimeError
    assert not list(tmp_path.iterdir())
    with whole_folder(tmp_path / "deep" / "a") as folder:
        (folder / "all").touch()
        assert not (tmp_path / "deep" / "a").exists()
    assert os.listdir(tmp_path / "deep") == ["a"] and os.listdir(tmp_path / "deep" / "a") == ["all"]
    (tmp_path / "file").touch()
    for taken in ("deep", "file"):
        with pytest.raises(ValueError, match=f"{taken} is there already"), whole_folder(tmp_path / taken):
            pass


def test_a_checksum_of_tensors_is_of_names_and_float32_values():
    one, two = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor(0.5)
    expected = hashlib.sha256(b"a" + np.float32(0.5).tobytes() + b"b" + np.float32([1, 3, 2, 4]).tobytes()).hexdigest()
    assert tensors_checksum({"b": one.T, "a": two}) == expected
    assert tensors_checksum({"a": two.bfloat16(), "b": one.T.double()}) == expected
    assert tensors_checksum({"a": two, "b": one}) != expected
