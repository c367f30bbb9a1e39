"""fluvial: image generators that join autoregression with flow matching."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fluvial import recipes as recipes
    from fluvial import weights as weights
    from fluvial.config import Run as Run
    from fluvial.run import edit as edit
    from fluvial.run.distill import distill as distill
    from fluvial.run.load import Sampler as Sampler
    from fluvial.run.load import load as load
    from fluvial.run.sample import sample as sample
    from fluvial.run.score import score as score
    from fluvial.run.train import train as train
    from fluvial.run.walk import walk as walk
    from fluvial.sampling.samples import Samples as Samples
    from fluvial.tools.plan.planner import plan as plan

__version__ = "0.1.0"
__all__ = [
    "Run",
    "Sampler",
    "Samples",
    "__version__",
    "distill",
    "edit",
    "load",
    "plan",
    "recipes",
    "sample",
    "score",
    "train",
    "walk",
    "weights",
]
_MODULES = {"Run": "config", "Sampler": "run.load", "Samples": "sampling.samples"}
_MODULES |= {
    "distill": "run.distill",
    "load": "run.load",
    "sample": "run.sample",
    "score": "run.score",
    "train": "run.train",
    "walk": "run.walk",
    "plan": "tools.plan.planner",
}


if not TYPE_CHECKING:  # to a type checker it would say that there is an attribute of any name

    def __getattr__(name: str) -> Any:  # noqa: ANN401
        """The public calls, imported when they are first asked for, so that `import fluvial` needs no torch."""
        if name in _MODULES:
            return getattr(import_module(f"fluvial.{_MODULES[name]}"), name)
        if name in ("recipes", "weights"):
            return import_module(f"fluvial.{name}")
        if name == "edit":
            return import_module("fluvial.run.edit")
        raise AttributeError(f"module 'fluvial' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
