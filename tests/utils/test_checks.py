import math
from dataclasses import fields, replace
from typing import Literal, get_args, get_type_hints

import numpy as np
import pytest

from fluvial.autoencoders import AutoencoderConfig
from fluvial.config import Run
from fluvial.data.images import DataConfig
from fluvial.flow.guidance import Guidance
from fluvial.methods import arflow, flowar, sit
from fluvial.sampling.settings import SampleConfig
from fluvial.training.config import TrainConfig
from fluvial.training.optim import OptimConfig
from fluvial.utils.checks import misfit


def test_a_message_quotes_the_beginning_of_a_long_value():
    for kind in (int, bool, tuple[int, ...], tuple[int, int], int | None):
        assert len(misfit("x" * 100_000, kind)) < 300
        assert len(misfit(["x"] * 100_000, kind)) < 300


@pytest.mark.parametrize(
    ("config", "wrong"),
    [
        (flowar.FlowARConfig, {"head": "crossattention"}),
        (flowar.FlowARConfig, {"init": "zeros"}),
        (arflow.ARFlowConfig, {"qkv_norm": "heads"}),
        (sit.SiTConfig, {"interpolant": "cosine"}),
        (Guidance, {"ramp": "lin"}),
        (SampleConfig, {"solver": "rk4"}),
        (OptimConfig, {"schedule": "linear"}),
        (TrainConfig, {"precision": "fp16"}),
    ],
)
def test_a_choice_that_is_none_is_refused_with_those_there_are(config, wrong):
    """The type checks of the test run come first, so the configuration is made behind their back."""
    made = object.__new__(config)
    for name, value in (vars(config()) | wrong).items():
        object.__setattr__(made, name, value)
    ((name, value),) = wrong.items()
    with pytest.raises(ValueError, match=f"{name} must be one of .*, got '{value}'"):
        made.__post_init__()


@pytest.mark.parametrize(
    ("value", "kind", "wrong"),
    [
        (3, int, ""),
        (-(2**63) + 1, int, ""),
        (np.int64(3), int, ""),
        (2**63, int, "below 2^63"),
        (10**400, int, "below 2^63"),
        (True, int, "whole number"),
        (3.0, int, "whole number"),
        ("3", int, "whole number"),
        (1, float, ""),
        (np.float32(0.5), float, ""),
        (math.nan, float, "finite, got nan"),
        (-math.inf, float, "finite, got -inf"),
        (10**400, float, "finite"),
        (False, float, "a number"),
        ("no", bool, "True or False"),
        (5, str, "a text"),
        ((0.0, 1.0), tuple[float, float], ""),
        ([1, 2, 3], tuple[int, ...], ""),
        ((), tuple[int, ...], ""),
        ((0.0,), tuple[float, float], "2 values"),
        ((0.0, math.inf), tuple[float, ...], "finite, got inf"),
        ("cat", tuple[str, ...], "several values"),
        (None, int | None, ""),
        (math.nan, float | None, "must be finite or None, got nan"),
        (True, Literal[1, 3], "one of 1, 3, got True"),
        ("a", Literal["a", "b"], ""),
    ],
)
def test_what_is_wrong_with_a_value(value, kind, wrong):
    found = misfit(value, kind)
    assert wrong in found and bool(found) == bool(wrong)


CONFIGS = [
    *(sit.SiTConfig(), arflow.ARFlowConfig(), flowar.FlowARConfig(), Guidance(), SampleConfig()),
    *(OptimConfig(), TrainConfig(), AutoencoderConfig(), DataConfig()),
]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: type(config).__name__)
def test_every_float_of_a_configuration_is_finite(config, bad):
    kinds = get_type_hints(type(config))
    for field in fields(config):
        kind = kinds[field.name]
        if kind is float or float in get_args(kind):
            value = bad if kind is float else (bad,) * max(1, len(getattr(config, field.name)))
            with pytest.raises(ValueError, match=f"^{field.name} must be finite, got {bad}"):
                replace(config, **{field.name: value})


@pytest.mark.parametrize(
    ("config", "wrong"),
    [
        (sit.SiTConfig, {"depth": 10**9}),
        (sit.SiTConfig, {"size": (2**40, 2**40)}),
        (sit.SiTConfig, {"mlp_ratio": 1e30}),
        (flowar.FlowARConfig, {"head_depth": 10**9}),
        (SampleConfig, {"steps": 10**12}),
        (SampleConfig, {"steps": (5, 10**12)}),
    ],
)
def test_sizes_that_would_hang_a_machine_are_refused(config, wrong):
    with pytest.raises(ValueError, match=f"(?=.*at most)(?=.*{next(iter(wrong))})"):
        config(**wrong)


def test_numbers_beyond_float32_are_refused():
    assert "float32" in misfit(1e39, float) and misfit(3.4e38, float) == "" and "float32" in misfit(-1e300, float)
    for kind in (sit, flowar):
        with pytest.raises(ValueError, match="at most 10,000,000.*classes"):
            Run(method=kind.Config(classes=10**12))
