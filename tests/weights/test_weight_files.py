import argparse
import json
import os
import pickle
import tarfile
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fluvial.utils.weight_files import read

WEIGHTS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2, dtype=torch.bfloat16)}
OTHER = {key: value + 1 for key, value in WEIGHTS.items()}


def same(got):
    return got.keys() == WEIGHTS.keys() and all(torch.equal(got[key], WEIGHTS[key]) for key in WEIGHTS)


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (WEIGHTS, ""),
        ({"model": OTHER, "ema": WEIGHTS, "opt": {"state": {0: {"step": 3}}}}, "ema"),
        ({"model": OTHER, "model_ema": WEIGHTS, "epoch": 3}, "model_ema"),
        ({"model": WEIGHTS, "scaler": None}, "model"),
        ({"model": WEIGHTS, "ema": None}, "model"),
        ({"ema": {f"module.{key}": value for key, value in WEIGHTS.items()}}, "ema"),
        ({f"_orig_mod.{key}": value for key, value in WEIGHTS.items()}, ""),
    ],
)
@pytest.mark.parametrize("as_zip", [True, False])
def test_the_weights_are_found(tmp_path, content, part, as_zip):
    torch.save(content, tmp_path / "weights.pt", _use_new_zipfile_serialization=as_zip)
    found = read(tmp_path / "weights.pt")
    assert same(found.state_dict) and (found.part, found.options) == (part, {})


def test_safetensors_with_metadata(tmp_path):
    save_file(WEIGHTS, tmp_path / "weights.safetensors", {"who": "me"})
    found = read(tmp_path / "weights.safetensors")
    assert same(found.state_dict) and found.metadata["who"] == "me"


def test_the_options_of_a_trainer_are_read(tmp_path):
    torch.save({"ema": WEIGHTS, "args": argparse.Namespace(path_type="GVP", lr=1e-4)}, tmp_path / "a.pt")
    assert read(tmp_path / "a.pt").options == {"path_type": "GVP", "lr": 1e-4}


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


class Subclass(argparse.Namespace):
    pass


@pytest.mark.parametrize("as_zip", [True, False])
def test_a_malicious_pickle_never_executes(tmp_path, as_zip):
    torch.save({"ema": WEIGHTS, "x": Malicious(tmp_path / "touched")}, tmp_path / "a.pt", pickle_protocol=2)
    (tmp_path / "b.ckpt").write_bytes(pickle.dumps(Malicious(tmp_path / "touched"), protocol=2))
    pickle.loads(pickle.dumps(Malicious(tmp_path / "control")))
    assert (tmp_path / "control").exists()  # it would work
    for name in ("a.pt", "b.ckpt"):
        with pytest.raises(
            ValueError,
            match=rf"{name} holds (posix|nt).system besides tensors.*so it is refused; ask for a safetensors file",
        ):
            read(tmp_path / name)
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize("value", [Path("a"), Subclass(a=1), argparse.Namespace(p=Path("a"))])
def test_no_class_but_the_namespace_is_read(tmp_path, value):
    torch.save({"ema": WEIGHTS, "args": value}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="a.pt holds .*(Path|Subclass).* besides tensors"):
        read(tmp_path / "a.pt")


def test_no_advice_runs_the_code_of_a_file(tmp_path):
    torch.save({"ema": WEIGHTS, "x": Malicious(tmp_path / "touched")}, tmp_path / "a.pt")
    (tmp_path / "b.pt").write_bytes(b"PK\x03\x04 and no end")
    (tmp_path / "c.pt").write_bytes(pickle.dumps({"a": object}))
    for name in ("a.pt", "b.pt", "c.pt"):
        with pytest.raises(ValueError) as error:
            read(tmp_path / name)
        assert "weights_only" not in str(error.value) and name in str(error.value)


@pytest.mark.parametrize("wrapper", ["module", "_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"])
def test_wrappers_anywhere_in_names(tmp_path, wrapper):
    for names in (
        {key: f"{wrapper}.{key}" for key in WEIGHTS},
        {key: key.replace(".", f".{wrapper}.", 1) for key in WEIGHTS},
        {key: f"module.{wrapper}.{key.replace('.', f'._orig_mod.{wrapper}.')}" for key in WEIGHTS},
    ):
        torch.save({"ema": {names[key]: value for key, value in WEIGHTS.items()}}, tmp_path / "a.pt")
        assert same(read(tmp_path / "a.pt").state_dict)
    key = next(iter(WEIGHTS))
    torch.save({**WEIGHTS, f"{wrapper}.{key}": WEIGHTS[key]}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=f"two tensors that are called {key} without their wrappers"):
        read(tmp_path / "a.pt")


def test_checkpoints_of_other_trainers(tmp_path):
    weights, other = ({f"{key}.weight": value for key, value in values.items()} for values in (WEIGHTS, OTHER))
    averaged = {"n_averaged": torch.tensor(9), **{f"module.{key}": value for key, value in weights.items()}}
    lightning = {f"model.{key}": value for key, value in other.items()}
    lightning |= {f"ema_model.{key}": value for key, value in weights.items()}
    for content, part in (
        ({"ema": averaged}, "ema"),
        ({"ema": {}, "model": weights}, "model"),
        ({"state_dict": weights, "epoch": 3}, "state_dict"),
        ({"state_dict": lightning, "pytorch-lightning_version": "2"}, "state_dict.ema_model"),
        ({"state_dict": {f"net.{key}": value for key, value in weights.items()}}, "state_dict.net"),
    ):
        torch.save(content, tmp_path / "a.pt")
        found = read(tmp_path / "a.pt", [r"a\."])
        assert same({key.removesuffix(".weight"): value for key, value in found.state_dict.items()})
        assert found.part == part


def test_what_would_fill_the_memory_is_refused_before(tmp_path):
    torch.save({"ema": {"a": torch.zeros(1).expand(10**10)}}, tmp_path / "wide.pt")
    with pytest.raises(ValueError, match=r"a has the shape \(10000000000,\), and the file holds fewer numbers"):
        read(tmp_path / "wide.pt")
    torch.save({"ema": {"a": torch.zeros(10**6)}}, tmp_path / "plain.pt")
    with (
        zipfile.ZipFile(tmp_path / "plain.pt") as plain,
        zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for name in plain.namelist():
            bomb.writestr(name, plain.read(name))
    with pytest.raises(ValueError, match=r"bomb.pt is refused: .* bytes and would unpack to 4,0"):
        read(tmp_path / "bomb.pt")


def test_a_folder_stands_for_the_one_file_in_it(tmp_path):
    with pytest.raises(ValueError, match=r"a folder with 0 files of weights \(none\)"):
        read(tmp_path)
    save_file(WEIGHTS, tmp_path / "model.safetensors")
    assert same(read(tmp_path).state_dict)
    torch.save(WEIGHTS, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"2 files of weights \(model.safetensors, other.pt\): name the one"):
        read(tmp_path)
    (tmp_path / "model_index.json").touch()
    with pytest.raises(ValueError, match="is a pipeline of diffusers"):
        read(tmp_path)
    (tmp_path / "run.json").touch()
    with pytest.raises(ValueError, match="is a run folder already"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({}, "holds no weights: it is empty"),
        ([1, 2], "holds no weights: it is a list"),
        ({"ema": {}}, "holds no weights: it is empty"),
        ({"state": WEIGHTS}, "'state' is a dict, not a tensor.*ema, model_ema, .*model"),
        ({"model": {"a": 3}}, "'a' is a int, not a tensor"),
    ],
)
def test_a_file_without_weights(tmp_path, content, says):
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=says):
        read(tmp_path / "a.pt")


def test_damaged_files(tmp_path):
    torch.save(WEIGHTS, tmp_path / "a.pt")
    save_file(WEIGHTS, tmp_path / "a.safetensors")
    for name, says in (("a.pt", "is truncated"), ("a.safetensors", "truncated, damaged or no safetensors")):
        content = (tmp_path / name).read_bytes()
        for kept in (0, 10, len(content) // 2, len(content) - 1):
            (tmp_path / f"cut-{name}").write_bytes(content[:kept])
            with pytest.raises(ValueError, match=says if kept > 2 else f"cut-{name}.*(damaged|truncated)"):
                read(tmp_path / f"cut-{name}")
    (tmp_path / "text.pt").write_text("404: not found")
    with pytest.raises(ValueError, match="text.pt is damaged, or no file of PyTorch's"):
        read(tmp_path / "text.pt")
    with pytest.raises(ValueError, match="gone.pt does not exist"):
        read(tmp_path / "gone.pt")
    with pytest.raises(ValueError, match="is a folder"):
        read(tmp_path)


def test_what_zip_checksums_tell_is_told(tmp_path):
    torch.save({"a": torch.randn(1000)}, tmp_path / "a.pt")
    content = bytearray((tmp_path / "a.pt").read_bytes())
    middle = len(content) // 2
    content[middle : middle + 64] = bytes(64)
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(ValueError, match="a.pt is damaged.*checksum of .* is another; download it again"):
        read(tmp_path / "a.pt")


def rezipped(source, to, compression=zipfile.ZIP_STORED, extra=()):
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(to, "w", compression) as new, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of two members of one name
        for member in old.infolist():
            new.writestr(member.filename, old.read(member))
        for name, content in extra:
            new.writestr(name, content)


def test_a_file_that_unpacks_to_more_is_refused_before_it_is_unpacked(tmp_path):
    torch.save({"a": torch.zeros(2**20)}, tmp_path / "plain.pt")
    rezipped(tmp_path / "plain.pt", tmp_path / "bomb.pt", zipfile.ZIP_DEFLATED)
    torch.save({"a": torch.rand(2**10)}, tmp_path / "noise.pt")  # which deflating makes no smaller
    rezipped(tmp_path / "noise.pt", tmp_path / "noise-deflated.pt", zipfile.ZIP_DEFLATED)
    rezipped(tmp_path / "noise.pt", tmp_path / "twice.pt", extra=[("noise/data/0", bytes(2**12))])
    for name, says in (
        ("bomb.pt", r"bomb.pt is refused: it has [\d,]+ bytes and would unpack to 4,19\d,\d+"),
        ("noise-deflated.pt", "noise-deflated.pt (is refused: it has .* would unpack|is compressed inside)"),
        ("twice.pt", "twice.pt is refused: it has two members of one name"),
    ):
        with pytest.raises(ValueError, match=says):
            read(tmp_path / name)


@pytest.mark.parametrize(
    ("tensor", "says"),
    [
        (torch.zeros(1).expand(2**30), r"a has the shape \(1073741824,\), and the file holds fewer numbers"),
        (torch.arange(4.0).as_strided((2**20, 2), (0, 1)), "a has the shape .*, and the file holds fewer numbers"),
        (torch.ones(3).to_sparse(), "a is no plain tensor|damaged"),
        (torch.empty(3, device="meta"), "a is no plain tensor"),
        (torch.empty(0, 10**12), "a is empty, of the shape"),
    ],
)
def test_tensors_that_are_no_plain_numbers(tmp_path, tensor, says):
    torch.save({"a": tensor}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=rf"a.pt .*{says}"):
        read(tmp_path / "a.pt")


def test_many_views_of_one_storage_are_refused_and_tied_weights_are_not(tmp_path):
    value = torch.rand(2**12)
    torch.save({"a": value, "b": value}, tmp_path / "tied.pt")
    assert torch.equal(read(tmp_path / "tied.pt").state_dict["b"], value)
    torch.save({f"a{i}": value for i in range(20)}, tmp_path / "many.pt")
    with pytest.raises(ValueError, match=r"many.pt is refused: its tensors would take 327,680 bytes, and the file has"):
        read(tmp_path / "many.pt")


def test_parameters_are_read_as_tensors(tmp_path):
    torch.save({"a": torch.nn.Parameter(torch.ones(2))}, tmp_path / "a.pt")
    assert not read(tmp_path / "a.pt").state_dict["a"].requires_grad


def test_programs_tars_and_pipes_are_named(tmp_path):
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "script.pt")
    with tarfile.open(tmp_path / "old.pt", "w") as tar:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            tar.addfile(tarfile.TarInfo(name))
    os.mkfifo(tmp_path / "pipe.pt")
    for name, says in (
        ("script.pt", "is TorchScript, a program, and is not run"),
        ("old.pt", "is a tar, as PyTorch wrote before 2017"),
        ("pipe.pt", "is no regular file"),
    ):
        with pytest.raises(ValueError, match=f"{name} {says}") as refused:
            read(tmp_path / name)
        assert "weights_only" not in str(refused.value)


def header(**entries):
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text


ONE = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    "content",
    [
        (2**62).to_bytes(8, "little") + b"{",
        header(a=ONE, b=ONE) + bytes(4),
        header(a={**ONE, "dtype": "F31"}) + bytes(4),
        header(a={**ONE, "shape": [10**12]}) + bytes(4),
        header(a={**ONE, "data_offsets": [0, 10**12]}) + bytes(4),
        header(a={**ONE, "shape": [2**40, 2**40]}) + bytes(4),
    ],
)
def test_safetensors_with_a_false_header(tmp_path, content):
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="a.safetensors is truncated, damaged or no safetensors file"):
        read(tmp_path / "a.safetensors")


def test_no_flipped_byte_of_a_zip_is_read(tmp_path):
    torch.save(WEIGHTS, tmp_path / "a.pt")
    content, file = (tmp_path / "a.pt").read_bytes(), tmp_path / "flipped.pt"
    refused = 0
    for place in range(0, len(content), 7):
        file.write_bytes(content[:place] + bytes([content[place] ^ 16]) + content[place + 1 :])
        try:
            assert same(read(file).state_dict), place  # padding between members
        except ValueError as error:
            assert "flipped.pt" in str(error) and "weights_only" not in str(error)
            refused += 1
    assert refused > len(content) // 7 // 4
