"""Draw from a run while its settings are moved."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from random import randrange
from typing import TYPE_CHECKING, Any

from nicegui import ui
from starlette.requests import Request

from fluvial.studio.aside import aside, begin, finished, opened, teller
from fluvial.studio.draw import Form, Picture, difference, draw, file_of
from fluvial.studio.pages.layout import complain, copied, empty, keep_address, page, page_at, say
from fluvial.studio.pages.settings import Controls
from fluvial.studio.pages.settings_grid import SettingsGrid
from fluvial.studio.places import names_below, newest, run_named
from fluvial.studio.scene import ROW, Scene, as_command, as_python, from_query, to_query
from fluvial.studio.stage import Stage, data_url
from fluvial.studio.work import Job, Stopped

if TYPE_CHECKING:
    from fluvial.studio.shared import Studio

SEEDS_A_SIDE = 2.0  # steps in the plane of seeds that a drag across the picture takes
STEP = 0.08  # between pictures that move by themselves
KEPT = 100  # scenes that back and forward know


def register(studio: "Studio") -> None:
    """The page at /play."""

    @page_at("/play")
    async def play(request: Request) -> None:
        with page("Playground", studio.work):
            names = await aside(lambda: names_below(studio.root))
            if not names:
                return empty(f"No runs in {studio.root} to draw from", "fluvial train digits-sit makes one.")
            scene = from_query(request.query_params)
            playground = Playground(
                studio, scene if scene.run else replace(scene, run=newest(studio.root, names)), names
            )
            await opened()
            ui.context.client.on_disconnect(playground.leave)
            playground.redraw()


class Playground:
    """The playground of one browser tab."""

    def __init__(self, studio: "Studio", scene: Scene, names: list[str]) -> None:
        self.studio, self.samplers, self.scene = studio, studio.samplers, scene
        self.job: Job | None = None
        self.drawn: Picture | None = None
        self.pinned: Picture | None = None
        self.history, self.at = [scene], 0
        self.dragging = self.again = self.moving = False
        self.way = STEP
        self.told = ""
        self.buttons = dict[str, ui.button]()
        with ui.row().classes("play"):
            with ui.column().classes("controls"):
                self.controls = Controls(names, self.change)
            with ui.column().classes("shown"):
                self.stage = Stage(self.drag, self.drop, self.key)
                self._bar()
                self.line = ui.label().classes("small dim told")
                self.command = copied("As a command")
                self.python = copied("As Python")
                self.grid = SettingsGrid(studio, lambda: self.scene)
            with ui.column().classes("beside") as self.beside:
                self.of_pinned = ui.label().classes("small dim")
                self.before = ui.image().classes("pixels").mark("before")
                self.apart = ui.label().classes("small dim").mark("apart")
                self.difference = ui.image().classes("pixels").mark("difference")
            self.beside.set_visibility(False)
        self._turns()

    def _bar(self) -> None:
        """The buttons under the picture."""
        with ui.row().classes("under"):
            for icon, told, does in (
                ("undo", "back", lambda: self.turn(-1)),
                ("redo", "forward", lambda: self.turn(1)),
                ("casino", "other seed (space)", self.other_seed),
                ("my_location", "to the nearest seed", self.snap),
                ("play_circle", "move through seeds; again to stop", self.animate),
                ("home", "settings of the run", self.reset),
                ("stop", "stop drawing", self.stop),
                ("push_pin", "pin, to compare; again to let go", self.pin),
            ):
                button = ui.button(icon=icon, on_click=does).props(f'flat dense aria-label="{told}"')
                self.buttons[icon] = button.tooltip(told).mark(icon)
            with ui.button(icon="download").props('flat dense aria-label="save"'), ui.menu():
                ui.menu_item("PNG", lambda: self.save("png"))
                ui.menu_item("GIF of the steps", lambda: self.save("gif"))
                ui.menu_item(".npz of the images", lambda: self.save("npz"))

    def change(self, **settings: Any) -> None:  # noqa: ANN401 - those of a scene
        """Draws with other settings; what is being drawn is given up."""
        if "run" in settings:  # of which none of these may be known
            settings |= {"label": "", "steps": None, "solver": "", "weight": None, "average": "ema"}
        scene = replace(self.scene, **settings)
        if scene == self.scene:
            return
        self.scene = scene
        self.remember()
        self.redraw()

    def remember(self) -> None:
        """Keeps the scene for back and forward."""
        self.history = [*self.history[: self.at + 1], self.scene][-KEPT:]
        self.at = len(self.history) - 1
        self._turns()

    def _turns(self) -> None:
        """Dims the buttons that would lead nowhere."""
        self.buttons["undo"].set_enabled(self.at > 0)
        self.buttons["redo"].set_enabled(self.at < len(self.history) - 1)

    def turn(self, by: int) -> None:
        """Goes back or forward in what was drawn."""
        if 0 <= self.at + by < len(self.history):
            self.at += by
            self.scene = self.history[self.at]
            self._turns()
            self.redraw()

    def move(self, x: float, y: float) -> None:
        """Goes on in the plane of seeds."""
        self.scene = replace(self.scene, x=min(self.scene.x + x, ROW - 1.0), y=self.scene.y + y)

    def drag(self, x: float, y: float) -> None:
        """Follows the pointer: a picture that is being drawn is finished, then the newest place is drawn."""
        self.dragging = True
        self.move(SEEDS_A_SIDE * x, SEEDS_A_SIDE * y)
        if self.job is None:
            self.redraw()
        else:
            self.again = True

    def drop(self) -> None:
        """Ends a drag."""
        if self.dragging:
            self.dragging = False
            self.remember()
            self.redraw()

    def other_seed(self) -> None:
        """Draws a seed by chance."""
        self.change(x=float(randrange(ROW)), y=float(randrange(ROW)))

    def snap(self) -> None:
        """Draws the seed that is nearest."""
        self.change(x=float(round(self.scene.x)), y=float(round(self.scene.y)))

    def animate(self) -> None:
        """Moves through seeds by itself, or stops there."""
        self.moving = not self.moving
        if self.moving:
            self.step_on()
        else:
            self.drop()

    def step_on(self) -> None:
        """Goes a little further to the right, and back at the end of the row."""
        self.dragging = True
        if not 0 < self.scene.x + self.way < ROW - 1:
            self.way = -self.way
        self.move(self.way, 0.0)
        self.redraw()

    def reset(self) -> None:
        """Draws with the settings of the run, at seed 0."""
        self.change(**{name: getattr(Scene(), name) for name in vars(Scene()) if name not in ("run", "count")})

    def pin(self) -> None:
        """Lays the picture over those to come, or takes it away."""
        self.pinned = None if self.pinned else self.drawn
        self.stage.pin(self.pinned.png if self.pinned else None)
        self.beside.set_visibility(self.pinned is not None)
        self.buttons["push_pin"].classes(**{"add" if self.pinned else "remove": "here"})
        if self.pinned:
            self.of_pinned.set_text(f"Pinned, left of the line: {_settings_told(self.scene)}, {self.told}")
            self.before.set_source(data_url(self.pinned.png))
            self._compare()

    def _compare(self) -> None:
        """Shows how far the picture is from the pinned one."""
        if self.pinned and self.drawn and (found := difference(self.pinned, self.drawn, self.scene.columns)):
            png, mean = found
            self.difference.set_source(data_url(png))
            self.apart.set_text(f"Difference, {mean:.1f} of 255 in the mean of all pixels")
        elif self.pinned:
            self.difference.set_source("")
            self.apart.set_text("Other numbers or sizes of images: no difference")

    def stop(self) -> None:
        """Gives up what is being drawn."""
        self.again = self.moving = self.dragging = False
        if self.job is not None:
            self.job.stop()

    def leave(self) -> None:
        """Gives up all work of a page that is closed."""
        self.stop()
        self.grid.stop()

    def key(self, name: str) -> None:
        """The arrows go to the next seeds, space to any."""
        ways = {"ArrowLeft": (-1.0, 0.0), "ArrowRight": (1.0, 0.0), "ArrowUp": (0.0, -1.0), "ArrowDown": (0.0, 1.0)}
        if name not in ways:
            return self.other_seed()
        before = self.scene
        self.move(*ways[name])
        if self.scene != before:
            self.remember()
            self.redraw()

    def redraw(self) -> None:
        """Draws the scene, once what is being drawn is given up or done."""
        if not self.dragging:
            self.controls.set(self.scene)
        if self.job is not None:
            self.again = True
            if not self.dragging:
                self.job.stop()
            return
        self.again = False
        begin(self._draw(self.scene))

    async def _draw(self, scene: Scene) -> None:
        """Lets the picture be drawn, and shows it."""
        tell = teller(self.line)

        def work(job: Job) -> tuple[Scene, Picture]:
            sampler = self.samplers.get(run_named(self.studio.root, scene.run), scene.average)
            tell(self._loaded, scene, sampler)
            place, drawn = scene, draw(sampler, scene, job, partial(tell, self._show, scene))
            while self.dragging and self.again and len(self.studio.work.names()) == 1:  # without a way over the page
                tell(self._show, place, drawn)
                self.again, place = False, self.scene
                drawn = draw(sampler, place, job, partial(tell, self._show, place))
            return place, drawn

        self.job = self.studio.work.submit(f"drawing from {scene.run}", work)
        if before := self.studio.work.before(self.job)[:-1]:
            say(self.line, f"waits for {len(before)} before it: {before[0]}")
        try:
            place, drawn = await finished(self.job)
            self.drawn = drawn
            self._show(place, drawn)
        except Stopped:
            say(self.line, "stopped")
        except Exception as error:  # of settings that the run cannot follow, or a damaged run
            self.moving = False
            self._refused(error)
        finally:
            self.job = None
        if self.moving:
            self.step_on()
        elif self.again:
            self.redraw()

    def _refused(self, error: Exception) -> None:
        complain(self.line, error)
        if self.drawn is None:
            self.stage.say("nothing drawn")

    def _loaded(self, scene: Scene, sampler: Any) -> None:  # noqa: ANN401
        if scene.run == self.scene.run and not self.dragging:
            self.controls.fit(sampler, self.scene)

    def _show(self, scene: Scene, picture: Picture) -> None:
        """Shows a picture and what it is."""
        self.stage.show(picture.png)
        place = f"seed {scene.seed}" if scene.seed is not None else f"between seeds {', '.join(map(str, scene.seeds))}"
        self.told = f"{place}: {picture.told}"
        say(self.line, self.told)
        if picture.samples is None or self.dragging:
            return
        self._compare()
        folder = self._shown_folder(scene)
        self.command.set_text(as_command(scene, folder))
        self.python.set_text(as_python(scene, folder))
        keep_address("/play", to_query(scene))

    def _shown_folder(self, scene: Scene) -> Path:
        return self.studio.root if scene.run == "." else self.studio.root / scene.run

    async def save(self, form: Form) -> None:
        """Lets the browser save the picture, the steps to it, or the images."""
        scene, drawn = self.scene, self.drawn
        if drawn is None or drawn.samples is None:
            return ui.notify("nothing is drawn yet")

        def work(job: Job) -> bytes:
            return file_of(self.samplers.get(run_named(self.studio.root, scene.run), scene.average), scene, form, job)

        job = self.studio.work.submit(f"a {form} file of {scene.run}", work)
        try:
            content = await finished(job)
        except Exception as error:
            return ui.notify(str(error), type="negative")
        ui.download.content(content, f"{Path(scene.run).name}-{scene.x:g}-{scene.y:g}.{form}")


def _settings_told(scene: Scene) -> str:
    """The settings of a scene that are not those of the run, in words."""
    names = {"label": "class", "weight": "guidance", "average": "weights"}
    changed = {name: value for name, value in vars(scene).items() if value != getattr(Scene(), name)}
    kept = [name for name in changed if name not in ("run", "x", "y", "count")]
    return ", ".join([scene.run, *(f"{names.get(name, name)} {changed[name]}" for name in kept)])
