"""All runs, as cards."""

from typing import TYPE_CHECKING

from nicegui import run as background
from nicegui import ui

from fluvial.studio.pages.layout import empty, page
from fluvial.studio.places import name_of_run, runs_below
from fluvial.tools.runs import look

if TYPE_CHECKING:
    from fluvial.studio.app import Studio


def register(studio: "Studio") -> None:
    """The page at /."""

    @ui.page("/")
    async def runs() -> None:
        with page("Runs", studio.work):
            found = await background.io_bound(lambda: [look(path) for path in runs_below(studio.root)])
            if not found:
                empty(f"No runs in {studio.root} yet", "fluvial train digits-sit makes one in half a minute.")
            for each in found:
                name = name_of_run(studio.root, each.folder)
                with ui.card(), ui.link(target=f"/run/{name}"):
                    ui.label(name).classes("title")
