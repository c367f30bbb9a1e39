"""fluvial runs, runs clean. The list needs no PyTorch, so its options are read without the other commands' parser."""

import argparse
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from fluvial.cli.output import console
from fluvial.tools.runs import Listed, find, in_bytes, look
from fluvial.utils.errors import UsageError
from fluvial.utils.places import closest

if TYPE_CHECKING:
    from fluvial.tools.clean import Plan

RUNS = Path("runs")
WIDE = 160  # columns of a table that is written to a file or a pipe
COLOURS = {"running": "green", "stopped": "yellow", "finished": "", "weights": "dim", "damaged": "red"}
AGES = {86400.0: "d", 3600.0: "h", 60.0: "min", 1.0: "s"}
CLEAN = "fluvial runs clean lists what could be removed, and with --yes removes it."
NEVER = (
    "Never removed: anything of a run that trains, the newest whole checkpoint, a damaged one where none is whole, "
    "log, samples and scores."
)


def runs(arguments: list[str]) -> None:
    """Prints a table of the runs below a folder."""
    if arguments[:1] == ["clean"]:
        return clean(arguments[1:])
    parser = _parser("fluvial runs", f"List the runs in a folder, nested ones too. {CLEAN}")
    parser.add_argument("folder", nargs="?", type=_folder, default=RUNS, help="folder of runs; runs by default")
    folder = parser.parse_args(arguments).folder
    found = [look(path) for path in _found([folder])]
    if not found:
        return print(f"no runs in {folder}; `fluvial train digits-sit` makes one")
    table = Table("run", "method", "data", title=str(folder), title_justify="left")
    for column in ("step", "loss", "validation", "score", "size", "age", "state"):
        table.add_column(column, no_wrap=True, justify="left" if column in ("score", "state") else "right")
    for run in found:
        table.add_row(_name(run.folder, folder), *_cells(run), Text(run.state, style=COLOURS[run.state]))
    _print(table)
    for run in found:
        if run.why:
            print(f"{run.folder}: {run.why}")
    print(f"{_count(len(found))}, {in_bytes(sum(run.size for run in found))}")


def clean(arguments: list[str]) -> None:
    """Prints what could be removed of runs, or removes it."""
    parser = _parser("fluvial runs clean", f"List what could be removed of runs, with sizes. {NEVER}")
    parser.add_argument("folders", nargs="*", type=_folder, help="runs, or folders of runs; runs by default")
    parser.add_argument("--yes", action="store_true", help="remove it")
    numbers = {
        "--keep": ("K", "number of the newest whole checkpoints that stay; 1 by default"),
        "--keep-every": ("N", "checkpoints of steps that N divides stay; train.keep_every of the run by default"),
    }
    for name, (what, meaning) in numbers.items():
        parser.add_argument(name, type=int, action="append", metavar=what, help=meaning)
    parser.add_argument(
        "--snapshots", action="store_true", help="also RUN/ema of finished runs, which `fluvial ema` needs"
    )
    given = parser.parse_args(arguments)
    from fluvial.tools import clean as tool  # it verifies checkpoints, which needs PyTorch

    for name, values in (("--keep", given.keep), ("--keep-every", given.keep_every)):
        if len(values or ()) > 1:
            raise UsageError(f"given more than once: {name}; give each option once")
    keep, every = (given.keep or [1])[0], (given.keep_every or [None])[0]
    try:
        keeping = tool.Keeping(keep=keep, keep_every=every, snapshots=not given.snapshots)
    except ValueError as error:
        raise UsageError(f"--keep, --keep-every: {error}") from error
    work = tool.clean if given.yes else tool.plan
    named = given.folders or [RUNS]
    elsewhere = [run for run in _found(named) if run not in named and run.is_symlink()]
    for run in elsewhere:
        print(f"left out: {run} is a link to {run.resolve()}; to clean that run, name it")
    plans = [work(run, keeping) for run in _found(named) if run not in elsewhere]
    _show(plans, "removed" if given.yes else "removable")
    if not given.yes and any(plan.removable for plan in plans):
        print(f"nothing was removed; to do it: {shlex.join(['fluvial', 'runs', 'clean', *arguments, '--yes'])}")


def _show(plans: Sequence["Plan"], word: str) -> None:
    """The parts of all runs as a table, what stays, and the sum."""
    table, parts = Table("run", word, "size", "why"), [part for plan in plans for part in plan.removable]
    for plan in plans:
        for each in plan.removable:
            table.add_row(str(plan.folder), str(each.path.relative_to(plan.folder)), in_bytes(each.size), each.why)
    if parts:
        _print(table)
    for plan in plans:
        for note in plan.notes:
            print(f"{plan.folder}: {note}")
    print(f"{word}: {in_bytes(sum(part.size for part in parts))} in {_count(len(plans))}")


def _count(runs: int) -> str:
    return f"{runs:,} {'run' if runs == 1 else 'runs'}"


def _parser(prog: str, description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog, description=description, allow_abbrev=False)
    parser.add_argument("--help-all", action="help", help=argparse.SUPPRESS)  # there are no further settings
    return parser


def _folder(name: str) -> Path:
    if not name:
        raise argparse.ArgumentTypeError("must be a path, got ''")
    return Path(name)


def _found(folders: Sequence[Path]) -> list[Path]:
    """The runs in these folders, each once. Raises UsageError for a folder that is not there or, if named, has none."""
    runs: dict[Path, None] = {}
    for folder in folders:
        found = find(folder)
        if not found and folder != RUNS:
            what = "has no runs in it" if folder.is_dir() else f"is no folder{closest(str(folder))}"
            raise UsageError(f"{folder} {what}")
        runs |= dict.fromkeys(found)
    return list(runs)


def _name(run: Path, folder: Path) -> str:
    """The run's path below the folder; its own name for the folder itself."""
    return str(run.relative_to(folder)) if run != folder else run.resolve().name


def _cells(run: Listed) -> list[str]:
    """A run's columns between its name and its state."""
    step = f"{run.step:,}" + (f" of {run.steps:,}" if run.steps is not None and run.state != "weights" else "")
    losses = ["" if value is None else f"{value:.4g}" for value in (run.loss, run.validation)]
    return [run.method, run.data, step, *losses, run.score, in_bytes(run.size), age(time.time() - run.changed)]


def age(seconds: float) -> str:
    """A time span in its largest unit, such as 3 h."""
    unit = next((unit for unit in AGES if seconds >= unit), 1.0)
    return f"{max(0, int(seconds / unit))} {AGES[unit]}"


def _print(table: Table) -> None:
    printer = console()
    if not printer.is_terminal:
        printer.width = max(printer.width, WIDE)
    printer.print(table)
