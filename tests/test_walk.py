"""Pages that name functions: they exist, and run in the order in which docs/walk-through.md names them."""

import ast
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import fluvial

ROOT = Path(fluvial.__file__).parent
DOCS = Path(__file__).parents[1] / "docs"
WALK = (DOCS / "walk-through.md").read_text()
REFERENCE = re.compile(r"`([\w/]+\.py):([\w.]+)`")
SECTIONS = dict(part.split("\n", 1) for part in WALK.split("\n## ")[1:])


def defined(file: Path) -> set[str]:
    """Dotted names of all functions and classes of a file, those inside of others too."""
    names = set()

    def visit(node: ast.AST, before: str = "") -> None:
        for child in ast.iter_child_nodes(node):
            here = before
            if isinstance(child, ast.FunctionDef | ast.ClassDef):
                names.add(before + child.name)
                here = f"{before}{child.name}."
            visit(child, here)

    visit(ast.parse(file.read_text()))
    return names


@pytest.mark.parametrize(("page", "fewest"), [("walk-through", 40), ("sit", 15), ("arflow", 15), ("flowar", 15)])
def test_every_function_that_is_named_exists(page, fewest):
    references = REFERENCE.findall((DOCS / f"{page}.md").read_text())
    assert len(references) > fewest
    known = {file: defined(ROOT / file) if (ROOT / file).is_file() else set() for file, _ in references}
    assert [f"{file}:{name}" for file, name in references if name not in known[file]] == []


def called(run) -> list[str]:
    """The functions of the library that are called on this thread while `run` runs, as `file.py:name`, in order."""
    found = []

    def note(frame, event, _):
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(f"{ROOT}/"):
            name = code.co_qualname.replace("<locals>.", "")
            found.append(f"{Path(code.co_filename).relative_to(ROOT).as_posix()}:{name}")

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        run()
    finally:
        sys.setprofile(before)
    return found


def check_order(section: str, calls: list[str]) -> None:
    rest = iter(calls)
    for file, name in REFERENCE.findall(SECTIONS[section]):
        assert f"{file}:{name}" in rest, f"{file}:{name} is not called after those that {section!r} names before it"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run folder, and what was called while it was trained."""
    run = fluvial.recipes.get("digits-arflow")
    run = replace(run, train=replace(run.train, steps=2))
    folder = tmp_path_factory.mktemp("walk") / "digits"
    return folder, called(lambda: fluvial.train(run, folder))


def test_training_runs_in_the_order_of_the_walk(trained):
    check_order("One training step", trained[1])


def test_sampling_runs_in_the_order_of_the_walk(trained):
    folder, _ = trained
    samples = called(lambda: fluvial.load(folder).sample(1, classes=["3"]).save(folder / "samples"))
    check_order("One sampled image", samples)
