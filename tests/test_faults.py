"""Every command, killed or failing at its operations on files: nothing old is lost, nothing half is taken for whole."""

import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from contents import content, held, names, temporary
from faults import KINDS, READ, Commands
from fluvial.evaluation.opening import open_images
from fluvial.training import checkpoint
from fluvial.utils.tensors import check_tensors

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("cc") is None, reason="the shim needs Linux and a C compiler"
)
TRAIN = (
    "train digits-sit --method.width 16 --method.heads 2 --method.depth 1 --train.batch 64 --optim.schedule constant "
    "--sample.steps 2 --train.save-every 2 --train.validate-every 2 --train.log-every 1 --train.sample-every 2 "
    "--train.ema-lengths 0.05 0.1 --train.ema-every 2"
)
COMMANDS = {  # by name, in a folder {}; the first trains with keep 2, and is gone on with keeping 1
    "train": f"{TRAIN} --train.steps 4 --train.keep 2 --out {{}}/new",
    "resume": f"{TRAIN} --train.steps 6 --train.keep 1 --out {{}}/run",
    "encode": "encode {}/photos --autoencoder pixels --image-size 8 --shard 4 --out {}/latents",
    "sample": "sample {}/run --count 2 --seed 1",
    "parts": "sample {}/run --count 5 --shard 2 --form png --out {}/parts",
    "one file of parts": "sample {}/run --count 5 --shard 2 --form npz --out {}/parts",
    "guide": "guide {}/run --count 4 --weights 1 2 --intervals 0 1 --steps 2 --write",
    "score": "score {}/run/samples --reference {}/photos --size 8 --channels 1 --extractor pixels --out {}/card.json "
    "--keep {}/kept.safetensors",
    "export": "export {}/run --to safetensors --out {}/exported",
    "import": "import {}/published/model.safetensors --out {}/imported",
    "ema": "ema {}/run --length 0.08 --out {}/averaged",
    "plot": "plot {}/run --out {}/curves.png",
}
BEFORE = (  # what there is already
    f"{TRAIN} --train.steps 4 --train.keep 2 --out {{}}/run",
    "sample {}/run --count 4",
    "export {}/run --to safetensors --out {}/published",
    "score {}/run/samples --reference {}/photos --size 8 --channels 1 --extractor pixels --out {}/card.json "
    "--keep {}/kept.safetensors",
    "plot {}/run --out {}/curves.png",
)
AT_ONCE = ("exported", "imported", "averaged")  # folders that are there with all their files, or not at all
PASSING = ("latents/plan.json", "latents/shard-", "parts/plan.json", "parts/part-", "run/guide/parts")  # in between


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    started = Commands(tmp_path_factory.mktemp("shim"))
    yield started
    started.close()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, commands):
    """A folder with photos and what the commands in BEFORE have written, to be copied to a folder `root` beside it."""
    root, rng = tmp_path_factory.mktemp("faults") / "root", np.random.default_rng(0)
    for i in range(6):
        (root / "photos" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "photos" / "ab"[i % 2] / f"{i}.png")
    for words in BEFORE:
        outcome = commands.run(*filled(words, root), root=root)
        assert outcome.code == 0, outcome.err
    return root.rename(root.with_name("prepared"))


def filled(words, root):
    return [word.format(root) for word in words.split()]


class Undisturbed:
    """What a command does if nothing happens: its operations, what it leaves, and what it leaves in between."""

    def __init__(self, name, commands, prepared):
        self.name, self.words, self.prepared, self.commands = name, COMMANDS[name], prepared, commands
        self.before, self.root = content(prepared), prepared.with_name("root")
        self.changes, self.after = self._done(self.words, "none")
        self.reads, _ = self._done(self.words, "none, read")
        self.between = self.after
        if "--train.keep" in self.words:
            _, self.between = self._done(self.words.replace("--train.keep 1", "--train.keep 9"), "none")

    def _done(self, words, kind):
        shutil.rmtree(self.root, ignore_errors=True)
        shutil.copytree(self.prepared, self.root)
        outcome = self.commands.run(*filled(words, self.root), root=self.root, kind=kind)
        assert outcome.code == 0, outcome.err
        found = content(self.root)
        shutil.rmtree(self.root)
        return outcome.operations, found

    def places(self, kind):
        """The operations at which something of this kind can happen, counted from 1."""
        operations = self.reads if KINDS[kind][0] == READ else self.changes
        if kind == "full":
            return [i for i, operation in enumerate(operations, 1) if operation.grows]
        if kind in ("short", "short read"):
            return [i for i, operation in enumerate(operations, 1) if operation.size > 1]
        return list(range(1, len(operations) + 1))

    def strike(self, kind, at):
        """Strikes the command once, looks at what is left, and gives it again. Raises AssertionError."""
        shutil.rmtree(self.root, ignore_errors=True)
        shutil.copytree(self.prepared, self.root)
        outcome = self.commands.run(*filled(self.words, self.root), root=self.root, kind=kind, at=at)
        struck = outcome.operations[0] if outcome.operations else None
        try:
            self._check(kind, outcome, removing=struck is not None and self._removes(kind, struck))
        except Exception as error:
            where = f"{struck.name} {Path(struck.path).relative_to(self.root)}" if struck else "nothing"
            raise AssertionError(f"{self.name}, {kind} at {at} ({where}): {error}") from error

    def _removes(self, kind, struck):
        """Whether it is an operation of removing something temporary, which may stay until the next time."""
        listing = kind == "unread" and struck.name == "open" and Path(struck.path).is_dir()
        losing = struck.name == "rename" and struck.path.endswith(".removed")  # a checkpoint that is pruned
        return struck.name == "remove" or losing or (listing and temporary(Path(struck.path).relative_to(self.root)))

    def _check(self, kind, outcome, removing):
        self._check_left()
        if kind == "killed" and outcome.operations:
            assert outcome.code == -9, f"ends with {outcome.code}"
        elif kind.startswith("short") or not outcome.operations:
            assert outcome.code == 0, f"ends with {outcome.code}: {outcome.err}"
        else:
            assert outcome.code in (0, 1), f"ends with {outcome.code}: {outcome.err}"
        if outcome.code == 1:
            said = [line for line in outcome.err.splitlines() if line.startswith("fluvial: error: ")]
            assert len(said) == 1 and "Traceback" not in outcome.err, f"says {outcome.err}"
            assert str(self.root) in said[0], f"names no file: {said[0]}"
            assert removing or not self._left_over(), f"leaves {self._left_over()}"
        if outcome.code == 0:
            return self._check_done(removing)
        again = self.commands.run(*filled(self.words, self.root), root=self.root)
        done = "is there already" in again.err  # by the first, before it was struck
        assert again.code == 0 or done, f"given again, it ends with {again.code}: {again.err}"
        self._check_done(removing and done)

    def _left_over(self):
        return [path for path in names(self.root) if temporary(path)]

    def _check_left(self):
        """Whatever has its name is whole, and is what it was before or will be."""
        found = {path: held(self.root / path) for path in names(self.root) if not temporary(path)}
        for path, old in self.before.items():
            if path not in found:
                assert path not in self.after, f"{path} is lost"
            elif path.endswith("log.jsonl"):
                assert found[path][: len(old)] == old, f"rows of {path} are lost"
            else:
                assert found[path] in (old, self.after.get(path)), f"{path} is neither what it was nor as it will be"
        for path in found.keys() - self.before.keys():
            if path.endswith("log.jsonl"):
                assert found[path] == self.between[path][: len(found[path])], f"{path} has other rows"
            elif not path.startswith(PASSING):
                assert path in self.between, f"{path} is left"
                assert found[path] in (self.after.get(path), self.between[path]), f"{path} is not what it will be"
        for folder in AT_ONCE:
            whole = {path for path in self.after if path.startswith(folder)}
            assert not whole or folder not in found or whole <= found.keys(), f"{folder} is there in part"
        self._check_readers()

    def _check_readers(self):
        newest = {run: checkpoint.newest(self.root / run) for run in ("run", "new")}
        for run, folder in newest.items():
            for folder in (self.root / run).glob("checkpoints/step-*"):
                checkpoint.verify(folder)
        assert checkpoint.step_of(newest["run"]) >= 4, "the newest checkpoint is lost"
        for pattern in ("[!.]*/ema/step-*.safetensors", "[!.]*/model.safetensors", "kept.safetensors"):
            for file in self.root.glob(pattern):
                check_tensors(file)
        if self.name == "sample":
            try:
                samples = open_images(str(self.root / "run" / "samples"))
            except ValueError:
                return  # refused: a record of other samples
            seed = samples.about.get("sampling", {}).get("seed")
            assert seed in (None, {4: 0, 2: 1}[samples.n]), f"{samples.n} samples are taken for those of seed {seed}"

    def _check_done(self, removing):
        found = content(self.root)
        if removing:
            found = {path: value for path, value in found.items() if not (temporary(path) or path.startswith(PASSING))}
        different = {p for p in found.keys() | self.after.keys() if p not in found or p not in self.after}
        if removing:  # an old checkpoint that could not be removed was named, and is left
            different = {path for path in different if not (path in self.before and "/checkpoints/" in path)}
            found = {path: value for path, value in found.items() if path in self.after}
        assert not different, f"{sorted(different)} should not be there, or should"
        different = {path for path in found if found[path] != self.after[path]}
        assert not different, f"{sorted(different)} are not what they would have been"


@pytest.fixture(scope="module", params=COMMANDS)
def undisturbed(request, commands, prepared):
    return Undisturbed(request.param, commands, prepared)


SPARSE = 20
STRIKES = [kind for kind in KINDS if not kind.startswith("none")]


def test_a_struck_command_loses_nothing_and_is_finished_by_the_same_command(undisturbed):
    """At one operation of each kind."""
    for i, kind in enumerate(STRIKES):
        places = undisturbed.places(kind)
        undisturbed.strike(kind, places[(2 * i + 1) * len(places) // (2 * len(STRIKES))])


@pytest.mark.slow
@pytest.mark.parametrize("kind", STRIKES)
def test_at_every_operation(undisturbed, kind):
    """With FAULTS in the environment, which takes most of an hour; else at every twentieth."""
    failed, places = [], undisturbed.places(kind)[:: 1 if "FAULTS" in os.environ else SPARSE]
    for at in places:
        try:
            undisturbed.strike(kind, at)
        except AssertionError as error:
            failed.append(str(error))
    print(f"\n{undisturbed.name}, {kind}: {len(places)} tried, {len(places) - len(failed)} right")
    assert not failed, "\n".join(failed)
