import pytest

from fluvial.generate import SampleConfig
from fluvial.guidance import Guidance
from fluvial.methods import arflow, flowar, sit
from fluvial.train.config import TrainConfig
from fluvial.train.optim import OptimConfig


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
