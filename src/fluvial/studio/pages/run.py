"""One run: its curves, pictures, findings, scores and settings."""

from typing import TYPE_CHECKING

from nicegui import ui

from fluvial.studio.pages.layout import empty, page
from fluvial.studio.places import run_named

if TYPE_CHECKING:
    from fluvial.studio.app import Studio


def register(studio: "Studio") -> None:
    """The page at /run/NAME."""

    @ui.page("/run/{name:path}")
    def run(name: str) -> None:
        with page(name, studio.work):
            try:
                folder = run_named(studio.root, name)
            except ValueError as error:
                return empty("No such run", str(error))
            ui.label(str(folder))
