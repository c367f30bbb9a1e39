"""fluvial train IMAGES: looks at the images, says what it chose, and trains."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import reduce
from itertools import count
from math import ceil, inf
from pathlib import Path
from typing import Any

from rich.table import Table

import fluvial
from fluvial.cli.known import options_of, positive
from fluvial.cli.output import console, scaled
from fluvial.cli.short import OF_IMAGES
from fluvial.config import Run
from fluvial.methods import name_of as name_of_method
from fluvial.run.folder import RunFolder
from fluvial.tools.plan import network
from fluvial.tools.plan.dataset import config_of, name_of
from fluvial.tools.plan.further import steps_in, steps_of_epochs
from fluvial.tools.plan.result import Plan
from fluvial.utils.errors import UsageError
from fluvial.utils.files import check_folder
from fluvial.utils.progress import duration

BUDGETS = ("minutes", "steps", "epochs")
LOCAL = ("out", "device")  # options that do not change the run
Asked = dict[str, Any]


def asked_of(arguments: list[str]) -> tuple[Asked, list[str]]:
    """The options that a plan is made from, None for those not given, and the other arguments.

    Raises UsageError for a value of another kind, more than one length of training, or a name that is a path.
    """
    words = {"train.steps": "steps", **dict.fromkeys((*BUDGETS, *OF_IMAGES))}
    asked, rest = _taken(arguments, words)
    if len(given := [name for name in BUDGETS if asked[name] is not None]) > 1:
        raise UsageError(f"give one of --minutes, --steps and --epochs, got {' and '.join(f'--{n}' for n in given)}")
    if asked["from"] and (fixed := [name for name in ("method", "size", "autoencoder") if asked[name]]):
        raise UsageError(f"the run of --from decides on {', '.join(f'--{name}' for name in fixed)}: leave that out")
    name = asked["name"]
    if name is not None and (not name.strip() or name in (".", "..") or set(name) & {"/", "\\"}):
        raise UsageError(f"--name must be the name of a folder in runs, got {name!r}; --out takes any path")
    return asked, rest


def length_of(arguments: list[str]) -> tuple[Asked, list[str]]:
    """The minutes or epochs for which a run goes on, None if not given, and the other arguments."""
    asked, rest = _taken(arguments, {"minutes": None, "epochs": None})
    more = [name for name in ("steps", "train.steps") if any(w.partition("=")[0] == f"--{name}" for w in rest)]
    if len(given := [name for name in asked if asked[name] is not None] + more) > 1:
        raise UsageError(f"give one of --minutes, --steps and --epochs, got {' and '.join(f'--{n}' for n in given)}")
    return asked, rest


def _taken(arguments: list[str], names: Mapping[str, str | None]) -> tuple[Asked, list[str]]:
    """The values of these options, under their own or another name, and the other arguments."""
    parser = argparse.ArgumentParser("fluvial train", add_help=False, allow_abbrev=False, exit_on_error=False)
    kinds: dict[str, Any] = {"minutes": float, "epochs": float, "steps": int}
    for name, other in names.items():
        key = other or name
        choices = tuple(network.SIZES) if key == "size" else None
        parser.add_argument(f"--{name}", dest=key, type=kinds.get(key, str), choices=choices)
    try:
        found, rest = parser.parse_known_args(arguments)
    except argparse.ArgumentError as error:
        raise UsageError(str(error).removeprefix("argument ")) from error
    for name, value in vars(found).items():
        if name in kinds and value is not None and not 0 < value < inf:
            raise UsageError(f"--{name} must be above 0, got {value:g}")
    return vars(found), rest


def refuse(arguments: list[str], names: Sequence[str], why: str) -> None:
    """Raises UsageError for options that are for images alone."""
    words = {word.partition("=")[0] for word in arguments}
    if wrong := [f"--{name}" for name in names if f"--{name}" in words]:
        raise UsageError(f"{', '.join(wrong)}: for `fluvial train IMAGES`; {why}")


def neutral(method: str | None) -> Run:
    """A run of the method by which the other options are parsed."""
    config = network.known(method or network.METHOD).proportioned(
        depth=2, width=64, size=(32, 32), channels=3, classes=10, patch=4
    )
    return Run(method=config)


def settings_of(run: Run, arguments: list[str]) -> dict[str, Any]:
    """The settings that were given as options, by their path, with their values in the run parsed from them."""
    known = options_of(Run, run)
    words = [word.partition("=")[0].removeprefix("--") for word in arguments if word.startswith("--")]
    paths = [positive(word, known).replace("-", "_") for word in words if word not in LOCAL]
    paths = ["sample.solver" if path.startswith("sample.solver") else path for path in paths]
    return {path: reduce(getattr, path.split("."), run) for path in paths}


def folder_for(command: Asked, asked: Asked, place: str, out: Path | None) -> tuple[Path, bool]:
    """The folder of the run, and whether it holds the run of this very command, which goes on there.

    Without --out and --name it is runs/METHOD-DATA, with a number after it where that holds another run. Raises
    UsageError if both are given, or the folder that was named holds another run; ValueError if it is a file.
    """
    if out and asked["name"]:
        raise UsageError(f"--out {out} and --name {asked['name']} are two folders: give one of them")
    named = out or (Path("runs") / asked["name"] if asked["name"] else None)
    check_folder(named or Path("runs"))
    base = named or usual(asked, place)
    for number in count(1):
        path = base if number == 1 else base.with_name(f"{base.name}-{number}")
        folder = RunFolder(path)
        if not path.exists() or (path.is_dir() and not any(path.iterdir())):
            return path, False
        if folder.exists() and folder.record().get("config", {}).get("plan") == command:
            return path, True
        if named is not None:
            raise UsageError(
                f"{path} holds {'the run of another command' if folder.exists() else 'other files'}: choose another "
                f"name with --name, or go on with a run there by `fluvial train {path}`"
            )
    raise AssertionError


def usual(asked: Asked, place: str) -> Path:
    """The folder for the first run of a method on these images."""
    data, start = name_of(config_of(place)), asked["from"]
    method = asked["method"] or network.METHOD
    if start and RunFolder(start).exists():
        method = name_of_method(type(RunFolder(start).run().method))
    return Path("runs") / f"{method}-{data}"


def recorded(asked: Asked, place: str, settings: Mapping[str, Any]) -> Asked:
    """The identity of a command, as run.json keeps it: where the data is, and all options but those of the folder."""
    path = Path(place).expanduser()
    given = {name: value for name, value in asked.items() if value is not None and name != "name"}
    given |= {"settings": {name: str(value) for name, value in settings.items()}} if settings else {}
    return {"data": str(path.resolve()) if path.exists() else place, **given}


def planned(place: str, asked: Asked, settings: Mapping[str, Any], device: str) -> Plan:
    """The plan for these images and options."""
    given = {name: asked[name] for name in (*BUDGETS, "size")}
    given |= {
        "method": asked["method"] or network.METHOD,
        "autoencoder": asked["autoencoder"] or "",
        "start": asked["from"],
    }
    return fluvial.plan(place, settings=settings, device=device, **given)


def reasons(plan: Plan) -> dict[str, str]:
    """The choices of a plan with their reasons, for run.json."""
    return {choice.what: f"{choice.chosen}: {choice.why}" for choice in plan.choices}


def show(plan: Plan, place: str, out: Path, device: str, *, taken: Path | None = None) -> None:
    """Prints the plan: what the data is, what was chosen and why, with the option that changes it.

    `taken` is the usual folder, where another command has a run.
    """
    table = Table.grid(padding=(0, 2))
    for choice in plan.choices:
        table.add_row(choice.what, f"{choice.chosen}: {choice.why}", choice.option)
    table.columns[2].style = "dim"
    also = f", as {taken} has the run of another command" if taken else ""
    print(f"\n{plan.dataset.count:,} images in {place}; the run goes to {out}{also}\n")
    console().print(table)
    before = f", after encoding the images, about {duration(plan.encoding)}" if plan.encoding else ""
    print(
        f"\nabout {duration(plan.seconds + plan.beside)} on {device}, {scaled(plan.memory)}B of memory, "
        f"{scaled(plan.checkpoints)}B of checkpoints{before}\npictures in {RunFolder(out).samples}"
        f"{f', the first at step {plan.run.train.first_sample:,}' if plan.run.train.first_sample else ''}\n"
    )


def lengthened(run: Run, folder: RunFolder, length: Asked) -> Run:
    """The run for more minutes than it has had, or for other epochs in all."""
    if length["minutes"] is not None:
        steps = steps_in(folder, run, length["minutes"])
    elif length["epochs"] is not None:
        steps = steps_of_epochs(run, length["epochs"])
    else:
        steps = run.train.steps
    return replace(run, train=replace(run.train, steps=steps, **_intervals(run, folder, steps)))


def _intervals(run: Run, folder: RunFolder, steps: int) -> dict[str, int]:
    """The intervals of a planned run for more steps, in proportion, but for those that are given now.

    Those of a run of five steps would make a long one draw pictures most of the time.
    """
    if not folder.exists() or "plan" not in folder.record().get("config", {}):
        return {}
    before = folder.run().train
    names = ("validate_every", "save_every", "sample_every")
    same = {name: getattr(before, name) for name in names if getattr(run.train, name) == getattr(before, name)}
    return {name: ceil(each * max(1.0, steps / before.steps)) for name, each in same.items()}
