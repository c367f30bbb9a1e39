"""fluvial: image generators that join autoregression with flow matching."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fluvial import upstream as upstream
    from fluvial.experiment import load as load

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:  # noqa: ANN401
    """`fluvial.load` and `fluvial.upstream`, imported when first asked for: `import fluvial` is to stay light."""
    from importlib import import_module

    match name:
        case "load":
            return import_module("fluvial.experiment").load
        case "upstream":
            return import_module("fluvial.upstream")
    raise AttributeError(f"module 'fluvial' has no attribute {name!r}")
