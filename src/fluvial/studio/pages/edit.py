"""Edit an image with a run: paint over a part of it, vary it, redraw it, upscale it, invert it, or show examples."""

from dataclasses import replace
from random import randrange
from typing import TYPE_CHECKING, Any

from nicegui import ui
from starlette.requests import Request

from fluvial.studio import editing as edits
from fluvial.studio.aside import aside, begin, finished, opened, teller
from fluvial.studio.editing import NONE, Abilities, Edited, Editing
from fluvial.studio.given import (
    MOST_BYTES,
    MOST_EXAMPLES,
    Given,
    image_file,
    mask_file,
    mask_of,
    npz_file,
    shown,
)
from fluvial.studio.pages.edit_controls import Canvas, KindButtons, Settings, button
from fluvial.studio.pages.inputs import seed_field, seed_of
from fluvial.studio.pages.layout import complain, copied, empty, keep_address, page, page_at, say
from fluvial.studio.places import names_below, newest, run_named
from fluvial.studio.stage import data_url
from fluvial.studio.work import Job, Stopped

if TYPE_CHECKING:
    from fluvial.studio.shared import Studio

LIMITS = f"Images of up to {MOST_BYTES // 2**20} MB, and at most {MOST_EXAMPLES} at once."


def register(studio: "Studio") -> None:
    """The page at /edit."""

    @page_at("/edit")
    async def edit(request: Request) -> None:
        with page("Edit", studio.work):
            names = await aside(lambda: names_below(studio.root))
            if not names:
                return empty(f"No runs in {studio.root} to edit with", "fluvial train digits-sit makes one.")
            editing = edits.from_query(request.query_params)
            editor = Editor(studio, editing if editing.run else replace(editing, run=newest(studio.root, names)), names)
            await opened()
            ui.context.client.on_disconnect(editor.stop)
            editor.redraw()


class Editor:
    """The Edit page of one browser tab."""

    def __init__(self, studio: "Studio", editing: Editing, names: list[str]) -> None:
        self.studio, self.samplers, self.editing = studio, studio.samplers, editing
        self.files = self.read = list[tuple[str, bytes]]()  # that were given, and those of them that could be read
        self.runs: Any = None  # of the mask, as the browser sent them
        self.job: Job | None = None
        self.edited: Edited | None = None
        self.given = Given()
        self.again, self.quiet = False, True
        with ui.element("div").classes("edit"):
            with ui.column().classes("edit-first"):
                known = names if editing.run in names else [*names, editing.run]
                self.run = ui.select(known, value=editing.run, label="Run").props("dense outlined options-dense")
                self.run.classes("control").mark("run").on_value_change(lambda event: self._told(run=event.value))
                self.kinds = KindButtons(self.change)
            with ui.column().classes("edit-more"):
                self.settings = Settings(self.change)
            with ui.column().classes("edit-given"):
                self._given()
            with ui.column().classes("edit-shown"):
                self._shown()
        self.quiet = False

    def _given(self) -> None:
        """The image that is edited, with what paints on it and where it comes from."""
        upload = ui.upload(
            multiple=True,
            max_file_size=MOST_BYTES,
            max_total_size=MOST_BYTES,
            max_files=MOST_EXAMPLES,
            on_multi_upload=self.take,
            on_rejected=self.rejected,
            auto_upload=True,
        )
        self.upload = upload.props('accept="image/*"').classes("edit-upload")
        self.canvas = Canvas(upload.id, self.painted)
        with ui.row().classes("edit-tools") as self.tools:
            ui.label("Brush").classes("small dim")
            self.brush = ui.slider(min=1, max=4, step=1, value=2).props('aria-label="size of the brush"')
            self.erase = ui.checkbox("Erase").props("dense").classes("small").mark("erase")
            self.brush.on_value_change(self._brush)
            self.erase.on_value_change(self._brush)
            button("Clear", lambda: self.canvas.run_method("clear"))
        with ui.row().classes("edit-source"):
            button("Choose image", lambda: upload.run_method("pickFiles"), "image", "outline")
            button("Draw another", self.draw_one, "casino", "outline")
        with ui.row().classes("two") as self.of_sample:
            self.of = ui.select({"": ""}, value="", label="Class of the sample").props("dense outlined options-dense")
            self.of.classes("control").mark("of")
            self.of.on_value_change(lambda event: self._told(of=event.value, label=event.value))
            self.sample = seed_field("Its seed").mark("sample")
            self.sample.on_value_change(
                lambda event: event.value is not None and self._told(sample=seed_of(event.value))
            )
        self.source = ui.label().classes("small dim")

    def _shown(self) -> None:
        """The result, and the lines that draw it again."""
        with ui.element("div").classes("edit-result"):
            self.picture = ui.element("img").classes("pixels").props('alt="result"')
            self.nothing = ui.label("nothing drawn").classes("dim")
        self.picture.set_visibility(False)
        self.line = ui.label().classes("small dim told")
        with ui.row().classes("edit-buttons"):
            button("Other seed", lambda: self.change(seed=randrange(10**6)), "casino")
            button("Stop", self.stop, "stop")
            button("PNG", lambda: self.save("png"), "download")
            button(".npz", lambda: self.save("npz"), "download")
        with ui.column().classes("edit-lines") as self.lines:
            self.command = copied("As a command")
            self.python = copied("As Python")
            with ui.row().classes("edit-files"):
                self.needs = ui.label().classes("small dim")
                self.save_image = button("Save image", lambda: self.save("image"))
                self.save_mask = button("Save mask", lambda: self.save("mask"))
        self.lines.set_visibility(False)

    def _told(self, **settings: Any) -> None:  # noqa: ANN401
        if not self.quiet:
            self.change(**settings)

    def change(self, **settings: Any) -> None:  # noqa: ANN401 - those of an edit
        """Draws with other settings; what is being drawn is given up."""
        if "run" in settings:  # of which none of these may be known
            settings |= {"label": "", "of": "", "steps": None, "solver": "", "weight": None, "side": 0}
            settings |= {"keep": Editing().keep}
        if settings.get("kind") == "context":
            settings |= {"label": ""}  # which is left to the examples
        if {"of", "sample"} & settings.keys():
            self.files = []
        editing = replace(self.editing, **settings)
        if editing != self.editing:
            self.editing = editing
            self.redraw()

    def draw_one(self) -> None:
        """Edits another sample of the run."""
        self.files = []
        self.change(sample=randrange(10**6))

    async def take(self, event: Any) -> None:  # noqa: ANN401 - NiceGUI's
        """Edits the files that were uploaded; the first, but for examples."""
        self.upload.reset()
        if sum(file.size() for file in event.files) > MOST_BYTES:  # of no browser that keeps to the limits
            complain(self.line, ValueError(f"Not taken. {LIMITS}"))
            return
        self.files = [(file.name, await file.read()) for file in event.files[:MOST_EXAMPLES]]
        if NONE in self.settings.label.options and self.editing.label == self.editing.of:
            self.editing = replace(self.editing, label=NONE)  # what it shows is not known, but for the user
        self.redraw()

    def rejected(self) -> None:
        """Says that files were too many or too large."""
        ui.notify(f"Not all were taken. {LIMITS}", type="negative")

    def painted(self, runs: Any) -> None:  # noqa: ANN401 - from the browser
        """Draws what is painted over."""
        self.runs = runs
        self.redraw()

    def _brush(self) -> None:
        self.canvas.run_method("brush", self.brush.value, bool(self.erase.value))

    def stop(self) -> None:
        """Gives up what is being drawn."""
        self.again = False
        if self.job is not None:
            self.job.stop()

    def redraw(self) -> None:
        """Draws the result, once what is being drawn is given up."""
        self.kinds.set(self.editing.kind)
        if self.job is not None:
            self.again = True
            self.job.stop()
            return
        self.again = False
        begin(self._draw(self.editing))

    async def _draw(self, editing: Editing) -> None:
        """Lets the result be drawn, and shows it."""
        tell, files, runs = teller(self.line), self.files, self.runs

        def work(job: Job) -> tuple[Editing, Edited | None]:
            sampler = self.samplers.get(run_named(self.studio.root, editing.run), "ema")
            able = edits.abilities(sampler)
            fit = edits.fitted(editing, able)
            tell(self._fit, editing, fit, able)
            images = self.given.images(sampler, fit, files, job)
            tell(self._show_given, fit, images, files)
            if fit.kind in able.refused:
                raise ValueError(f"{edits.KINDS[fit.kind]} is {able.refused[fit.kind]}")
            mask = mask_of(runs, able.side) if fit.kind == "inpaint" else None
            if fit.kind == "inpaint" and (mask is None or not mask.any()):
                return fit, None
            return fit, edits.draw(sampler, fit, images, mask, job)

        self.job = self.studio.work.submit(f"editing with {editing.run}", work)
        say(self.line, "drawing")
        if before := self.studio.work.before(self.job)[:-1]:
            say(self.line, f"waits for {len(before)} before it: {before[0]}")
        try:
            self._show(*await finished(self.job))
        except Stopped:
            say(self.line, "stopped")
        except Exception as error:  # of files or settings that the run cannot follow, or a damaged run
            self.files = self.read if self.files is files else self.files
            self._show_nothing()
            complain(self.line, error)
            self.canvas.run_method("none")
        finally:
            self.job = None
        if self.again:
            self.redraw()

    def _fit(self, asked: Editing, editing: Editing, able: Abilities) -> None:
        """Shows what a run has, unless other settings have been asked for since."""
        if self.editing != asked:
            return
        self.editing, self.quiet = editing, True
        self.kinds.fit(able)
        self.settings.fit(able, editing)
        self.of.set_options([label for label in able.labels if label != "none"] or ["none"], value=editing.of)
        self.of.set_visibility(len(able.labels) > 1)
        self.sample.set_value(editing.sample)
        self.brush.props(f"max={max(2, able.side // 2)}")
        if asked.of == "":  # a run that was not shown before
            self.brush.set_value(max(2, able.side // 6))
            self._brush()
        self.quiet = False

    def _show_given(self, editing: Editing, images: Any, files: list[tuple[str, bytes]]) -> None:  # noqa: ANN401
        """Shows what is edited."""
        several, paints, (height, width) = editing.kind == "context", editing.kind == "inpaint", images.shape[-2:]
        self.read = files
        self.canvas.run_method(
            "show", data_url(shown(images, several=several)), *((width, height) if paints else (0, 0))
        )
        self.canvas.run_method("paints", paints)
        self.tools.set_visibility(paints)
        self.of_sample.set_visibility(not files)
        drawn = f"{len(images)} samples" if several else "A sample"
        names = ", ".join(name[:60] for name, _ in files[: len(images)])
        size = f"{width} x {height} pixels"
        self.source.set_text(f"{names or f'{drawn} of the run, seed {editing.sample}'}: {size}")

    def _show_nothing(self) -> None:
        """Shows no result."""
        self.edited = None
        self.picture.set_visibility(False)
        self.nothing.set_visibility(True)
        self.lines.set_visibility(False)

    def _show(self, editing: Editing, edited: Edited | None) -> None:
        """Shows a result and the lines that draw it again."""
        keep_address("/edit", edits.to_query(editing))
        if edited is None:
            say(self.line, "Paint over the part of the image that is to be drawn anew.")
            return self._show_nothing()
        self.edited = edited
        self.picture.props(f'src="{data_url(edited.png)}"')
        self.picture.set_visibility(True)
        self.nothing.set_visibility(False)
        say(self.line, f"seed {editing.seed}: {edited.told}")
        folder = self.studio.root if editing.run == "." else self.studio.root / editing.run
        self.command.set_text(edits.as_command(editing, folder))
        self.python.set_text(edits.as_python(editing, folder, edited.given.shape[1]))
        several, masked = editing.kind == "context", edited.mask is not None
        names = edits.EXAMPLES if several else f"{edits.IMAGE} and {edits.MASK}" if masked else edits.IMAGE
        self.needs.set_text(f"They read {names} in the folder they are run in:")
        self.save_image.set_text("Save examples" if several else "Save image")
        self.save_mask.set_visibility(masked)
        self.lines.set_visibility(True)

    def save(self, what: str) -> None:
        """Lets the browser save the result, or what the lines read."""
        if (edited := self.edited) is None:
            return ui.notify("nothing is drawn yet")
        editing, several = edited.editing, edited.editing.kind == "context"
        name, content = f"{editing.kind}-{editing.seed}.{what}", edited.png
        if what == "npz":
            content = npz_file(edited.samples)
        elif what == "image":
            name, content = (edits.EXAMPLES if several else edits.IMAGE), image_file(edited.given, several=several)
        elif what == "mask" and edited.mask is not None:
            name, content = edits.MASK, mask_file(edited.mask)
        ui.download.content(content, name)
