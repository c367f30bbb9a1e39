"""What the commands share: parsing options, positional arguments, and the device."""

from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
import tyro

from fluvial import experiment
from fluvial.config import Run

T = TypeVar("T")


class UsageError(ValueError):
    """The command line is wrong: exit code 2."""


def parse(kind: type[T], default: T | None, arguments: list[str], prog: str, description: str | None) -> T:
    config = (tyro.conf.AvoidSubcommands, tyro.conf.FlagConversionOff)
    default = _steps_for_every_scale(default, arguments)
    try:
        if default is None:  # some options must be given
            return tyro.cli(kind, args=arguments, prog=prog, description=description, config=config)
        return tyro.cli(kind, default=default, args=arguments, prog=prog, description=description, config=config)
    except ValueError as error:  # a __post_init__ that refuses a value
        raise UsageError(str(error)) from error


def _steps_for_every_scale(default: Any, arguments: list[str]) -> Any:  # noqa: ANN401 - options of any command
    """Without the run's own steps of each scale, in place of which --sample.steps would be, if that one is given."""
    given = {word.partition("=")[0].replace("_", "-") for word in arguments}
    if "--sample.steps" not in given or "--sample.scale-steps" in given:
        return default
    if hasattr(default, "run"):
        return replace(default, run=_steps_for_every_scale(default.run, arguments))
    return replace(default, sample=replace(default.sample, scale_steps=())) if hasattr(default, "sample") else default


def positional(
    arguments: list[str], command: str, what: str, meaning: str, *, has_own_help: bool = False
) -> tuple[str, list[str]]:
    """The first argument and the rest. `has_own_help`: the options do not depend on it, so their help needs none."""
    if has_own_help and arguments[:1] in (["-h"], ["--help"]):
        return what, arguments
    if not arguments or arguments[0].startswith("-"):
        asked_for_help = arguments[:1] in (["-h"], ["--help"])
        text = f"usage: fluvial {command} {what} [options]\n\n{what} is {meaning}"
        if asked_for_help:
            print(text)
            raise SystemExit(0)
        raise UsageError(text)
    return arguments[0], arguments[1:]


def device_of(name: str) -> str | None:
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: this machine, or this build of PyTorch, has no CUDA; use --device cpu")
    return None if name == "auto" else name


def of_a_run(kind: type[T], arguments: list[str], command: str, description: str) -> tuple[Path, Run, T]:
    """The run folder that a command names, its run, and the options, whose sampling fits the run's method."""
    meaning = "a folder that `fluvial train` or `fluvial import` wrote, such as runs/digits-arflow"
    name, rest = positional(arguments, command, "RUN", meaning)
    run = experiment.read_run(name)
    default: Any = kind
    options: Any = parse(kind, default(sample=run.sample), rest, f"fluvial {command} RUN", description)
    try:
        run.sampled_with(options.sample)
    except ValueError as error:
        raise UsageError(str(error)) from error
    return Path(name), run, options
