"""fluvial train PHOTOS: looks at the images, says what it chose, and trains."""

import argparse
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import reduce
from itertools import count
from pathlib import Path
from typing import Any

from rich.table import Table

from fluvial.cli.output import console, scaled
from fluvial.config import Run
from fluvial.run.folder import RunFolder
from fluvial.tools import plan as planning
from fluvial.tools.plan import Plan, network
from fluvial.utils.errors import UsageError

METHOD = "arflow"
BUDGETS = ("minutes", "steps", "epochs")
LOCAL = ("out", "name", "device")  # options that do not change the run
Asked = dict[str, Any]


def asked_of(arguments: list[str]) -> tuple[Asked, list[str]]:
    """The options that a plan is made from, None for those not given, and the other arguments.

    Raises UsageError for a value of another kind, or more than one length of training.
    """
    parser = argparse.ArgumentParser("fluvial train", add_help=False, allow_abbrev=False, exit_on_error=False)
    for name, kind in (("minutes", float), ("steps", int), ("epochs", float)):
        parser.add_argument(f"--{name}", type=kind)
    parser.add_argument("--train.steps", dest="steps", type=int)
    parser.add_argument("--size", choices=tuple(network.SIZES))
    for name in ("method", "name", "from", "autoencoder"):
        parser.add_argument(f"--{name}")
    try:
        found, rest = parser.parse_known_args(arguments)
    except argparse.ArgumentError as error:
        raise UsageError(str(error).replace("argument ", "")) from error
    asked = vars(found)
    if len(given := [name for name in BUDGETS if asked[name] is not None]) > 1:
        raise UsageError(f"give one of --minutes, --steps and --epochs, got {' and '.join(f'--{n}' for n in given)}")
    return asked, rest


def neutral(method: str | None) -> Run:
    """A run of the method by which the other options are parsed."""
    config = network.known(method or METHOD).proportioned(
        depth=2, width=64, size=(32, 32), channels=3, classes=10, patch=4
    )
    return Run(method=config)


def settings_of(run: Run, arguments: list[str]) -> dict[str, Any]:
    """The settings that were given as options, by their path, with their values in the run parsed from them."""
    words = [word.partition("=")[0].removeprefix("--") for word in arguments if word.startswith("--")]
    paths = [word.replace("-", "_") for word in words if word not in LOCAL]
    paths = ["sample.solver" if path.startswith("sample.solver") else path for path in paths]
    return {path: reduce(getattr, path.split("."), run) for path in paths}


def folder_for(asked: Asked, place: str, out: Path | None) -> tuple[Path, bool]:
    """The folder of the run, and whether it holds the run of this very command, which goes on there.

    Without --out and --name it is runs/METHOD-DATA, with a number after it where that holds another run. Raises
    UsageError if the folder that was named holds another run.
    """
    named = out or (Path("runs") / asked["name"] if asked["name"] else None)
    base = named or Path("runs") / f"{asked['method'] or METHOD}-{planning.name_of(planning.config_of(place))}"
    for number in count(1):
        path = base if number == 1 else base.with_name(f"{base.name}-{number}")
        folder = RunFolder(path)
        if not path.exists() or not any(path.iterdir()):
            return path, False
        there = folder.record().get("config", {}).get("plan") if folder.exists() else None
        if there == recorded(asked, place):
            return path, True
        if named is not None:
            raise UsageError(
                f"{path} holds {'the run of another command' if folder.exists() else 'other files'}: choose another "
                f"name with --name, or go on with a run there by `fluvial train {path}`"
            )
    raise AssertionError


def recorded(asked: Asked, place: str) -> Asked:
    """What identifies a command: where the data is, and each option given for the plan."""
    path = Path(place).expanduser()
    given = {name: value for name, value in asked.items() if value is not None and name != "name"}
    return {"data": str(path.resolve()) if path.exists() else place, **given}


def train_on(
    place: str, asked: Asked, settings: Mapping[str, Any], device: str | None, say: Callable[[str], None] = print
) -> Plan:
    """The plan for these images, after a line that it is being made."""
    say(f"looking at {place}, and measuring steps of training")
    chosen = {name: asked[name] for name in (*BUDGETS, "size")}
    chosen |= {"method": asked["method"] or METHOD, "autoencoder": asked["autoencoder"] or "", "start": asked["from"]}
    return planning.plan(place, settings=settings, device=device, **chosen)


def show(plan: Plan, place: str, out: Path, device: str) -> None:
    """Prints the plan: what the data is, what was chosen and why, with the option that changes it."""
    table = Table.grid(padding=(0, 2))
    for choice in plan.choices:
        table.add_row(choice.what, choice.chosen, choice.why, choice.option)
    table.columns[3].style = "dim"
    print(f"\n{plan.dataset.count:,} images in {place}, a run in {out}\n")
    console().print(table)
    minutes = plan.seconds / 60
    print(
        f"\nabout {minutes:.0f} minutes on {device}, {scaled(plan.memory)}B of memory, {scaled(plan.checkpoints)}B of "
        f"checkpoints; pictures in {RunFolder(out).samples}"
    )
    if plan.dataset.unreadable or plan.dataset.left_out:
        print(planning.unreadable(plan.dataset))


def with_budget(run: Run, folder: RunFolder, asked: Asked) -> Run:
    """The run of a folder for more minutes, or for other totals of steps or epochs."""
    if asked["minutes"] is not None:
        steps = planning.steps_in(folder, run, asked["minutes"])
    elif asked["epochs"] is not None:
        steps = planning.steps_of_epochs(run, asked["epochs"])
    else:
        return run
    return replace(run, train=replace(run.train, steps=steps))
