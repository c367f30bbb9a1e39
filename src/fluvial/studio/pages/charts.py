"""The curves of runs as options of ECharts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fluvial.studio.curves import By, names_within, places_within, scale
from fluvial.training.rows import Row, finite, smoothed

Options = dict[str, Any]

PANELS = {"lr": "learning rate", "grad_norm": "gradient norm", "images_per_second": "images/s"}
PARTS = {"held_out_by_time": "validation loss by time t", "held_out_by_scale": "validation loss by scale"}
LOSS = "loss"
AXES = {"steps": "steps", "images": "images seen", "seconds": "time of training"}
ACCENT, SECOND = "#1098ad", "#e8730c"
# by Okabe and Ito, for the colour-blind, as far as they are seen on dark and on light
COLOURS = (ACCENT, "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7d6bd6", "#8a8f98")
GREY, LINE = "#8691a0", "rgba(128, 136, 148, .22)"
FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif'
NOISY = 200  # points of a curve, above which its average is drawn over it
SPARSE = 250  # points of a curve of which there are many in a chart, about
FEW = 60  # points of a sparse curve, up to which each is marked
# functions of a number in JavaScript, to texts: ECharts escapes what they return
AMOUNT = (
    "v => v >= 1e6 ? +(v / 1e6).toPrecision(4) + 'M' : v >= 1e4 ? +(v / 1e3).toPrecision(4) + 'k' : "
    "'' + +Number(v).toPrecision(4)"
)
TIME = "v => v >= 3600 ? +(v / 3600).toFixed(2) + ' h' : v >= 60 ? +(v / 60).toFixed(1) + ' min' : +v.toFixed(1) + ' s'"
VALUE = "v => v == null || isNaN(v) ? '' : '' + +Number(v).toPrecision(4)"


@dataclass(frozen=True)
class History:
    """The rows of a run that are drawn, with its name."""

    name: str
    rows: Sequence[Row]
    images_per_step: int


@dataclass(frozen=True)
class View:
    """The axes of the charts."""

    by: By = "steps"
    log_x: bool = False
    log_y: bool = False


def charts(histories: Sequence[History], view: View) -> dict[str, Options]:
    """The charts of the runs over one another, by title, the loss first. Those without points are left out."""
    found = {LOSS: _losses(histories, view)}
    found |= {title: _one(histories, view, key) for key, title in PANELS.items()}
    names = {name: None for history in histories for name in names_within(history.rows, "score")}
    found |= {f"score: {name.replace('_', ' ')}": _one(histories, view, "score", name) for name in names}
    if len(histories) == 1:
        found |= {title: _parts(histories[0], view, key) for key, title in PARTS.items()}
    return {title: _options(lines, view, title) for title, lines in found.items() if lines}


def _losses(histories: Sequence[History], view: View) -> list[Options]:
    """The training loss, pale as it is logged and averaged over it, and the validation loss."""
    lines = []
    for i, history in enumerate(histories):
        alone = len(histories) == 1
        colour, name = COLOURS[i % len(COLOURS)], "training" if alone else history.name
        steps, values = finite(history.rows, "loss")
        if len(steps):
            back = [row["step"] for row in history.rows if "rolled_back_to" in row]
            raw = _pale(name, colour, _points(history, view, steps, values))
            raw["markLine"] = _marks(history, view, back, colour)
            lines += [raw, _line(name, colour, _points(history, view, steps, smoothed(values)))]
        points = _points(history, view, *finite(history.rows, "held_out_loss"))
        if points:
            colour = SECOND if alone else colour
            name = "validation" if alone else f"{history.name}, validation"
            lines.append(_line(name, colour, points, dashed=not alone, marked=True))
    return lines


def _one(histories: Sequence[History], view: View, key: str, part: str | None = None) -> list[Options]:
    """One quantity of all runs; many points are pale, with their average over them."""
    lines = []
    for i, history in enumerate(histories):
        colour, (steps, values) = COLOURS[i % len(COLOURS)], finite(history.rows, key, part)
        many = len(steps) > NOISY and key != "lr"
        if many:
            lines.append(_pale(history.name, colour, _points(history, view, steps, values)))
        if points := _points(history, view, steps, smoothed(values) if many else values):
            lines.append(_line(history.name, colour, points, marked=part is not None))
    return lines


def _parts(history: History, view: View, key: str) -> list[Options]:
    """The validation loss by bucket of time, noise to data, or by scale, coarse to fine: from pale to strong."""
    lines, count = [], places_within(history.rows, key)
    for part in range(count):
        share = part / max(1, count - 1)
        name = f"{part / count:g} to {(part + 1) / count:g}" if key == "held_out_by_time" else f"scale {part + 1}"
        colour = f"hsl({45 + 145 * share:.0f}, {75 - 5 * share:.0f}%, {56 - 16 * share:.0f}%)"
        if points := _evenly(_points(history, view, *finite(history.rows, key, part)), SPARSE):
            lines.append(_line(name, colour, points, width=1.4, marked=True))
    return lines


def _points(history: History, view: View, steps: np.ndarray, values: np.ndarray) -> list[list[float]]:
    """Points of a curve in these axes, without those that have no place there."""
    if not len(steps):
        return []
    along = scale(history.rows, view.by, history.images_per_step, steps)
    kept = np.isfinite(along) & ((along > 0) | (not view.log_x)) & ((values > 0) | (not view.log_y))
    return [[float(f"{x:.7g}"), float(f"{y:.5g}")] for x, y in zip(along[kept], values[kept], strict=True)]


def _evenly(points: list[list[float]], count: int) -> list[list[float]]:
    """About so many of the points, with the last one."""
    stride = -(-len(points) // count) or 1
    return points[(len(points) - 1) % stride :: stride] if points else []


def _line(
    name: str,
    colour: str,
    points: list[list[float]],
    *,
    width: float = 2.0,
    opacity: float = 1.0,
    dashed: bool = False,
    marked: bool = False,
) -> Options:
    """A curve; a sparse one is marked at its points."""
    return {
        "type": "line",
        "name": name,
        "data": points,
        "color": colour,
        "lineStyle": {"width": width, "opacity": opacity, "type": "dashed" if dashed else "solid"},
        "showSymbol": (marked and len(points) <= FEW) or len(points) == 1,
        "symbol": "circle",
        "symbolSize": 5,
        "emphasis": {"disabled": True},
    }


def _pale(name: str, colour: str, points: list[list[float]]) -> Options:
    """The curve as it is logged, below its average."""
    return _line(name, colour, points, width=1.0, opacity=0.3) | {"tooltip": {"show": False}, "silent": True}


def _marks(history: History, view: View, steps: list[int], colour: str) -> Options:
    """Upright lines where training went back to an earlier step."""
    along = scale(history.rows, view.by, history.images_per_step, np.array(steps, dtype=np.float64)) if steps else []
    return {
        "silent": True,
        "symbol": "none",
        "lineStyle": {"color": colour, "type": "dotted"},
        "label": {"formatter": "roll-back", "color": GREY, "position": "insideEndTop"},
        "data": [{"xAxis": float(x)} for x in along if np.isfinite(x)],
    }


def _options(lines: list[Options], view: View, title: str) -> Options:
    """A chart of these curves, whose colours are seen on dark and on light."""
    large = title == LOSS
    legend = large or title in PARTS.values()
    formatter = TIME if view.by == "seconds" else AMOUNT
    axis = {
        "axisLabel": {"color": GREY, "hideOverlap": True},
        "axisLine": {"lineStyle": {"color": GREY}},
        "splitLine": {"lineStyle": {"color": LINE}},
    }
    label = {**axis["axisLabel"], ":formatter": formatter, "showMaxLabel": large}
    pointer = {"label": {":formatter": f"p => ({formatter})(p.value)", "show": False}}
    x = {**axis, "splitLine": {"show": False}, "axisLabel": label, "axisPointer": pointer}
    x |= {"type": "log"} if view.log_x else {"type": "value", "min": 0, "max": "dataMax"}
    y = {**axis, "type": "log" if view.log_y else "value", "scale": title != "images/s"}
    y["axisLabel"] = {**axis["axisLabel"], ":formatter": VALUE}
    zoom = {"type": "inside", "zoomOnMouseWheel": "ctrl", "moveOnMouseWheel": False, "filterMode": "none"}
    slider = {"type": "slider", "height": 18, "bottom": 8, "borderColor": LINE, "filterMode": "none"}
    slider |= {"brushSelect": False, "showDetail": False, "fillerColor": "rgba(16, 152, 173, .12)"}
    grid = {"left": 8, "right": 18, "top": 40 if legend else 14, "bottom": 36 if large else 8, "containLabel": True}
    return {
        "animation": False,
        "textStyle": {"fontFamily": FONT},
        "grid": grid,
        "legend": {"show": legend, "type": "scroll", "top": 4, "left": 4, "textStyle": {"color": GREY}},
        "tooltip": {"trigger": "axis", ":valueFormatter": VALUE, "confine": True, "extraCssText": "max-width: 90%"},
        "xAxis": x,
        "yAxis": y,
        "dataZoom": [zoom, slider] if large else [zoom],
        "series": lines,
    }
