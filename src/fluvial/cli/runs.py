"""fluvial recipes, sample, compare."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from fluvial import recipes
from fluvial.cli.arguments import (
    Device,
    device_of,
    nothing_more,
    of_a_run,
    parse,
    several,
)
from fluvial.cli.output import console, next_commands
from fluvial.config import Run
from fluvial.data.labels import class_ids, numbers
from fluvial.methods import find_installed
from fluvial.run.folder import RunFolder
from fluvial.run.load import load
from fluvial.sampling.settings import SampleConfig
from fluvial.tools.compare import compare as compare_runs
from fluvial.tools.curves import short_names
from fluvial.utils.checks import at_least, positive
from fluvial.utils.errors import UsageError
from fluvial.utils.files import check_folder

COMPARED = {"digits": {"SiT": "sit", "ARFlow": "arflow", "FlowAR": "flowar"}}
SECONDS = 60.0  # of training each recipe that is compared


@dataclass(frozen=True, kw_only=True)
class SampleOptions:
    count: int = 100
    """Number of images."""
    classes: tuple[str, ...] = ()
    """Names or ids of classes, given to the images in turn; all of them by default. Where all classes are called by
    numbers, 10 is the class of the folder 10."""
    seed: int = 0
    """Seed; image i depends on (seed, i) alone."""
    columns: int = 10
    """Images in a row of the grid."""
    gif: bool = True
    """Also draw the denoising trajectory as a GIF."""
    npz: bool = True
    """Also write the images as an .npz for evaluators."""
    out: Path | None = None
    """Folder for the pictures; RUN/samples by default."""
    step: int | None = None
    """Training step of the checkpoint; the newest by default."""
    average: str = "ema"
    """The weights: ema, the moving average; raw, as trained; or the length of a power-function average, such as 0.1, of
    a run with train.ema_lengths."""
    autoencoder: str = ""
    """Where the run's autoencoder is, if no longer where it was in training."""
    device: Device = "auto"
    """Where to compute: cpu, cuda, cuda:1 or mps; auto takes CUDA if it is there."""
    sample: SampleConfig
    """Settings of sampling; the run's own by default."""

    def __post_init__(self) -> None:
        at_least(1, self, "count", "columns")
        at_least(0, self, "seed")


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


def _ids(words: tuple[str, ...], run: Run) -> tuple[int, ...]:
    """The ids of classes given by name, or by number: of the class that is called so, if all are called by numbers."""
    names = run.data.class_names
    values = numbers(names) if len(names) == run.method.classes else {}

    def meant(word: str) -> int | str:
        if word in names or not re.fullmatch(r"-?\d+", word):
            return word
        return values.get(int(word), word) if values else int(word)

    try:
        return class_ids([meant(word) for word in words], names, run.method.classes)
    except ValueError as error:
        raise UsageError(f"--{error}") from error


def sample(arguments: list[str]) -> None:
    folder, _, options = of_a_run(SampleOptions, arguments, "sample", "Draw images from a run folder.")
    device, out = device_of(options.device), options.out or RunFolder(folder).samples
    check_folder(out)  # before images are drawn for it
    chosen = {"step": options.step, "average": options.average}
    sampler = load(folder, autoencoder=options.autoencoder, device=device, **chosen)
    classes = _ids(options.classes, sampler.run) or None
    given = {"classes": classes, "seed": options.seed, "settings": options.sample, "trajectory": options.gif}
    samples = sampler.sample(options.count, **given)
    saved = samples.save(out, columns=options.columns, npz=options.npz, gif=options.gif)
    if samples.images.shape[1] not in (1, 3):
        print(f"no pictures: they need 1 or 3 channels, the images have {samples.images.shape[1]}")
    print(f"{options.count} images; evaluations of the network for each: {evaluations(samples.nfe)}")
    for path in saved:
        print(path)
    next_commands(folder, "score")


def evaluations(nfe: Mapping[str, int]) -> str:
    """Evaluations by branch in words: "20 conditional, 20 null"."""
    return ", ".join(f"{count} {branch}" for branch, count in nfe.items())


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
        raise UsageError(
            f"unknown data set {names[0]!r}; there are recipes of every method for: {', '.join(COMPARED)}. Of runs and "
            f"recipes name at least two"
        )
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
