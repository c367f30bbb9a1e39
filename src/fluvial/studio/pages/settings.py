"""The controls of the playground."""

from collections.abc import Callable
from typing import Any

from nicegui import ui

from fluvial.studio.scene import COUNTS, Scene

SOLVERS = ("ab2", "euler", "heun", "midpoint", "dopri5", "euler-maruyama")
MOST_STEPS, MOST_WEIGHT = 100, 8.0
LENGTHS = 0.02, 0.25, 0.01  # of power-function averages: least, most, steps
OWN = "as the run has it"


class Controls:
    """Run, class, seed and settings of sampling. `change(name=value)` is called when one is moved."""

    def __init__(self, names: list[str], change: Callable[..., None]) -> None:
        self.change, self.quiet = change, True
        self.run = self._select("run", {name: name for name in names}, "Run")
        self.label = self._select("label", {"": "all in turn"}, "Class")
        with ui.row().classes("two"):
            self.x = self._number("x", "Seed across")
            self.y = self._number("y", "Seed down")
        self.count = self._select("count", {n: str(n) for n in COUNTS}, "Images")
        self.steps, self.steps_told = self._slider("steps", "Steps", 1, MOST_STEPS, 1)
        self.solver = self._select("solver", {"": OWN, **{name: name for name in SOLVERS}}, "Solver")
        self.weight, self.weight_told = self._slider("weight", "Guidance", 0.0, MOST_WEIGHT, 0.1)
        self.interval, self.interval_told = self._range()
        self.average = self._select("average", {"ema": "moving average", "raw": "as trained"}, "Weights")
        with ui.column().classes("control") as self.length_row:
            self.length, self.length_told = self._slider("length", "Length of the average", *LENGTHS)
        self.note = ui.label().classes("small dim")
        self.quiet = False

    def set(self, scene: Scene) -> None:
        """Shows the settings of a scene, and calls nothing."""
        self.quiet = True
        known = self.label.options if isinstance(self.label.options, dict) else {}
        if scene.label not in known:
            self.label.set_options({**known, scene.label: scene.label})
        if scene.average not in self.average.options:
            self.average.set_options({**dict(self.average.options), scene.average: scene.average})  # type: ignore[arg-type]
        for name in ("run", "label", "x", "y", "count", "solver", "average"):
            getattr(self, name).set_value(getattr(scene, name))
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
        self.length_row.set_visibility(any_length)
        length = float(scene.average) if _is_number(scene.average) else LENGTHS[0]
        self.length.set_value(length)
        self.length_told.set_text(f"{length:g}" if _is_number(scene.average) else "off")

    def _told(self, **settings: Any) -> None:  # noqa: ANN401
        if not self.quiet:
            self.change(**settings)

    def _select(self, name: str, options: dict[Any, str], label: str) -> ui.select:
        found = ui.select(options, value=next(iter(options)), label=label)
        found.on_value_change(lambda event: self._told(**{name: event.value}))
        return found.props("dense outlined options-dense").classes("control").mark(name)

    def _number(self, name: str, label: str) -> ui.number:
        found = ui.number(label, value=0, min=0, max=99 if name == "x" else 10**6, step=1)
        found.on_value_change(lambda event: event.value is not None and self._told(**{name: float(event.value)}))
        return found.props("dense outlined").classes("control").mark(name)

    def _slider(self, name: str, label: str, low: float, high: float, step: float) -> tuple[ui.slider, ui.label]:
        with ui.column().classes("control slider"):
            with ui.row().classes("named"):
                ui.label(label).classes("small dim")
                told = ui.label().classes("small")
            found = ui.slider(min=low, max=high, step=step, value=low)
            found.on_value_change(lambda event: self._told(**_setting(name, event.value)))
        return found.props(f'aria-label="{label}"').mark(name), told

    def _range(self) -> tuple[ui.range, ui.label]:
        with ui.column().classes("control slider"):
            with ui.row().classes("named"):
                ui.label("Guidance acts at times").classes("small dim")
                told = ui.label().classes("small")
            found = ui.range(min=0.0, max=1.0, step=0.05, value={"min": 0.0, "max": 1.0})

            def moved(event: Any) -> None:  # noqa: ANN401 - NiceGUI's
                self._told(low=round(event.value["min"], 2), high=round(event.value["max"], 2))

            found.on_value_change(moved)
        return found.props('aria-label="times of guidance"').mark("interval"), told


def _setting(name: str, value: float | None) -> dict[str, Any]:
    """The setting of a scene that a slider of this name sets."""
    return {"average": f"{value:.2f}"} if name == "length" else {name: value}


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
