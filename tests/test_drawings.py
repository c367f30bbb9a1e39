"""The pages of the methods: their drawings are those of docs/drawings.py, and what they name exists."""

import re
from dataclasses import fields
from functools import reduce
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

from fluvial import recipes
from test_walk import REFERENCE, ROOT, defined

DOCS = Path(__file__).parents[1] / "docs"
METHODS = {"sit": "imagenet256-sit-xl2", "arflow": "imagenet256-arflow-xl2", "flowar": "imagenet256-flowar-s"}
SETTING = re.compile(r"`((?:method|data|optim|train|sample)\.[\w.]+)`")


def test_drawings_are_those_of_the_script(tmp_path):
    pytest.importorskip("matplotlib")
    spec = spec_from_file_location("drawings", DOCS / "drawings.py")
    drawings = module_from_spec(spec)
    spec.loader.exec_module(drawings)
    made = {file.name: file.read_bytes() for file in drawings.draw(tmp_path)}
    assert made == {file.name: file.read_bytes() for file in (DOCS / "drawings").iterdir()}
    assert made.keys() == {f"{method}.svg" for method in METHODS}


@pytest.mark.parametrize("method", METHODS)
def test_functions_and_settings_that_a_page_names_exist(method):
    page, run = (DOCS / f"{method}.md").read_text(), recipes.get(METHODS[method])
    table = page.partition("\n## Where it is\n")[2].partition("\n## ")[0]
    references = REFERENCE.findall(page)
    assert len(REFERENCE.findall(table)) == len(references) > 10
    known = {file: defined(ROOT / file) if (ROOT / file).is_file() else set() for file, _ in references}
    assert [f"{file}:{name}" for file, name in references if name not in known[file]] == []
    settings = SETTING.findall(page)
    assert len(settings) > 5
    for setting in settings:
        reduce(getattr, setting.split("."), run)
    assert set(re.findall(r"`(imagenet[\w-]+)`", page)) <= recipes.RECIPES.keys()


@pytest.mark.parametrize("method", METHODS)
def test_a_page_names_every_setting_that_only_its_method_has(method):
    configs = {name: recipes.get(recipe).method for name, recipe in METHODS.items()}
    names = {name: {field.name for field in fields(config)} for name, config in configs.items()}
    own = names[method].difference(*(names[other] for other in METHODS if other != method))
    page = (DOCS / f"{method}.md").read_text()
    assert {f"method.{name}" for name in own} <= set(SETTING.findall(page))
