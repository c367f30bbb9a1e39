import dataclasses
import json
import math

import pytest

from fluvial import recipes
from fluvial.config import differences, fixed_differences, from_json, to_json
from fluvial.flow.guidance import Guidance
from fluvial.sampling.settings import Dopri5, EulerMaruyama, Heun, Midpoint, SampleConfig


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


def test_what_may_change_when_a_run_goes_on():
    run = recipes.get("digits-sit")
    free = changed(
        run,
        data={"path": "x", "cache": True},
        train={
            **{"log_every": 3, "log_to": ("wandb",), "blocks_every": 3, "save_every": 3, "validate_every": 3},
            **{"score_every": 3, "score_count": 3, "score_extractor": "clip", "sample_every": 3, "keep": 3},
            **{"keep_every": 3, "parallel": "ddp", "activation_checkpointing": 3, "ema_device": "cpu", "patience": 3},
            **{"steps": 3, "first_sample": 3, "keep_best": True},
        },
        sample={"solver": "dopri5", "steps": 3, "guidance": Guidance(weight=3.0), "precision": "bf16"},
    )
    autoencoder = dataclasses.replace(run.autoencoder, name="elsewhere")
    data = dataclasses.replace(free.data, name=run.data.name, test_path="y", names_given=True)
    free = dataclasses.replace(free, autoencoder=autoencoder, data=data)
    assert fixed_differences(run, free).keys() == {"data.name"}, "which a path takes the place of"
    fixed = changed(
        free,
        data={"size": 4, "flip": True},
        optim={"lr": 1.0},
        train={"batch": 3, "precision": "bf16", "ema_decay": 0.5, "ema_warmup": True},
        method={"depth": 2},
        autoencoder={"hash": "other"},
    )
    fixed = dataclasses.replace(fixed, seed=4)
    assert fixed_differences(run, fixed) == {
        **{"data.name": ("digits", ""), "data.size": (0, 4), "data.flip": (False, True), "optim.lr": (2e-3, 1.0)},
        **{"train.batch": (160, 3), "train.precision": ("fp32", "bf16"), "train.ema_decay": (0.99, 0.5)},
        **{"train.ema_warmup": (False, True)},
        **{"method.depth": (3, 2), "autoencoder.hash": ("", "other"), "seed": (0, 4)},
    }
    assert fixed_differences(run, recipes.get("digits-arflow"))["method"] == (
        "fluvial.methods.sit.SiTConfig",
        "fluvial.methods.arflow.ARFlowConfig",
    )
    named = {"sample.solver": ("fluvial.sampling.settings.AB2", "fluvial.sampling.settings.Heun")}
    assert differences(run, changed(run, sample={"solver": "heun"})) == named


FLAT = {  # as version 0.1.0 wrote the settings of all solvers
    **{"scale_steps": [], "diffusion": "linear", "diffusion_norm": 0.5, "last_step": "tweedie"},
    **{"last_step_size": 0.1, "atol": 1e-3, "rtol": 1e-2},
}
SDE = EulerMaruyama(diffusion="linear", norm=0.5, last_step="tweedie", last_step_size=0.1)


@pytest.mark.parametrize(
    ("run", "part", "old", "new"),
    [
        (SIT, "train", {"recompute": 2}, {"activation_checkpointing": 2}),
        (SIT, "train", {"eval_every": 7}, {"validate_every": 7}),
        (FLOWAR, "method", {"enlarge": "direct"}, {"upsample": "direct"}),
        (FLOWAR, "sample", {"steps": 5, "scale_steps": [9, 8, 7]}, {"steps": (9, 8, 7)}),
        (FLOWAR, "sample", {"steps": 5, "scale_steps": []}, {"steps": 5}),
        (SIT, "sample", {"solver": "heun", **FLAT}, {"solver": Heun()}),
        (SIT, "sample", {"solver": "dopri5", **FLAT}, {"solver": Dopri5(atol=1e-3, rtol=1e-2)}),
        (SIT, "sample", {"solver": "euler-maruyama", **FLAT}, {"solver": SDE}),
        (SIT, "sample", {"solver": "dopri5", "rtol": 1e-2}, {"solver": Dopri5(rtol=1e-2)}),
        (SIT, "sample", {"solver": "midpoint"}, {"solver": Midpoint()}),
    ],
)
def test_settings_of_version_0_1_0_are_read(run, part, old, new):
    expected = changed(run, **{part: new})
    now = json.loads(json.dumps(to_json(expected)))
    values = json.loads(json.dumps(to_json(run)))
    values[part] = {name: value for name, value in values[part].items() if name not in new} | old
    assert from_json(values) == expected and from_json(now) == expected
    both = {**now, part: {**now[part], **{name: value for name, value in old.items() if name not in now[part]}}}
    if both != now and isinstance(now[part].get("steps", []), list):  # one number of steps stood beside those of scales
        gone = next(name for name in old if name not in now[part])
        with pytest.raises(ValueError, match=f"not a configuration .*both are given: leave out .*{part}.{gone}"):
            from_json(both)


def test_a_solver_is_named_or_has_settings():
    values = to_json(SIT)
    for given, solver in (
        ("heun", Heun()),
        ({"name": "heun"}, Heun()),
        ({"name": "dopri5", "atol": 0.5}, Dopri5(atol=0.5)),
    ):
        assert from_json({**values, "sample": {**values["sample"], "solver": given}}).sample.solver == solver
    for wrong, says in (
        ("rk4", "sample.solver.name: must be one of euler, heun"),
        ({"atol": 0.5}, "sample.solver.name: must be one of euler"),
        ({"name": "heun", "atol": 0.5}, "sample.solver.*atol"),
        ({"name": "dopri5", "atol": 0.0}, "sample.solver: must be above 0: .'atol'"),
        (["heun"], "sample.solver: must be one of .* or an object"),
    ):
        with pytest.raises(ValueError, match=f"not a configuration .*{says}"):
            from_json({**values, "sample": {**values["sample"], "solver": wrong}})


@pytest.mark.parametrize(
    ("run", "sample", "says"),
    [
        (SIT, {"steps": (3, 2)}, "sample.steps must be one number"),
        (FLOWAR, {"steps": (3, 2)}, "sample.steps must be one for each of the method's 3 scales, got .3, 2."),
        (SIT, {"guidance": Guidance(scale_weights=(1.0, 2.0))}, "sample.guidance.scale_weights needs a method with sc"),
        (SIT, {"guidance": Guidance(ramp="linear")}, "sample.guidance.ramp needs a method with scales, got 'linear'"),
        (FLOWAR, {"guidance": Guidance(scale_weights=(1.0,))}, "scale_weights must be one for each of the method's 3"),
        (FLOWAR, {"guidance": Guidance(channels=2)}, "sample.guidance.channels needs a method that can guide some"),
        (FLOWAR, {"context_noise": 0.1}, "sample.context_noise needs a method trained with method.context_noise"),
        (SIT, {"context_noise": 0.1}, "sample.context_noise needs a method trained with method.context_noise"),
    ],
)
def test_sampling_that_a_method_would_ignore_is_refused_by_name(run, sample, says):
    with pytest.raises(ValueError, match=says):
        changed(run, sample=sample)


def test_an_unknown_recipe_names_the_closest():
    with pytest.raises(ValueError, match="Did you mean digits-arflow"):
        recipes.get("digit-arflow")
