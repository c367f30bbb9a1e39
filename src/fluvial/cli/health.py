"""fluvial plot, doctor."""

from dataclasses import dataclass
from pathlib import Path

from rich.table import Table
from rich.text import Text

from fluvial.cli.arguments import check_output, parse, positional, several
from fluvial.cli.output import console
from fluvial.tools import curves
from fluvial.tools.doctor import doctor as check_all
from fluvial.tools.doctor.check import Check

COLOURS = {"ok": "green", "look": "yellow", "wrong": "red", "not checked": "dim"}


@dataclass(frozen=True, kw_only=True)
class PlotOptions:
    out: Path | None = None
    """PNG file; RUN/curves.png by default, of several runs curves.png beside the first."""
    by: curves.By = "steps"
    """Quantity of the horizontal axis: steps, images seen, or hours of training without the stops."""

    def __post_init__(self) -> None:
        check_output("--out", self.out, ".png")


@dataclass(frozen=True, kw_only=True)
class DoctorOptions:
    fetch: bool = False
    """Download data and autoencoder if they are not on this machine, to check the latents."""


def plot(arguments: list[str]) -> None:
    meaning = "a run folder, such as runs/digits-arflow; several are drawn into one picture"
    names, rest = several(arguments, "plot", "RUN [RUN ...]", meaning)
    folders = [Path(name) for name in names]
    description = "Draw the curves of runs: losses, learning rate, gradient norm, images/s, scores."
    options = parse(PlotOptions, PlotOptions(), rest, "fluvial plot RUN [RUN ...]", description)
    beside = folders[0] if len(folders) == 1 else folders[0].resolve().parent
    print(curves.plot(folders, options.out or beside / "curves.png", by=options.by))


def doctor(arguments: list[str]) -> None:
    """Prints the table of checks; exit code 1 if something is wrong."""
    folder, rest = positional(arguments, "doctor", "RUN", "a run folder, such as runs/digits-arflow", has_own_help=True)
    description = "Compare a run with what is expected of it. Exit code 1 if something is wrong."
    options = parse(DoctorOptions, DoctorOptions(), rest, "fluvial doctor RUN", description)
    checks = check_all(folder, fetch=options.fetch)
    printer = console()
    wide = printer.width >= 120
    printer.print(_table(folder, checks, advice=wide))
    for check in () if wide else (check for check in checks if check.advice):
        printer.print(Text.assemble(_coloured(check.verdict), " ", (check.name, "bold"), f": {check.advice}"))
    verdicts = [check.verdict for check in checks]
    print(", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in COLOURS if verdict in verdicts))
    if "wrong" in verdicts:
        raise SystemExit(1)


def _table(folder: str, checks: list[Check], *, advice: bool) -> Table:
    """A row a check; in a narrow terminal the advice comes after the table."""
    table = Table("check", title=folder, title_justify="left", show_lines=True)
    table.add_column("found", ratio=3)
    table.add_column("expected", ratio=3)
    table.add_column("verdict", no_wrap=True)
    if advice:
        table.add_column("likely cause, and what to do", ratio=5)
    for check in checks:
        row = [check.name, check.found, check.expected, _coloured(check.verdict)]
        table.add_row(*row, *([check.advice] if advice else []))
    return table


def _coloured(verdict: str) -> Text:
    return Text(verdict, style=COLOURS[verdict])
