"""fluvial recipes, train, sample, compare."""

import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import torch
import tyro
from rich.table import Table

from fluvial import recipes
from fluvial.cli import dry
from fluvial.cli.arguments import (
    Device,
    device_of,
    nothing_more,
    of_a_run,
    parse,
    positional,
    refuse_repeated,
    several,
)
from fluvial.cli.known import switches
from fluvial.cli.output import console, next_commands
from fluvial.cli.short import FLAGS
from fluvial.config import Run
from fluvial.data.labels import class_ids, numbers
from fluvial.methods import find_installed
from fluvial.run import finetune
from fluvial.run.configuration import ENDINGS, names_file, read_configuration
from fluvial.run.folder import RunFolder
from fluvial.run.load import load
from fluvial.run.train import check
from fluvial.run.train import train as train_run
from fluvial.sampling.settings import SampleConfig
from fluvial.tools.compare import compare as compare_runs
from fluvial.tools.curves import short_names
from fluvial.tools.doctor.settings import at_start
from fluvial.training import distributed
from fluvial.utils.checks import at_least, positive
from fluvial.utils.errors import UsageError
from fluvial.utils.files import check_folder

COMPARED = {"digits": {"SiT": "sit", "ARFlow": "arflow", "FlowAR": "flowar"}}
SECONDS = 60.0  # of training each recipe that is compared
SMOKE = "--smoke tries the recipe with a small model and few steps, in runs/RECIPE-smoke: a minute or so on a CPU."
DRY_RUN = "--dry-run trains nothing: it prints parameters, FLOPs, memory and the whole configuration, and checks data, "
DRY_RUN += "autoencoder and folder as training does, but for what is on the hub."
START_OVER = "--start-over trains from the start again where none of the run's checkpoints is whole, which is refused "
START_OVER += "otherwise."


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    run: Annotated[Run, tyro.conf.arg(name="")]
    out: Path | None = None
    """Folder of the run; runs/<recipe> by default, or that of the run to go on with."""
    device: Device = "auto"
    """Where to compute: cpu, cuda, cuda:1 or mps; auto takes CUDA if it is there."""


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


def train(arguments: list[str]) -> None:
    meaning = (
        f"a run folder to go on with, or to start another from with --out; a file of settings "
        f"({', '.join(ENDINGS)}); or one of: {', '.join(recipes.RECIPES)}"
    )
    if arguments[:1] == ["--help-all"]:  # the settings of a method differ: those of the first recipe stand for all
        arguments = [next(iter(recipes.RECIPES)), *arguments]
    name, rest = positional(arguments, "train", "RECIPE|RUN|FILE", meaning)
    name = str(Path(name).parent) if Path(name).name == "run.json" else name
    if name not in recipes.RECIPES and RunFolder(name).exists():
        return _train_further(Path(name), rest)
    if names_file(name):
        found = read_configuration(name)
        about = f"Train the run that {name} describes; options are in place of its settings."
        return _train_new(found.run, found.out, rest, about, config={**found.record, "options": rest})
    try:
        run = recipes.get(name)
    except ValueError as error:
        raise UsageError(str(error)) from error
    _train_new(run, Path("runs") / name, rest, inspect.getdoc(recipes.RECIPES[name]) or "", recipe=name)


def _train_new(run: Run, out: Path, arguments: list[str], about: str, **origin: Any) -> None:  # noqa: ANN401
    """Trains a run of a recipe or a file, by default in `out`, or goes on with it there."""
    flags, arguments = _flags(arguments)
    if flags.smoke:
        run, out = recipes.smoke(run), out.with_name(f"{out.name}-smoke")
        origin |= {"recipe": f"{origin['recipe']}-smoke"} if "recipe" in origin else {}
    doc = f"{about}\n\n{SMOKE}\n\n{DRY_RUN}\n\n{START_OVER}"
    options = parse(TrainOptions, TrainOptions(run=run), arguments, f"fluvial train {out.name}", doc)
    out = options.out or out
    if flags.dry_run:
        return _tell(options.run, options.device, out)
    _warn(options.run, out, run)
    _train(options.run, out, options, start_over=flags.start_over, **origin)


def _flags(arguments: list[str]) -> tuple[SimpleNamespace, list[str]]:
    """The flags that decide on the defaults of other options, and the other arguments."""
    refuse_repeated(arguments, "train")
    given, rest = switches(arguments, FLAGS)
    return SimpleNamespace(**{name.replace("-", "_"): given.get(name) == "True" for name in FLAGS}), rest


def _train_further(folder: Path, arguments: list[str]) -> None:
    """Goes on with a run, or with --out starts another from its weights."""
    run = RunFolder(folder).run()
    flags, arguments = _flags(arguments)
    if flags.smoke:
        raise UsageError("--smoke is for recipes: the model of a run is as large as its weights")
    doc = f"Go on with the run in {folder}, with its own settings; or with --out start another from its weights, with "
    doc += "any setting changed but those that shape the network. Other classes and image sizes are fitted."
    doc += f"\n\n{DRY_RUN}\n\n{START_OVER}"
    # what was found of the images is found anew for another run, and taken from the folder for the same
    asked = replace(run, data=replace(run.data, class_names=(), digest="", names_given=False))
    options = parse(TrainOptions, TrainOptions(run=asked, out=folder), arguments, f"fluvial train {folder}", doc)
    out, new = options.out or folder, options.run
    if flags.dry_run:
        another = out.resolve() != folder.resolve()
        return _tell(finetune.fitted(new, run) if another else new, options.device, out, folder if another else None)
    if out.resolve() == folder.resolve():
        return _train(new, out, options, start_over=flags.start_over)
    _warn(new, out)
    _train(new, out, options, start_over=flags.start_over, start=folder)


def _tell(run: Run, device: str, out: Path, start: Path | None = None) -> None:
    """A dry run, which may be for a GPU that is not here."""
    on_cuda = torch.cuda.is_available() if device == "auto" else device.startswith("cuda")
    dry.show(run, "cuda" if on_cuda else "cpu", out, partial(check, start=start))


def _warn(run: Run, out: Path, recipe: Run | None = None) -> None:
    """Prints a line for each setting that would spoil a run that is about to start, on the main process."""
    if distributed.ranks()[0] == 0 and not RunFolder(out).taken():
        for line in at_start(run, recipe):
            print(f"look: {line}")


def _train(run: Run, out: Path, options: TrainOptions, **origin: Any) -> None:  # noqa: ANN401
    device = device_of(options.device)
    check_folder(out)
    first = distributed.ranks()[0] == 0  # of the processes that torchrun starts, one speaks
    if first:
        print(f"training in {out}")
    sampler = train_run(run, out, device=device, **origin)
    if first:
        pictures = RunFolder(out).samples
        drawn = f"; pictures in {pictures}" if pictures.exists() else ""
        print(f"{out}: {sampler.step} steps in {sampler.seconds:.0f} s{drawn}")
        next_commands(out, "sample", "score")


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
