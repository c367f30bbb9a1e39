"""A drawing step by step, and drawn again from a scale on, from a time on, or with less history."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from nicegui import ui
from starlette.requests import Request

from fluvial.studio import apart
from fluvial.studio.apart_drawn import Drawn, changed, difference, drawn_of, fork_of, pictures_at
from fluvial.studio.apart_lines import COUNTS, Change, Choice, as_command, as_python, from_query, to_query
from fluvial.studio.aside import aside, begin, finished, opened
from fluvial.studio.pages import apart_parts as parts
from fluvial.studio.pages.apart_otherwise import Otherwise
from fluvial.studio.pages.inputs import seed_field, seed_of
from fluvial.studio.pages.layout import complain, empty, keep_address, page, page_at, say
from fluvial.studio.places import names_below, newest, run_named
from fluvial.studio.work import Job, Stopped

if TYPE_CHECKING:
    from fluvial.studio.shared import Studio

PAUSE = 0.12  # seconds between frames that are played


def register(studio: "Studio") -> None:
    """The page at /apart."""

    @page_at("/apart")
    async def steps(request: Request) -> None:
        with page("Steps", studio.work):
            ui.page_title("Step by step · fluvial")
            names = await aside(lambda: names_below(studio.root))
            if not names:
                return empty(f"No runs in {studio.root} to draw from", "fluvial train digits-sit makes one.")
            choice = from_query(request.query_params)
            view = Steps(studio, choice if choice.run else replace(choice, run=newest(studio.root, names)), names)
            await opened()
            ui.context.client.on_disconnect(view.leave)
            await view.draw()


class Steps:
    """The page of one browser tab."""

    def __init__(self, studio: "Studio", choice: Choice, names: list[str]) -> None:
        self.studio, self.samplers, self.choice = studio, studio.samplers, choice
        self.job: Job | None = None
        self.first: Drawn | None = None
        self.other: Drawn | None = None
        self.changed = Change()
        self.showing = self.again = self.playing = self.quiet = False
        with ui.row().classes("play apart-page"):
            with ui.column().classes("controls"):
                self._controls(names)
                self.otherwise = Otherwise(
                    lambda points: self.change(Change(history=points)), self.fork, self.redraw_same
                )
                self.line = ui.label().classes("small dim told")
            with ui.column().classes("shown") as self.shown:
                self._shown()
        self.shown.set_visibility(False)

    def _controls(self, names: list[str]) -> None:
        """The choice of the images."""
        runs = names if self.choice.run in names else [self.choice.run, *names]
        self.run = self._input(ui.select(runs, value=self.choice.run, label="Run"), "run")
        classes = {"": "all in turn", self.choice.label: self.choice.label or "all in turn"}
        self.label = self._input(ui.select(classes, value=self.choice.label, label="Class"), "label")
        with ui.row().classes("two"):
            self.seed = self._input(seed_field("Seed", self.choice.seed), "seed")
            self._input(ui.select({n: str(n) for n in COUNTS}, value=self.choice.count, label="Images"), "count")

    def _input(self, found: Any, name: str) -> Any:  # noqa: ANN401 - a select or a number
        found.on_value_change(lambda event: self.choose(name, event.value))
        return found.props("dense outlined options-dense").classes("control").mark(name)

    def _shown(self) -> None:
        """The slider of steps, and what it shows."""
        with ui.row().classes("apart-steps"):
            self.button = ui.button(icon="play_arrow", on_click=self.play).props('flat dense aria-label="play"')
            self.slider = ui.slider(min=0, max=1, value=0, on_change=self.scrub).props('aria-label="step"')
            self.told = ui.label().classes("small apart-told")
        with ui.column().classes("apart-guidance") as self.guidance:
            self.bars = ui.html("", sanitize=False).classes("apart-bars")
            self.bars_told = ui.label().classes("small dim")
        with ui.element("div").classes("apart-strips"):
            self.strip = parts.Strip("Scales: click one to draw again from there on", "strip", self.redraw)
            self.strip_again = parts.Strip("Drawn again", "strip-again")
        with ui.element("div").classes("apart-columns"):
            self.drawn, self.drawn_again = parts.Column("drawn"), parts.Column("again")
        scale = parts.TOLD.format(apart.VELOCITY)
        ui.label(f"Of the velocity, {scale}, in every picture.").classes("small dim")
        with ui.expansion("How far the history reaches back").classes("lines").props("dense") as self.reach_box:
            ui.label(parts.REACH).classes("small dim")
            self.reach = ui.html("", sanitize=False)

    async def choose(self, name: str, value: Any) -> None:  # noqa: ANN401 - of an input
        """Draws other images."""
        if self.quiet or value is None:
            return
        kinds: dict[str, Callable[[Any], Any]] = {"seed": seed_of, "count": int}
        settings: dict[str, Any] = {name: kinds.get(name, str)(value)}
        settings |= {"label": ""} if name == "run" else {}
        if (choice := replace(self.choice, **settings)) != self.choice:
            self.choice = choice
            await self.draw()

    async def draw(self) -> None:
        """Draws the images, and shows what their steps saw."""
        choice, self.playing, self.first = self.choice, False, None

        def work(job: Job) -> Drawn:
            sampler = self.samplers.get(run_named(self.studio.root, choice.run), "ema")
            return drawn_of(sampler, choice, job.check)

        say(self.line, "drawing")
        found = await self._work(f"drawing from {choice.run}", work)
        if found is None:
            return
        self.first, self.other = found, None
        self._fit(found)
        keep_address("/apart", to_query(choice))
        last = len(found.recorded.frames) - 1
        self.slider.props(f"max={last}")
        self.slider.set_value(last // 2)
        self.scrub()

    async def _work(self, name: str, function: Callable[[Job], Drawn]) -> Drawn | None:
        """The result of work that takes the place of what is being drawn; None if it came to nothing."""
        self.stop()
        self.job = job = self.studio.work.submit(name, function)
        try:
            found = await finished(job)
        except Stopped:
            return None
        except Exception as error:  # of a choice that the run cannot follow, or a damaged run
            if self.job is job:
                complain(self.line, error)
                self.shown.set_visibility(self.first is not None)
                if self.first is None:
                    self.otherwise.hide()
            return None
        if self.job is not job:
            return None
        self.job = None
        say(self.line, "")
        return found

    def _fit(self, drawn: Drawn) -> None:
        """Shows what this run has, and nothing that it has not."""
        run, recorded = drawn.sampler.run, drawn.recorded
        names, classes = run.data.class_names, run.method.classes
        labels = {name: name for name in names} if names else {str(i): str(i) for i in range(classes)}
        self.quiet = True
        self.label.set_options({"": "all in turn", **labels}, value=self.choice.label)
        self.label.set_visibility(bool(classes))
        self.quiet = False
        self.shown.set_visibility(True)
        self.guidance.set_visibility(bool(drawn.weights))
        if drawn.weights:
            self.bars.set_content(parts.bars(drawn.weights))
            self.bars_told.set_text(parts.bars_told(drawn.weights))
        self.strip.box.set_visibility(bool(drawn.strip))
        self.strip.show(drawn.strip)
        self.strip_again.box.set_visibility(False)
        self.drawn_again.box.set_visibility(False)
        self.drawn.title.set_text("")
        self.drawn.line.set_text("")
        self.reach_box.set_visibility(bool(recorded.decays))
        self.reach.set_content(parts.reach(recorded) if recorded.decays else "")
        self.otherwise.fit(
            labels,
            seed=self.choice.seed + 1,
            scales=bool(drawn.strip),
            points=0 if run.method.images_per_sequence is None else len(recorded.frames) - 2,
            forks=any(fork_of(drawn, at) for at in range(len(recorded.frames))),
        )

    def redraw(self, scale: int) -> None:
        """Draws again from this scale on; once more from the same one, with the next seed."""
        seed, label = self.otherwise.chosen
        if self.other is not None and self.changed == Change(keep=scale, seed=seed, label=label):
            self.otherwise.next_seed()
            seed, label = self.otherwise.chosen
        self.change(Change(keep=scale, seed=seed, label=label))

    def redraw_same(self) -> None:
        """Draws again from the same scale on, with another seed or class."""
        if self.other is not None and self.changed.keep is not None:
            self.redraw(self.changed.keep)

    def fork(self) -> None:
        """Draws images that are one with the first until this step."""
        if self.first is not None:
            change = fork_of(self.first, self.at)
            self.change(change) if change else ui.notify("choose a step between the first and the end")

    def change(self, change: Change) -> None:
        """Draws the images otherwise."""
        begin(self._change(change))

    async def _change(self, change: Change) -> None:
        """Draws the images otherwise, and shows them beside the others."""
        first, choice = self.first, self.choice
        if first is None:
            return
        say(self.line, "drawing")
        found = await self._work(
            f"drawing again from {choice.run}", lambda job: changed(first, choice, change, job.check)
        )
        if found is not None:
            self.other, self.changed = found, change
            self._fit_other(first, found, change)
            self.scrub()

    def _fit_other(self, first: Drawn, other: Drawn, change: Change) -> None:
        """Says what was drawn otherwise, and by how much it differs."""
        last = "last point" if change.history == 1 else f"last {change.history} points"
        title = "Without history" if change.history == 0 else f"With the {last} of the history"
        if change.keep is not None:
            label = f", class {change.label}" if change.label else ""
            title = f"From scale {first.strip[change.keep][0]} on, seed {change.seed}{label}"
        elif change.at is not None:
            title = f"The first image, forked at t = {change.at:.3f}"
        mean = difference(first.recorded, other.recorded, 0 if change.at is not None else None)
        self.drawn.title.set_text("As drawn")
        self.drawn.line.set_text(f"seed {self.choice.seed}, with the settings of the run")
        self.drawn_again.title.set_text(title)
        which = "four ways on, each with noise of its own: " if change.at is not None else ""
        self.drawn_again.line.set_text(f"{which}{mean:.1f} of 255 apart at the end, in the mean of all pixels")
        self.drawn_again.box.set_visibility(True)
        self.strip_again.title.set_text(title)
        self.strip_again.box.set_visibility(bool(other.strip))
        self.strip_again.show(other.strip, change.keep or 0)

    @property
    def at(self) -> int:
        """The number of the frame that the slider is at."""
        frames = self.first.recorded.frames if self.first else ()
        return max(0, min(int(self.slider.value or 0), len(frames) - 1))

    def scrub(self) -> None:
        """Shows the frame that the slider is at, once the one before it is shown."""
        if self.first is None:
            return
        self.told.set_text(parts.frame_told(self.first.recorded, self.at))
        self.bars.style(f"--at: {self.at / len(self.first.recorded.frames):.4f}")
        self.bars.style(f"--wide: {1 / len(self.first.recorded.frames):.4f}")
        if self.showing:
            self.again = True
        else:
            begin(self._show())

    async def _show(self) -> None:
        """Shows the frame that the slider is at, and those it goes on to meanwhile."""
        self.showing = True
        try:
            self.again = True
            while self.again and self.first is not None:
                self.again = False
                first, other, at = self.first, self.other, self.at
                job = self.studio.work.submit(f"a step of {self.choice.run}", lambda job: pictures_at(first, other, at))  # noqa: B023
                shown = await finished(job)
                if first is self.first and other is self.other:
                    self._put(shown, at)
        except Exception as error:  # of an autoencoder
            complain(self.line, error)
        finally:
            self.showing = False

    def _put(self, shown: list[tuple[int, tuple[bytes, bytes, bytes]]], at: int) -> None:
        """Puts the pictures of a frame in their places, and the lines that draw them."""
        folder = self.studio.root if self.choice.run == "." else self.studio.root / self.choice.run
        for column, drawn, change, (frame, pngs) in zip(
            (self.drawn, self.drawn_again), (self.first, self.other), (None, self.changed), shown, strict=False
        ):
            assert drawn is not None
            column.show(pngs, len(drawn.recorded.samples))
            column.lines(as_command(self.choice, folder, change), as_python(self.choice, folder, frame, change))

    async def play(self) -> None:
        """Plays the steps to the end, from the start if it is there; or stops there."""
        self.playing = not self.playing
        last = len(self.first.recorded.frames) - 1 if self.first else 0
        if self.playing and self.at >= last:
            self.slider.set_value(0)
        self.button.props("icon=pause" if self.playing else "icon=play_arrow")
        while self.playing and self.at < last:
            await asyncio.sleep(PAUSE)
            if self.playing and not self.showing:
                self.slider.set_value(self.at + 1)
        self.playing = False
        self.button.props("icon=play_arrow")

    def stop(self) -> None:
        """Gives up what is being drawn."""
        if self.job is not None:
            self.job.stop()

    def leave(self) -> None:
        """Gives up all work of a page that is closed."""
        self.playing = False
        self.stop()
