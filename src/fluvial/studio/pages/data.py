"""The images that a run learns from."""

from typing import TYPE_CHECKING

from nicegui import ui
from starlette.requests import Request

from fluvial.studio.aside import aside, finished, opened
from fluvial.studio.dataset import CLASSES, Look, look_at
from fluvial.studio.pages.layout import empty, keep_address, page, page_at
from fluvial.studio.places import names_below, newest, run_named
from fluvial.studio.stage import data_url
from fluvial.studio.work import Job, Stopped

if TYPE_CHECKING:
    from fluvial.studio.shared import Studio


def register(studio: "Studio") -> None:
    """The page at /data."""

    @page_at("/data")
    async def data(request: Request) -> None:
        with page("Data", studio.work):
            names = await aside(lambda: names_below(studio.root))
            if not names:
                return empty(f"No runs in {studio.root} yet", "Here are the images that runs learn from.")
            asked = request.query_params.get("run") or newest(studio.root, names)
            view = View(studio, names, asked)
            await opened()
            ui.context.client.on_disconnect(view.stop)
            await view.look(asked)


class View:
    """The page of one browser tab."""

    def __init__(self, studio: "Studio", names: list[str], name: str) -> None:
        self.studio = studio
        self.job: Job | None = None
        options = names if name in names else [name, *names]
        chosen = ui.select(options, value=name, label="Images of the run").classes("data-run")
        chosen.props("dense outlined options-dense").on_value_change(lambda event: self.look(event.value))
        self.content = ui.column().classes("data")

    async def look(self, name: str) -> None:
        """Shows the images of a run."""
        self.stop()
        self.content.clear()
        with self.content:
            ui.spinner(size="lg")
            ui.label("reading images").classes("dim small")

        def work(job: Job) -> Look:
            return look_at(run_named(self.studio.root, name), job)

        self.job = job = self.studio.work.submit(f"looking at the images of {name}", work)
        try:
            found = await finished(job)
        except Stopped:
            return
        except Exception as error:  # of images that moved, or a damaged run
            self.content.clear()
            with self.content:
                empty("These images cannot be shown", " ".join(str(error).split())[:500])
            return
        self.content.clear()
        with self.content:
            shown(found)
        keep_address("/data", {"run": name})

    def stop(self) -> None:
        """Gives up reading."""
        if self.job is not None:
            self.job.stop()


def shown(found: Look) -> None:
    """The facts, the images as the model sees them, the classes, what cannot be read, and the contact sheet."""
    with ui.row().classes("data-top"):
        with ui.card().classes("data-facts"):
            ui.label(found.place or "built in").classes("title")
            with ui.element("table"):
                for name, told in found.facts.items():
                    with ui.element("tr"):
                        with ui.element("th"):
                            ui.label(name)
                        with ui.element("td"):
                            ui.label(told)
        with ui.card().classes("data-seen"):
            ui.label("As the model sees them" if not found.psnr else "As they are cropped, and after the autoencoder")
            if found.seen:
                ui.image(data_url(found.seen)).classes("pixels")
            if found.psnr:
                each = ", ".join(f"{value:.1f}" for value in found.psnr)
                ui.label(f"PSNR {each} dB; {sum(found.psnr) / len(found.psnr):.1f} in the mean").classes("dim small")
    if found.unreadable:
        with ui.card().classes("data-wide"):
            ui.label("Unreadable").classes("title wrong")
            for line in found.unreadable:
                ui.label(line).classes("small")
    if found.classes:
        with ui.card().classes("data-wide"):
            many = f", of the {CLASSES} largest" if len(found.classes) == CLASSES else ""
            ui.label(f"Images by class{many}").classes("title")
            most = max(found.classes.values()) or 1
            with ui.element("div").classes("data-classes"):
                for name, count in found.classes.items():
                    ui.label(name).classes("small")
                    with ui.element("div").classes("data-bar").style(f"width: {100 * count / most:.1f}%"):
                        pass
                    ui.label(f"{count:,}").classes("small dim")
    if found.sheet:
        with ui.card().classes("data-wide"):
            ui.label("Contact sheet").classes("title")
            ui.image(data_url(found.sheet)).classes("pixels")
