"""fluvial: image generators that join autoregression with flow matching."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fluvial import weights as weights
    from fluvial.run.experiment import load as load

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:  # noqa: ANN401
    """`fluvial.load` and `fluvial.weights`, imported when first asked for: `import fluvial` is to stay light."""
    from importlib import import_module

    match name:
        case "load":
            return import_module("fluvial.run.experiment").load
        case "weights":
            return import_module("fluvial.weights")
    raise AttributeError(f"module 'fluvial' has no attribute {name!r}")
