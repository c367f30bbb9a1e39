"""fluvial train: images, a run to go on with, a file of settings, or a recipe."""

import inspect
from dataclasses import dataclass, replace
from functools import partial
from glob import glob, has_magic
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import torch
import tyro

from fluvial import recipes
from fluvial.cli import dry, photos
from fluvial.cli.arguments import Device, device_of, parse, positional, refuse_repeated
from fluvial.cli.known import switches
from fluvial.cli.output import next_commands
from fluvial.cli.short import FLAGS, OF_IMAGES, PLANNED, lengthened, short_help
from fluvial.config import Run
from fluvial.data.images import BUILT_IN
from fluvial.methods import find_installed
from fluvial.run import finetune
from fluvial.run.configuration import ENDINGS, names_file, read_configuration
from fluvial.run.folder import RunFolder
from fluvial.run.train import check
from fluvial.run.train import train as train_run
from fluvial.tools.doctor.settings import at_start
from fluvial.training import distributed
from fluvial.utils.errors import UsageError
from fluvial.utils.files import check_folder
from fluvial.utils.places import missing, repository

SMOKE = "--smoke tries the recipe with a small model and few steps, in runs/RECIPE-smoke: a minute or so on a CPU."
DRY_RUN = "--dry-run trains nothing: it prints parameters, FLOPs, memory and the whole configuration, and checks data, "
DRY_RUN += "autoencoder and folder as training does, but for what is on the hub."
START_OVER = "--start-over trains from the start again where none of the run's checkpoints is whole, which is refused "
START_OVER += "otherwise."
ON_IMAGES = """Train on images: everything follows from them and from --minutes, and is printed before training starts.

The same command goes on where it stopped. Any other setting of `--help all` can be given, too; what is not given
follows from the images, and not from the defaults that are shown there."""


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    run: Annotated[Run, tyro.conf.arg(name="")]
    out: Path | None = None
    """Folder of the run; runs/<recipe> by default, or that of the run to go on with."""
    device: Device = "auto"
    """Where to compute: cpu, cuda, cuda:1 or mps; auto takes CUDA if it is there."""


def train(arguments: list[str]) -> None:
    meaning = (
        f"images: a folder, parquet, tar, latents or OWNER/NAME of the hub; a run folder to go on with; a file of "
        f"settings ({', '.join(ENDINGS)}); or one of: {', '.join(recipes.RECIPES)}"
    )
    if arguments[:1] == ["--help-all"]:  # the settings of a method differ: those of the first recipe stand for all
        arguments = [next(iter(recipes.RECIPES)), *arguments]
    name, rest = positional(arguments, "train", "IMAGES|RUN|FILE|RECIPE", meaning, more=True)
    name = str(Path(name).parent) if Path(name).name == "run.json" else name
    if rest and not rest[0].startswith("-"):
        raise UsageError(
            f"train takes one place, got {name} and {rest[0]}: give the folder that holds them, or a pattern in quotes "
            "for parquet, arrow and tar files"
        )
    _refuse_two(name)
    if RunFolder(name).exists():
        return _train_further(Path(name), rest)
    if names_file(name):
        found = read_configuration(name)
        about = f"Train the run that {name} describes; options are in place of its settings."
        return _train_new(found.run, found.out, rest, about, config={**found.record, "options": rest})
    if name in recipes.RECIPES:
        run = recipes.get(name)
        return _train_new(run, Path("runs") / name, rest, inspect.getdoc(recipes.RECIPES[name]) or "", recipe=name)
    if not (_is_here(name) or name in BUILT_IN or repository(name)):
        raise UsageError(missing(name, [*recipes.RECIPES, *BUILT_IN]) + ". `fluvial recipes` lists the recipes")
    _train_on(name, rest)


def _is_here(name: str) -> bool:
    path = Path(name).expanduser()
    return path.exists() or (has_magic(name) and bool(glob(str(path))))


def _refuse_two(name: str) -> None:
    """Raises UsageError for a name of two things, and for a run folder that has lost its run.json."""
    if name not in recipes.RECIPES:
        find_installed()
    known = "a recipe" if name in recipes.RECIPES else "a built-in data set" if name in BUILT_IN else ""
    if known and Path(name).exists():
        raise UsageError(f"{name} is {known}, and there is a folder or file of that name here: for that write ./{name}")
    path = Path(name).expanduser()
    if not RunFolder(path).exists() and (path / "checkpoints").is_dir() and (path / "log.jsonl").exists():
        raise UsageError(f"{name} is a run folder that has lost its run.json, without which training cannot go on")


def _train_on(place: str, arguments: list[str]) -> None:
    """Plans a run for images and trains it, or goes on with the one that this command has begun."""
    if set(arguments) & {"-h", "--help"}:
        return print(short_help("train", place, about=ON_IMAGES.split("\n\n"), without=("data", "smoke")))
    flags, arguments = _flags(arguments)
    asked, rest = photos.asked_of(arguments)
    if flags.smoke:
        raise UsageError("--smoke is for recipes; for images give --minutes 1")
    neutral = TrainOptions(run=photos.neutral(asked["method"]))
    options = parse(TrainOptions, neutral, rest, f"fluvial train {place}", f"{ON_IMAGES}\n\n{DRY_RUN}\n\n{START_OVER}")
    settings = photos.settings_of(options.run, lengthened("train", rest)[0])
    if "data.path" in settings or "data.name" in settings:
        raise UsageError(f"the images are {place}: leave out --data")
    command = photos.recorded(asked, place, settings)
    out, again = photos.folder_for(command, asked, place, options.out)
    device = str(device_of(options.device))
    if again:
        return _again(out, options, flags)
    if distributed.ranks()[1] > 1:
        raise UsageError("one process measures the speed: begin without torchrun, then go on with the run under it")
    print(f"looking at {place}, and measuring steps of training", flush=True)
    plan = photos.planned(place, asked, settings, device)
    usual = None if options.out or asked["name"] else photos.usual(asked, place)
    photos.show(plan, place, out, device, taken=usual if usual != out else None)
    plan.check_disk(out)
    start = asked["from"]
    if flags.dry_run:
        check(plan.run, out, start=start)
        return print(f"checked: training would start in {out}")
    _train(plan.run, out, options, start=start, config={"plan": command, "why": photos.reasons(plan)})


def _again(out: Path, options: TrainOptions, flags: SimpleNamespace) -> None:
    """Goes on with the run that the same command has begun, with the settings that were planned then."""
    run = RunFolder(out).run()
    if RunFolder(out).taken() >= run.train.steps:
        print(f"{out} has taken all of its {run.train.steps:,} steps; for more: fluvial train {out} --minutes 30")
        return next_commands(out, "sample", "score")
    if flags.dry_run:
        return _tell(run, options.device, out)
    _train(run, out, options, start_over=flags.start_over)


def _train_new(run: Run, out: Path, arguments: list[str], about: str, **origin: Any) -> None:  # noqa: ANN401
    """Trains a run of a recipe or a file, by default in `out`, or goes on with it there."""
    run.check_trained_on_images()
    flags, arguments = _flags(arguments)
    photos.refuse(arguments, PLANNED, "a recipe or file says --steps")
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
    run.check_trained_on_images()
    flags, arguments = _flags(arguments)
    if flags.smoke:
        raise UsageError("--smoke is for recipes: the model of a run is as large as its weights")
    photos.refuse(arguments, OF_IMAGES, "a run has its own settings")
    length, arguments = photos.length_of(arguments)
    doc = f"Go on with the run in {folder}, with its own settings; or with --out start another from its weights, with "
    doc += "any setting changed but those that shape the network. Other classes and image sizes are fitted."
    doc += f"\n\n{DRY_RUN}\n\n{START_OVER}"
    # what was found of the images is found anew for another run, and taken from the folder for the same
    asked = replace(run, data=replace(run.data, class_names=(), digest="", names_given=False))
    options = parse(TrainOptions, TrainOptions(run=asked, out=folder), arguments, f"fluvial train {folder}", doc)
    out = options.out or folder
    new = photos.lengthened(options.run, RunFolder(out), length)
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
