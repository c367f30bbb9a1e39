"""The page of a study: its question, tables of scores and differences, curves, samples, and how it was made."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import torch

from fluvial.tools.curves import look_of
from fluvial.tools.report import html
from fluvial.tools.study import scores
from fluvial.tools.study.files import FILE, folder_of, read, speed_file
from fluvial.tools.study.scores import Result
from fluvial.tools.study.study import Study
from fluvial.tools.study.tables import Table, Told, difference, markdown, plain, rows, shown, tables
from fluvial.utils.atomic import write_bytes, write_json
from fluvial.utils.extras import require
from fluvial.utils.pictures import encoded, labelled_rows

AXES = {"seconds": "seconds of training", "images": "images seen", "flops": "training FLOPs"}
CURVES = 3  # scores that have curves


def write_page(plan: Study, out: Path, results: Sequence[Result]) -> Path:
    """Writes study.json, tables.md, curves.png, samples.png and index.html of these results; returns the last."""
    found = summary(plan, out, results)
    write_json(out / "study.json", found)
    those = tables(plan, found, results)
    write_bytes(out / "tables.md", markdown(those).encode())
    parts = [_about(plan, results), *map(_section, those)]
    for title, file, picture in (
        ("Curves", "curves.png", _curves(plan, results)),
        ("Samples", "samples.png", _samples(plan, out)),
    ):
        if isinstance(picture, bytes):
            write_bytes(out / file, picture)
            shown = html.picture(picture, "png", "", "curve" if title == "Curves" else "")
        else:
            shown = html.note(picture)
        parts.append(html.section(title, shown))
    text = (out / FILE).read_text("utf-8-sig")
    parts.append(html.section("The study as a file", html.element("pre", html.element("code", text))))
    title = plan.question or f"Study of {', '.join(plan.runs)}"
    write_bytes(out / "index.html", html.page(title, html.element("h1", title), *parts).encode())
    return out / "index.html"


def summary(plan: Study, out: Path, results: Sequence[Result]) -> dict:
    """Means and differences of all scores, as numbers."""
    found = []
    for run, sampling in rows(plan):
        of_run = [result for result in results if result["run"] == run]
        if not of_run:
            continue
        last = scores.last(of_run[0], sampling)
        speed = read(speed_file(out, run)).get("speed", {})
        found.append(
            {
                "run": run,
                "sampling": sampling,
                "seeds": [result["seed"] for result in of_run],
                **{key: of_run[0][key] for key in ("parameters", "steps", "images", "seconds", "flops")},
                "evaluations": last["evaluations"] if last else None,
                "images_per_second": speed.get("sampling", {}).get(sampling),
                "scores": {
                    name: vars(scores.mean(list(values.values())))
                    for name in scores.names(results)
                    if (values := scores.by_seed(results, run, sampling, name))
                },
                "differences": {
                    name: {**vars(apart.mean), "verdict": apart.verdict}
                    for name in scores.names(results)
                    if (apart := difference(plan, results, (run, sampling), name)) is not None
                },
            }
        )
    return {"question": plan.question, "baseline": plan.compared_with, "budget": plan.budget.given, "rows": found}


def _about(plan: Study, results: Sequence[Result]) -> html.Html:
    """Sentences on the set-up."""
    first, measured = results[0], results[0]["measured"][-1]
    machine = first["machine"]
    budget = f"{plan.budget.told} for each of {len(plan.runs)} runs and {_count(len(plan.seeds), 'seed')}"
    lines = [
        f"{budget[0].upper()}{budget[1:]}; {len(results)} of {len(plan.runs) * len(plan.seeds)} are done.",
        f"{plan.measure.count:,} samples each with the same noise (seed {plan.measure.seed}), in features of "
        f"{measured['extractor']['name']}, against {measured['reference']['name']}.",
        f"{machine['gpu'] or machine['cpu']} ({machine['instructions']}), one thread for each run, PyTorch "
        f"{machine['torch']}, fluvial {first['fluvial']}. Speeds were measured alone, before the first run.",
    ]
    return html.joined(html.element("p", line, klass="dim") for line in lines)


def _section(table: Table) -> html.Html:
    """A table as a part of the page."""
    body = [[cell if isinstance(cell, str) else _coloured(cell) for cell in row] for row in table.rows]
    parts = [html.table(table.header, body)] if body else []
    return html.section(table.title, *parts, html.note(table.note))


def _coloured(told: Told) -> html.Html:
    kind = {"better": "ok", "worse": "wrong", "": "dim"}[told.verdict]
    return html.joined([told.difference, html.element("span", told.seen, klass=f"{kind} small")])


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' if number != 1 else ''}"


def _curves(plan: Study, results: Sequence[Result]) -> bytes | str:
    """Scores of the first sampling along the training, as a PNG; or why there is none."""
    if plan.measure.points == 1:
        return "Runs are measured in the end alone: measure.points is 1."
    try:
        require("matplotlib", extra="plot", why="drawing curves")
    except ValueError as error:
        return str(error)
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, MaxNLocator

    known = shown(results)[:CURVES]
    figure = Figure(figsize=(4.2 * len(AXES), 3.0 * len(known)), dpi=110, layout="constrained")
    all_axes = np.atleast_2d(figure.subplots(len(known), len(AXES), sharey="row"))
    for row, name in zip(all_axes, known, strict=True):
        for axes, by in zip(row, AXES, strict=True):
            for i, run in enumerate(plan.runs):
                sampling = next(iter(plan.samplings[run]))
                places, means = scores.curve(results, run, sampling, name, by)
                if places:
                    values, errors = [m.value for m in means], [m.error or 0.0 for m in means]
                    colour, style = look_of(i)
                    axes.errorbar(places, values, errors, color=colour, linestyle=style, marker="o", ms=3, label=run)
            axes.set_xlim(0, 1.04 * axes.dataLim.x1 if axes.has_data() else None)
            axes.xaxis.set_major_locator(MaxNLocator(5))
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
            axes.grid(True, color="#dddddd", linewidth=0.6)
            axes.spines[["top", "right"]].set_visible(False)
            axes.tick_params(labelsize=8)
            if name == known[-1]:
                axes.set_xlabel(AXES[by], fontsize=9)
        row[0].set_title(plain(name), fontsize=10, loc="left", fontweight="bold")
    handles, labels = all_axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=min(5, len(labels)), frameon=False, fontsize=9)
    content = BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()


def _samples(plan: Study, out: Path) -> bytes | str:
    """Samples of the first seed with the same noise, a row for each run, as a PNG; or why there is none."""
    files = {run: folder_of(out, run, plan.seeds[0]) / "shown.npy" for run in plan.runs}
    shown = {run: torch.from_numpy(np.load(file)) for run, file in files.items() if file.is_file()}
    if not shown:
        return "No run is done with the first seed."
    return encoded(labelled_rows(shown), "png")
