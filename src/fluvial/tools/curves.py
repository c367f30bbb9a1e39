"""Curves of runs, drawn from their logs: losses, learning rate, gradient norm, speed, scores."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from fluvial.run.folder import RunFolder
from fluvial.training import log
from fluvial.training.rows import Row, finite, seconds, smoothed
from fluvial.utils.atomic import write_bytes
from fluvial.utils.extras import require
from fluvial.utils.files import make_folder

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

By = Literal["steps", "images", "hours"]
AXES = {"steps": "steps", "images": "images seen", "hours": "hours of training"}
PANELS = {
    "loss": "training loss",
    "held_out_loss": "validation loss",
    "lr": "learning rate",
    "grad_norm": "gradient norm",
    "images_per_second": "images/s",
}
COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#5B3A8E",
    "#222222",
)  # by Okabe and Ito, for the colour-blind
WIDTH, HEIGHT = 4.8, 3.1  # of a panel, in inches
LOG_FROM = 4.0  # a loss that falls by this factor is drawn on a log axis


@dataclass(frozen=True, kw_only=True)
class History:
    """The log of one run, with its name in the legend."""

    name: str
    rows: Sequence[Row]
    images_per_step: int = 1


def plot(folders: Sequence[Path], out: Path, *, by: By = "steps") -> Path:
    """Draws the curves of these run folders as a PNG. Raises ValueError for a missing, empty or invalid log."""
    names = short_names(folders)
    histories = [
        History(
            name=name,
            rows=log.read(folder),
            images_per_step=RunFolder(folder).run().images_per_step if by == "images" else 1,
        )
        for name, folder in zip(names, folders, strict=True)
    ]
    drawn = figure(histories, by=by)
    make_folder(out.parent)
    encoded = BytesIO()
    drawn.savefig(encoded, format="png")
    write_bytes(out, encoded.getvalue())
    return out


def short_names(folders: Sequence[Path]) -> list[str]:
    """The last parts of the folders' paths, as many as are needed to distinguish them."""
    paths = [folder.resolve() for folder in folders]
    if len(set(paths)) < len(paths):
        raise ValueError(f"expected different runs, got one of them twice: {', '.join(map(str, folders))}")
    count = 1
    while len({path.parts[-count:] for path in paths}) < len(paths):
        count += 1
    return ["/".join(path.parts[-count:]) for path in paths]


def figure(histories: Sequence[History], *, by: By = "steps") -> "Figure":
    """A figure with one panel per quantity; for a single run also the validation loss by time and by scale.

    Panels are titled by their quantity, lines labelled by run. Raises ValueError if nothing can be
    drawn.
    """
    panels, blank = _drawable(histories)
    columns = min(3, len(panels)) if len(panels) != 4 else 2
    rows = -(-len(panels) // columns)
    result = blank(figsize=(WIDTH * columns, HEIGHT * rows + 0.6), dpi=120, layout="constrained")
    scales, label = _scales(histories, by)
    for i, (title, draw) in enumerate(panels.items()):
        axes = result.add_subplot(rows, columns, i + 1)
        axes.set_title(title, fontsize=10.5, loc="left", fontweight="bold")
        draw(axes, scales)
        _tidy(axes, label, last_row=i + columns >= len(panels))
    first = result.axes[0]
    if len(histories) == 1:
        result.suptitle(_plain(histories[0].name), fontsize=12, fontweight="bold")
    else:
        _legend(result, first, histories)
    return result


def separate(histories: Sequence[History], *, by: By = "steps") -> "dict[str, Figure]":
    """A figure for each panel of `figure`, by its title, without legend: run i has COLOURS[i].

    Raises ValueError if nothing can be drawn.
    """
    panels, blank = _drawable(histories)
    scales, label = _scales(histories, by)
    figures = {title: blank(figsize=(WIDTH, HEIGHT), dpi=150, layout="constrained") for title in panels}
    for title, draw in panels.items():
        axes = figures[title].add_subplot()
        draw(axes, scales)
        _tidy(axes, label, last_row=True)
    return figures


def _drawable(histories: Sequence[History]) -> "tuple[dict[str, Draw], type[Figure]]":
    """The panels that can be drawn, and matplotlib's figure. Raises ValueError without any, or without matplotlib."""
    require("matplotlib", extra="plot", why="drawing curves")
    from matplotlib.figure import Figure

    panels = _panels(histories)
    if not panels:
        raise ValueError(
            "the logs have no numbers to draw: expected lines with a loss; train for train.log_every steps"
        )
    return panels, Figure


Scale = Callable[[np.ndarray], np.ndarray]
Draw = Callable[["Axes", Sequence[Scale]], None]


def _panels(histories: Sequence[History]) -> dict[str, Draw]:
    """Functions that draw the panels, by title."""
    panels: dict[str, Draw] = {}
    for key, title in PANELS.items():
        if any(len(finite(history.rows, key)[0]) for history in histories):
            panels[title] = _panel(histories, key)
    scored = {name: None for history in histories for row in history.rows for name in row.get("score") or {}}
    for name in scored:
        if any(len(finite(history.rows, "score", name)[0]) for history in histories):
            panels[f"score: {name.replace('_', ' ')}"] = _panel(histories, "score", name)
    if len(histories) == 1:
        for key, title in (
            ("held_out_by_time", "validation loss by time t"),
            ("held_out_by_scale", "validation loss by scale"),
        ):
            count = max((len(row.get(key) or ()) for row in histories[0].rows), default=0)
            if any(len(finite(histories[0].rows, key, part)[0]) for part in range(count)):
                panels[title] = _parts(histories[0], key, count)
    return panels


def _panel(histories: Sequence[History], key: str, part: str | None = None) -> Draw:
    """A function that draws one quantity of all runs."""

    def draw(axes: "Axes", scales: Sequence[Scale]) -> None:
        everything = []
        for i, (history, scale) in enumerate(zip(histories, scales, strict=True)):
            steps, values = finite(history.rows, key, part)
            if not len(steps):
                continue
            everything.append(values)
            colour, style = look_of(i)
            if key == "loss":
                axes.plot(scale(steps), values, style, color=colour, alpha=0.25, linewidth=1, label="_raw")
                values = smoothed(values)
            sparse = key in ("score", "held_out_loss") or len(steps) == 1
            marker = {"marker": "o", "markersize": 3.5 if len(steps) < 30 else 0} if sparse else {}
            axes.plot(scale(steps), values, style, color=colour, linewidth=1.6, label=_plain(history.name), **marker)
            if key == "loss":
                for step in [row["step"] for row in history.rows if "rolled_back_to" in row]:
                    at = float(scale(np.array([float(step)]))[0])
                    axes.axvline(at, color=colour, linestyle=":", linewidth=1)
                    text = {"transform": axes.get_xaxis_transform(), "fontsize": 7, "color": colour}
                    axes.text(at, 0.98, " roll-back", va="top", **text)
        if key in ("loss", "held_out_loss", "grad_norm"):
            _log_axis(axes, np.concatenate(everything))
        elif key in ("lr", "images_per_second"):
            axes.set_ylim(bottom=0)
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")

    return draw


def look_of(i: int) -> tuple[str, str]:
    """The colour and style of the lines of run i."""
    return COLOURS[i % len(COLOURS)], ("-", "--", ":")[i // len(COLOURS) % 3]


def _parts(history: History, key: str, count: int) -> Draw:
    """A function that draws the validation loss by bucket of time, noise to data, or by scale, coarse to fine."""

    def draw(axes: "Axes", scales: Sequence[Scale]) -> None:
        from matplotlib import colormaps

        everything = []
        for part in range(count):
            steps, values = finite(history.rows, key, part)
            label = f"{part / count:g} to {(part + 1) / count:g}" if key == "held_out_by_time" else f"scale {part + 1}"
            if len(steps):
                everything.append(values)
                colour = colormaps["viridis"](0.92 * part / max(1, count - 1))
                axes.plot(
                    scales[0](steps), values, color=colour, linewidth=1.4, marker="o", markersize=2.5, label=label
                )
        _log_axis(axes, np.concatenate(everything))
        axes.legend(fontsize=7, frameon=False, loc="upper right", ncols=2, handlelength=1.2, columnspacing=1.0)

    return draw


def _scales(histories: Sequence[History], by: By) -> tuple[list[Scale], str]:
    """Functions from steps to the horizontal axis, one per run, and its label. Hours become minutes for short runs."""
    scales = [_scale(history, by) for history in histories]
    ends = [
        float(scale(np.array([history.rows[-1]["step"]]))[0]) for history, scale in zip(histories, scales, strict=True)
    ]
    if by != "hours" or max(ends) > 2:
        return scales, AXES[by]
    return [lambda steps, scale=scale: 60 * scale(steps) for scale in scales], "minutes of training"


def _scale(history: History, by: By) -> Scale:
    """A function from steps to steps, images or hours. Raises ValueError for hours if the log has no times."""
    if by == "steps":
        return lambda steps: steps
    if by == "images":
        return lambda steps: steps * history.images_per_step
    if (found := seconds(history.rows)) is None:
        raise ValueError(f"{history.name}: its log has no times, which hours need; draw it by steps")
    return lambda steps: found(steps) / 3600


def _log_axis(axes: "Axes", values: np.ndarray) -> None:
    """Makes the vertical axis logarithmic if the values are positive and span a large range."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    if values.min() <= 0 or values.max() < LOG_FROM * values.min():
        return
    axes.set_yscale("log")
    few = values.max() < 100 * values.min()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _tidy(axes: "Axes", label: str, *, last_row: bool) -> None:
    """Sets grid, ticks and axis label of a panel."""
    from matplotlib.ticker import EngFormatter, MaxNLocator

    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    if label in (AXES["steps"], AXES["images"]):
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlim(left=0)
    if last_row:
        axes.set_xlabel(label, fontsize=9)


def _plain(name: str) -> str:
    """The name, escaped: matplotlib reads formulas between $ and hides labels that begin with _."""
    name = name.replace("$", r"\$")
    return f" {name}" if name.startswith("_") else name


def _legend(result: "Figure", first: "Axes", histories: Sequence[History]) -> None:
    """Adds one legend of the runs above all panels."""
    handles = {}
    for axes in result.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    names = [name for name in (_plain(history.name) for history in histories) if name in handles]
    columns = min(len(names), max(1, int(result.get_figwidth() // 3)))
    result.legend(
        [handles[name] for name in names],
        names,
        loc="outside upper left",
        ncols=columns,
        frameon=False,
        fontsize=9.5,
    )
