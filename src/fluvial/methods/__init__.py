"""The methods SiT, ARFlow and FlowAR, one file each; `methods/method.py` defines their common interface."""

from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fluvial.methods import arflow, flowar, sit
from fluvial.methods.method import Method

Config = sit.SiTConfig | arflow.ARFlowConfig | flowar.FlowARConfig
METHODS: dict[str, Method] = {"sit": sit, "arflow": arflow, "flowar": flowar}


def method_of(config: Config) -> Method:
    """The module of the method that a configuration belongs to."""
    return METHODS[name_of(type(config))]


def name_of(config_type: type[Config]) -> str:
    """The name of the method that a configuration class belongs to."""
    return next(name for name, module in METHODS.items() if module.Config is config_type)


class _Uninitialised(TorchFunctionMode):
    """A context in which parameters are left uninitialised."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        if func in (Tensor.uniform_, Tensor.normal_, Tensor.zero_, Tensor.fill_):
            return args[0]
        return func(*args, **(kwargs or {}))


def empty_model(config: Config) -> nn.Module:
    """The model with its constant tables and uninitialised parameters, as initialising large ones takes seconds."""
    with _Uninitialised():
        return method_of(config).Model(config)
