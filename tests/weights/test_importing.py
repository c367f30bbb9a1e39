"""A file of weights in, a run folder out: the golden files as the releases would have saved them."""

import argparse
import json
import subprocess
import sys
from dataclasses import replace

import pytest
import released
import torch
from safetensors.torch import save_file

import fluvial
from conftest import read_golden, shared
from fluvial import cli, recipes
from fluvial.autoencoders import AutoencoderConfig, kl16
from fluvial.data.images import ImageSet
from fluvial.nn.layers import sincos_positions
from fluvial.run.folder import RunFolder
from fluvial.run.inputs import open_autoencoder
from fluvial.weights import from_state_dict
from fluvial.weights.description import described
from fluvial.weights.importing import import_weights

GOLDEN = {
    "sit_tiny": {"heads": 2},
    "arflow_tiny": {},
    "flowar_tiny_spatial_adaln": {},
    "flowar_tiny_cross_attention": {},
}


@pytest.fixture(params=GOLDEN)
def file(request, tmp_path):
    """A released file, its weights and its hints."""
    golden = read_golden(request.param)
    torch.save(golden.state_dict, tmp_path / f"{request.param}.pt")
    return tmp_path / f"{request.param}.pt", golden, {**GOLDEN[request.param], "autoencoder": "pixels"}


def test_the_folder_holds_the_model_that_the_state_dict_makes(file, tmp_path):
    path, golden, hints = file
    import_weights(path, tmp_path / "run", **hints)
    trained = fluvial.load(tmp_path / "run", device="cpu")
    model, run = from_state_dict(golden.state_dict, **hints)
    assert trained.run == run
    for (name, a), b in zip(trained.model.state_dict().items(), model.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    for (name, a), b in zip(trained.model.named_buffers(), model.buffers(), strict=True):
        assert torch.equal(a, b), name
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["imported"]["file"] == path.name
    settings = replace(run.sample, steps=3, batch=2)
    assert trained.sample(2, settings=settings).images.shape[0] == 2


def test_half_precision_halves_the_folder(file, tmp_path):
    path, _, hints = file
    sizes = {}
    for dtype in ("fp32", "bf16", None):
        import_weights(path, tmp_path / f"{dtype}", dtype=dtype, **hints)
        sizes[dtype] = next((tmp_path / f"{dtype}").rglob("weights.safetensors")).stat().st_size
    assert sizes[None] == sizes["fp32"] and abs(sizes["bf16"] / sizes["fp32"] - 0.5) < 0.05
    half, exact = (fluvial.load(tmp_path / dtype, device="cpu").model for dtype in ("bf16", "fp32"))
    for a, b in zip(half.parameters(), exact.parameters(), strict=True):
        assert a.dtype == torch.float32 and torch.equal(a, b.bfloat16().float())


def test_a_trainers_checkpoint(tmp_path, sit_golden):
    wrong = {key: value + 1 for key, value in sit_golden.state_dict.items()}
    options = argparse.Namespace(path_type="GVP", prediction="velocity", model="SiT-XL/2")
    torch.save({"model": wrong, "ema": sit_golden.state_dict, "opt": {}, "args": options}, tmp_path / "0400000.pt")
    found = import_weights(tmp_path / "0400000.pt", tmp_path / "run", heads=2)
    assert (found.part, found.run.method.interpolant) == ("ema", "gvp")
    expected, _ = from_state_dict(sit_golden.state_dict, heads=2, interpolant="gvp")
    table = found.tensors["embed_label.table.weight"].make()
    assert torch.equal(table, expected.embed_label.table.weight)
    for odd, says in (({"prediction": "noise"}, "predict the noise"), ({"path_type": "Odd"}, "path 'Odd'")):
        torch.save({"ema": sit_golden.state_dict, "args": argparse.Namespace(**odd)}, tmp_path / "odd.pt")
        with pytest.raises(ValueError, match=f"odd.pt: the model was trained .*{says}"):
            import_weights(tmp_path / "odd.pt", tmp_path / "odd", heads=2)
        assert not (tmp_path / "odd").exists()


def test_a_bad_file_leaves_nothing(file, tmp_path):
    path, golden, hints = file
    last = list(golden.state_dict)[-2]
    bad = {**golden.state_dict, last: torch.full_like(golden.state_dict[last], torch.nan)}
    torch.save(bad, tmp_path / "bad.pt")
    before = set(tmp_path.iterdir())
    with pytest.raises(ValueError, match=rf"bad.pt: {last} holds numbers that are not finite"):
        import_weights(tmp_path / "bad.pt", tmp_path / "run", **hints)
    assert set(tmp_path.iterdir()) == before
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").touch()
    with pytest.raises(ValueError, match="full is there already, and not empty"):
        import_weights(path, tmp_path / "full", **hints)
    (tmp_path / "empty").mkdir()
    import_weights(path, tmp_path / "empty", **hints)


def test_kl16_becomes_a_folder_of_diffusers(tmp_path):
    pytest.importorskip("diffusers")
    golden = read_golden("kl16_tiny", shared("golden/kl16_tiny.safetensors").parent)
    torch.save({"model": golden.state_dict}, tmp_path / "kl16.ckpt")
    import_weights(tmp_path / "kl16.ckpt", tmp_path / "kl16")
    ours, theirs = (
        open_autoencoder(AutoencoderConfig(name=str(tmp_path / "kl16"))),
        kl16.load(tmp_path / "kl16.ckpt"),
    )
    assert (ours.hash, ours.scale, ours.shift, ours.stride) == (theirs.hash, theirs.scale, theirs.shift, theirs.stride)
    with pytest.raises(ValueError, match="those of kl16, an autoencoder|not the weights of sit"):
        import_weights(tmp_path / "kl16.ckpt", tmp_path / "other", kind="sit")


MEASURE = """
import sys
import torch
torch.set_num_threads(1)
from fluvial.weights.importing import import_weights
import os
file, out, dtype = sys.argv[1:]
torch.randn(8, 8) @ torch.randn(8, 8)
def peak():  # of this process; ru_maxrss begins with that of the process that started it
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
before = peak()
import_weights(file, out, dtype=dtype)
print((peak() - before) / os.path.getsize(file))
"""


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["bare.pt", "trainer.pt", "bare.safetensors"])
def test_importing_streams(tmp_path, name, dtype):
    """Peak memory above that of the libraries is at most 1.3 times the file, pages of the file itself included."""
    shapes = released.arflow(depth=6, width=1152, patch=2, heads=18)
    weights = {key: torch.randn(shape) for key, shape in shapes.items()}
    weights["pos_embed"] = sincos_positions(1152, (16, 16))[None]
    if name == "bare.safetensors":
        save_file(weights, tmp_path / name)
    elif name == "bare.pt":
        torch.save(weights, tmp_path / name)
    else:
        ema = {key: value.clone() for key, value in weights.items()}
        torch.save({"model": weights, "ema": ema}, tmp_path / name)
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path / name), str(tmp_path / "run"), dtype],
        capture_output=True,
        text=True,
        check=True,
    )
    taken = 0.5 if name == "trainer.pt" else 1.0  # of the file: the other half is never touched
    assert float(done.stdout) < taken + 0.3, done.stdout


def test_training_goes_on_from_the_weights(tmp_path, sit_golden, capsys):
    torch.save(sit_golden.state_dict, tmp_path / "sit.pt")
    import_weights(tmp_path / "sit.pt", tmp_path / "run", heads=2, autoencoder="pixels")
    before = fluvial.load(tmp_path / "run", device="cpu")
    images = ImageSet(torch.randint(256, (40, 4, 8, 8), dtype=torch.uint8), torch.arange(40) % 10, ())
    run = replace(
        before.run,
        optim=replace(before.run.optim, lr=1e-4),
        train=replace(before.run.train, steps=3, batch=8, log_every=1, sample_every=0, precision="fp32"),
    )
    after = fluvial.train(run, tmp_path / "run", data=images, device="cpu")
    assert "with a new optimizer" in capsys.readouterr().out
    assert after.step == 3
    moved = [(a - b).abs().max() for a, b in zip(after.model.parameters(), before.model.parameters(), strict=True)]
    assert 0 < max(moved) < 1e-6  # the average of three steps of 1e-4 at a decay of 0.9999
    with pytest.raises(ValueError, match="holds another run: optim.lr"):
        fluvial.train(replace(run, optim=replace(run.optim, lr=1.0)), tmp_path / "run", data=images, device="cpu")
    with pytest.raises(ValueError, match="holds another run: method.label_drop"):
        import_weights(tmp_path / "sit.pt", tmp_path / "two", heads=2, autoencoder="pixels")
        other = replace(run, method=replace(run.method, label_drop=0.5))
        fluvial.train(other, tmp_path / "two", data=images, device="cpu")


def test_the_command(tmp_path, capsys, monkeypatch, tiny):
    monkeypatch.setenv("COLUMNS", "200")
    tiny("AutoencoderKL").save_pretrained(tmp_path / "vae")
    golden = read_golden("arflow_tiny")
    torch.save({"ema": golden.state_dict, "args": argparse.Namespace()}, tmp_path / "a.pt")
    run = tmp_path / "run"
    assert cli.main(["import", str(tmp_path / "a.pt"), "--out", str(run), "--autoencoder", str(tmp_path / "vae")]) == 0
    said = capsys.readouterr().out
    for text in (
        "ARFlow, of no published size, 189,072 parameters",
        "ema of a trainer's checkpoint",
        "half of final_layer.linear: the sigma that learn_sigma adds",
        "pos_embed: a fixed table",
        "euler-maruyama, 250 steps",
        "mean, 0.04",
        "the first 3 channels",
        "history_decay raster",
    ):
        assert text in said, text
    sample = ["sample", str(run), "--count", "2", "--gif", "False", "--sample.steps", "4", "--classes", "1", "2"]
    assert cli.main(sample) == 0
    assert (run / "samples" / "grid.png").exists()
    assert cli.main(["import", str(tmp_path / "a.pt"), "--out", str(run)]) == 1
    assert cli.main(["import", str(tmp_path / "a.pt")]) == 2
    assert cli.main(["import", str(tmp_path / "a.pt"), "--out", str(run), "--image-size", "1", "2", "3"]) == 2
    capsys.readouterr()
    assert cli.main(["import", str(tmp_path / "gone.pt"), "--out", str(tmp_path / "x")]) == 1
    assert "gone.pt does not exist" in capsys.readouterr().err


def sit_with(rows, golden):
    """The golden SiT with so many rows of classes, which differ."""
    table = "y_embedder.embedding_table.weight"
    return {**golden.state_dict, table: torch.randn(rows, golden.state_dict[table].shape[1])}


@pytest.mark.parametrize(
    ("rows", "options", "hints", "classes", "label_drop", "assumed"),
    [
        (6, None, {}, 5, 0.1, True),
        (6, {"num_classes": 5}, {}, 5, 0.1, False),
        (5, {"num_classes": 5}, {}, 5, 0.0, False),
        (5, {"class_num": 5, "class_dropout_prob": 0.0}, {}, 5, 0.0, False),
        (5, {"class_dropout_prob": 0}, {}, 5, 0.0, False),
        (6, {"label_drop_prob": 0.2}, {}, 5, 0.2, False),
        (6, {"num_classes": 5, "class_dropout_prob": 0.0}, {}, 5, 0.0, False),
        (5, None, {"classes": 5}, 5, 0.0, False),
        (6, None, {"classes": 5}, 5, 0.1, False),
        (5, {"num_classes": 5, "class_dropout_prob": 0.1}, {"classes": 5}, 5, 0.0, False),
        (1, None, {}, 0, 0.1, True),
    ],
)
def test_every_class_of_the_table_is_kept(tmp_path, sit_golden, rows, options, hints, classes, label_drop, assumed):
    weights = sit_with(rows, sit_golden)
    file = {"ema": weights} if options is None else {"ema": weights, "args": argparse.Namespace(**options)}
    torch.save(file, tmp_path / "a.pt")
    found = import_weights(tmp_path / "a.pt", tmp_path / "run", heads=2, autoencoder="pixels", **hints)
    trained = fluvial.load(tmp_path / "run", device="cpu")
    assert (trained.run.method.classes, trained.run.method.label_drop) == (classes, label_drop)
    table, there = trained.model.embed_label.table.weight, weights["y_embedder.embedding_table.weight"]
    assert len(table) == classes + 1 and torch.equal(table[:rows], there)
    assert not table[rows:].any()  # of no class, where the file has none
    assert bool(found.assumed) == assumed
    assert RunFolder(tmp_path / "run").record()["imported"].get("assumed", "") == found.assumed
    guided = trained.run.sample.guidance.weight != 1
    assert guided == (label_drop > 0 and classes > 0)
    if classes:
        settings = replace(trained.run.sample, steps=2)
        assert trained.sample(1, classes=(classes - 1,), settings=settings).images.isfinite().all()


@pytest.mark.parametrize(
    ("options", "hints", "says"),
    [
        ({"num_classes": 7}, {}, "the label table has 5 rows, expected 7 classes"),
        ({}, {"classes": 3}, "5 rows, expected 3 classes"),
        ({"num_classes": 5, "class_dropout_prob": 0.1}, {}, "give --classes 5, or 4 if the last row"),
        ({"num_classes": 10**12}, {}, "5 rows, expected 1000000000000 classes"),
        ({"num_classes": "five"}, {}, "options say num_classes 'five', expected an integer"),
        ({"class_dropout_prob": float("nan")}, {}, "options say class_dropout_prob nan, expected a probability"),
    ],
)
def test_numbers_of_classes_that_contradict_the_table_are_refused(tmp_path, sit_golden, options, hints, says):
    torch.save({"ema": sit_with(5, sit_golden), "args": options}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=rf"a.pt: .*{says}"):
        import_weights(tmp_path / "a.pt", tmp_path / "run", heads=2, **hints)
    assert not (tmp_path / "run").exists()


def test_a_flowar_without_a_row_of_no_class(tmp_path):
    golden = read_golden("flowar_tiny_spatial_adaln")
    rows = len(golden.state_dict["class_emb.weight"])
    torch.save({"model_ema": golden.state_dict, "args": argparse.Namespace(class_num=rows)}, tmp_path / "a.pt")
    import_weights(tmp_path / "a.pt", tmp_path / "run", autoencoder="pixels")
    trained = fluvial.load(tmp_path / "run", device="cpu")
    assert (trained.run.method.classes, trained.run.method.label_drop) == (rows, 0.0)
    assert torch.equal(trained.model.embed_label.table.weight[:-1], golden.state_dict["class_emb.weight"])
    assert trained.run.sample.guidance.weight == 1 and not trained.run.sample.guidance.scale_weights


def test_float64_is_stored_as_float32(file, tmp_path):
    path, golden, hints = file
    torch.save({key: value.double() for key, value in golden.state_dict.items()}, tmp_path / "double.pt")
    for name in (path, tmp_path / "double.pt"):
        import_weights(name, tmp_path / "runs" / name.stem, **hints)
    ours, theirs = (fluvial.load(tmp_path / "runs" / name, device="cpu").model for name in (path.stem, "double"))
    for (name, a), b in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    sizes = [file.stat().st_size for file in (tmp_path / "runs").rglob("weights.safetensors")]
    assert len(sizes) == 2 and sizes[0] == sizes[1]
    key = next(name for name in golden.state_dict if "qkv.weight" in name or "q_proj.weight" in name)
    large = {**golden.state_dict, key: torch.full(golden.state_dict[key].shape, 1e300, dtype=torch.float64)}
    torch.save(large, tmp_path / "large.pt")
    with pytest.raises(ValueError, match=rf"{key}.* numbers that are too large for torch.float32"):
        import_weights(tmp_path / "large.pt", tmp_path / "large", **hints)


def test_a_folder_stands_for_the_one_file_in_it(tmp_path, sit_golden):
    torch.save(sit_golden.state_dict, tmp_path / "sit.pt")
    (tmp_path / "notes.txt").touch()
    import_weights(tmp_path, tmp_path / "runs" / "a", heads=2, autoencoder="pixels")
    with pytest.raises(ValueError, match="runs/a is a run folder already: sample it, or train it further"):
        import_weights(tmp_path / "runs" / "a", tmp_path / "b")
    with pytest.raises(ValueError, match=r"runs is a folder with 0 files of weights \(none\)"):
        import_weights(tmp_path / "runs", tmp_path / "b")
    torch.save(sit_golden.state_dict, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match="2 files of weights \\(other.ckpt, sit.pt\\): name the one"):
        import_weights(tmp_path, tmp_path / "b")
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(ValueError, match="is a pipeline of diffusers"):
        import_weights(tmp_path, tmp_path / "b")


def test_a_fixed_table_of_another_size_is_not_made(tmp_path, sit_golden, monkeypatch):
    """Of a million positions, 64 numbers each, for a file of four megabytes that has one number each."""

    def positions(*sizes):
        assert torch.get_default_device().type == "meta"
        return sincos_positions(*sizes)

    monkeypatch.setattr("fluvial.weights.sit.sincos_positions", positions)
    torch.save({**sit_golden.state_dict, "pos_embed": torch.zeros(1, 2**20, 1)}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"pos_embed is \(1, 1048576, 1\) and not \(1, 1048576, 64\)"):
        import_weights(tmp_path / "a.pt", tmp_path / "run", heads=2)


def labelled(path, rows, **options):
    """A tiny SiT of a trainer whose label table has so many rows."""
    state = dict(read_golden("sit_tiny").state_dict)
    table = state["y_embedder.embedding_table.weight"]
    state["y_embedder.embedding_table.weight"] = torch.randn(rows, table.shape[1])
    torch.save({"ema": state, "args": argparse.Namespace(**options)}, path)
    return state["y_embedder.embedding_table.weight"]


@pytest.mark.parametrize(
    ("rows", "options", "hints", "classes"),
    [
        (5, {"num_classes": 5}, {}, 5),
        (5, {"class_dropout_prob": 0.0}, {}, 5),
        (5, {}, {"classes": 5}, 5),
        (6, {"num_classes": 5}, {}, 5),
        (6, {"num_classes": 5, "class_dropout_prob": 0.2}, {}, 5),
        (6, {}, {}, 5),
    ],
)
def test_the_last_class_is_not_taken_for_that_of_none(tmp_path, rows, options, hints, classes):
    table = labelled(tmp_path / "a.pt", rows, **options)
    found = import_weights(tmp_path / "a.pt", tmp_path / "run", heads=2, **hints)
    assert found.run.method.classes == classes
    assert found.run.method.label_drop == options.get("class_dropout_prob", 0.0 if rows == classes else 0.1)
    ours, _ = RunFolder(tmp_path / "run").weights()
    assert torch.equal(ours["embed_label.table.weight"][:rows], table)
    assert len(ours["embed_label.table.weight"]) == classes + 1
    assert bool(found.assumed) == (not options and not hints)
    assert ("assumed" in RunFolder(tmp_path / "run").record()["imported"]) == bool(found.assumed)
    if rows == classes:  # there is no null branch
        assert found.run.sample.guidance.weight == 1


@pytest.mark.parametrize("classes", [3, 8, 10**12])
def test_classes_that_the_table_has_not_are_refused(tmp_path, classes):
    labelled(tmp_path / "a.pt", 6, num_classes=classes)
    with pytest.raises(ValueError, match=f"has 6 rows, expected {classes} classes"):
        import_weights(tmp_path / "a.pt", tmp_path / "run", heads=2)


def test_the_steps_of_every_scale_are_described():
    flowar, sit = (recipes.get(f"digits-{name}") for name in ("flowar", "sit"))
    assert flowar.sample.steps == (32, 20, 8)
    assert described(flowar)["solver"] == f"{flowar.sample.solver.name}, 32 20 8 steps"
    assert described(sit)["solver"] == f"{sit.sample.solver.name}, {sit.sample.steps} steps"
