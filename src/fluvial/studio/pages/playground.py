"""Draw from a run while its settings are moved."""

from typing import TYPE_CHECKING

from nicegui import ui

from fluvial.studio.pages.layout import page

if TYPE_CHECKING:
    from fluvial.studio.app import Studio


def register(studio: "Studio") -> None:
    """The page at /play."""

    @ui.page("/play")
    def play() -> None:
        with page("Playground", studio.work):
            ui.label("to come")
