"""The controls of the Edit page: the kind of edit, and its settings."""

from collections.abc import Callable
from typing import Any

from nicegui import ui
from nicegui.element import Element

from fluvial.studio.editing import KINDS, MOST_COPIES, MOST_SEED, NONE, Abilities, Editing
from fluvial.studio.pages.inputs import MOST_STEPS, MOST_WEIGHT, Inputs

SOLVERS = {"": "as the run has it", "ab2": "ab2", "euler": "euler", "heun": "heun", "midpoint": "midpoint"}
TOLD = {
    "inpaint": "Draws what you paint over anew, so that it fits the rest.",
    "redraw": "Adds noise to the image, and draws from there: the more noise, the further from it.",
    "vary": "Keeps the coarse scales of the image, and draws the finer ones anew.",
    "grow": "Draws a large image from a small one.",
    "invert": "Finds the noise that leads to the image, and draws it again from there.",
    "context": "Draws images after up to five examples.",
}


class Canvas(Element, component="../static/mask.js"):
    """An image with a mask that is painted over it. `on_mask(runs)` is called after each stroke."""

    def __init__(self, uploader: int, on_mask: Callable[[Any], None]) -> None:
        super().__init__()
        self._props["uploader"] = uploader
        self.on("mask", lambda event: on_mask(event.args))


class KindButtons:
    """A button for each kind of edit, with why some are off."""

    def __init__(self, change: Callable[..., None]) -> None:
        self.buttons = dict[str, ui.button]()
        with ui.row().classes("edit-kinds"):
            for kind, name in KINDS.items():
                button = ui.button(name, on_click=lambda kind=kind: change(kind=kind), color=None)
                self.buttons[kind] = button.props("dense no-caps unelevated").classes("edit-kind").mark(f"kind-{kind}")
        self.told = ui.label().classes("small dim")
        self.off = ui.column().classes("edit-off")

    def set(self, kind: str) -> None:
        """Shows which kind is chosen."""
        for name, button in self.buttons.items():
            button.classes(add="here") if name == kind else button.classes(remove="here")
        self.told.set_text(TOLD[kind])

    def fit(self, able: Abilities) -> None:
        """Turns off the kinds that a run cannot do, and says why."""
        for kind, button in self.buttons.items():
            button.set_enabled(kind not in able.refused)
        reasons = dict[str, list[str]]()
        for kind, reason in able.refused.items():
            reasons.setdefault(reason, []).append(KINDS[kind])
        self.off.clear()
        with self.off:
            for reason, names in reasons.items():
                ui.label(f"{' and '.join(names)}: {reason}.").classes("small dim")


class Settings(Inputs):
    """Class, seed, copies and settings of drawing. `change(name=value)` is called when one is moved."""

    def __init__(self, change: Callable[..., None]) -> None:
        super().__init__(change)
        self.label = self.select("label", {"": ""}, "Class to draw")
        self.at, self.at_told = self.slider("at", "Start, from 0 noise to 1 image", 0.05, 0.95, 0.05)
        self.keep, self.keep_told = self.slider("keep", "Coarse scales that are kept", 0, 1, 1)
        self.side = self.select("side", {0: ""}, "Size of the small image")
        self.agree = ui.checkbox("Keep to the small image exactly").classes("small").props("dense").mark("agree")
        self.agree.on_value_change(lambda event: self.moved(agree=bool(event.value)))
        with ui.row().classes("two"):
            self.seed = self.number("seed", "Seed", MOST_SEED)
        self.copies, self.copies_told = self.slider("copies", "Results", 1, MOST_COPIES, 1)
        self.steps, self.steps_told = self.slider("steps", "Steps", 1, MOST_STEPS, 1)
        self.weight, self.weight_told = self.slider("weight", "Guidance", 0.0, MOST_WEIGHT, 0.1)
        self.solver = self.select("solver", SOLVERS, "Solver")
        self.quiet = False

    def fit(self, able: Abilities, editing: Editing) -> None:
        """Shows the settings of an edit with a run, and hides those that others have."""
        self.quiet = True
        labels = {label: "no class" if label == NONE else label for label in able.labels}
        self.label.set_options({**labels, editing.label: labels.get(editing.label, editing.label)}, value=editing.label)
        self.label.set_visibility(len(able.labels) > 1)
        for name, shown in (("at", "redraw"), ("keep", "vary")):
            self.rows[name].set_visibility(editing.kind == shown)
        self.side.set_visibility(editing.kind == "grow")
        self.agree.set_visibility(editing.kind == "grow")
        self.keep.props(f"max={max(1, able.scales - 1)}")
        self.side.set_options({side: f"{side} x {side}" for side in able.sides or (0,)}, value=editing.side)
        self.agree.set_value(editing.agree)
        self.seed.set_value(editing.seed)
        self.solver.set_options(SOLVERS | {editing.solver: SOLVERS.get(editing.solver, editing.solver)})
        self.solver.set_value(editing.solver)
        steps = able.steps if editing.steps is None else editing.steps
        invert = 1.0 if editing.kind == "invert" else able.weight
        weight = invert if editing.weight is None else editing.weight
        for name, value in (("at", editing.at), ("keep", editing.keep), ("copies", editing.copies)):
            self._show(name, value)
        self._show("steps", steps, MOST_STEPS)
        self._show("weight", weight, MOST_WEIGHT)
        for element in (self.steps, self.solver, self.weight):
            element.set_enabled(not able.fixed)
        if len(able.labels) < 2:
            self.weight.set_enabled(False)
        self.quiet = False

    def _show(self, name: str, value: float, most: float = float("inf")) -> None:
        getattr(self, name).set_value(min(value, most))
        getattr(self, f"{name}_told").set_text(f"{value:g}")


def button(text: str, does: Callable[..., Any], icon: str | None = None, how: str = "flat") -> ui.button:
    """A button without a ground of its own."""
    return ui.button(text, icon=icon, on_click=does).props(f"{how} dense no-caps")
