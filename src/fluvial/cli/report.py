"""fluvial report."""

from dataclasses import dataclass
from pathlib import Path

from fluvial.cli.arguments import check_output, parse, several
from fluvial.tools.doctor import doctor
from fluvial.tools.report import report as write_report


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    out: Path | None = None
    """HTML file; RUN/report.html by default, of several runs report.html beside the first."""

    def __post_init__(self) -> None:
        check_output("--out", self.out, ".html")


def report(arguments: list[str]) -> None:
    """Writes a page about runs, and prints its path."""
    meaning = "a run folder, such as runs/digits-arflow; several are put side by side"
    names, rest = several(arguments, "report", "RUN [RUN ...]", meaning)
    description = "Write one HTML page about runs: curves, samples, scores, findings, and the settings that differ."
    options = parse(ReportOptions, ReportOptions(), rest, "fluvial report RUN [RUN ...]", description)
    folders = [Path(name) for name in names]
    beside = folders[0] if len(folders) == 1 else folders[0].resolve().parent
    print(write_report(folders, options.out or beside / "report.html", doctor))
