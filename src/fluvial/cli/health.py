"""fluvial plot, doctor."""

from dataclasses import dataclass
from pathlib import Path

from rich.table import Table
from rich.text import Text

from fluvial.cli.arguments import check_output, parse, positional, several
from fluvial.cli.output import console
from fluvial.run.folder import RunFolder
from fluvial.tools import curves
from fluvial.tools.doctor import doctor as check_all
from fluvial.tools.doctor.check import Check, worst_first
from fluvial.tools.doctor.mend import command, trained_again

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
    """Prints what was found, worst first, each with the command that mends it; exit code 1 if something is wrong."""
    folder, rest = positional(arguments, "doctor", "RUN", "a run folder, such as runs/digits-arflow", has_own_help=True)
    description = "Compare a run with what is expected of it: what is wrong, worst first, and the command that mends "
    description += "it. Exit code 1 if something is wrong. --all also prints the table of all checks."
    everything, rest = "--all" in rest, [word for word in rest if word != "--all"]
    options = parse(DoctorOptions, DoctorOptions(), rest, "fluvial doctor RUN", description)
    checks = check_all(folder, fetch=options.fetch)
    run, recipe = RunFolder(folder).run(), RunFolder(folder).record().get("recipe")
    printer = console()
    found = worst_first(checks)
    for check in found:
        told = f" {check.name}: {check.found}{f'; {check.advice}' if check.advice else ''}"
        printer.print(Text.assemble(_coloured(check.verdict), told), soft_wrap=True)
        if check.command:
            printer.print(f"      {command(check.command, folder)}", soft_wrap=True)
    if mend := trained_again([check.settings for check in found], folder, run, recipe):
        printer.print(
            f"train again, with what mends {'it' if len(found) == 1 else 'this'}:\n      {mend}", soft_wrap=True
        )
    if everything:
        printer.print(_table(folder, checks))
    print(_summary(checks, "" if everything else "--all shows them"))
    if any(check.verdict == "wrong" for check in found):
        raise SystemExit(1)


def _summary(checks: list[Check], end: str) -> str:
    """The numbers of checks by their verdict, in a line."""
    verdicts = [check.verdict for check in checks]
    parts = [f"{verdicts.count(verdict)} {verdict}" for verdict in ("wrong", "look") if verdict in verdicts]
    passed = verdicts.count("ok")
    parts += [f"{passed} check{'s' * (passed != 1)} passed"]
    parts += [f"{verdicts.count('not checked')} not made"] if "not checked" in verdicts else []
    return "; ".join([", ".join(parts), *([end] if end else [])])


def _table(folder: str, checks: list[Check]) -> Table:
    """A row a check."""
    table = Table("check", title=folder, title_justify="left", show_lines=True)
    table.add_column("found", ratio=3)
    table.add_column("expected", ratio=3)
    table.add_column("verdict", no_wrap=True)
    table.add_column("likely cause, and what to do", ratio=5)
    for check in checks:
        table.add_row(check.name, check.found, check.expected, _coloured(check.verdict), check.advice)
    return table


def _coloured(verdict: str) -> Text:
    return Text(verdict, style=COLOURS[verdict])
