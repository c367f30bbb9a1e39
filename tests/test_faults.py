"""Every command, struck at its operations on files: nothing old is lost, nothing half is taken for whole."""

import errno
import hashlib
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from faults import Commands
from fluvial.files import check_tensors
from fluvial.train import checkpoint

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("cc") is None, reason="the shim needs Linux and a C compiler"
)
MODEL = "--method.width 16 --method.heads 2 --method.depth 1 --train.batch 4".split()
TRAIN = ["train", "digits-sit", *MODEL, *"--optim.schedule constant --train.sample-every 2 --sample.steps 2".split()]
TRAIN += "--train.save-every 2 --train.eval-every 2 --train.log-every 1 --train.keep 1".split()
TRAIN += "--train.ema-lengths 0.05 0.1 --train.ema-every 2".split()
# by name: the command in a folder, and what it writes there
COMMANDS = {
    name: (words.split(), where)
    for name, words, where in (
        ("train", " ".join([*TRAIN, "--train.steps 4 --out {}/new"]), "new"),
        ("resume", " ".join([*TRAIN, "--train.steps 6 --out {}/run"]), "run"),
        ("encode", "encode {}/photos --autoencoder pixels --image-size 8 --out {}/latents", "latents"),
        ("sample", "sample {}/run --count 2 --seed 1", "run/samples"),
        (
            "score",
            "score {}/run/samples --reference {}/photos --size 8 --channels 1 --extractor pixels "
            "--out {}/card.json --keep {}/kept.safetensors",
            ".",
        ),
        ("export", "export {}/run --to safetensors --out {}/exported", "exported"),
        ("import", "import {}/published/model.safetensors --out {}/imported", "imported"),
        ("ema", "ema {}/run --length 0.08 --out {}/averaged", "averaged"),
        ("plot", "plot {}/run --out {}/curves.png", "."),
    )
}
VOLATILE = (
    "time",
    "images_per_second",
    "seconds",
    "train_seconds",
    "sha256",
    "checksum",
    "files",
    "file",
    "of",
    "name",
    "from",
)


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    started = Commands(tmp_path_factory.mktemp("shim"))
    yield started
    started.close()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, commands):
    """A trained run with samples, photos, an export, a card and curves: what there is before a command is struck."""
    root = tmp_path_factory.mktemp("prepared") / "root"
    rng = np.random.default_rng(0)
    for i in range(6):
        (root / "photos" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "photos" / "ab"[i % 2] / f"{i}.png")
    for arguments in (
        [*TRAIN, "--train.steps", "4", "--out", f"{root}/run"],
        ["sample", f"{root}/run", "--count", "2"],
        ["export", f"{root}/run", "--to", "safetensors", "--out", f"{root}/published"],
        filled("score", root),
        filled("plot", root),
    ):
        outcome = commands.run(*arguments, root=root)
        assert outcome.code == 0, outcome.printed
    return root


def filled(name, root):
    return [argument.format(root) for argument in COMMANDS[name][0]]


def content(root):
    """What the files below hold, but for times: by path, tensors, arrays, pixels, rows, or a hash of bytes."""
    return {
        str(path.relative_to(root)): held(path, root)
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def held(path, root):
    if path.suffix == ".safetensors":
        return {
            name: hashlib.sha256(t.reshape(-1).view(torch.uint8).numpy()).hexdigest()
            for name, t in load_file(path).items()
        }
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            return {name: arrays[name].tolist() for name in arrays}
    if path.suffix == ".jsonl":
        return [without_times(json.loads(line)) for line in path.read_text().splitlines()]
    if path.suffix == ".json":
        return json.dumps(without_times(json.loads(path.read_text()))).replace(str(root), "")
    if path.suffix in (".png", ".gif"):
        with Image.open(path) as image:
            image.load()
            return image.size
    return hashlib.sha256(path.read_bytes().replace(str(root).encode(), b"")).hexdigest()


def without_times(value):
    if isinstance(value, dict):
        return {key: without_times(part) for key, part in value.items() if key not in VOLATILE}
    return [without_times(part) for part in value] if isinstance(value, list) else value


def check_whole(root, before):
    """Nothing half has a name that is taken for whole, and what the command does not replace is as it was."""
    for folder in root.glob("[!.]*/checkpoints/step-*"):
        checkpoint.verify(folder)
    for file in [
        *root.glob("[!.]*/ema/step-*.safetensors"),
        *root.glob("[!.]*/model.safetensors"),
        *root.glob("kept*"),
    ]:
        check_tensors(file)
    for name, old in before.items():
        path = root / name
        if "checkpoints" not in name and not name.endswith(("log.jsonl", "run.json")):
            assert path.exists(), f"{name} is gone"
        if path.exists() and not path.name.startswith("."):
            held(path, root)  # it can be read
        if name.startswith(("photos", "published")):
            assert held(path, root) == old, f"{name} has changed"


def strike(name, at, error, lasting, commands, prepared, folder, expected):
    """Strikes a command once, looks at what is left, and gives the same command again."""
    root, case = folder / "root", f"{name}, operation {at}, {errno.errorcode.get(error, 'killed')}"
    shutil.copytree(prepared, root)
    before = content(root)
    outcome = commands.run(*filled(name, root), root=root, at=at, error=error, lasting=lasting)
    assert "Traceback" not in outcome.printed, f"{case}: {outcome.printed[-2000:]}"
    assert outcome.code == (-9 if error == 0 else outcome.code), case
    assert outcome.code in (-9, 0, 1), f"{case}: {outcome.code} {outcome.printed[-500:]}"
    check_whole(root, before)
    again = commands.run(*filled(name, root), root=root)
    done = "is there already" in again.printed  # by the first, before it was struck
    assert again.code == 0 or done, f"{case}, again: {again.printed[-1000:]}"
    found = content(root)
    left = [path for path in found if any(part.endswith((".tmp", ".partial", ".removed")) or ".tmp." in part
                                          for part in Path(path).parts)]  # fmt: skip
    assert not left or error, f"{case}: left {left}"
    for path, value in expected.items():
        assert path in found, f"{case}: {path} is missing"
        assert found[path] == value, f"{case}: {path} is not what it would have been"
    shutil.rmtree(root)


def undisturbed(name, commands, prepared, folder):
    """What the command leaves if nothing happens, and the number of its operations."""
    root = folder / "whole"
    shutil.copytree(prepared, root)
    outcome = commands.run(*filled(name, root), root=root, at=0)
    assert outcome.code == 0, outcome.printed
    return content(root), outcome.seen


MANY = 12
KINDS = {"killed": (0, False), "input/output error": (errno.EIO, False), "full disk": (errno.ENOSPC, True)}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_that_is_struck_loses_nothing_and_is_finished_by_the_same_command(name, commands, prepared, tmp_path):
    """At a few of its operations, spread evenly."""
    expected, count = undisturbed(name, commands, prepared, tmp_path)
    assert count >= 3
    for i, (error, lasting) in enumerate(KINDS.values()):
        strike(name, 1 + (count - 1) * (i + 1) // 4, error, lasting, commands, prepared, tmp_path, expected)


@pytest.mark.slow
@pytest.mark.skipif("FAULTS" not in os.environ, reason="takes an hour; FAULTS=some or FAULTS=all asks for it")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", COMMANDS)
def test_at_many_operations(name, kind, commands, prepared, tmp_path):
    """FAULTS=some: at most 12, spread evenly; FAULTS=all: at every one."""
    expected, count = undisturbed(name, commands, prepared, tmp_path)
    tried = range(1, count + 1)
    if os.environ.get("FAULTS") != "all" and count > MANY:
        tried = sorted({1 + (count - 1) * i // (MANY - 1) for i in range(MANY)})
    failed = []
    for at in tried:
        try:
            strike(name, at, *KINDS[kind], commands, prepared, tmp_path, expected)
        except AssertionError as error:
            failed.append(str(error).splitlines()[0])
            shutil.rmtree(tmp_path / "root", ignore_errors=True)
    print(f"{name}, {kind}: {len(tried)} of {count} operations tried, {len(tried) - len(failed)} right")
    assert not failed, "\n".join(failed)
