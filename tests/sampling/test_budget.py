"""The evaluations that settings take are those that sampling counts."""

from collections import Counter

import pytest
import torch

from conftest import randomise
from fluvial.flow.guidance import Guidance
from fluvial.flow.interpolant import linear
from fluvial.methods import arflow, flowar, method_of, sit
from fluvial.sampling.budget import evaluations, with_evaluations
from fluvial.sampling.settings import EulerMaruyama, SampleConfig

DIT = {"size": (4, 4), "channels": 1, "classes": 3, "patch": 2, "depth": 1, "width": 16, "heads": 2}
FLOWAR = {"size": (4, 4), "channels": 1, "classes": 3, "patch": 2, "depth": 2, "width": 16, "heads": 2}
CONFIGS = {
    "sit": sit.Config(**DIT),
    "arflow": arflow.Config(**DIT),
    "flowar": flowar.Config(**FLOWAR, scales=(1, 2), head_width=16, head_heads=2, head_depth=1),
}
OF = {"sit": {}, "arflow": {"history": True}, "flowar": {"scales": 2}}
GUIDED = [
    Guidance(),
    Guidance(weight=2.0),
    Guidance(weight=2.0, interval=(0.3, 0.8)),
    Guidance(weight=2.0, rescale=0.5),
]


def counted(name, settings):
    """The calls of both branches in real sampling of one image."""
    config, tally = CONFIGS[name], Counter()
    model = method_of(config).Model(config).eval()
    randomise(model)
    noise = torch.randn(1, *config.noise_shape)
    more = {"step_noise": lambda i: torch.randn_like(noise)} if settings.solver_settings.is_stochastic else {}
    method_of(config).sample(
        model,
        torch.tensor([1]),
        noise=noise,
        times=settings.times(),
        guidance=settings.guidance,
        solver=settings.solver_settings.bound(linear),
        evaluations=tally,
        **more,
    )
    return sum(n for branch, n in tally.items() if branch.startswith(("conditional", "null")))


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("solver", ["euler", "heun", "midpoint", "ab2", EulerMaruyama()])
@pytest.mark.parametrize("guidance", GUIDED, ids=["none", "guided", "interval", "rescaled"])
def test_the_evaluations_are_those_of_sampling(name, solver, guidance):
    settings = SampleConfig(solver=solver, steps=5, guidance=guidance)
    assert evaluations(settings, linear, **OF[name]) == counted(name, settings)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("most", [8, 9, 24, 101])
def test_a_budget_is_spent_and_not_exceeded(name, most):
    for solver in ("ab2", "heun"):
        for guidance in GUIDED[1:3]:
            steps = (4, 2) if name == "flowar" else 1
            settings = SampleConfig(solver=solver, steps=steps, guidance=guidance)
            found = with_evaluations(settings, most, linear, **OF[name])
            longest = max(found.each_steps)
            assert evaluations(found, linear, **OF[name]) <= most
            more = SampleConfig(
                solver=solver,
                guidance=guidance,
                steps=tuple(max(1, round((longest + 1) * s / 4)) for s in steps) if name == "flowar" else longest + 1,
            )
            assert evaluations(more, linear, **OF[name]) > most
            if name == "flowar" and longest > 4:
                assert found.steps[0] == pytest.approx(2 * found.steps[1], abs=1)


def test_the_digits_recipe_of_24_evaluations_has_12_steps():
    settings = SampleConfig(solver="ab2", steps=50, guidance=Guidance(weight=1.5))
    assert with_evaluations(settings, 24, linear).steps == 12
    two = SampleConfig(grid="two-piece", steps=50)
    assert with_evaluations(two, 24, linear).steps == 24


def test_too_few_evaluations_are_refused_with_the_fewest():
    for settings, least in (
        (SampleConfig(solver="heun", guidance=Guidance(weight=2.0)), 4),
        (SampleConfig(solver="euler"), 1),
        (SampleConfig(grid="two-piece"), 2),
        (SampleConfig(solver="euler-maruyama"), 2),
    ):
        assert evaluations(with_evaluations(settings, least, linear), linear) == least
        with pytest.raises(ValueError, match=f"nfe must be at least {least} .*, got {least - 1}"):
            with_evaluations(settings, least - 1, linear)
    with pytest.raises(ValueError, match="dopri5 chooses its own steps"):
        with_evaluations(SampleConfig(solver="dopri5"), 24, linear)
