"""fluvial recipes, train, sample, compare."""

import argparse
import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from rich.table import Table

from fluvial import recipes
from fluvial.cli import dry
from fluvial.cli.arguments import device_of, nothing_more, of_a_run, parse, positional, refuse_repeated
from fluvial.cli.output import console
from fluvial.config import Run
from fluvial.data.labels import class_ids, numbers
from fluvial.methods import find_installed
from fluvial.run import finetune
from fluvial.run.folder import RunFolder
from fluvial.run.load import load
from fluvial.run.train import check
from fluvial.run.train import train as train_run
from fluvial.sampling.settings import SampleConfig
from fluvial.tools.compare import compare as compare_runs
from fluvial.tools.doctor.settings import at_start
from fluvial.training import distributed
from fluvial.utils.checks import at_least, positive
from fluvial.utils.errors import UsageError

COMPARED = {"digits": {"SiT": "sit", "ARFlow": "arflow", "FlowAR": "flowar"}}
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
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto takes a GPU if there is one."""


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
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto takes a GPU if there is one."""
    sample: SampleConfig
    """Settings of sampling; the run's own by default."""

    def __post_init__(self) -> None:
        at_least(1, self, "count", "columns")
        at_least(0, self, "seed")


@dataclass(frozen=True, kw_only=True)
class CompareOptions:
    seconds: float = 60.0
    """Training time of each method, in seconds."""
    count: int = 1000
    """Number of images to draw and measure."""
    out: Path | None = None
    """Folder of the runs, the table and the picture; runs/compare-<data> by default."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto takes a GPU if there is one."""

    def __post_init__(self) -> None:
        at_least(2, self, "count")
        positive(self, "seconds")


def list_recipes(arguments: list[str]) -> None:
    nothing_more(arguments, "recipes", "List the recipes.")
    find_installed()
    for name, recipe in recipes.RECIPES.items():
        print(f"{name}\n    {(recipe.__doc__ or '').strip().splitlines()[0]}")


def train(arguments: list[str]) -> None:
    meaning = (
        f"a run folder to go on with, or to start another from with --out; or one of: {', '.join(recipes.RECIPES)}"
    )
    name, rest = positional(arguments, "train", "RECIPE|RUN", meaning)
    if name not in recipes.RECIPES and RunFolder(name).exists():
        return _train_further(Path(name), rest)
    try:
        run = recipes.get(name)
    except ValueError as error:
        raise UsageError(str(error)) from error
    flags, rest = _flags(rest)
    about = inspect.getdoc(recipes.RECIPES[name])
    if flags.smoke:
        run, name = recipes.smoke(run), f"{name}-smoke"
    doc = f"{about}\n\n{SMOKE}\n\n{DRY_RUN}\n\n{START_OVER}"
    options = parse(TrainOptions, TrainOptions(run=run), rest, f"fluvial train {name}", doc)
    if flags.dry_run:
        return _tell(options.run, options.device, options.out or Path("runs") / name)
    out = options.out or Path("runs") / name
    _warn(options.run, out, run)
    _train(options.run, out, options, start_over=flags.start_over, recipe=name)


def _flags(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The flags that decide on the defaults of other options, and the other arguments."""
    refuse_repeated(arguments)
    parser = argparse.ArgumentParser("fluvial train", add_help=False, allow_abbrev=False)
    for name in ("smoke", "dry-run", "start-over"):  # alone, or as other options with True or False
        spellings = sorted({f"--{name}", f"--{name.replace('-', '_')}"})
        parser.add_argument(*spellings, nargs="?", const="True", default="False", choices=("True", "False"))
    flags, rest = parser.parse_known_args(arguments)
    return argparse.Namespace(**{name: value == "True" for name, value in vars(flags).items()}), rest


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


def _tell(run: Run, device: Literal["auto", "cpu", "cuda"], out: Path, start: Path | None = None) -> None:
    """A dry run, which may be for a GPU that is not here."""
    here = "cuda" if torch.cuda.is_available() else "cpu"
    dry.show(run, here if device == "auto" else device, out, partial(check, start=start))


def _warn(run: Run, out: Path, recipe: Run | None = None) -> None:
    """Prints a line for each setting that would spoil a run that is about to start, on the main process."""
    if distributed.ranks()[0] == 0 and not RunFolder(out).taken():
        for line in at_start(run, recipe):
            print(f"look: {line}")


def _train(run: Run, out: Path, options: TrainOptions, **origin: Any) -> None:  # noqa: ANN401
    first = distributed.ranks()[0] == 0  # of the processes that torchrun starts, one speaks
    if first:
        print(f"training in {out}")
    device = device_of(options.device)
    sampler = train_run(run, out, device=device, **origin)
    if first:
        pictures = RunFolder(out).samples
        drawn = f"; pictures in {pictures}" if pictures.exists() else ""
        print(f"{out}: {sampler.step} steps in {sampler.seconds:.0f} s{drawn}")


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
    device = device_of(options.device)
    chosen = {"step": options.step, "average": options.average}
    sampler = load(folder, autoencoder=options.autoencoder, device=device, **chosen)
    classes = _ids(options.classes, sampler.run) or None
    given = {"classes": classes, "seed": options.seed, "settings": options.sample, "trajectory": options.gif}
    samples = sampler.sample(options.count, **given)
    out = options.out or RunFolder(folder).samples
    saved = samples.save(out, columns=options.columns, npz=options.npz, gif=options.gif)
    if samples.images.shape[1] not in (1, 3):
        print(f"no pictures: they need 1 or 3 channels, the images have {samples.images.shape[1]}")
    print(f"{options.count} images; evaluations of the network for each: {evaluations(samples.nfe)}")
    for path in saved:
        print(path)


def evaluations(nfe: Mapping[str, int]) -> str:
    """Evaluations by branch in words: "20 conditional, 20 null"."""
    return ", ".join(f"{count} {branch}" for branch, count in nfe.items())


def compare(arguments: list[str]) -> None:
    data, rest = positional(arguments, "compare", "DATA", f"one of: {', '.join(COMPARED)}")
    if data not in COMPARED:
        raise UsageError(f"unknown data set {data!r}; there are recipes of every method for: {', '.join(COMPARED)}")
    description = "Train SiT, ARFlow and FlowAR for the same time and print one table."
    options = parse(CompareOptions, CompareOptions(), rest, f"fluvial compare {data}", description)
    out = options.out or Path("runs") / f"compare-{data}"
    runs = {name: recipes.get(f"{data}-{recipe}") for name, recipe in COMPARED[data].items()}
    rows = compare_runs(runs, out, seconds=options.seconds, count=options.count, device=device_of(options.device))
    table = Table("", *(row["method"] for row in rows))
    for key in list(rows[0])[1:]:
        table.add_row(key, *(f"{row[key]:,}" if isinstance(row[key], int) else str(row[key]) for row in rows))
    console().print(table)
    print(out / "compare.json")
    print(out / "compare.png")
