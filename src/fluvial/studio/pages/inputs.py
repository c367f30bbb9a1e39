"""Inputs of settings, as the pages that draw have them."""

from collections.abc import Callable
from typing import Any

from nicegui import ui

from fluvial.studio.places import MOST_SEED

MOST_STEPS, MOST_WEIGHT = 100, 8.0  # where the sliders of steps and of guidance end


def seed_field(label: str, value: int = 0) -> ui.number:
    """A whole number from 0 on; `seed_of` is the one that is meant while it is typed."""
    found = ui.number(label, value=value, min=0, max=MOST_SEED, step=1, precision=0)
    return found.props("dense outlined").classes("control")


def seed_of(value: float | None) -> int:
    """The seed in a field; 0 if it is empty."""
    return int(min(MOST_SEED, max(0, value or 0)))


class Inputs:
    """Inputs by name. `change(name=value)` is called when one is moved, unless they are `quiet`."""

    def __init__(self, change: Callable[..., None]) -> None:
        self.change, self.quiet = change, True
        self.rows = dict[str, ui.column]()
        """The sliders by name, each with its label and value."""

    def moved(self, **settings: Any) -> None:  # noqa: ANN401
        """Calls `change` if the user moved them."""
        if not self.quiet:
            self.change(**settings)

    def select(self, name: str, options: dict[Any, str], label: str) -> ui.select:
        """A choice of values, by their text."""
        found = ui.select(options, value=next(iter(options)), label=label)
        found.on_value_change(lambda event: self.moved(**{name: event.value}))
        return found.props("dense outlined options-dense").classes("control").mark(name)

    def number(self, name: str, label: str, most: int, kind: type[int] | type[float] = int) -> ui.number:
        """A number from 0 on."""
        found = ui.number(label, value=0, min=0, max=most, step=1, precision=0 if kind is int else None)
        found.on_value_change(
            lambda event: event.value is not None and self.moved(**{name: kind(min(most, max(0, event.value)))})
        )
        return found.props("dense outlined").classes("control").mark(name)

    def slider(self, name: str, label: str, low: float, high: float, step: float) -> tuple[ui.slider, ui.label]:
        """A slider, and the label that tells its value; in hundredths unless its steps are whole."""
        found, whole = ui.slider(min=low, max=high, step=step, value=low), isinstance(step, int)

        def moved(event: Any) -> None:  # noqa: ANN401 - NiceGUI's
            self.moved(**{name: int(event.value) if whole else round(float(event.value), 2)})

        found.on_value_change(moved)
        return found, self._named(found, name, label)

    def span(self, name: str, label: str, low: str, high: str) -> tuple[ui.range, ui.label]:
        """A range of times between 0 and 1, whose ends are two settings."""
        found = ui.range(min=0.0, max=1.0, step=0.05, value={"min": 0.0, "max": 1.0})

        def moved(event: Any) -> None:  # noqa: ANN401 - NiceGUI's
            self.moved(**{low: round(event.value["min"], 2), high: round(event.value["max"], 2)})

        found.on_value_change(moved)
        return found, self._named(found, name, label)

    def _named(self, found: ui.slider | ui.range, name: str, label: str) -> ui.label:
        """Puts a slider below its name and value."""
        found.props(f'aria-label="{label}"').mark(name)
        with ui.column().classes("control slider") as self.rows[name]:
            with ui.row().classes("named"):
                ui.label(label).classes("small dim")
                told = ui.label().classes("small")
        found.move(self.rows[name])
        return told
