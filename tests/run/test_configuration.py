import json
import random
import re
from dataclasses import replace
from pathlib import Path

import pytest

from fluvial import recipes
from fluvial.config import Run, to_json
from fluvial.flow.guidance import Guidance
from fluvial.run.commented import comments
from fluvial.run.configuration import base_run, changes, configuration_text, known_settings, read_configuration
from fluvial.run.folder import RunFolder, record_of
from fluvial.sampling.settings import Dopri5, Heun
from fluvial.tools.estimate import parameters
from fluvial.tools.study.plan import read_study
from fluvial.training.config import TrainConfig
from fluvial.utils.yaml_text import parse

ROOT = Path(__file__).parents[2]
SIT, ARFLOW, FLOWAR = (recipes.get(f"digits-{name}") for name in ("sit", "arflow", "flowar"))


@pytest.fixture
def read(tmp_path, monkeypatch):
    """Reads a text as the file my.yaml."""
    monkeypatch.chdir(tmp_path)

    def read(text, name="my.yaml"):
        Path(name).write_bytes(text if isinstance(text, bytes) else text.encode())
        return read_configuration(name).run

    return read


def changed(run, **parts):
    return replace(run, **{name: replace(getattr(run, name), **values) for name, values in parts.items()})


def make_run(run, folder):
    RunFolder(folder).path.mkdir(parents=True)
    RunFolder(folder).write(record_of(run))
    return run


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_the_settings_of_every_recipe_are_written_and_read_again(name, read):
    run = recipes.get(name)
    text = configuration_text(run)
    assert read(text) == run
    about = [line for line in text.splitlines() if re.match(r"\s*\w+:", line) and "name:" not in line]
    assert len(parse(text).values) >= len(about) - 8
    for base in ("digits-sit", "imagenet256-flowar-l", name):
        short = configuration_text(run, base=base)
        assert read(short) == run and short.startswith(f"base: {base}\n")
    assert short == f"base: {name}\n"


def test_a_run_with_everything_in_it_is_written_and_read_again(read):
    run = changed(
        SIT,
        data={"path": "a #b: c", "class_names": ("no", "on", "~", "ä\n", *"012345"), "digest": "0" * 9},
        autoencoder={"name": "~", "shift": (1e-4, 2.0), "scale": (1.0, 1e-05), "hash": "123"},
        sample={"solver": Dopri5(atol=1e-07), "guidance": Guidance(channels=None, interval=(0.1, 1.0))},
        optim={"betas": (0.5, 1e-9)},
    )
    assert read(configuration_text(run)) == run and read(configuration_text(run, base="digits-arflow")) == run
    make_run(run, "runs/a")
    make_run(ARFLOW, "runs/b")
    for base in ("runs/a", "runs/b"):
        assert read(configuration_text(run, base=base)) == run
    back = changes(ARFLOW, base_run("runs/a"))
    assert read(configuration_text(ARFLOW, base="runs/a")) == ARFLOW and "autoencoder.hash" in back


def test_every_setting_has_a_comment_with_its_choices():
    for run in (SIT, ARFLOW, FLOWAR):
        text = configuration_text(run)
        lines = text.splitlines()
        bare = [b for a, b in zip(["", *lines], lines, strict=False) if ":" in b and "#" not in a + b]
        assert {line.split(":")[0].strip() for line in bare} <= {"name"}, bare
    assert comments(TrainConfig)["steps"].startswith("Optimizer steps in all.")
    assert "# Schedule after the warm-up: the peak rate, half a cosine down to final_lr" in text
    assert comments(type(SIT.optim))["clip"].endswith("to clip_at. One of none, value, norm.")


def test_the_known_settings_are_those_of_json():
    for run in (SIT, FLOWAR, changed(SIT, sample={"solver": "dopri5"})):
        flat = parse(configuration_text(run)).values
        known = known_settings(to_json(run)["method"]["name"], type(run.sample.solver))
        assert set(known) == {*flat, "sample.solver.name"} - {"sample.solver"}


def test_only_what_differs_is_said_nested_or_with_dots(read):
    expected = changed(ARFLOW, train={"steps": 2000, "batch": 16}, optim={"lr": 1e-4}, sample={"steps": 8})
    nested = (
        "# mine\nbase: digits-arflow\ntrain: {steps: 2000, batch: 16}\noptim:\n  lr: 1e-4  # low\nsample.steps: 8\n"
    )
    assert read(nested) == expected
    assert (
        read("base: digits-arflow\ntrain.steps: 2_000\ntrain.batch: 16\noptim: {lr: 0.0001}\nsample: {steps: 8}")
        == expected
    )
    assert read("base: digits-arflow\nsample.guidance.weight: 3\nsample:\n  guidance.ramp: constant\n") == changed(
        ARFLOW, sample={"guidance": Guidance(weight=3.0)}
    )
    assert read("base: digits-arflow\ntrain:\n  # steps: 3\n") == ARFLOW
    assert read("base: digits-arflow") == ARFLOW
    assert read("\ufeffbase: digits-sit\r\nseed: 3\r\n") == replace(SIT, seed=3)


def test_another_method_or_solver_starts_from_its_own_defaults(read):
    run = read("base: digits-arflow\nmethod: {name: sit, size: [8, 8], channels: 1, classes: 10}\n")
    assert run.method == type(SIT.method)(size=(8, 8), channels=1, classes=10) and run.train == ARFLOW.train
    assert read("base: digits-arflow\nmethod: {name: arflow, depth: 2}").method == replace(ARFLOW.method, depth=2)
    dopri5 = changed(SIT, sample={"solver": Dopri5(atol=1e-3)})
    make_run(dopri5, "runs/a")
    assert read("base: runs/a\nsample.solver.rtol: 1e-3").sample.solver == Dopri5(atol=1e-3, rtol=1e-3)
    assert read("base: runs/a\nsample.solver: dopri5").sample.solver == Dopri5(atol=1e-3)
    assert read("base: runs/a\nsample: {solver: heun}").sample.solver == Heun()
    assert read("base: digits-sit\nsample.solver: {name: dopri5, atol: 0.5}").sample.solver == Dopri5(atol=0.5)


def test_another_data_set_or_autoencoder_takes_the_place_of_the_base(read):
    run = changed(
        SIT,
        data={"path": "photos", "class_names": tuple("abcdefghij"), "digest": "abc"},
        autoencoder={"shift": (1.0,), "scale": (2.0,), "hash": "x"},
    )
    make_run(run, "runs/a")
    assert read("base: runs/a\nseed: 1") == replace(changed(run, data={"class_names": (), "digest": ""}), seed=1)
    assert read("base: runs/a\ndata.name: mnist-5k").data == replace(SIT.data, name="mnist-5k")
    assert read("base: digits-sit\ndata.path: b").data == replace(SIT.data, name="", path="b")
    assert read("base: runs/a\nautoencoder.name: other").autoencoder == replace(SIT.autoencoder, name="other")
    given = changed(run, data={"names_given": True})
    make_run(given, "runs/b")
    assert read("base: runs/b").data.class_names == tuple("abcdefghij")
    with pytest.raises(ValueError, match=r"line 2: data.name and data.path are two data sets"):
        read("base: runs/a\ndata: {name: digits, path: c}")


def test_a_file_without_a_base_has_the_defaults(read):
    assert read("method.name: sit\n") == replace(SIT, **vars(type(SIT)(method=type(SIT.method)())))
    assert read("method: {name: sit, width: 64, heads: 2}\nseed: 3").method.width == 64


ALL = """base: digits-arflow
train:
  step: 3
  compile: no
  steps: 10
  steps: 20
optim.lr: "1e-4"
rate: 3
out: runs/x
train.recompute: 1
data: {class_names: [0, 1]}
sample: 5
method: {name: arflow, wdith: 3}
trian.batch: 3
"""
TOLD = """line 3: train.step: there is no such setting; did you mean train.steps?
line 4: train.compile: must be True or False, got 'no'; write true or false
line 6: train.steps is given twice, in line 5 as well: leave out one
line 7: optim.lr: must be a number, got '1e-4'; write it without quotes
line 8: rate: there is no such setting; a run has method, data, autoencoder, optim, train, sample, seed
line 9: out: is no setting of a run: give it on the command line, --out
line 10: train.recompute: is now train.activation_checkpointing
line 11: data.class_names: must be a text, got 0; write it in quotes, such as "3"
line 12: sample: must have settings below it, got 5
line 13: method.wdith: there is no such setting; did you mean method.width?
line 14: trian.batch: there is no such setting; did you mean train.batch?"""


def test_all_that_is_wrong_is_told_with_lines_and_the_nearest(read):
    with pytest.raises(ValueError) as error:
        read(ALL)
    assert str(error.value) == f"my.yaml cannot be used: {'; '.join(TOLD.splitlines())}"


def test_what_follows_from_a_setting_that_is_not_known_is_not_told(read):
    with pytest.raises(
        ValueError, match=r"^my.yaml cannot be used: line 2: method.scalse: .* did you mean method.scales\?$"
    ):
        read("base: digits-flowar\nmethod.scalse: [1, 4]\nsample.steps: [3, 2]\n")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "it says no model: give it a line such as base: digits-arflow"),
        ("# nothing", "it says no model"),
        ("train.steps: 3", "it says no model"),
        ("- 3", "expected settings with a name each"),
        (
            "base: digit-arflow",
            "line 1: base: 'digit-arflow' is no run folder .* Did you mean digits-arflow",
        ),
        ("base: runs/nne", "line 1: base: runs/nne is not a run folder: it has no run.json; did you mean runs/none?"),
        ("base: other.yaml", "line 1: base: other.yaml is a file, expected a recipe or a run folder"),
        ("base: 3", "line 1: base: must be the name of a recipe or a run folder, got 3"),
        ("base:", "line 1: base: must be the name"),
        ("base: {a: 1}", "base.a: there is no such setting|it says no model"),
        ("base: digits-sit\nmethod.name: arflo", "line 2: method.name is 'arflo'.*did you mean arflow"),
        ("base: digits-sit\nsample.solver: hein", "line 2: sample.solver.name: must be one of euler"),
        ("base: digits-sit\nsample.solver.atol: 3", "line 2: sample.solver.atol: there is no such setting"),
        ("base: digits-sit\nlr: 3", "line 2: lr: there is no such setting; did you mean optim.lr?"),
        ("base: digits-sit\nbatch: 3", "did you mean train.batch or sample.batch?"),
        ("base: digits-sit\ntrain.steps: 2e3", "line 2: train.steps: must be a whole number, got 2000.0"),
        ("base: digits-sit\noptim.lr: .inf", "line 2: optim.lr: must be a number, got '.inf'"),
        ("base: digits-sit\noptim.lr: 1e999", "line 2: optim.lr: must be finite"),
        ("base: digits-sit\noptim.lr: -1", "optim: lr and clip_at must be above 0"),
        ("base: digits-sit\noptim.clip: off", "line 2: optim.clip: must be one of none, value, norm, got 'off'"),
        ("base: digits-sit\nsample.guidance.channels: none", "line 2: .*write null for None"),
        ("base: digits-sit\ndata.split: 3", 'must be a text, got 3; write it in quotes, such as "3"'),
        ("base: digits-sit\nsample.steps: [3, 2]", "sample.steps must be one number"),
        ("base: digits-sit\ntrain.steps.more: 2", "did you mean train.steps?"),
        ("base: digits-sit\n1: 2", "line 2: 1: there is no such setting"),
        ("base: digits-sit\ntrain.: 2", "line 2: train.: there is no such setting"),
        ("base: digits-sit\n? [a]\n: 2", "line 2: expected the name of a setting"),
        (b"\x89PNG\r\n\x1a\n", "no text in UTF-8"),
        (b"\x00" * 9, "no YAML"),
        (b"#" * 2_000_000, "2,000,000 bytes"),
    ],
)
def test_what_cannot_be_used_is_named(read, text, reason):
    Path("runs/none").mkdir(parents=True)
    with pytest.raises(ValueError, match=rf"^my.yaml .*{reason}"):
        read(text)


def test_a_base_that_is_both_is_refused_and_the_folder_can_be_named(read):
    make_run(replace(ARFLOW, seed=9), "digits-sit")
    with pytest.raises(ValueError, match="digits-sit is a recipe and a run folder here: ./digits-sit is the folder"):
        read("base: digits-sit")
    assert read("base: ./digits-sit").seed == 9


def test_a_python_file_has_a_function_that_returns_a_run(read):
    python = "import fluvial\nfrom dataclasses import replace\ndef run():\n    return {}\n"
    assert read(python.format("replace(fluvial.recipes.get('digits-sit'), seed=5)"), "a.py") == replace(SIT, seed=5)
    assert read(python.format("replace(fluvial.recipes.get('digits-sit'), seed=6)"), "a.py").seed == 6
    for text, reason in (
        (python.format("3"), r"a.py: run\(\) must return a fluvial.Run, got 3"),
        (python.format("1 / 0"), r"a.py: run\(\) raises ZeroDivisionError"),
        ("run = 3", r"a.py has no function run\(\)"),
        ("1 / 0", "a.py cannot be imported: ZeroDivisionError"),
        ("a b", "a.py cannot be imported: SyntaxError"),
    ):
        with pytest.raises(ValueError, match=reason):
            read(text, "a.py")


def test_a_run_json_is_read_wherever_it_is(read):
    run = make_run(changed(ARFLOW, data={"digest": "abc"}), "runs/a")
    text = Path("runs/a/run.json").read_text()
    assert read_configuration("runs/a/run.json").run == read(text, "copy.json") == run
    assert "text" not in read_configuration("copy.json").record
    for broken, reason in (
        (text.replace('"seed": 0', '"seed": 1'), "copy.json is not as it was written"),
        (json.dumps(to_json(run)), 'copy.json cannot be read: it has no entry "run"'),
        ("[]", 'copy.json cannot be read: it has no entry "run"'),
        ("{", "copy.json cannot be read"),
    ):
        with pytest.raises(ValueError, match=reason):
            read(broken, "copy.json")


def test_a_file_of_another_kind_is_refused(read):
    for name, reason in (("a.toml", "another ending than .yaml, .yml, .py, .json"), ("a", "another ending")):
        with pytest.raises(ValueError, match=reason):
            read("", name)
    Path("b.yaml").mkdir()
    with pytest.raises(OSError, match="it is a folder"):
        read_configuration("b.yaml")


def test_whatever_is_in_a_file_it_is_a_run_or_refused(read):
    good = configuration_text(changed(FLOWAR, train={"steps": 3}), base="digits-sit").encode()
    generator, refused, parts = random.Random(0), 0, [b"", b":", b"\n", b"[", b"&a ", b"\x80", b"0"]
    for _ in range(400):
        text = bytearray(good)
        for _ in range(generator.randrange(1, 4)):
            place = generator.randrange(len(text))
            text[place : place + generator.randrange(3)] = generator.choice(parts)
        try:
            assert isinstance(read(bytes(text)), Run)
        except ValueError as error:
            assert str(error).startswith("my.yaml ") and "\n" not in str(error)
            refused += 1
    assert 100 < refused < 400


BLOCK = re.compile(r"^```yaml\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
EXAMPLES = sorted(path for ending in ("yaml", "yml") for path in (ROOT / "examples").glob(f"*.{ending}"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_the_examples_can_be_used_and_differ_from_their_base(path):
    run = read_configuration(path).run
    values = parse(path.read_text()).values
    base = base_run(values.pop("base"))
    assert values and values.keys() <= changes(run, base).keys(), "the rest is as in the base"


def test_the_example_in_python_is_a_run():
    run = read_configuration(ROOT / "examples" / "digits_wide.py").run
    assert run.method == replace(ARFLOW.method, width=256, heads=8) and run.optim.lr == ARFLOW.optim.lr / 2


def test_there_are_examples():
    assert len(EXAMPLES) >= 2 and sum(len(BLOCK.findall(page.read_text())) for page in PAGES) >= 3


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_yaml_of_the_pages_can_be_used(page, read):
    make_run(ARFLOW, "runs/digits-arflow")
    for text in BLOCK.findall(page.read_text()):
        if page.name == "studies.md":
            Path("study.yaml").write_text(text)
            assert read_study("study.yaml").runs
        else:
            assert read(text)


@pytest.mark.parametrize("file", sorted((ROOT / "studies").glob("*.yaml")), ids=lambda file: file.name)
def test_the_studies_that_are_here_can_be_read(file):
    plan = read_study(file)
    counts = [sum(parameters(run).values()) for run in plan.runs.values()]
    assert len(plan.runs) > 1
    if file.name not in ("digits.yaml", "cifar10-gpu.yaml"):  # whose recipes are as they are
        assert max(counts) <= 1.1 * min(counts), dict(zip(plan.runs, counts, strict=True))
