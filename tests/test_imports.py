"""The structure of the source: folders import only folders before them, and modules form no circle."""

import ast
from functools import cache
from pathlib import Path

import pytest

import fluvial
from conftest import slow_tests

ROOT = Path(fluvial.__file__).parent
ORDER = """utils flow nn methods autoencoders data training sampling metrics evaluation config recipes run weights tools
studio cli""".split()
LONGEST_CHAIN = 11  # from a command by way of a study, its file, the settings in it and a recipe to the interpolant
LONGEST_OF_STUDIO = 6  # modules of the studio above the rest, which have a chain of their own: a page, parts, logic
FILES = sorted(p for p in ROOT.rglob("*.py") if p.name != "__main__.py" and p != ROOT / "__init__.py")


def imported(file: Path) -> set[str]:
    """Dotted names under fluvial that a file imports."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{file}: relative import"
            names |= {f"{node.module}.{a.name}" for a in node.names}
    return {n.removeprefix("fluvial.") for n in names if n.startswith("fluvial.")}


@pytest.mark.parametrize("file", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_folder_imports_only_folders_before_it(file):
    here = file.relative_to(ROOT).with_suffix("").parts
    for name in imported(file) - {"__version__"}:
        there = name.split(".")
        assert ORDER.index(there[0]) <= ORDER.index(here[0]), f"{'.'.join(here)} imports {name}"
        if here[0] == there[0] == "methods" and here[-1] != "__init__" and there[1] != "method":
            raise AssertionError(f"one method imports another: {'.'.join(here)} imports {name}")


def test_nothing_but_folders_and_the_configuration_at_the_top():
    assert {path.name for path in ROOT.glob("*.py")} == {"__init__.py", "__main__.py", "config.py"}


def modules() -> dict[str, set[str]]:
    """By module, the modules under fluvial that importing it imports, but for the packages that it lies in."""
    names = {".".join(f.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): f for f in FILES}
    found = {}
    for name, file in names.items():
        targets = {t if t in names else t.rpartition(".")[0] for t in imported(file)}
        found[name] = {t for t in targets if t in names and t != name}
    return found


def test_module_imports_form_no_circle_and_no_long_chain():
    graph = modules()

    @cache
    def chain(name: str) -> tuple[str, ...]:
        assert name not in path, f"a circle: {' -> '.join([*path, name])}"
        path.append(name)
        longest = max((chain(other) for other in graph[name]), key=len, default=())
        path.pop()
        return (name, *longest)

    path: list[str] = []
    chains = [chain(name) for name in graph]
    above = [tuple(name for name in found if "studio" in name) for found in chains]
    longest = max((found[len(own) :] for found, own in zip(chains, above, strict=True)), key=len)
    assert len(longest) <= LONGEST_CHAIN, " -> ".join(longest)
    assert len(max(above, key=len)) <= LONGEST_OF_STUDIO, " -> ".join(max(above, key=len))


@pytest.mark.parametrize("file", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_stay_readable(file):
    assert len(file.read_text().splitlines()) <= 430
    assert "torchvision" not in file.read_text() and "timm" not in file.read_text()


@pytest.mark.parametrize("file", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_only_methods_and_translators_of_weights_know_which_method_it_is(file):
    """Everything else asks the module of the method: see methods/method.py."""
    here = file.relative_to(ROOT).with_suffix("").parts
    if here[0] in ("methods", "weights", "recipes"):
        return
    names = {"SiTConfig", "ARFlowConfig", "FlowARConfig", "DiTConfig"}
    used = {node.id for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Name)}
    assert here[0] == "nn" or not names & used, f"{'.'.join(here)} asks for {names & used}"
    assert not {"methods.sit", "methods.arflow", "methods.flowar"} & imported(file)


def functions(file: Path) -> list[ast.FunctionDef]:
    return [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.FunctionDef)]


@pytest.mark.parametrize("file", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_parameter_lists_are_short_but_for_keywords_of_public_calls(file):
    for function in functions(file):
        arguments = function.args
        positional = len([a for a in arguments.args if a.arg not in ("self", "cls")])
        count = positional + len(arguments.kwonlyargs)
        public = not function.name.startswith("_") or function.name == "__init__"
        assert positional <= 8 and (count <= 8 or (public and positional <= 4)), function.name


@pytest.mark.parametrize("file", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_docstrings_are_plain_statements(file):
    """Those of a module, a class or a function: they say what a thing is or returns, in no indirect question."""
    tree = ast.parse(file.read_text())
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and (doc := ast.get_docstring(node)):
            assert doc.split()[0] not in ("What", "Whether", "How", "Itself"), doc
            assert not doc.startswith("The same"), doc


def test_from_the_public_call_to_the_optimizer_it_is_three_calls():
    """fluvial.train calls loop.train, which calls step, which has the line optimizer.step()."""
    body = {
        name: next(ast.unparse(f) for f in functions(ROOT / file) if f.name == name.rpartition(".")[2])
        for name, file in (
            ("run.train", "run/train.py"),
            ("loop.train", "training/loop.py"),
            ("step", "training/step.py"),
        )
    }
    assert "loop.train(" in body["run.train"]
    assert " step(" in body["loop.train"]
    assert "optimizer.step()" in body["step"]


def test_the_list_of_slow_tests_names_tests_that_are_there():
    folder = Path(__file__).parent
    for line in slow_tests():
        file, _, name = line.partition("::")
        assert (folder / file).exists() and f"def {name}(" in (folder / file).read_text(), line
