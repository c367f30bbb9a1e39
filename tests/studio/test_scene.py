"""Settings of a picture: links, commands and Python lines that all mean the same."""

import shlex
from pathlib import Path

import pytest

from fluvial.studio.scene import Scene, as_command, as_python, from_query, to_query

FULL = Scene(
    run="some/run",
    x=3.25,
    y=2.5,
    label="cat & dog",
    count=9,
    steps=7,
    solver="heun",
    weight=2.5,
    low=0.1,
    high=0.8,
    average="0.1",
)


@pytest.mark.parametrize("scene", [Scene(), FULL, Scene(run="a", weight=0.0, low=0.0), Scene(x=99.0, y=7.0)])
def test_a_link_restores_the_scene(scene):
    assert from_query(to_query(scene)) == scene


@pytest.mark.parametrize(
    "query",
    [{"x": "nan"}, {"x": "1e99"}, {"count": "1000000"}, {"steps": "many"}, {"weight": "inf"}, {"x": "-5"}, {"z": "1"}],
)
def test_what_is_no_setting_is_left_out(query):
    assert from_query(query) == Scene()


def test_a_place_is_a_seed_or_between_four():
    assert Scene(x=3.0, y=2.0).seed == 203 and Scene(x=3.5, y=2.0).seed is None
    between = Scene(x=3.25, y=2.5)
    assert between.seeds == (203, 204, 303, 304) and between.at == (0.25, 0.5)
    assert Scene(x=2.9999).seed == 3, "places have three digits"


def test_commands_name_what_differs_alone():
    assert as_command(Scene(run="r"), Path("r")) == "fluvial sample r --seed 0 --count 16 --columns 4 --out picture"
    words = shlex.split(as_command(FULL, Path("a b")))
    assert words[:3] == ["fluvial", "walk", "a b"] and words[words.index("--classes") + 1] == "cat & dog"
    assert words[words.index("--at") + 1 :][:2] == ["0.25", "0.5"]
    compile(as_python(FULL, Path("a b")), "", "exec")
