"""Damaged files of every kind: a clear error or a right result, never changed data, a traceback, or a hang."""

import io
import json
import random
import signal
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from PIL import Image

from fluvial import recipes
from fluvial.data import latents
from fluvial.data.crop import UnreadableImage
from fluvial.data.images import DataConfig, ImageSet, digits
from fluvial.data.images import load as load_images
from fluvial.evaluation.opening import open_images
from fluvial.evaluation.reference import Reference, save_reference
from fluvial.evaluation.statistics import load as load_statistics
from fluvial.evaluation.statistics import statistics
from fluvial.metrics.features import extractor
from fluvial.run.folder import RunFolder, record_of
from fluvial.run.train import build
from fluvial.training import checkpoint, log
from fluvial.weights import exporting
from fluvial.weights.importing import import_weights

CASES, LIMIT = 300, 20  # mutations over all kinds, and seconds of each
ERRORS = (ValueError, OSError)
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP")


@contextmanager
def in_time():
    def stop(*_):
        raise TimeoutError("this takes too long")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(LIMIT)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def tensors(values):
    return {name: value.clone() for name, value in values.items()}


def read_checkpoint(run):
    found = tensors(checkpoint.read(run, lambda folder: checkpoint.load(folder, "ema")))
    return found, checkpoint.read(run, checkpoint.load_meta)


def read_latents(folder):
    cached = latents.load(folder)
    flipped = torch.tensor([False, True] * 3)
    return cached.rows(torch.arange(6)), cached.rows(torch.arange(6), flipped), cached.labels, cached.class_names


def read_images(file):
    opened = open_images(str(file))
    pixels, labels = opened.read(range(opened.n))
    return pixels, labels


def read_statistics(file):
    found, about = load_statistics(file)
    return found.n, found.shape, *found.pooled, found.features, {k: v for k, v in about.items() if k != "sha256"}


def read_import(file):
    out = file.parent / "imported"
    import_weights(file, out)
    weights, meta = RunFolder(out).weights()
    return tensors(weights), meta["step"], RunFolder(out).run()


def read_picture(file):
    """Whatever it is, an image or an error: most of these files have no checksum."""
    try:
        load_images(DataConfig(path=str(file.parent), size=8), "train")
    except UnreadableImage as error:
        raise ValueError(str(error)) from error


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A whole file of each kind, by name: the file that is damaged, and what reads it."""
    root = tmp_path_factory.mktemp("fuzz")
    rng = np.random.default_rng(0)
    run, recipe = root / "run", recipes.smoke(recipes.get("digits-sit"))
    record = record_of(recipe, "digits-sit")
    RunFolder(run).create(record, build(recipe).state_dict(), step=3, seconds=1.5)
    rows = [{"step": i, "loss": 1 / i, "time": 1.5} for i in range(1, 9)]
    (root / "log").mkdir()
    (root / "log" / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pixels = torch.from_numpy(rng.integers(0, 256, (6, 3, 4, 4), dtype=np.uint8))
    plan = latents.Plan(
        source="noise",
        images=6,
        autoencoder="noise",
        hash="0",
        digest="",
        labels="",
        stride=1,
        channels=3,
        image_size=4,
        crop="centre",
        flip=True,
        dtype="bf16",
        shard=6,
        class_names=("a", "b"),
    )
    images = ImageSet(pixels, torch.arange(6) % 2, ("a", "b"))
    latents.write(images, lambda x: torch.cat([x, x], 1), plan, root / "latents", batch=6)
    arrays = {"arr_0": rng.integers(0, 256, (6, 4, 4, 3), dtype=np.uint8), "arr_1": np.arange(6)}
    np.savez(root / "stored.npz", **arrays)
    np.savez_compressed(root / "deflated.npz", **arrays)
    look, set_ = extractor("pixels"), open_images(str(root / "stored.npz"))
    save_reference(Reference("noise", "0" * 64, statistics(set_, look), set_.about), look, root / "kept.safetensors")
    exporting.to_safetensors(run, root / "export")
    for form in FORMATS:
        (root / form).mkdir()
        Image.fromarray(digits("train").pixels[0, 0].numpy()).resize((32, 32)).save(root / form / f"0.{form.lower()}")
    (shard,) = (run / "checkpoints").glob("*/*.safetensors")
    (stored,) = (root / "latents").glob("*.safetensors")
    return {
        "shard of a checkpoint": (shard, lambda file: read_checkpoint(run)),
        "checkpoint.json": (shard.with_name("checkpoint.json"), lambda file: read_checkpoint(run)),
        "run.json": (run / "run.json", lambda file: RunFolder(run).run()),
        "shard of latents": (stored, lambda file: read_latents(root / "latents")),
        "manifest.json": (root / "latents" / "manifest.json", lambda file: read_latents(root / "latents")),
        "stored .npz": (root / "stored.npz", read_images),
        "deflated .npz": (root / "deflated.npz", read_images),
        "statistics": (root / "kept.safetensors", read_statistics),
        "export": (root / "export" / "model.safetensors", read_import),
        "log.jsonl": (root / "log" / "log.jsonl", lambda file: log.read(file.parent)),
        **{form: (root / form / f"0.{form.lower()}", read_picture) for form in FORMATS},
    }


def mutated(content, draw, head):
    """The content with damage of one kind; of pictures in their head."""
    data, size = bytearray(content), max(1, min(head, len(content)))
    at, length = draw.randrange(size), draw.choice((1, 2, 8, 64, 1000))
    part = slice(at, at + length)
    match draw.randrange(12 if content[:1] in b"{[" else 8):
        case 0 | 1:
            data[at] ^= 1 << draw.randrange(8)
        case 2:
            del data[at:]
        case 3:
            data[part] = bytes(len(data[part]))
        case 4:
            data[at:at] = draw.randbytes(length)
        case 5:
            data[at:at] = data[part]
        case 6:
            del data[part]
        case 7:
            other = draw.randrange(size)
            data[part], data[other : other + length] = data[other : other + length], data[part]
        case _:
            return json_damaged(content, draw)
    return bytes(data)


def json_damaged(content, draw):
    """JSON with a value of another type or size, without a key, or deep."""
    try:
        values = json.loads(content)
    except ValueError:
        return content[: draw.randrange(len(content))]
    inside = values
    while draw.random() < 0.7 and (deeper := [v for v in inside.values() if isinstance(v, dict) and v]):
        inside = draw.choice(deeper)
    key = draw.choice(list(inside))
    odd = (None, -1, 1e999, float("nan"), 10**30, "x" * 100_000, [], {}, True, [[[[1]]]], "../../x", 0.5)
    match draw.randrange(10):
        case 0 | 1:
            del inside[key]
        case 2:
            return b'{"a":' * 50_000
        case 3:  # twice, of which readers take the last
            twice = f'"{key}": {json.dumps(draw.choice(odd))}, "{key}":'
            return content.replace(f'"{key}":'.encode(), twice.encode(), 1)
        case _:
            inside[key] = draw.choice(odd)
    return json.dumps(values).encode()


def same(a, b):
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, tuple | list) and not hasattr(a, "_fields"):
        return isinstance(b, tuple | list) and len(a) == len(b) and all(map(same, a, b))
    return a == b


UNSIGNED = (*FORMATS, "log.jsonl")  # these carry no checksum: a changed pixel or loss cannot be told


def test_damage_is_an_error_or_changes_nothing(files):
    draw, names = random.Random(0), list(files)
    expected = {}
    for name, (file, read) in files.items():
        expected[name] = read(file)
        clean(file)
    refused = accepted = 0
    for case in range(CASES):
        name = names[case % len(names)]
        file, read = files[name]
        whole = file.read_bytes()
        file.write_bytes(mutated(whole, draw, 64 if name in FORMATS else len(whole)))
        try:
            with in_time():
                found = read(file)
            accepted += 1
            assert name in UNSIGNED or same(found, expected[name]), f"case {case}: a changed {name} is accepted"
        except ERRORS as error:
            assert not isinstance(error, TimeoutError), f"case {case}: {name} hangs"
            assert str(error) and "weights_only" not in str(error) and len(str(error)) < 3_000
            refused += 1
        finally:
            file.write_bytes(whole)
            clean(file)
    print(f"{CASES} mutations: {refused} refused, {accepted} accepted with the same content, none wrong")
    assert refused > CASES / 2


def clean(file):
    """Without what an import left."""
    import shutil

    shutil.rmtree(file.parent / "imported", ignore_errors=True)


def test_a_picture_that_is_none_is_named(tmp_path):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    (tmp_path / "a.png").write_bytes(buffer.getvalue()[:30])
    with pytest.raises(ValueError, match=r"a\.png"):
        load_images(DataConfig(path=str(tmp_path), size=8), "train")
