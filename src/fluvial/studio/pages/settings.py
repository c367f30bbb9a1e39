"""The controls of the playground."""

from collections.abc import Callable
from typing import Any

from nicegui import ui

from fluvial.studio.pages.inputs import MOST_STEPS, MOST_WEIGHT, Inputs
from fluvial.studio.scene import COUNTS, ROW, Scene

SOLVERS = ("ab2", "euler", "heun", "midpoint", "dopri5", "euler-maruyama")
MOST_DOWN = 10**6
LENGTHS = 0.02, 0.25, 0.01  # of power-function averages: least, most, steps
OWN = "as the run has it"


class Controls(Inputs):
    """Run, class, seed and settings of sampling. `change(name=value)` is called when one is moved."""

    def __init__(self, names: list[str], change: Callable[..., None]) -> None:
        super().__init__(change)
        self.run = self.select("run", {name: name for name in names}, "Run")
        self.label = self.select("label", {"": "all in turn"}, "Class")
        with ui.row().classes("two"):
            self.x = self.number("x", "Seed across", ROW - 1, float)
            self.y = self.number("y", "Seed down", MOST_DOWN, float)
        self.count = self.select("count", {n: str(n) for n in COUNTS}, "Images")
        self.steps, self.steps_told = self.slider("steps", "Steps", 1, MOST_STEPS, 1)
        self.solver = self.select("solver", {"": OWN, **{name: name for name in SOLVERS}}, "Solver")
        self.weight, self.weight_told = self.slider("weight", "Guidance", 0.0, MOST_WEIGHT, 0.1)
        self.interval, self.interval_told = self.span("interval", "Times at which guidance acts", "low", "high")
        self.average = self.select("average", {"ema": "moving average", "raw": "as trained"}, "Weights")
        self.length, self.length_told = self.slider("length", "Length of the average", *LENGTHS)
        self.note = ui.label().classes("small dim")
        self.quiet = False

    def moved(self, **settings: Any) -> None:  # noqa: ANN401
        """Calls `change`; a length of the average is a choice of weights."""
        if (length := settings.pop("length", None)) is not None:
            settings["average"] = f"{length:.2f}"
        super().moved(**settings)

    def set(self, scene: Scene) -> None:
        """Shows the settings of a scene, and calls nothing."""
        self.quiet = True
        known = self.label.options if isinstance(self.label.options, dict) else {}
        if scene.label not in known:
            self.label.set_options({**known, scene.label: scene.label})
        if scene.average not in self.average.options:
            self.average.set_options({**dict(self.average.options), scene.average: scene.average})  # type: ignore[arg-type]
        for name in ("run", "label", "x", "y", "count", "solver", "average"):
            value = getattr(scene, name)
            getattr(self, name).set_value(int(value) if isinstance(value, float) and value.is_integer() else value)
        if scene.steps is not None:
            self.steps.set_value(min(scene.steps, MOST_STEPS))
        if scene.weight is not None:
            self.weight.set_value(min(scene.weight, MOST_WEIGHT))
        self.interval.set_value({"min": scene.low, "max": scene.high})
        self.quiet = False

    def fit(self, sampler: Any, scene: Scene) -> None:  # noqa: ANN401 - a Sampler, whose module imports PyTorch
        """Shows what a run has: its classes, its own settings, and which of them cannot be changed."""
        run = sampler.run
        own, names, classes = run.sample, run.data.class_names, run.method.classes
        labels = {name: name for name in names} if names else {str(i): str(i) for i in range(classes)}
        self.quiet = True
        self.label.set_options({"": "all in turn" if classes else "none", **labels}, value=scene.label)
        self.label.set_visibility(bool(classes))
        steps = scene.steps or max(own.each_steps)
        self.steps.set_value(min(steps, MOST_STEPS))
        several = isinstance(own.steps, tuple) and scene.steps is None
        self.steps_told.set_text(" ".join(map(str, own.steps)) if several else str(steps))
        weight = own.guidance.weight if scene.weight is None else scene.weight
        self.weight.set_value(min(weight, MOST_WEIGHT))
        self.weight_told.set_text(f"{weight:g}")
        self.interval_told.set_text(f"{scene.low:g} to {scene.high:g}")
        self._fit_lengths(sampler, scene)
        fixed = bool(run.train.distillation.steps)
        guided = bool(classes) and not fixed and run.train.guidance.is_off
        for element in (self.steps, self.solver):
            element.set_enabled(not fixed)
        for element in (self.weight, self.interval):
            element.set_enabled(guided)
        self.note.set_text(_note(run))
        self.quiet = False

    def _fit_lengths(self, sampler: Any, scene: Scene) -> None:  # noqa: ANN401
        """Shows the slider of lengths for a run that stored snapshots."""
        from fluvial.training.power_ema import snapshots

        any_length = bool(snapshots(sampler.folder.averages))
        self.rows["length"].set_visibility(any_length)
        length = float(scene.average) if _is_number(scene.average) else LENGTHS[0]
        self.length.set_value(length)
        self.length_told.set_text(f"{length:g}" if _is_number(scene.average) else "off")


def _is_number(text: str) -> bool:
    try:
        return float(text) > 0
    except ValueError:
        return False


def _note(run: Any) -> str:  # noqa: ANN401 - a Run
    """A line on settings that cannot be changed."""
    if run.train.distillation.steps:
        return f"Distilled to {run.train.distillation.steps} steps: steps, solver and guidance are in the weights."
    if not run.train.guidance.is_off:
        return f"Guidance of the weight {run.train.guidance.weight:g} is in the weights."
    return "" if run.method.classes else "A model without classes: there is nothing to guide by."
