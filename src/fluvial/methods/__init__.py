"""The methods, one file a paper. Each is a module with Config, Model, preset, draws, loss and sample."""

from types import ModuleType

from fluvial.methods import arflow, flowar, sit

Config = sit.SiTConfig | arflow.ARFlowConfig | flowar.FlowARConfig
METHODS: dict[str, ModuleType] = {"sit": sit, "arflow": arflow, "flowar": flowar}


def method_of(config: Config) -> ModuleType:
    """The module that a configuration belongs to: the only dispatch over methods in the library."""
    return METHODS[name_of(type(config))]


def name_of(config_type: type[Config]) -> str:
    """The name of the method that a type of configuration belongs to."""
    return next(name for name, module in METHODS.items() if module.Config is config_type)
