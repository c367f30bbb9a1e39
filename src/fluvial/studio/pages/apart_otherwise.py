"""The controls that draw images otherwise: from a scale on, with less history, or from a time on."""

from collections.abc import Callable

from nicegui import ui

from fluvial.studio.pages.inputs import seed_field, seed_of

OWN = "that of each image"


class Otherwise:
    """Those controls that a run has.

    `cut(points)` draws with so many points of the history, `fork()` forks, and `again()` is called when the seed or the
    class of what is drawn from a scale on is changed.
    """

    def __init__(self, cut: Callable[[int], None], fork: Callable[[], None], again: Callable[[], None]) -> None:
        self.quiet = True
        with ui.column().classes("control apart-otherwise"):
            with ui.column().classes("control") as self.scales:
                self.seed = seed_field("Seed from there on").mark("new-seed")
                self.label = ui.select({"": OWN}, value="", label="Class from there on").mark("new-label")
            with ui.column().classes("control") as self.history:
                ui.label("History").classes("small dim")
                with ui.row().classes("two"):
                    self.points = ui.number("Points", value=1, min=1, step=1, precision=0)
                    _button("Last points alone", lambda: cut(max(1, int(self.points.value or 1))))
                _button("No history", lambda: cut(0))
            self.fork = _button("Fork at this step", fork)
        for field in (self.seed, self.label):
            field.on_value_change(lambda: None if self.quiet else again())
        for found in (self.seed, self.label, self.points):
            found.props("dense outlined options-dense").classes("control")
        self.hide()

    def hide(self) -> None:
        """Shows none of them."""
        for box in (self.scales, self.history, self.fork):
            box.set_visibility(False)

    def fit(self, labels: dict[str, str], *, seed: int, scales: bool, points: int, forks: bool) -> None:
        """Shows those that a run has, with its classes; `points` is the most that its history holds, 0 for none."""
        self.quiet = True
        self.scales.set_visibility(scales)
        self.seed.set_value(seed)
        self.label.set_options({"": OWN, **labels}, value="")
        self.label.set_visibility(bool(labels))
        self.history.set_visibility(points > 0)
        self.points.max = max(1, points)
        self.fork.set_visibility(forks)
        self.quiet = False

    @property
    def chosen(self) -> tuple[int, str]:
        """The seed and the class of what is drawn from a scale on."""
        return seed_of(self.seed.value), self.label.value or ""

    def next_seed(self) -> None:
        """Goes on to the next seed, and calls nothing."""
        self.quiet = True
        self.seed.set_value(seed_of((self.seed.value or 0) + 1))
        self.quiet = False


def _button(text: str, does: Callable[[], None]) -> ui.button:
    return ui.button(text, on_click=does).props("dense no-caps outline").classes("apart-do")
