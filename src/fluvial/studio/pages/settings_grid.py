"""The part of the playground that draws a grid of two settings."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from nicegui import ui

from fluvial.studio.aside import finished, teller
from fluvial.studio.grid import SETTINGS, as_python, grid, values_of
from fluvial.studio.pages.layout import complain, copied, say
from fluvial.studio.scene import Scene
from fluvial.studio.stage import data_url
from fluvial.studio.work import Job, Stopped

if TYPE_CHECKING:
    from fluvial.studio.shared import Studio

USUAL = {"weight": "1 1.5 2 3", "steps": "4 8 16 32", "x": "0 1 2 3", "solver": "euler ab2 heun", "average": "ema raw"}
USUAL |= {"low": "0 0.25 0.5", "high": "0.5 0.75 1"}


class SettingsGrid:
    """Two settings with their values, and the picture of all pairs; `scene()` has the other settings."""

    def __init__(self, studio: "Studio", scene: Callable[[], Scene]) -> None:
        self.studio, self.samplers, self.scene = studio, studio.samplers, scene
        self.job: Job | None = None
        self.png = b""
        with ui.expansion("Grid of two settings", value=False).classes("lines").props("dense"):
            with ui.row().classes("two"):
                self.across, self.values_across = self._side("Across", "weight")
            with ui.row().classes("two"):
                self.down, self.values_down = self._side("Down", "x")
            with ui.row():
                ui.button("Draw grid", on_click=self.draw).props("dense no-caps unelevated").mark("draw-grid")
                ui.button("Save", on_click=self.save).props("dense no-caps flat")
            self.line = ui.label().classes("small dim grid-told")
            self.picture = ui.image().classes("grid-picture")
            with ui.column().classes("w-full") as self.python_box:
                self.python = copied("This grid as Python", "grid-python")
        self._visible(False)

    def _side(self, label: str, usual: str) -> tuple[ui.select, ui.input]:
        """A setting along a side, and its values."""
        values = (
            ui.input(f"{label}: values", value=USUAL[usual]).props("dense outlined debounce=200").classes("control")
        )
        names = ui.select(SETTINGS, value=usual, label=label).props("dense outlined options-dense").classes("control")
        names.on_value_change(lambda event: values.set_value(USUAL.get(event.value, "")))
        names.move(target_index=0)
        return names, values

    async def draw(self) -> None:
        """Draws the grid, or gives it up where it is being drawn."""
        if self.job is not None:
            self.job.stop()
            return
        scene, tell = self.scene(), teller(self.line)
        try:
            across, down = (
                (side.value, values_of(side.value, values.value or ""))
                for side, values in ((self.across, self.values_across), (self.down, self.values_down))
            )
        except ValueError as error:
            self._refused(error)
            return
        total = len(across[1]) * len(down[1])

        def work(job: Job) -> bytes:
            from fluvial.utils.pictures import encoded

            def check(done: int) -> None:
                job.check()
                tell(say, self.line, f"{done} of {total} images")

            drawn = grid(self.studio.root, scene, across, down, samplers=self.samplers, check=check)
            return encoded(drawn, "png")

        self.job = self.studio.work.submit(f"a grid of {scene.run}", work)
        try:
            self.png = await finished(self.job)
            self.picture.set_source(data_url(self.png))
            say(self.line, "")
            self.python.set_text(as_python(self.studio.root, scene, across, down))
            self._visible(True)
        except Stopped:
            say(self.line, "stopped")
        except Exception as error:  # of settings that a run cannot follow
            self._refused(error)
        finally:
            self.job = None

    def _visible(self, shown: bool) -> None:
        for part in (self.picture, self.python_box):
            part.set_visibility(shown)

    def _refused(self, error: Exception) -> None:
        complain(self.line, error)
        self._visible(False)

    def save(self) -> None:
        """Lets the browser save the picture."""
        if not self.png:
            return ui.notify("no grid is drawn yet")
        ui.download.content(self.png, "grid.png")

    def stop(self) -> None:
        """Gives up what is being drawn."""
        if self.job is not None:
            self.job.stop()
