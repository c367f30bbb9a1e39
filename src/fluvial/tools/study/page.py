"""The page of a study: its question, tables of scores and differences, curves, samples, and how it was made."""

from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import torch

from fluvial.tools.curves import look_of
from fluvial.tools.report import html
from fluvial.tools.study import scores
from fluvial.tools.study.files import FILE, folder_of, read, speed_file
from fluvial.tools.study.scores import Difference, Mean, Result
from fluvial.tools.study.study import Study
from fluvial.utils.atomic import write_bytes, write_json
from fluvial.utils.extras import require
from fluvial.utils.pictures import encoded, labelled_rows

AXES = {"seconds": "seconds of training", "images": "images seen", "flops": "training FLOPs"}
SHOWN = ("fid", "frechet_distance", "class_accuracy", "recall", "coverage")  # in the tables, of those that are there
CURVES = 3  # of them that have curves
CHANCE = {2: 30, 3: 18, 4: 14, 5: 12, 6: 10}
"""By the number of seeds, in how many of a hundred cases a mean of normal values of mean 0 is beyond twice its error:
Student's t with one degree of freedom less."""
Row = tuple[str, str]
"""A run and a sampling, which is a row of the tables."""


def write_page(plan: Study, out: Path, results: Sequence[Result]) -> Path:
    """Writes study.json, curves.png, samples.png and index.html of these results; returns the path of the page."""
    found = summary(plan, out, results)
    write_json(out / "study.json", found)
    parts = [_about(plan, results), _means(plan, found, results), _differences(plan, results)]
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
                    if (apart := _difference(plan, results, (run, sampling), name)) is not None
                },
            }
        )
    return {"question": plan.question, "baseline": plan.compared_with, "budget": plan.budget.given, "rows": found}


def rows(plan: Study) -> Iterator[Row]:
    """The rows of the tables: every run with every sampling of it."""
    for run in plan.runs:
        for sampling in plan.samplings[run]:
            yield run, sampling


def _several(plan: Study) -> bool:
    return any(len(samplings) > 1 for samplings in plan.samplings.values())


def _titles(plan: Study, row: Row) -> list[str]:
    return [*row] if _several(plan) else [row[0]]


def _difference(plan: Study, results: Sequence[Result], row: Row, name: str) -> Difference | None:
    """The difference of a row's score from that of the baseline with the same sampling; None for the baseline."""
    base = plan.compared_with
    if row[0] == base or row[1] not in plan.samplings[base]:
        return None
    values, others = (scores.by_seed(results, run, row[1], name) for run in (row[0], base))
    return scores.difference(values, others, name)


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


def _means(plan: Study, found: dict, results: Sequence[Result]) -> html.Html:
    """Means over seeds, with standard errors."""
    known = _shown(results)
    sampling = ["sampling"] if _several(plan) else []
    header = ["run", *sampling, "parameters", "steps", "images seen", "evaluations", "images/s", *map(_plain, known)]
    lines = []
    for row in found["rows"]:
        cells = [
            f"{row['parameters'] / 1e6:.2f}M",
            f"{row['steps']:,}",
            f"{row['images']:,}",
            row["evaluations"] or "-",
        ]
        cells.append("-" if row["images_per_second"] is None else f"{row['images_per_second']:.4g}")
        cells += [_told(Mean(**row["scores"][name])) if name in row["scores"] else "-" for name in known]
        lines.append([*_titles(plan, (row["run"], row["sampling"])), *cells])
    note = "Means over seeds and their standard errors; images/s are of sampling on one thread."
    return html.section("Scores", html.table(header, lines), html.note(note))


def _differences(plan: Study, results: Sequence[Result]) -> html.Html:
    """Differences from the baseline at the same seed."""
    known, lines, every = _shown(results), [], list[Difference]()
    for row in rows(plan):
        found = [_difference(plan, results, row, name) for name in known]
        every += [each for each in found if each is not None]
        if any(found):
            lines.append([*_titles(plan, row), *map(_verdict, found)])
    title = f"Differences from {plan.compared_with}"
    if not lines:
        return html.section(title, html.note("No other run is done with a seed that it is done with."))
    header = ["run", *(["sampling"] if _several(plan) else []), *map(_plain, known)]
    note = (
        "At the same seed and noise, in the mean over seeds. Nothing is called better or worse unless its difference "
        "is more than twice its error"
    )
    seeds = max(found.mean.seeds for found in every)
    if seeds in CHANCE:
        note += f", which is so by chance alone for {CHANCE[seeds]} of 100 scores of {seeds} seeds"
    return html.section(title, html.table(header, lines), html.note(f"{note}. study.json has all scores."))


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' if number != 1 else ''}"


def _shown(results: Sequence[Result]) -> list[str]:
    return [name for name in SHOWN if name in scores.names(results)]


def _plain(name: str) -> str:
    return {"fid": "FID", "frechet_distance": "Fréchet distance"}.get(name, name.replace("_", " "))


def _told(found: Mean, sign: str = "") -> str:
    """A mean with its error, to two digits of the error."""
    if found.error is None:
        return f"{found.value:{sign}.4g}"
    digits = 3 if found.error <= 0 else max(0, min(6, 1 - int(np.floor(np.log10(found.error)))))
    return f"{found.value:{sign}.{digits}f} ± {found.error:.{digits}f}".replace(" ", "\N{NO-BREAK SPACE}")


def _verdict(found: Difference | None) -> object:
    if found is None:
        return "-"
    kind = {"better": "ok", "worse": "wrong", "": "dim"}[found.verdict]
    told = _told(found.mean, "+").replace("-", "\N{MINUS SIGN}")
    seen = found.verdict or ("one seed" if found.mean.error is None else "no difference seen")
    return html.joined([told, html.element("span", seen, klass=f"{kind} small")])


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

    known = _shown(results)[:CURVES]
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
        row[0].set_title(_plain(name), fontsize=10, loc="left", fontweight="bold")
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
