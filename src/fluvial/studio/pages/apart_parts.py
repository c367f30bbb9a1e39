"""The parts of the page of steps: pictures of a step, the film strip of scales, and small charts."""

import math
from collections.abc import Callable, Sequence
from html import escape
from typing import TYPE_CHECKING

from nicegui import ui

from fluvial.studio.pages.layout import copied
from fluvial.studio.stage import data_url

if TYPE_CHECKING:
    from fluvial.studio.apart import Recorded

NOTHING = "none at the end, where nothing is left to draw"
CAPTIONS = ("Noisy point", "Clean estimate", "Velocity")
REACH = (
    "Steps after which half of what a point has added to the history is left, by block and head. Where it is less than "
    "one, the head reads hardly more than the last point."
)
TOLD = "grey is 0, white {0:g} and black -{0:g} per unit of time"


class Column:
    """The three pictures of a step, below a title. `mark` names them for tests."""

    def __init__(self, mark: str) -> None:
        with ui.column().classes("apart-column").mark(mark) as self.box:
            self.title = ui.label().classes("title apart-title")
            self.line = ui.label().classes("small dim apart-line")
            with ui.element("div").classes("apart-three") as self.three:
                self.pictures = [self._picture(caption) for caption in CAPTIONS]
            self.command = copied("As a command", f"apart-{mark}-command")
            self.python = copied("This step as Python", f"apart-{mark}-python")

    def _picture(self, caption: str) -> ui.html:
        with ui.column().classes("apart-picture"):
            ui.label(caption).classes("small dim")
            return ui.html("", sanitize=False).classes("apart-image")

    def show(self, pngs: Sequence[bytes], images: int) -> None:
        """Shows the pictures of a step of so many images."""
        self.three.classes(add="apart-one" if images == 1 else "", remove="apart-one" if images > 1 else "")
        for picture, caption, png in zip(self.pictures, CAPTIONS, pngs, strict=True):
            picture.set_content(image(png, caption) if png else f'<div class="apart-none">{NOTHING}</div>')

    def lines(self, command: str, python: str) -> None:
        """Shows the lines that draw the pictures again."""
        self.command.set_text(command)
        self.python.set_text(python)


class Strip:
    """The scales of the images, coarse to fine. `on_click(i)` is called for scale i, if it is given."""

    def __init__(self, title: str, mark: str, on_click: Callable[[int], None] | None = None) -> None:
        self.on_click = on_click
        with ui.column().classes("apart-strip").mark(mark) as self.box:
            self.title = ui.label(title).classes("small dim")
            self.row = ui.row().classes("apart-scales")

    def show(self, scales: Sequence[tuple[str, bytes]], kept: int = 0) -> None:
        """Shows these scales, of which the first ones are marked as kept."""
        self.row.clear()
        with self.row:
            for i, (name, png) in enumerate(scales):
                self._scale(i, name, png, "kept" if i < kept else "")

    def _scale(self, i: int, name: str, png: bytes, note: str) -> None:
        cell = ui.element("button" if self.on_click else "div").classes("apart-scale").classes(note and "apart-kept")
        with cell:
            ui.html(image(png, f"scale {name}"), sanitize=False).classes("apart-image")
            ui.label(f"{name}, {note}" if note else name).classes("small dim")
        if self.on_click:
            click = self.on_click
            cell.props(f'aria-label="draw again from scale {name} on"').on("click", lambda: click(i))
            cell.tooltip("draw again from here on")


def image(png: bytes, alt: str) -> str:
    """A picture as HTML."""
    return f'<img alt="{escape(alt)}" src="{data_url(png)}">'


def bars(weights: Sequence[float | None]) -> str:
    """The weight of guidance by step as bars: those where it acts in the accent colour."""
    most = max([1.0, *(weight for weight in weights if weight is not None)])
    found = []
    for i, weight in enumerate(weights):
        if weight is not None:
            height = max(0.04, weight / most)
            kind = "apart-off" if weight == 1 else "apart-acts"
            found.append(f'<rect class="{kind}" x="{i + 0.1}" y="{1 - height:.3f}" width="0.8" height="{height:.3f}"/>')
    told = f'<line class="apart-unit" x1="0" x2="{len(weights)}" y1="{1 - 1 / most:.3f}" y2="{1 - 1 / most:.3f}"/>'
    box = f'viewBox="0 0 {len(weights)} 1" preserveAspectRatio="none" role="img" aria-label="weight of guidance"'
    return f"<svg {box}>{''.join(found)}{told}</svg>"


def bars_told(weights: Sequence[float | None]) -> str:
    """A line about the bars."""
    there = [weight for weight in weights if weight is not None]
    acting = sum(weight != 1 for weight in there)
    least, most = min(there), max(there)
    span = f"{most:.3g}" if least == most else f"{least:.3g} to {most:.3g}"
    return f"Guidance acts at {acting} of {len(there)} steps, with weight {span}; 1 (the line) is no guidance"


def reach(recorded: "Recorded") -> str:
    """A table of the steps after which half of what a point adds to the history is left, by block and head."""
    from fluvial.studio.apart import half_life

    heads = max(map(len, recorded.decays))
    longest = max(half_life(part) for block in recorded.decays for part in block)
    top = "".join(f"<th>head {i + 1}</th>" for i in range(heads))
    rows = []
    for number, block in enumerate(recorded.decays):
        cells = []
        for part in block:
            steps = half_life(part)
            share = 1.0 if math.isinf(longest) else math.log1p(steps) / max(1e-9, math.log1p(longest))
            told = "all" if math.isinf(steps) else f"{steps:.3g}"
            cells.append(f'<td style="--share: {100 * share:.0f}%">{told}</td>')
        rows.append(f"<tr><th>block {number + 1}</th>{''.join(cells)}</tr>")
    return f'<div class="apart-reach"><table><tr><th></th>{top}</tr>{"".join(rows)}</table></div>'


def frame_told(recorded: "Recorded", index: int) -> str:
    """A line about a frame: its step, time, and scale."""
    frame, last = recorded.frames[index], recorded.frames[-1].number
    scale = f", scale {frame.scale}" if frame.scale else ""
    if frame.velocity is None:
        return f"end of scale {frame.scale}" if index < len(recorded.frames) - 1 else f"the end, after {last} steps"
    return f"step {frame.number} of {last}{scale}, t = {float(frame.t.min()):.3f}"
