"""One run: its curves, pictures, findings, scores and settings."""

from html import escape
from pathlib import Path
from urllib.parse import urlencode

from nicegui import ui

from fluvial.studio import details
from fluvial.studio.aside import aside
from fluvial.studio.gallery import Gallery, Shown, address_of, ago, grids, newest_picture
from fluvial.studio.pages.curves import Curves
from fluvial.studio.pages.layout import empty, page, page_at, state_of
from fluvial.studio.pages.queue import queue
from fluvial.studio.places import names_below, run_named
from fluvial.studio.shared import Studio

LOOKS_EVERY = 2.0  # seconds between looks at a run
SOON = 0.8  # seconds until findings, scores and settings are looked at
WAIT = '<p class="dim">looking…</p>'
DISTILLED = "It was distilled: fluvial distill goes on with it. Its loss is not that of other runs."
MINUTES = 30  # for which a run goes on


def register(studio: Studio) -> None:
    """The page at /run/NAME."""
    gallery = Gallery(studio.root)

    @page_at("/run/{name:path}")
    async def run(name: str) -> None:
        with page(name, studio.work, "Runs"):
            try:
                folder = run_named(studio.root, name)
            except ValueError as error:
                waits = studio.trainings.of(name)
                queue(studio, name)
                if waits is None or not waits.active:
                    return empty("No such run", str(error))
                about = ui.label("The run is about to begin.").classes("dim")
                ui.timer(LOOKS_EVERY, lambda: _open_when_there(studio, name, about))
                return
            shown, others = await aside(lambda: (gallery.of(folder), names_below(studio.root)))
            await RunPage(studio, gallery, folder, shown, others).begin()


def _open_when_there(studio: Studio, name: str, about: ui.label) -> None:
    """Loads the page anew once the run has its folder; says so where it does not begin."""
    try:
        run_named(studio.root, name)
    except ValueError:
        training = studio.trainings.of(name)
        if training is None or not training.active:
            about.set_text("The run has not begun.")
        return
    ui.navigate.reload()


class RunPage:
    """The page of a run, which follows it while it trains."""

    def __init__(self, studio: Studio, gallery: Gallery, folder: Path, shown: Shown, others: list[str]) -> None:
        self.studio, self.gallery, self.folder, self.name = studio, gallery, folder, shown.name
        self.parts: dict[str, ui.html] = {}
        self.told: object = None  # what the findings and settings were made of
        self.others = [other for other in others if other != shown.name]
        self._head()
        queue(studio, shown.name)
        with ui.element("div").classes("run-first"):
            self.curves = Curves(studio.root, shown.name, self.others)
            with ui.card().classes("section"):
                ui.label("Pictures").classes("heading")
                self.pictures = Pictures(shown.name, folder)
        self.curves.more()
        self._details()
        self.show(shown)

    def _head(self) -> None:
        with ui.row().classes("runs-head"):
            ui.label(self.name).classes("heading title")
            self.state = ui.html("", sanitize=False).classes("at-state")
            ui.space()
            address = f"/play?{urlencode({'run': self.name})}"
            self.play = ui.button("Open in playground", on_click=lambda: ui.navigate.to(address))
            self.play.props("outline no-caps").classes("at-play")
            with ui.row().classes("go-on") as self.further:
                self.minutes = (
                    ui.number(value=MINUTES, min=0.1, suffix="min").props("dense outlined").classes("at-minutes")
                )
                ui.button("Go on", icon="play_arrow", on_click=self.go_on).props("unelevated no-caps").classes(
                    "at-go-on"
                )
        self.distilled = ui.label(DISTILLED).classes("dim small")
        self.facts = ui.html("", sanitize=False).classes("dim").classes("at-facts")
        self.why = ui.label().classes("wrong").classes("at-why")

    def go_on(self) -> None:
        """Trains the run for more minutes."""
        try:
            self.studio.trainings.go_on(self.name, float(self.minutes.value or 0))
        except ValueError as error:
            return ui.notify(str(error), type="negative")
        ui.notify(f"{self.name} goes on")

    def show(self, shown: Shown) -> None:
        """Shows the state of the run as it is now."""
        run, ours = shown.listed, self.studio.trainings.of(self.name)
        active = ours is not None and ours.active
        steps = f"step {run.step:,}" + (f" of {run.steps:,}" if run.steps else "")
        losses = {"loss": run.loss, "validation": run.validation}
        told = [" on ".join(escape(part) for part in (run.method, run.data) if part), steps]
        told += [f"{name} {value:.4g}" for name, value in losses.items() if value is not None]
        told += [escape(run.score), ago(run.changed)]
        for element, content in (
            (self.state, state_of("running" if active else run.state)),
            (self.facts, " · ".join(filter(None, told))),
        ):
            if element.content != content:
                element.set_content(content)
        self.why.set_text(f"This run is damaged: {run.why}" if run.why else "")
        self.why.set_visibility(bool(run.why))
        self.play.set_visibility(run.state != "damaged" and run.step > 0)
        distilled = " step" in run.method  # `fluvial distill` goes on with it, which needs its teacher
        ended = not active and run.state in ("stopped", "finished", "weights")
        self.further.set_visibility(ended and not distilled)
        self.distilled.set_visibility(ended and distilled)

    async def begin(self) -> None:
        """Draws the curves, and goes on to follow the run."""
        await self.curves.look()
        ui.timer(LOOKS_EVERY, self.look)
        ui.timer(SOON, self._fill_details, once=True)

    async def look(self) -> None:
        """Shows what has changed."""
        self.show(await aside(lambda: self.gallery.of(self.folder)))
        self.pictures.look()
        await self.curves.look()
        if self.told is not None and self.told != self._of_details():
            await self._fill_details()

    def _details(self) -> None:
        """The places of findings, scores and settings, which come after the curves: PyTorch is needed for them."""
        with ui.element("div").classes("run-more"):
            for name in ("findings", "scores"):
                with ui.card().classes("section report"):
                    self.parts[name] = ui.html(WAIT, sanitize=False).classes(f"at-{name}")
        with ui.card().classes("section report differing"):
            self.other = ui.select(self.others, label="compare with", clearable=True, with_input=True)
            self.other.props("dense outlined options-dense").classes("compare").classes("at-other")
            self.other.set_visibility(bool(self.others))
            self.parts["differing"] = ui.html(WAIT, sanitize=False).classes("at-differing")
            self.other.on_value_change(self._differ)
            with ui.expansion("All settings").classes("all-settings").classes("at-settings"):
                self.settings = ui.html("", sanitize=False)

    def _of_details(self) -> object:
        """Something that changes when training begins, ends, or is to go on for longer."""
        try:
            return self.state.content, (self.folder / "run.json").stat().st_mtime_ns
        except OSError:  # it was removed
            return None

    async def _fill_details(self) -> None:
        self.told = self._of_details()
        self.settings.set_content(_settings(self.folder))
        await self._differ()
        for name, read in (("scores", details.scores), ("findings", details.findings)):
            self.parts[name].set_content(await aside(lambda read=read: read(self.folder)))

    async def _differ(self) -> None:
        """Shows the settings in which the run differs from the one that is chosen, or from its recipe."""
        self.parts["differing"].set_content(await aside(self._differing))

    def _differing(self) -> str:
        other = self.other.value
        try:
            there = run_named(self.studio.root, other) if other else None
        except ValueError as error:  # it was removed meanwhile
            return f'<p class="wrong">{escape(str(error))}</p>'
        return details.differing(self.folder, self.name, there, other or "")


class Pictures:
    """The pictures that training drew, by step; or the newest of the run's others."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder
        self.found: list[tuple[int, Path]] = []
        self.image = ui.html("", sanitize=False).classes("pictures").classes("at-picture")
        with ui.row().classes("picture-steps") as self.steps:
            self.slider = ui.slider(min=0, max=0, value=0, on_change=self.show).classes("at-picture-slider")
            self.step = ui.label().classes("dim small picture-step")
        self.none = ui.label("No pictures yet: training draws them as it goes, and the playground at any time.")
        self.none.classes("dim")
        self.look(first=True)

    def look(self, *, first: bool = False) -> None:
        """Shows the newest picture as it comes, if the one before it was shown."""
        found = grids(self.folder)
        if found == self.found and not first:
            return
        newest = first or int(self.slider.value or 0) >= len(self.found) - 1
        self.found = found
        self.slider.props(f"max={max(0, len(found) - 1)}")
        self.steps.set_visibility(len(found) > 1)
        if newest:
            self.slider.set_value(max(0, len(found) - 1))
        self.show()

    def show(self) -> None:
        """Shows the picture that the slider is at."""
        at = min(int(self.slider.value or 0), len(self.found) - 1)
        picture = self.found[at][1] if self.found else newest_picture(self.folder)
        told = f"step {self.found[at][0]:,}" if self.found else ""
        self.step.set_text(told)
        source = escape(address_of(self.name, picture, self.folder))
        content = f'<img src="{source}" alt="{told}">' if picture else ""
        if self.image.content != content:
            self.image.set_content(content)
        self.none.set_visibility(picture is None)


def _settings(folder: Path) -> str:
    """All settings as a table, in HTML."""
    try:
        rows = details.settings(folder)
    except ValueError as error:
        return f'<p class="wrong">{escape(str(error))}</p>'
    lines = (f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in rows)
    return f'<div class="wide"><table><tbody>{"".join(lines)}</tbody></table></div>'
