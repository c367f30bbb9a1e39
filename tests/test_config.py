import dataclasses
import json

import pytest

from fluvial import recipes
from fluvial.config import differences, from_json, to_json


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_every_recipe_survives_json(name):
    run = recipes.get(name)
    assert from_json(json.loads(json.dumps(to_json(run)))) == run


def test_what_does_not_fit_is_named():
    values = to_json(recipes.get("digits-sit"))
    for change, reason in (
        (lambda v: v["train"].update(step=3), "step"),
        (lambda v: v["optim"].update(lr="fast"), "lr"),
        (lambda v: v["method"].update(name="flow"), "flow"),
        (lambda v: v.pop("method"), "method"),
        (lambda v: v["method"].update(width=30), "width must be divisible"),
    ):
        broken = json.loads(json.dumps(values))
        change(broken)
        with pytest.raises(ValueError, match=f"not a configuration .*{reason}"):
            from_json(broken)


def test_differences_are_named_by_their_path():
    run = recipes.get("digits-sit")
    other = dataclasses.replace(run, seed=3, optim=dataclasses.replace(run.optim, lr=0.5))
    assert differences(run, run) == {}
    assert differences(run, other) == {"seed": (0, 3), "optim.lr": (run.optim.lr, 0.5)}
    assert "method" in differences(run, recipes.get("digits-arflow"))


def test_an_unknown_recipe_names_the_closest():
    with pytest.raises(ValueError, match="Did you mean digits-arflow"):
        recipes.get("digit-arflow")
