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
    options: Any = {"args": arguments, "prog": prog, "description": description, "config": config}
    try:
        if default is None:  # some options must be given
            return tyro.cli(kind, **options)
        return _steps_for_every_scale(tyro.cli(kind, default=_told_apart(default), **options), default)
    except ValueError as error:  # a __post_init__ that refuses a value
        raise UsageError(str(error)) from error


class _Default(int):
    """A default that can be told from the same number when it is given."""


def _told_apart(value: Any) -> Any:  # noqa: ANN401 - options of any command
    """These defaults, sample.steps such that `_steps_for_every_scale` knows whether it is given."""
    if hasattr(value, "run"):
        return replace(value, run=_told_apart(value.run))
    if not hasattr(value, "sample"):
        return value
    return replace(value, sample=replace(value.sample, steps=_Default(value.sample.steps)))


def _steps_for_every_scale(parsed: Any, default: Any) -> Any:  # noqa: ANN401 - options of any command
    """The options; without the run's own steps of each scale where sample.steps alone is given in their place."""
    if hasattr(parsed, "run"):
        return replace(parsed, run=_steps_for_every_scale(parsed.run, default.run))
    if not hasattr(parsed, "sample"):
        return parsed
    sample = parsed.sample
    given, alone = type(sample.steps) is not _Default, sample.scale_steps == default.sample.scale_steps
    steps = {"steps": int(sample.steps), "scale_steps": () if given and alone else sample.scale_steps}
    return replace(parsed, sample=replace(sample, **steps))


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
