"""fluvial recipes, compare."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from fluvial import recipes
from fluvial.cli.arguments import (
    Device,
    device_of,
    nothing_more,
    parse,
    several,
)
from fluvial.cli.output import console
from fluvial.config import Run
from fluvial.methods import find_installed
from fluvial.run.folder import RunFolder
from fluvial.tools.compare import compare as compare_runs
from fluvial.tools.curves import short_names
from fluvial.utils.checks import at_least, positive
from fluvial.utils.errors import UsageError

COMPARED = {"digits": {"SiT": "sit", "ARFlow": "arflow", "FlowAR": "flowar"}}
SECONDS = 60.0  # of training each recipe that is compared


@dataclass(frozen=True, kw_only=True)
class CompareOptions:
    seconds: float | None = None
    """Training time of each recipe, in seconds; 60 by default."""
    count: int = 1000
    """Number of images to draw and measure."""
    out: Path | None = None
    """Folder of the runs, the table and the picture; runs/compare-<names> by default."""
    device: Device = "auto"
    """Where to compute: cpu, cuda, cuda:1 or mps; auto takes CUDA if it is there."""

    def __post_init__(self) -> None:
        at_least(2, self, "count")
        if self.seconds is not None:
            positive(self, "seconds")


def list_recipes(arguments: list[str]) -> None:
    nothing_more(arguments, "recipes", "List the recipes.")
    find_installed()
    for name, recipe in recipes.RECIPES.items():
        print(f"{name}\n    {(recipe.__doc__ or '').strip().splitlines()[0]}")


def compare(arguments: list[str]) -> None:
    """Prints a table of runs and recipes side by side; the recipes are trained first."""
    meaning = f"runs and recipes, such as runs/digits-sit digits-arflow; or all methods on {', '.join(COMPARED)}"
    names, rest = several(arguments, "compare", "A B [...]", meaning)
    description = f"Compare {meaning}. Runs are measured as they are, recipes are trained for the same time before."
    options = parse(CompareOptions, CompareOptions(), rest, f"fluvial compare {' '.join(names)}", description)
    compared = _compared(names)
    if options.seconds is not None and all(isinstance(run, Path) for run in compared.values()):
        raise UsageError("--seconds is the training time of recipes, and only runs are compared: leave it out")
    out = options.out or Path("runs") / f"compare-{'-'.join(Path(name).name for name in names):.100}"
    seconds, device = options.seconds or SECONDS, device_of(options.device)
    rows = compare_runs(compared, out, seconds=seconds, count=options.count, device=device)
    odd = [f"{row['method']} is not comparable: {row.pop('differs')}" for row in rows if "differs" in row]
    table = Table("", *(row["method"] for row in rows))
    for key in list(rows[0])[1:]:
        table.add_row(key, *(_cell(row[key]) for row in rows))
    console().print(table)
    for line in (*odd, out / "compare.json", out / "compare.png"):
        print(line)


def _cell(value: Any) -> str:  # noqa: ANN401 - a number, or None
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def _compared(names: list[str]) -> dict[str, Run | Path]:
    """The recipes and run folders of these names; the recipes of all methods for the name of a data set."""
    if len(names) == 1 and names[0] in COMPARED:
        return {name: recipes.get(f"{names[0]}-{recipe}") for name, recipe in COMPARED[names[0]].items()}
    if len(names) == 1:
        alone = RunFolder(names[0]).exists() or names[0] in recipes.RECIPES
        what = f"{names[0]} is one" if alone else f"unknown data set {names[0]!r}; there is {', '.join(COMPARED)}"
        raise UsageError(f"{what}: name at least two runs or recipes, or a data set with recipes of every method")
    if repeated := [name for name in names if names.count(name) > 1]:
        raise UsageError(f"{repeated[0]} is named twice: compare different runs and recipes")
    folders = {name: Path(name) for name in names if RunFolder(name).exists()}
    if both := [name for name in folders if name in recipes.RECIPES]:
        raise UsageError(f"{both[0]} is a recipe, and also a run folder here: name the folder as ./{both[0]}")
    try:
        titles = dict(zip(folders, short_names(list(folders.values())), strict=True))
        if set(titles.values()) & set(names):  # a run that is called as a recipe is
            titles = {name: name for name in folders}
        return {titles.get(name, name): folders.get(name) or recipes.get(name) for name in names}
    except ValueError as error:
        raise UsageError(str(error)) from error
