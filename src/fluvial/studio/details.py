"""Findings, scores and settings of a run as HTML, as the report has them. Called in a thread: this imports PyTorch."""

from collections.abc import Callable, Mapping
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fluvial.studio.curves import reader
from fluvial.tools.runs import record

if TYPE_CHECKING:
    from fluvial.tools.doctor.check import Check
    from fluvial.tools.report.contents import Gathered

LONG = 2**24  # bytes of a log, above which the rows that the curves show are checked in place of all


def findings(folder: Path) -> str:
    """The checks of `fluvial doctor`, what is wrong first."""
    from fluvial.tools.report import sections

    return _or_reason("Findings", lambda: sections.findings([_gathered(folder, folder.name, checked=True)]))


def scores(folder: Path) -> str:
    """The score card, with errors and what it was measured against."""
    from fluvial.tools.report import sections

    return _or_reason("Scores", lambda: sections.scores([_gathered(folder, folder.name)]))


def differing(folder: Path, name: str, other: Path | None, other_name: str = "") -> str:
    """The settings in which a run differs from another one, or from its recipe."""
    from fluvial.tools.report import sections

    def table() -> str:
        runs = [_gathered(folder, name), *([_gathered(other, other_name)] if other else [])]
        return sections.settings(runs)

    return _or_reason("Settings that differ", table)


def settings(folder: Path) -> list[tuple[str, str]]:
    """All settings of a run by their path, with their values as text. Raises ValueError if run.json is damaged."""
    return list(_flat(record(folder)["run"]))


def images_per_step(folder: Path) -> int:
    """Images in the batch of one training step; 1 if run.json does not say it."""
    try:
        run = record(folder)["run"]
        return max(1, int(run["train"]["batch"]) * int(run["method"].get("images_per_sequence") or 1))
    except (ValueError, KeyError, TypeError, AttributeError):
        return 1


def _gathered(folder: Path, name: str, *, checked: bool = False) -> "Gathered":
    """The parts of a report that are shown here."""
    from fluvial.tools.report import run_of_recipe
    from fluvial.tools.report.gather import gather

    return gather(folder, name, _checks if checked else None, run_of_recipe, whole=False)


def _checks(folder: Path) -> "list[Check]":
    """The checks of `fluvial doctor`; those of a long log are made on the rows of its curves, which spares memory."""
    from fluvial.run.folder import RunFolder
    from fluvial.tools.doctor import doctor, examine

    log, there = folder / "log.jsonl", RunFolder(folder)
    if not log.is_file() or log.stat().st_size <= LONG:
        return doctor(folder)
    read, known = reader(log), there.record()
    while read.searched < 1 or not read.version:
        read.look()
    return examine(
        there.run(),
        read.rows,
        latents=f"of a long log, `fluvial doctor {folder}` checks them",
        recipe=known.get("recipe"),
        continued=known.get("start") is not None,
    )


def _or_reason(title: str, make: Callable[[], str]) -> str:
    try:
        return make()
    except Exception as error:  # whatever a damaged run, or a method of elsewhere, raises: the page stays
        return f'<section><h2>{title}</h2><p class="dim">{escape(str(error))}</p></section>'


def _flat(values: Mapping[str, Any], before: str = "") -> list[tuple[str, str]]:
    """Settings by their path, in order, with lists in one line."""
    found = []
    for name, value in values.items():
        path = f"{before}{name}"
        if isinstance(value, Mapping):
            found += _flat(value, f"{path}.")
        else:
            shown = " ".join(map(str, value)) if isinstance(value, list) else value
            found.append((path, "-" if shown in (None, "") else f"{shown!s:.300}"))
    return found
