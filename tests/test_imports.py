"""The direction of imports: a row imports only from rows above it, and methods never import one another."""

import ast
from pathlib import Path

import pytest

import fluvial

ROOT = Path(fluvial.__file__).parent
ROWS = [
    {"checks", "extras", "files", "interpolant", "precision", "progress", "randomness", "timesteps"},
    {"integrate"},
    {"guidance", "nn"},
    {"methods", "autoencoders", "data", "metrics", "pictures"},
    {"train", "generate"},
    {"config"},
    {"recipes"},
    {"upstream"},
    {"inputs", "finetune", "estimate"},
    {"held_out", "evaluation"},
    {"trained"},
    {"experiment"},
    {"scoring"},
    {"bench", "compare", "curves", "doctor", "importing", "pipeline"},
    {"exporting"},
    {"cli"},
]
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


def row(part: str) -> int | None:
    return next((i for i, names in enumerate(ROWS) if part in names), None)


@pytest.mark.parametrize("file", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_upwards(file):
    here = file.relative_to(ROOT).with_suffix("").parts
    assert row(here[0]) is not None, f"{here[0]} has no row"
    for name in imported(file):
        there = name.split(".")
        if there[0] == "__version__":
            continue
        same_package = there[0] == here[0]
        assert same_package or row(there[0]) < row(here[0]), f"{'.'.join(here)} imports {name}"
        if here[0] == there[0] == "methods" and here[-1] != "__init__" and there[1] != "method":
            raise AssertionError(f"one method imports another: {'.'.join(here)} imports {name}")


@pytest.mark.parametrize("file", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_stay_readable(file):
    assert len(file.read_text().splitlines()) <= 430
    assert "torchvision" not in file.read_text() and "timm" not in file.read_text()


@pytest.mark.parametrize("file", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_only_methods_and_translators_of_weights_know_which_method_it_is(file):
    """Everything else asks the module of the method: see methods/method.py."""
    here = file.relative_to(ROOT).with_suffix("").parts
    if here[0] in ("methods", "upstream", "importing", "recipes"):
        return
    names = {"SiTConfig", "ARFlowConfig", "FlowARConfig", "DiTConfig"}
    used = {node.id for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Name)}
    assert here[0] == "nn" or not names & used, f"{'.'.join(here)} asks for {names & used}"
    assert not {"methods.sit", "methods.arflow", "methods.flowar"} & imported(file)
