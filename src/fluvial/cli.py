"""The command line: parse, build, call.

fluvial recipes                       list the recipes
fluvial train RECIPE [options]        train one, or go on where it stopped
fluvial sample RUN [options]          draw images from a run folder
fluvial score RUN [options]           measure a run folder
fluvial compare digits [options]      train all methods for the same time and put them side by side

fluvial COMMAND --help lists the options of a command with their defaults; for train, those of the recipe.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import torch
import tyro
from rich.console import Console
from rich.table import Table

from fluvial import __version__, experiment, pictures, recipes
from fluvial.checks import at_least, positive
from fluvial.compare import compare
from fluvial.config import Run
from fluvial.generate import Frames, SampleConfig

T = TypeVar("T")
COMPARED = {"digits": {"SiT": "sit", "ARFlow": "arflow", "FlowAR": "flowar"}}
GRID = 1000  # images in the grid at most; the .npz has all


class UsageError(ValueError):
    """The command line is wrong: exit code 2."""


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    run: Annotated[Run, tyro.conf.arg(name="")]
    out: Path | None = None
    """Folder of the run; runs/<recipe> by default."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto takes a GPU if there is one."""


@dataclass(frozen=True, kw_only=True)
class SampleOptions:
    count: int = 100
    """Number of images."""
    classes: tuple[int, ...] = ()
    """Class ids, given to the images in turn; all of them by default."""
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
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto takes a GPU if there is one."""
    sample: SampleConfig
    """How to sample; the run's own settings by default."""

    def __post_init__(self) -> None:
        at_least(1, self, "count", "columns")


@dataclass(frozen=True, kw_only=True)
class ScoreOptions:
    count: int = 1000
    """Number of images to draw and measure."""
    seed: int = 0
    """Seed; image i depends on (seed, i) alone."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto takes a GPU if there is one."""
    sample: SampleConfig
    """How to sample; the run's own settings by default."""

    def __post_init__(self) -> None:
        at_least(2, self, "count")


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


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code: 0, 2 for a wrong command line, 1 for anything else that is wrong."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    commands: dict[str, Callable[[list[str]], None]]
    commands = {"recipes": _recipes, "train": _train, "sample": _sample, "score": _score, "compare": _compare}
    try:
        match arguments:
            case [] | ["-h" | "--help", *_]:
                print(__doc__)
            case ["--version", *_]:
                print(f"fluvial {__version__}")
            case [command, *rest] if command in commands:
                commands[command](rest)
            case [command, *_]:
                raise UsageError(f"unknown command {command!r}; there are: {', '.join(commands)}")
    except UsageError as error:
        return _fail(error, 2)
    except (ValueError, OSError, RuntimeError) as error:
        return _fail(error, 1)
    except KeyboardInterrupt:
        print("interrupted; training goes on from its last checkpoint with the same command", file=sys.stderr)
        return 130
    except SystemExit as stop:  # tyro has printed the help or what is wrong
        return int(stop.code or 0)
    return 0


def _recipes(arguments: list[str]) -> None:
    if arguments:
        raise UsageError(f"fluvial recipes takes no arguments, got {' '.join(arguments)}")
    for name, recipe in recipes.RECIPES.items():
        print(f"{name}\n    {(recipe.__doc__ or '').strip().splitlines()[0]}")


def _train(arguments: list[str]) -> None:
    name, rest = _positional(arguments, "train", "RECIPE", f"one of: {', '.join(recipes.RECIPES)}")
    try:
        run = recipes.get(name)
    except ValueError as error:
        raise UsageError(str(error)) from error
    options = _parse(TrainOptions, TrainOptions(run=run), rest, f"fluvial train {name}", recipes.RECIPES[name].__doc__)
    out = options.out or Path("runs") / name
    print(f"training in {out}")
    trained = experiment.train(options.run, out, recipe=name, device=_device(options.device))
    print(f"{out}: {trained.step} steps in {trained.seconds:.0f} s; pictures in {out / 'samples'}")


def _sample(arguments: list[str]) -> None:
    folder, rest = _run_folder(arguments, "sample")
    run = experiment.read_run(folder)
    default = SampleOptions(sample=run.sample)
    options = _parse(SampleOptions, default, rest, "fluvial sample RUN", "Draw images from a run folder.")
    _check_sampling(run, options.sample)
    trained = experiment.load(folder, device=_device(options.device))
    known = trained.run.method.classes
    if any(not 0 <= c < known for c in options.classes):
        raise UsageError(f"--classes must be of the model's {known} (0 to {known - 1}), got {list(options.classes)}")
    out = options.out or folder / "samples"
    frames = Frames(trained.autoencoder.decode, min(options.count, 100), ends_only=not options.gif)
    generated = trained.sample(
        options.count,
        classes=options.classes or None,
        seed=options.seed,
        settings=options.sample,
        on_step=frames,
    )
    saved = [pictures.save_npz(generated.images, generated.labels, out / "samples.npz")] if options.npz else []
    if generated.images.shape[1] in (1, 3):
        saved.append(pictures.save_grid(generated.images[:GRID], out / "grid.png", options.columns))
        if options.gif:
            saved.append(pictures.save_gif(frames.images, out / "trajectory.gif", options.columns))
        if len(frames.ends) > 1:
            saved.append(pictures.save_strip(frames.ends, out / "scales.png"))
    else:
        print(f"no pictures: they need 1 or 3 channels, the images have {generated.images.shape[1]}")
    print(f"{options.count} images, evaluations of the model for each: {generated.nfe}")
    for path in saved:
        print(path)


def _score(arguments: list[str]) -> None:
    folder, rest = _run_folder(arguments, "score")
    run = experiment.read_run(folder)
    default = ScoreOptions(sample=run.sample)
    options = _parse(ScoreOptions, default, rest, "fluvial score RUN", "Measure a run folder; writes RUN/score.json.")
    _check_sampling(run, options.sample)
    result = experiment.score(
        folder, count=options.count, seed=options.seed, settings=options.sample, device=_device(options.device)
    )
    table = Table("what", "value", title=str(folder), title_justify="left")
    result.pop("sample")  # all settings, for score.json only
    for key, value in result.items():
        table.add_row(key, f"{value:.4g}" if isinstance(value, float) else str(value))
    Console().print(table)
    print(folder / "score.json")


def _compare(arguments: list[str]) -> None:
    data, rest = _positional(arguments, "compare", "DATA", f"one of: {', '.join(COMPARED)}")
    if data not in COMPARED:
        raise UsageError(f"unknown data set {data!r}; there are recipes of every method for: {', '.join(COMPARED)}")
    description = "Train SiT, ARFlow and FlowAR for the same time and print one table."
    options = _parse(CompareOptions, CompareOptions(), rest, f"fluvial compare {data}", description)
    out = options.out or Path("runs") / f"compare-{data}"
    runs = {name: recipes.get(f"{data}-{recipe}") for name, recipe in COMPARED[data].items()}
    rows = compare(runs, out, seconds=options.seconds, count=options.count, device=_device(options.device))
    table = Table("", *(row["method"] for row in rows))
    for key in list(rows[0])[1:]:
        table.add_row(key, *(f"{row[key]:,}" if isinstance(row[key], int) else str(row[key]) for row in rows))
    Console().print(table)
    print(out / "compare.json")
    print(out / "compare.png")


def _parse(kind: type[T], default: T, arguments: list[str], prog: str, description: str | None) -> T:
    config = (tyro.conf.AvoidSubcommands, tyro.conf.FlagConversionOff)
    try:
        return tyro.cli(kind, default=default, args=arguments, prog=prog, description=description, config=config)
    except ValueError as error:  # a __post_init__ that refuses a value
        raise UsageError(str(error)) from error


def _positional(arguments: list[str], command: str, what: str, meaning: str) -> tuple[str, list[str]]:
    if not arguments or arguments[0].startswith("-"):
        asked_for_help = arguments[:1] in (["-h"], ["--help"])
        text = f"usage: fluvial {command} {what} [options]\n\n{what} is {meaning}"
        if asked_for_help:
            print(text)
            raise SystemExit(0)
        raise UsageError(text)
    return arguments[0], arguments[1:]


def _run_folder(arguments: list[str], command: str) -> tuple[Path, list[str]]:
    name, rest = _positional(
        arguments, command, "RUN", "a folder that `fluvial train` wrote, such as runs/digits-arflow"
    )
    return Path(name), rest


def _check_sampling(run: Run, sample: SampleConfig) -> None:
    try:
        replace(run, sample=sample)
    except ValueError as error:
        raise UsageError(str(error)) from error


def _device(name: str) -> str | None:
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: this machine, or this build of PyTorch, has no CUDA; use --device cpu")
    return None if name == "auto" else name


def _fail(error: Exception, code: int) -> int:
    print(f"fluvial: error: {error}", file=sys.stderr)
    return code
