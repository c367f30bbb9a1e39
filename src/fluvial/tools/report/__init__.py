"""A report of runs: one HTML page with curves, samples, scores, findings and settings, which fetches nothing."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

from fluvial import recipes
from fluvial.config import Run
from fluvial.tools.curves import COLOURS, History, separate, short_names
from fluvial.tools.report import html, sections
from fluvial.tools.report.contents import Gathered
from fluvial.tools.report.gather import Doctor, gather
from fluvial.utils.atomic import write_bytes

SMOKE = "-smoke"  # the end of the recipe's name in a run of `--smoke`


def report(folders: Sequence[Path], out: Path, doctor: Doctor) -> Path:
    """Writes the report of these run folders to a file, with the checks that `doctor` makes of each.

    Raises ValueError if one of them is no run folder.
    """
    names = short_names(folders)
    runs = [gather(folder, name, doctor, run_of_recipe) for folder, name in zip(folders, names, strict=True)]
    title = runs[0].name if len(runs) == 1 else f"{len(runs)} runs"
    parts = [
        sections.heading(title, runs),
        sections.about(runs),
        sections.samples(runs),
        _curves(runs),
        sections.scores(runs),
        sections.findings(runs),
        sections.settings(runs),
        sections.commands(runs),
    ]
    out.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(out, html.page(title, *parts).encode())
    return out


def run_of_recipe(name: str) -> Run | None:
    """The run of a recipe, or of `train --smoke` with it; None for a name that is not known."""
    try:
        run = recipes.get(name.removesuffix(SMOKE))
    except ValueError:
        return None
    return recipes.smoke(run) if name.endswith(SMOKE) else run


def _curves(runs: Sequence[Gathered]) -> html.Html:
    """The curves of all runs in the same panels, as `fluvial plot` draws them."""
    histories = [History(name=run.name, rows=run.rows) for run in runs if not isinstance(run.rows, str)]
    missing = [html.note(f"{run.name}: {run.rows}") for run in runs if isinstance(run.rows, str)]
    try:
        figures = separate(histories) if histories else {}
    except ValueError as error:
        return html.section("Curves", *missing, html.note(error))
    drawn = []
    for title, figure in figures.items():
        content = BytesIO()
        figure.savefig(content, format="png", transparent=True)
        drawn.append(html.picture(content.getvalue(), "png", title, "curve"))
    legend = []
    for i, history in enumerate(histories):
        colour = f"background: {COLOURS[i % len(COLOURS)]}"
        legend += [html.element("span", klass="swatch curve", style=colour), history.name]
    shown = html.element("p", *legend) if len(runs) > 1 and drawn else ""
    return html.section("Curves", shown, html.element("div", *drawn, klass="panels") if drawn else "", *missing)
