"""The map of a sweep as a PNG: weights across, intervals down, a panel for each average and number of steps."""

import textwrap
from collections.abc import Sequence
from io import BytesIO
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fluvial.tools.guide.result import Measured, Sweep
from fluvial.tools.guide.settings import Steps
from fluvial.utils.atomic import write_bytes
from fluvial.utils.extras import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes as Panel
    from matplotlib.figure import Figure

CELL = 0.95, 0.62  # inches
LETTERS = 13  # of the title in an inch
COLUMNS = 2  # panels side by side
LOG_FROM = 4.0  # colours are on a log scale if the values span more than this factor
DARK = 0.55  # luminance below which text is white


def draw(sweep: Sweep, out: Path) -> Path:
    """Draws the map. Raises ValueError without matplotlib, or without rows."""
    if not sweep.rows:
        raise ValueError("there is no row to draw")
    content = BytesIO()
    figure(sweep).savefig(content, format="png")
    write_bytes(out, content.getvalue())
    return out


def figure(sweep: Sweep) -> "Figure":
    """The map: each cell has the value and below it one standard error.

    The best has a thick frame, and those that are not told apart from it a dashed one; "*" marks the chosen one.
    """
    require("matplotlib", extra="plot", why="drawing the map")
    from matplotlib.figure import Figure

    axes, groups = sweep.axes, list(product(sweep.axes.averages, sweep.axes.steps))
    columns = min(COLUMNS, len(groups))
    rows = -(-len(groups) // columns)
    wide, high = 1.9 + CELL[0] * len(axes.weights), 1.0 + CELL[1] * len(axes.intervals)
    result = Figure(figsize=(max(5.2, wide * columns), high * rows + 1.0), dpi=130, layout="constrained")
    better = "lower" if sweep.lower else "higher"
    about = f"{sweep.metric.replace('_', ' ')} ({better} is better) of {sweep.about}".replace("$", r"\$")
    legend = "thick frame: best; dashed: not told apart from it; *: of those the fewest evaluations"
    letters = int(LETTERS * result.get_figwidth())
    result.suptitle("\n".join(textwrap.fill(text, letters) for text in (about, legend)), fontsize=9)
    for i, (average, steps) in enumerate(groups):
        panel = result.add_subplot(rows, columns, i + 1)
        _panel(panel, sweep, average, steps, titled=len(groups) > 1)
    return result


def _panel(panel: "Panel", sweep: Sweep, average: str, steps: Steps, *, titled: bool) -> None:
    """Draws the cells of one average and number of steps."""
    axes, found = sweep.axes, {row.setting: row for row in sweep.rows}
    grid = [
        [found.get(axes.at(average, steps, weight, interval)) for weight in axes.weights] for interval in axes.intervals
    ]
    colours = _colours(sweep)
    panel.imshow([[colours(row) for row in line] for line in grid], aspect="auto")
    for x, weight in enumerate(axes.weights):
        merged = weight == 1  # where the interval has no effect
        for y in range(1 if merged else len(grid)):
            middle, tall = ((len(grid) - 1) / 2, len(grid)) if merged else (y, 1)
            _cell(panel, (float(x), float(middle)), tall, grid[y][x], sweep, colours(grid[y][x]))
    panel.set_xticks(range(len(axes.weights)), [f"{weight:g}" for weight in axes.weights], fontsize=8)
    panel.set_yticks(range(len(axes.intervals)), [f"{a:g} to {b:g}" for a, b in axes.intervals], fontsize=8)
    panel.set_xlabel("weight of guidance (1 is none)", fontsize=8)
    panel.set_ylabel("interval in t", fontsize=8)
    panel.tick_params(length=0)
    panel.spines[:].set_visible(False)
    if titled:
        told = " ".join(map(str, steps)) if isinstance(steps, tuple) else str(steps)
        panel.set_title(f"average {average}, {told} steps".replace("$", r"\$"), fontsize=9, loc="left")


def _colours(sweep: Sweep):  # noqa: ANN202 - a function of matplotlib's
    """A function from a row to its colour, dark for the best; grey for none."""
    import matplotlib
    from matplotlib.colors import LogNorm, Normalize

    values = np.array([row.value for row in sweep.rows])
    low, high = float(values.min()), float(values.max())
    scale = LogNorm if low > 0 and high > LOG_FROM * low else Normalize
    norm, name = scale(low, max(high, low + 1e-12)), "viridis" if sweep.lower else "viridis_r"
    colours = matplotlib.colormaps[name]
    return lambda row: (0.85, 0.85, 0.85) if row is None else [float(part) for part in colours(norm(row.value))[:3]]


def _cell(
    panel: "Panel",
    at: tuple[float, float],
    tall: int,
    row: Measured | None,
    sweep: Sweep,
    colour: Sequence[float],
) -> None:
    """Writes the value and the error into a cell, `tall` intervals high, and frames it."""
    from matplotlib.patches import Rectangle

    x, y = at
    if row is None:
        panel.text(x, y, "not drawn", ha="center", va="center", fontsize=7)
        return
    luminance = float(np.dot(colour, (0.299, 0.587, 0.114)))
    star = " *" if row is sweep.chosen else ""
    text = f"{row.value:.3g}{star}\n±{row.error:.2g}, NFE {row.nfe}"
    panel.text(x, y, text, ha="center", va="center", fontsize=7, color="white" if luminance < DARK else "black")
    if row in sweep.alike:
        style: dict[str, Any] = {"linewidth": 3.0} if row is sweep.best else {"linewidth": 1.2, "linestyle": "--"}
        corner = x - 0.47, y - tall / 2 + 0.04
        panel.add_patch(Rectangle(corner, 0.94, tall - 0.08, fill=False, edgecolor="#D55E00", **style))
