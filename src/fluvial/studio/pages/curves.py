"""The curves on the page of a run: charts that grow while it trains, of several runs over one another."""

from pathlib import Path
from typing import cast

from nicegui import ui

from fluvial.studio import details
from fluvial.studio.aside import aside
from fluvial.studio.curves import BUDGET, By, reader
from fluvial.studio.pages.charts import LOSS, History, Options, View, charts
from fluvial.studio.places import run_named

AXES = {"steps": "steps", "images": "images", "seconds": "time"}
COMPARED = 7  # runs beside the one of the page, at most


class Curves:
    """The charts, with the switches of their axes and the runs that are drawn beside."""

    def __init__(self, root: Path, name: str, others: list[str]) -> None:
        self.root, self.name = root, name
        self.charts: dict[str, tuple[ui.element, ui.echart]] = {}
        self.drawn: object = None
        self.per_step: dict[str, int] = {}
        with ui.card().classes("section curves"):
            with ui.row().classes("runs-head"):
                ui.label("Curves").classes("heading")
                ui.space()
                self.by = (
                    ui.toggle(AXES, value="steps", on_change=self.look)
                    .props("dense no-caps unelevated")
                    .classes("at-by")
                )
                self.log_y = ui.checkbox("log y", on_change=self.look).props("dense").classes("at-log")
                self.log_x = ui.checkbox("log x", on_change=self.look).props("dense").classes("at-log-x")
            self.others = ui.select(others, multiple=True, value=[], label="compare with", on_change=self.look)
            self.others.props("dense outlined use-chips options-dense").classes("compare").classes("at-compare")
            self.others.set_visibility(bool(others))
            self.said = ui.label("Reading the log…").classes("dim small").classes("at-said")
            self.main = ui.element("div").classes("main-chart")
        self.box: ui.element | None = None

    def more(self) -> None:
        """Makes the place for all charts but that of the loss."""
        self.box = ui.element("div").classes("charts")

    async def look(self) -> None:
        """Draws the charts anew if a log has grown, or the view has changed."""
        view = View(cast(By, self.by.value), bool(self.log_x.value), bool(self.log_y.value))
        names = [self.name, *(self.others.value or [])[:COMPARED]]
        key, options, said = await aside(lambda: self._read(names, view))
        if key != self.drawn:
            self.drawn = key
            self._draw(options)
            self.said.set_text(said)
            self.said.set_visibility(bool(said))

    def _read(self, names: list[str], view: View) -> tuple[object, dict[str, Options], str]:
        """A key that changes with what is drawn, the charts, and a note. Called in a thread."""
        readers = []
        for name in names:
            try:
                folder = run_named(self.root, name)
            except ValueError:  # it was removed meanwhile
                continue
            self.per_step.setdefault(name, details.images_per_step(folder))
            readers.append((name, reader(folder / "log.jsonl")))
        budget = BUDGET if self.drawn else 0.0  # the first charts come at once
        key = view, tuple((name, found.look(budget)) for name, found in readers)
        if key == self.drawn:
            return key, {}, ""
        histories = [History(name, found.rows, self.per_step[name]) for name, found in readers if found.rows]
        options = charts(histories, view) if histories else {}
        share = min((found.searched for _, found in readers), default=1.0)
        if share < 1:
            return key, options, f"Reading the log: {100 * share:.0f} % searched for validation losses and scores."
        told = "" if options else "No curves yet: the log has no line." if not histories else "No numbers to draw yet."
        return key, options, told

    def _draw(self, options: dict[str, Options]) -> None:
        """Gives the charts their new points. Their zoom stays, as they are not made anew."""
        for title in [title for title in self.charts if title not in options]:
            self.charts.pop(title)[0].delete()
        for title, each in options.items():
            if title in self.charts:
                chart = self.charts[title][1]
                chart.options.clear()
                chart.options.update(each)
                chart.update()
            else:
                self.charts[title] = self._new(title, each)

    def _new(self, title: str, options: Options) -> tuple[ui.element, ui.echart]:
        if title == LOSS:
            with self.main, ui.element("div").classes("w-full") as box:
                chart = ui.echart(options).classes("chart-large").classes("at-chart-loss")
                ui.label("Drag moves, Ctrl and the wheel zoom, as does the bar below the chart.").classes(
                    "dim small hint"
                )
            return box, chart
        assert self.box is not None
        with self.box, ui.card().classes("section chart-card") as box:
            ui.label(title[:1].upper() + title[1:]).classes("title")
            chart = ui.echart(options).classes("chart").classes("at-chart")
        return box, chart
