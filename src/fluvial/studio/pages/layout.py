"""The frame around every page: the bar at the top, what is being worked on, and the colours."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from html import escape
from pathlib import Path
from urllib.parse import urlencode

from nicegui import ui

from fluvial.studio.work import Work

PAGES = {"Runs": "/", "Playground": "/play", "Steps": "/apart", "Edit": "/edit", "Data": "/data"}
ACCENT = "#0b7285"
LOOKS_EVERY = 1.0  # seconds between looks at what is being worked on
PATIENCE = 60.0  # seconds for which a browser waits for a page
WORDS = {"weights": "weights only"}
COLOURS = {"running": "running", "finished": "ok", "damaged": "wrong"}
OPTION, PLACE = "name its folder with --autoencoder", "put it back (its path counts from where the studio was started)"
STYLE = (Path(__file__).parent.parent / "static" / "style.css").read_text("utf-8")


def page_at(address: str) -> ui.page:
    """Makes a function the page at an address, which may take its time to look at many runs."""
    return ui.page(address, response_timeout=PATIENCE)


@contextmanager
def page(title: str, work: Work, tab: str = "") -> Iterator[None]:
    """The frame of a page of this title, below a tab of its name or another; what is made inside is its content."""
    ui.colors(primary=ACCENT)
    ui.dark_mode(value=None)  # as the system is set
    ui.add_css(STYLE)
    ui.add_head_html('<script src="/studio/address.js" defer></script>')
    ui.page_title(f"{title} · fluvial")
    with ui.header().classes("bar"):
        with ui.link(target="/").classes("brand"):
            ui.image("/studio/icon.svg").classes("logo")
            ui.label("fluvial")
        with ui.row().classes("tabs"):
            for name, address in PAGES.items():
                ui.link(name, address).classes("tab here" if name == (tab or title) else "tab")
        ui.space()
        busy = ui.label().classes("busy").mark("busy")

    def look() -> None:
        names = work.names()
        waiting = f", {len(names) - 1} waiting" if len(names) > 1 else ""
        busy.set_text(f"{names[0]}{waiting}" if names else "")

    ui.timer(LOOKS_EVERY, look)
    with ui.column().classes("page"):
        yield


def keep_address(path: str, query: Mapping[str, object]) -> None:
    """Makes the settings part of the page's address, so that it restores them."""
    ui.run_javascript(f"keepAddress({json.dumps(f'{path}?{urlencode(query)}')})")


def empty(title: str, *lines: str) -> None:
    """A card in place of content that is not there, and what makes it."""
    with ui.card().classes("empty"):
        ui.label(title).classes("title")
        for line in lines:
            ui.label(line).classes("dim")


def copied(title: str, mark: str = "") -> ui.label:
    """Lines that can be copied, folded away; `mark` is a class of theirs."""
    with ui.expansion(title, value=False).classes("lines").props("dense"):
        label = ui.label().classes(f"code {mark}").mark(title)
        ui.button("copy", on_click=lambda: _copy(label.text)).props("flat dense no-caps")
    return label


def _copy(text: str) -> None:
    ui.clipboard.write(text)
    ui.notify("copied")


def say(line: ui.label, text: str) -> None:
    """Shows what a page is doing, or what it has drawn."""
    line.classes(remove="wrong")
    line.set_text(text)


def complain(line: ui.label, error: Exception) -> None:
    """Shows in one line why something was not drawn."""
    line.classes(add="wrong")
    line.set_text(" ".join(str(error).replace(OPTION, PLACE).split())[:500])


def state_of(state: str) -> str:
    """The state of a run as a coloured word, in HTML."""
    return f'<span class="state {COLOURS.get(state, "dim")}">{escape(WORDS.get(state, state))}</span>'
