"""The tables of a study, of means over seeds and of differences from the baseline, for its page and as Markdown."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from fluvial.tools.study import scores
from fluvial.tools.study.scores import Difference, Mean, Result
from fluvial.tools.study.study import Study

SHOWN = ("fid", "frechet_distance", "class_accuracy", "recall", "coverage")  # of those that are there
CHANCE = {2: 30, 3: 18, 4: 14, 5: 12, 6: 10}
"""By the number of seeds, in how many of a hundred cases a mean of normal values of mean 0 is beyond twice its error:
Student's t with one degree of freedom less."""
Row = tuple[str, str]
"""A run and a sampling, which is a row of the tables."""


class Told(NamedTuple):
    """A difference in a table, with what it means: better, worse, or that none is seen."""

    difference: str
    verdict: str
    seen: str


class Table(NamedTuple):
    """A table: the names of its columns, its rows, and what is said below it."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str | Told]]
    note: str


def tables(plan: Study, found: dict, results: Sequence[Result]) -> list[Table]:
    """The tables of a study, from its summary and results."""
    return [_means(plan, found, results), _differences(plan, results)]


def markdown(those: Sequence[Table]) -> str:
    """Tables as Markdown, for a README, an issue or a paper."""
    parts = []
    for table in those:
        parts += [f"### {table.title}"]
        if table.rows:
            lines = [table.header, ["---"] * len(table.header), *table.rows]
            parts += ["\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)]
        parts += [table.note]
    return "\n\n".join(parts) + "\n"


def rows(plan: Study) -> Iterator[Row]:
    """The rows of the tables: every run with every sampling of it."""
    for run in plan.runs:
        for sampling in plan.samplings[run]:
            yield run, sampling


def difference(plan: Study, results: Sequence[Result], row: Row, name: str) -> Difference | None:
    """The difference of a row's score from that of the baseline with the same sampling; None for the baseline."""
    base = plan.compared_with
    if row[0] == base or row[1] not in plan.samplings[base]:
        return None
    values, others = (scores.by_seed(results, run, row[1], name) for run in (row[0], base))
    return scores.difference(values, others, name)


def shown(results: Sequence[Result]) -> list[str]:
    """The scores of the tables, of those that the results have."""
    return [name for name in SHOWN if name in scores.names(results)]


def plain(name: str) -> str:
    """The name of a score in words."""
    return {"fid": "FID", "frechet_distance": "Fréchet distance"}.get(name, name.replace("_", " "))


def _means(plan: Study, found: dict, results: Sequence[Result]) -> Table:
    """Means over seeds, with standard errors."""
    known = shown(results)
    header = ["parameters", "steps", "images seen", "evaluations", "images/s", *map(plain, known)]
    lines = []
    for row in found["rows"]:
        cells = [
            f"{row['parameters'] / 1e6:.2f}M",
            f"{row['steps']:,}",
            f"{row['images']:,}",
            str(row["evaluations"] or "-"),
        ]
        cells.append("-" if row["images_per_second"] is None else f"{row['images_per_second']:.4g}")
        cells += [_with_error(Mean(**row["scores"][name])) if name in row["scores"] else "-" for name in known]
        lines.append([*_titles(plan, (row["run"], row["sampling"])), *cells])
    note = "Means over seeds and their standard errors; images/s are of sampling on one thread."
    return Table("Scores", [*_columns(plan), *header], lines, note)


def _differences(plan: Study, results: Sequence[Result]) -> Table:
    """Differences from the baseline at the same seed."""
    known, lines, every = shown(results), [], list[Difference]()
    for row in rows(plan):
        found = [difference(plan, results, row, name) for name in known]
        every += [each for each in found if each is not None]
        if any(found):
            lines.append([*_titles(plan, row), *map(_told, found)])
    title, header = f"Differences from {plan.compared_with}", [*_columns(plan), *map(plain, known)]
    if not lines:
        return Table(title, header, [], "No other run is done with a seed that it is done with.")
    note = (
        "At the same seed and noise, in the mean over seeds. Nothing is called better or worse unless its difference "
        "is more than twice its error"
    )
    seeds = max(found.mean.seeds for found in every)
    if seeds in CHANCE:
        note += f", which is so by chance alone for {CHANCE[seeds]} of 100 scores of {seeds} seeds"
    return Table(title, header, lines, f"{note}. study.json has all scores.")


def _columns(plan: Study) -> list[str]:
    return ["run", "sampling"] if _several(plan) else ["run"]


def _titles(plan: Study, row: Row) -> list[str]:
    return [*row] if _several(plan) else [row[0]]


def _several(plan: Study) -> bool:
    return any(len(samplings) > 1 for samplings in plan.samplings.values())


def _with_error(found: Mean, sign: str = "") -> str:
    """A mean with its error, to two digits of the error."""
    if found.error is None:
        return f"{found.value:{sign}.4g}"
    digits = 3 if found.error <= 0 else max(0, min(6, 1 - int(np.floor(np.log10(found.error)))))
    return f"{found.value:{sign}.{digits}f} ± {found.error:.{digits}f}".replace(" ", "\N{NO-BREAK SPACE}")


def _told(found: Difference | None) -> str | Told:
    if found is None:
        return "-"
    told = _with_error(found.mean, "+").replace("-", "\N{MINUS SIGN}")
    seen = found.verdict or ("one seed" if found.mean.error is None else "no difference seen")
    return Told(told, found.verdict, seen)


def _cell(cell: str | Told) -> str:
    told = cell if isinstance(cell, str) else f"{cell.difference} {cell.verdict or f'({cell.seen})'}"
    return told.replace("|", "\\|")
