"""Methods and recipes that are no part of the library: registered, found, trained, and refused where unknown."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from torch import nn

from fluvial import methods, recipes
from fluvial.cli import main
from fluvial.config import differences, from_json, to_json
from fluvial.methods import sit
from fluvial.nn.layers import LabelEmbedding
from fluvial.run import finetune
from fluvial.training.config import TrainConfig
from fluvial.training.distributed import blocks
from fluvial.training.optim import OptimConfig
from fluvial.training.step import begin
from fluvial.training.validation import by_time

EXAMPLES = Path(__file__).parents[1] / "examples"
PIXEL_FLOW, OWN_NETWORK = EXAMPLES / "pixel_flow.py", EXAMPLES / "own_network.py"


@dataclass(frozen=True, kw_only=True)
class Config:
    size: tuple[int, int] = (8, 8)
    channels: int = 1
    classes: int = 10
    width: int = 8
    label_drop: float = 0.1
    interpolant: ClassVar = "linear"
    time_sampling: ClassVar = "uniform"
    images_per_sequence: ClassVar = None
    guides_channels: ClassVar = True
    context_noise: ClassVar = 0.0
    noise_shape = property(lambda self: (self.channels, *self.size))


class Model(nn.Module):
    """Keeps its labels under a name of its own, and has no blocks."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.names = LabelEmbedding(config.classes, config.width)
        self.layer = nn.Sequential(nn.Linear(1, 2), nn.SiLU())


def toy(**changed):
    parts = {name: getattr(sit, name) for name in methods.MEMBERS}
    own = {"Config": Config, "Model": Model, "scales": lambda config: (), "resampled": lambda w, a, b: (dict(w), "")}
    return SimpleNamespace(**{**parts, **own, **changed})


@pytest.fixture
def registries(monkeypatch):
    """What a test registers is forgotten after it."""
    monkeypatch.setattr(methods, "METHODS", dict(methods.METHODS))
    monkeypatch.setattr(recipes, "RECIPES", dict(recipes.RECIPES))


def toy_run():
    return replace(recipes.get("digits-sit"), method=Config())


def test_a_registered_method_is_known_and_survives_json(registries):
    method = toy()
    with pytest.raises(ValueError, match=r"Config is not the Config of a known method; register it"):
        toy_run()
    methods.register("toy", method)
    methods.register("toy", method)  # once more is the same
    run = toy_run()
    values = json.loads(json.dumps(to_json(run)))
    assert values["method"] == {
        "size": [8, 8],
        "channels": 1,
        "classes": 10,
        "width": 8,
        "label_drop": 0.1,
        "name": "toy",
    }
    assert from_json(values) == run and methods.method_of(run.method) is method and methods.name_of(Config) == "toy"
    values["method"]["width"] = "8"
    with pytest.raises(ValueError, match=r"method.width: must be a whole number, got '8'"):
        from_json(values)


class Plain:
    pass


@dataclass
class Thawed:
    pass


@dataclass(frozen=True, kw_only=True)
class Named(Config):
    name: str = ""


@dataclass(frozen=True, kw_only=True)
class Lacking:
    size: tuple[int, int] = (8, 8)
    channels: int = 1


@pytest.mark.parametrize(
    ("name", "method", "reason"),
    [
        ("sit", toy(), "'sit'.*another method of that name; choose one besides sit, arflow, flowar"),
        ("a b", toy(), "'a b'.*small letters, digits"),
        ("toy", SimpleNamespace(Config=Config), "has no draws, errors, part_weights, Model, PRESETS"),
        ("toy", toy(Config=Plain), r"its Config is <class .*Plain'>, expected a class with @dataclass\(frozen=True"),
        ("toy", toy(Config=Thawed), "expected a class with @dataclass"),
        ("toy", toy(Config=Config()), "expected a class with @dataclass"),
        ("toy", toy(Config=Lacking), "Config has no classes, width, label_drop, .*context_noise; add each as a field"),
        ("toy", toy(Config=Named), "a field called name"),
        ("toy", toy(Config=sit.Config), "its Config is that of sit; make a subclass"),
    ],
)
def test_what_is_no_method_is_refused_with_what_is_missing(registries, name, method, reason):
    with pytest.raises(ValueError, match=f"cannot register the method .*{reason}"):
        methods.register(name, method)
    assert list(methods.METHODS) == ["sit", "arflow", "flowar"]


def digits_toy():
    """A toy."""
    return toy_run()


def test_a_recipe_is_registered_once_with_what_to_expect(registries):
    methods.register("toy", toy())
    recipes.register("digits-toy", digits_toy)
    recipes.register("digits-toy", digits_toy)
    assert recipes.get("digits-toy") == toy_run()
    for name, recipe, reason in (
        ("digits-sit", digits_toy, "another recipe of that name"),
        ("a/b", digits_toy, "small letters"),
        ("other", lambda: toy_run(), "with a docstring"),
        ("other", "digits-sit", "a function that returns a Run"),
    ):
        with pytest.raises(ValueError, match=f"cannot register the recipe .*{reason}"):
            recipes.register(name, recipe)


def install(monkeypatch, folder, text, name="toy"):
    """A package on the path, with an entry point and the module that it names."""
    info = folder / "toy_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[fluvial.methods]\n{name} = toy_of_tests:method\n")
    (folder / "toy_of_tests.py").write_text(text)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "toy_of_tests", raising=False)


PACKAGE = """
import test_plugins
from fluvial import recipes
method = test_plugins.toy()
recipes.register("digits-toy", test_plugins.digits_toy)
"""


def test_an_installed_method_is_found_when_it_is_asked_for(registries, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "test_plugins", sys.modules[__name__])
    install(monkeypatch, tmp_path, PACKAGE)
    values = {**to_json(recipes.get("digits-sit")), "method": {"name": "toy"}}
    assert "toy" not in methods.METHODS  # nothing is imported before
    assert from_json(values) == toy_run() and recipes.RECIPES["digits-toy"] is digits_toy


def test_installed_recipes_are_found_and_listed(registries, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "test_plugins", sys.modules[__name__])
    install(monkeypatch, tmp_path, PACKAGE)
    assert recipes.get("digits-toy").method == Config()
    assert main(["recipes"]) == 0 and "digits-toy\n    A toy." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("import a_module_that_is_not_there", "ModuleNotFoundError: No module named 'a_module_that_is_not_there'"),
        ("method = None", "ValueError: cannot register the method 'toy': it has no draws"),
        ("", "AttributeError"),
    ],
)
def test_a_broken_package_is_named(registries, monkeypatch, tmp_path, text, reason):
    install(monkeypatch, tmp_path, text)
    values = {**to_json(recipes.get("digits-sit")), "method": {"name": "toy"}}
    for ask in (lambda: from_json(values), lambda: recipes.get("digits-toy")):
        with pytest.raises(
            ValueError, match=f"installed package toy-package has the method 'toy'.* fails with {reason}"
        ):
            ask()
    assert recipes.get("digits-sit")  # what is known asks no package


def test_nothing_is_looked_up_for_what_is_known(monkeypatch):
    def refuse(**group):
        raise AssertionError("looked up")

    monkeypatch.setattr(methods, "entry_points", refuse)
    run = recipes.get("digits-arflow")
    assert from_json(to_json(run)) == run
    assert methods.entry_points is not metadata.entry_points


def test_an_unknown_method_is_refused_with_what_makes_it_known():
    values = {**to_json(recipes.get("digits-sit")), "method": {"name": "toy"}}
    reason = (
        r"method.name is 'toy', known are sit, arflow, flowar; others become known with --plugin FILE.py, .* package"
    )
    with pytest.raises(ValueError, match=reason):
        from_json(values)


def test_two_methods_with_the_same_settings_differ(registries):
    @dataclass(frozen=True, kw_only=True)
    class Other(Config):
        pass

    methods.register("toy", toy())
    methods.register("other", toy(Config=Other))
    assert differences(toy_run(), replace(toy_run(), method=Other())).keys() == {"method"}


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        (["--plugin"], 2, "--plugin takes a file"),
        (["--plugin", "--help"], 2, "--plugin takes a file"),
        (["--plugin="], 2, "--plugin takes a file"),
        (["--plugin", "none.py"], 2, "--plugin none.py: there is no such file"),
        (["--plugin", "method.txt"], 2, "--plugin method.txt: not a .py file"),
        (["--plugin", "broken.py"], 1, "--plugin broken.py cannot be imported: ZeroDivisionError: division by zero"),
        (["--plugin", "leaves.py"], 1, "--plugin leaves.py cannot be imported: SystemExit: 3"),
    ],
)
def test_a_file_that_is_no_plugin_is_one_line(tmp_path, monkeypatch, capsys, arguments, code, reason):
    monkeypatch.chdir(tmp_path)
    Path("broken.py").write_text("1 / 0")
    Path("leaves.py").write_text("raise SystemExit(3)")
    assert main(["recipes", *arguments]) == code
    told = capsys.readouterr().err
    assert told.startswith(f"fluvial: error: {reason}") and told.count("\n") == 1


def test_a_file_of_settings_names_a_method_of_a_plugin(registries, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("my.yaml").write_text("base: digits-sit\nmethod: {name: pixel-flow, depth: 2}\nsample.guidance.weight: 1.0\n")
    assert main(["config", "my.yaml"]) == 1
    assert "line 2: method.name is 'pixel-flow', known are sit, arflow, flowar;" in capsys.readouterr().err
    assert main(["config", "my.yaml", "--plugin", str(PIXEL_FLOW)]) == 0
    assert "name: pixel-flow" in (printed := capsys.readouterr().out) and "depth: 2" in printed
    Path("my.yaml").write_text("base: digits-pixel-flow\nmethod.dept: 2\n")
    assert main(["config", "my.yaml", "--plugin", str(PIXEL_FLOW)]) == 1
    assert "did you mean method.depth?" in capsys.readouterr().err


def test_plugins_are_imported_once_each_wherever_they_stand(tmp_path, capsys):
    files = [tmp_path / "a" / "same.py", tmp_path / "b" / "same.py"]
    for file in files:
        file.parent.mkdir()
        file.write_text("print('imported', __file__)")
    assert main([f"--plugin={files[0]}", "recipes", "--plugin", str(files[1]), "--plugin", str(files[0])]) == 0
    printed = capsys.readouterr().out
    assert [printed.count(f"imported {file}\n") for file in files] == [1, 1]


def test_parts_of_a_model_without_blocks_are_its_blocks():
    class Nested(nn.Module):
        def __init__(self):
            super().__init__()
            level = nn.ModuleList([nn.Sequential(nn.Linear(1, 1), nn.Sequential(nn.Linear(1, 1)))])
            self.levels = nn.ModuleList([level, nn.ModuleList([nn.Conv2d(1, 1, 1)])])
            self.trunk = nn.Sequential(nn.Linear(1, 1), nn.Sequential(nn.Linear(1, 1)))

    assert list(blocks(Model(Config()))) == ["names", "layer"]
    assert list(blocks(Nested())) == ["levels.0.0", "trunk.1"]  # no list, which is never called; no block in a block
    assert list(blocks(sit.Model(recipes.get("digits-sit").method))) == ["blocks.0", "blocks.1", "blocks.2"]


def test_one_time_for_all_parts_of_an_example():
    found = by_time(torch.tensor([[1.0, 3.0], [5.0, 5.0]]), torch.tensor([0.05, 0.95]))
    assert found == [2.0, *[None] * 8, 5.0]


def test_label_tables_are_found_by_their_kind(registries):
    methods.register("toy", toy())
    start = toy_run()
    start = replace(start, method=Config(classes=2), data=replace(start.data, class_names=("a", "b")))
    run = replace(start, method=Config(classes=3), data=replace(start.data, class_names=("b", "c", "a")))
    before, initial = (dict(Model(r.method).state_dict()) for r in (start, run))
    ours, told = finetune.adapted(before, start, run, initial)
    table, old = ours["names.table.weight"], before["names.table.weight"]
    assert torch.equal(table[[0, 2, 3]], old[[1, 0, 2]]) and torch.equal(table[1], initial["names.table.weight"][1])
    assert told == ["labels: 3 classes in place of 2, 2 found by name, 1 initialised; the row of none is kept"]


def test_other_classes_without_a_label_table_are_refused(registries):
    def bare(config):
        model = Model(config)
        del model.names
        return model

    methods.register("toy", toy(Model=bare))
    start = toy_run()
    start = replace(start, data=replace(start.data, class_names=("a", "b")))
    run = replace(start, data=replace(start.data, class_names=("b", "a")))
    weights = dict(bare(start.method).state_dict())
    assert finetune.adapted(weights, start, start, weights)[1] == []
    with pytest.raises(
        ValueError, match="the classes are b, a ... here and a, b ... there, and this method has no Label"
    ):
        finetune.adapted(weights, start, run, weights)


def test_what_checkpoints_would_not_hold_is_refused_before_training():
    model = Model(Config())
    model.norm = nn.BatchNorm2d(1)
    settings = {"method": toy(), "config": TrainConfig(), "optim": OptimConfig(), "seed": 0}
    with pytest.raises(ValueError, match="also has norm.num_batches_tracked, norm.running_mean, norm.running_var"):
        begin(model, **settings)


def test_buffers_of_an_empty_model_have_their_values(registries):
    class Tables(nn.Module):
        def __init__(self, config):
            super().__init__()
            self.register_buffer("table", torch.empty(1000).fill_(3.0), persistent=False)

    methods.register("toy", toy(Model=Tables))
    assert torch.equal(methods.empty_model(Config()).table, torch.full((1000,), 3.0))


def in_a_new_process(folder, plugin, *commands):
    """Exit codes and what is printed of commands, each with the plugin if there is one, in one process."""
    given = [] if plugin is None else ["--plugin", str(plugin)]
    script = f"from fluvial.cli import main\nprint('CODES', [main(c) for c in {[[*c, *given] for c in commands]!r}])"
    ended = subprocess.run(
        [sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, env={**os.environ, "COLUMNS": "200"}
    )
    codes = json.loads(ended.stdout.rpartition("CODES")[2] or "null")
    return codes, ended.stdout + ended.stderr


@pytest.mark.slow
def test_a_method_in_one_file_does_all_that_the_others_do(tmp_path):
    run, few = "runs/digits-pixel-flow-smoke", ["--train.steps", "61", "--train.batch", "16"]
    codes, printed = in_a_new_process(
        tmp_path,
        PIXEL_FLOW,
        ["recipes"],
        ["train", "digits-pixel-flow", "--help", "all"],
        ["train", "digits-pixel-flow", "--dry-run"],
        ["train", "digits-pixel-flow", "--smoke", "--train.compile", "False", "--train.activation-checkpointing", "1"],
        ["sample", run, "--count", "20", "--sample.solver", "euler-maruyama", "--sample.steps", "4"],
        ["score", run, "--count", "50"],
        ["train", run, "--dry-run"],
        ["train", run, *few, "--out", "further"],
        ["export", run, "--to", "safetensors", "--out", "exported"],
        ["import", "exported/model.safetensors", "--out", "imported"],
        ["sample", "imported", "--count", "4"],
        [
            "bench",
            "sample",
            "digits-pixel-flow",
            "--batch",
            "2",
            "--repeats",
            "1",
            "--side",
            "64",
            "--sample.steps",
            "2",
        ],
        ["doctor", run],
    )
    assert codes is not None and codes[:-1] == [0] * 12, printed
    assert codes[-1] in (0, 1) and "learning rate" in printed  # sixty steps may leave it something to say
    assert "digits-pixel-flow\n    A rectified flow" in printed and "--method.width" in printed
    assert json.loads((tmp_path / run / "run.json").read_text())["run"]["method"]["name"] == "pixel-flow"
    assert (tmp_path / run / "samples" / "grid.png").exists() and (tmp_path / run / "score.json").exists()
    assert "--plugin FILE.py" in (tmp_path / "exported" / "README.md").read_text()

    codes, printed = in_a_new_process(
        tmp_path, None, ["sample", run], ["import", "exported/model.safetensors", "--out", "no"]
    )
    assert codes == [1, 1] and printed.count("method.name is 'pixel-flow', known are sit, arflow, flowar; ") == 2


@pytest.mark.slow
def test_a_network_of_ones_own_trains_with_sits_objective(tmp_path):
    run = "runs/digits-conv-flow-smoke"
    train = ["train", "digits-conv-flow", "--smoke"]
    codes, printed = in_a_new_process(tmp_path, OWN_NETWORK, train, ["sample", run, "--count", "4"])
    assert codes == [0, 0], printed
    losses = [
        json.loads(line)["loss"] for line in (tmp_path / run / "log.jsonl").read_text().splitlines() if '"loss"' in line
    ]
    assert losses[-1] < 0.8 * losses[0]
