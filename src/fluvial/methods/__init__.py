"""The methods SiT, ARFlow and FlowAR, one file each; `methods/method.py` defines their common interface."""

import re
from dataclasses import fields
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fluvial.methods import arflow, flowar, sit
from fluvial.methods.method import Method, MethodConfig, Objective

if TYPE_CHECKING:  # a protocol's properties do not match ClassVars to type checkers
    Config = sit.SiTConfig | arflow.ARFlowConfig | flowar.FlowARConfig | MethodConfig
else:
    Config = MethodConfig
METHODS: dict[str, Method] = {"sit": sit, "arflow": arflow, "flowar": flowar}
ENTRY_POINTS = "fluvial.methods"
MEMBERS = tuple(name for part in (Objective, Method) for name in vars(part) if not name.startswith("_"))
SETTINGS = tuple(name for name, member in vars(MethodConfig).items() if isinstance(member, property))


def register(name: str, method: Any) -> None:  # noqa: ANN401 - a Method, once it is checked
    """Makes a method known by a name, which run.json says as method.name; registering it again changes nothing.

    A method is a module, or any object, with the members of `methods/method.py`. Raises ValueError if the name is
    another method's, a member or a setting is missing, or its Config is no frozen dataclass of its own.
    """
    wrong = f"cannot register the method {name!r}: "
    if not isinstance(name, str) or not re.fullmatch(r"[a-z0-9][a-z0-9_.-]*", name):
        raise ValueError(f"{wrong}a name is of small letters, digits, and - _ . inside, such as pixel-flow")
    if name in METHODS and METHODS[name] is not method:
        raise ValueError(f"{wrong}there is another method of that name; choose one besides {', '.join(METHODS)}")
    if missing := [member for member in MEMBERS if member not in dir(method)]:
        raise ValueError(f"{wrong}it has no {', '.join(missing)}; fluvial/methods/method.py says what each is")
    kind: Any = method.Config
    made_by = getattr(kind, "__dataclass_params__", None)
    if not isinstance(kind, type) or made_by is None or not made_by.frozen:
        raise ValueError(f"{wrong}its Config is {kind!r}, expected a class with @dataclass(frozen=True, kw_only=True)")
    own = {field.name for field in fields(kind)}
    if missing := [setting for setting in SETTINGS if setting not in own and setting not in dir(kind)]:
        raise ValueError(
            f"{wrong}its Config has no {', '.join(missing)}; add each as a field, a property or a ClassVar, as "
            f"MethodConfig in fluvial/methods/method.py says"
        )
    if "name" in own:
        raise ValueError(f"{wrong}its Config has a field called name, which in run.json is the method's; rename it")
    if other := [known for known, there in METHODS.items() if known != name and there.Config is kind]:
        raise ValueError(f"{wrong}its Config is that of {other[0]}; make a subclass, so that runs can be told apart")
    METHODS[name] = method


def find_installed(name: str | None = None) -> None:
    """Registers the method of that name, or all, that installed packages have as entry points of `fluvial.methods`.

    Raises ValueError naming the package if one cannot be imported or registered.
    """
    for entry in entry_points(group=ENTRY_POINTS):
        if name in (None, entry.name):
            try:
                register(entry.name, entry.load())
            except Exception as error:  # whatever a foreign module raises
                package = entry.value if entry.dist is None else entry.dist.name
                raise ValueError(
                    f"the installed package {package} has the method {entry.name!r} ({entry.value}), which fails with "
                    f"{type(error).__name__}: {error}; repair the package, or uninstall it"
                ) from error


def check_known(name: Any) -> None:  # noqa: ANN401 - whatever a file holds
    """Raises ValueError, with the known names and what makes others known, for a name that no method has."""
    if isinstance(name, str) and name not in METHODS:
        find_installed(name)
    if not isinstance(name, str) or name not in METHODS:
        raise ValueError(
            f"method.name is {name!r:.100}, known are {', '.join(METHODS)}; others become known with --plugin FILE.py, "
            f"by importing the module that registers them, or by installing its package"
        )


def method_of(config: Config) -> Method:
    """The module of the method that a configuration belongs to."""
    return METHODS[name_of(type(config))]


def name_of(config_type: type[Any]) -> str:
    """The name of the method that a configuration class belongs to. Raises ValueError if there is none."""
    for name, method in METHODS.items():
        if method.Config is config_type:
            return name
    kind = getattr(config_type, "__qualname__", config_type)
    raise ValueError(f"{kind} is not the Config of a known method; register it with fluvial.methods.register")


class _Uninitialised(TorchFunctionMode):
    """A context in which parameters are left uninitialised, and all other tensors are set."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        if func in (Tensor.uniform_, Tensor.normal_, Tensor.zero_, Tensor.fill_) and isinstance(args[0], nn.Parameter):
            return args[0]
        return func(*args, **(kwargs or {}))


def empty_model(config: Config) -> nn.Module:
    """The model with its constant tables and uninitialised parameters, as initialising large ones takes seconds."""
    with _Uninitialised():
        return method_of(config).Model(config)
