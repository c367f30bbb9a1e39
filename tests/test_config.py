import dataclasses
import json
import math

import pytest

from fluvial import recipes
from fluvial.config import differences, from_json, to_json
from fluvial.flow.guidance import Guidance
from fluvial.sampling.settings import SampleConfig


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


def leaves(values, path=()):
    """Path and value of every setting in the JSON of a run."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from leaves(value, (*path, key))
        else:
            yield (*path, key), value


WRONG = {  # by the type that a setting has: values of the right form in JSON and of a wrong type, or of no use
    bool: ["no", 1, None],
    int: [True, "3", 1.5, None, 10**30, -(10**30), [1]],
    float: [math.nan, math.inf, -math.inf, 1e999, "3", True, None, 10**400, {}],
    str: [5, None, ["x"], True],
    list: ["ab", 3, None, [None], [{}], [math.nan, math.nan], [True, True]],
    type(None): ["x", 1.5, math.nan],
}


@pytest.mark.parametrize("name", ["digits-sit", "digits-arflow", "digits-flowar"])
def test_a_value_of_the_wrong_type_is_refused_by_its_name(name):
    good = json.loads(json.dumps(to_json(recipes.get(name))))
    for path, value in leaves(good if name == "digits-sit" else {"method": good["method"]}):
        for wrong in WRONG[type(value)]:
            broken = json.loads(json.dumps(good))
            part = broken
            for key in path[:-1]:
                part = part[key]
            part[path[-1]] = wrong
            with pytest.raises(ValueError, match=f"not a configuration .*{'.'.join(path)}"):
                from_json(json.loads(json.dumps(broken)))


@pytest.mark.parametrize("wrong", [None, 3, "x", [], {}, {"method": None}, {"method": {"name": ["sit"]}}])
def test_what_is_no_configuration_at_all_is_refused(wrong):
    with pytest.raises(ValueError, match=r"not a configuration .*method.name"):
        from_json(wrong)


@pytest.mark.parametrize("part", ["data", "optim", "sample"])
@pytest.mark.parametrize("wrong", [None, 3, "x", [1]])
def test_a_part_that_is_no_object_is_named(part, wrong):
    with pytest.raises(ValueError, match=f"{part}: must be an object"):
        from_json(to_json(recipes.get("digits-sit")) | {part: wrong})


def changed(run, **parts):
    return dataclasses.replace(
        run, **{name: dataclasses.replace(getattr(run, name), **values) for name, values in parts.items()}
    )


SIT, FLOWAR = recipes.get("digits-sit"), recipes.get("digits-flowar")
GUIDED = SampleConfig(guidance=Guidance(weight=2.0))


@pytest.mark.parametrize(
    ("run", "sample", "says"),
    [
        (changed(SIT, method={"label_drop": 0.0}), GUIDED, "guidance.*method.label_drop 0.*sample.guidance.weight 2"),
        (changed(FLOWAR, method={"label_drop": 0.0}), GUIDED, "method.label_drop 0"),
        (
            changed(FLOWAR, method={"label_drop": 0.0}),
            SampleConfig(guidance=Guidance(scale_weights=(1.0, 1.0, 3.0))),
            "sample.guidance.scale_weights 1.0 1.0 3.0",
        ),
        (SIT, SampleConfig(guidance=Guidance(weight=2.0, channels=3)), "sample.guidance.channels .* 1 channels, got 3"),
        (changed(SIT, method={"classes": 0}), GUIDED, "method.classes 0 and sample.guidance.weight 2"),
    ],
)
def test_guidance_that_a_model_cannot_follow_is_refused_by_name(run, sample, says):
    with pytest.raises(ValueError, match=says):
        run.sampled_with(sample)


@pytest.mark.parametrize(
    ("run", "sample"),
    [
        (changed(SIT, method={"label_drop": 0.0}), SampleConfig(guidance=Guidance(channels=3))),  # weight 1
        (
            changed(FLOWAR, method={"label_drop": 0.0}),
            SampleConfig(guidance=Guidance(weight=3.0, scale_weights=(1.0,) * 3)),
        ),
        (changed(SIT, method={"classes": 0}), SIT.sample),  # as its recipe says, which changes nothing
        (SIT, SampleConfig(guidance=Guidance(weight=2.0, channels=1))),
        (FLOWAR, GUIDED),
    ],
)
def test_guidance_without_effect_or_of_a_null_branch_is_followed(run, sample):
    assert run.sampled_with(sample).sample == sample


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_every_recipe_can_be_sampled_as_it_says(name):
    run = recipes.get(name)
    assert run.sampled_with(run.sample) == run


def test_differences_are_named_by_their_path():
    run = recipes.get("digits-sit")
    other = dataclasses.replace(run, seed=3, optim=dataclasses.replace(run.optim, lr=0.5))
    assert differences(run, run) == {}
    assert differences(run, other) == {"seed": (0, 3), "optim.lr": (run.optim.lr, 0.5)}
    assert "method" in differences(run, recipes.get("digits-arflow"))


def test_an_unknown_recipe_names_the_closest():
    with pytest.raises(ValueError, match="Did you mean digits-arflow"):
        recipes.get("digit-arflow")
