"""A report of runs: one HTML page with curves, samples, scores, findings and settings, which fetches nothing."""

from collections.abc import Sequence
from pathlib import Path

from fluvial.tools.curves import short_names
from fluvial.tools.report import html, sections
from fluvial.tools.report.gather import gather
from fluvial.utils.atomic import write_bytes


def report(folders: Sequence[Path], out: Path) -> Path:
    """Writes the report of these run folders to a file. Raises ValueError if one of them is no run folder."""
    names = short_names(folders)
    runs = [gather(folder, name) for folder, name in zip(folders, names, strict=True)]
    title = runs[0].name if len(runs) == 1 else f"{len(runs)} runs"
    parts = [
        sections.heading(title, runs),
        sections.about(runs),
        sections.samples(runs),
        sections.curves(runs),
        sections.scores(runs),
        sections.findings(runs),
        sections.settings(runs),
        sections.commands(runs),
    ]
    out.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(out, html.page(title, *parts).encode())
    return out
