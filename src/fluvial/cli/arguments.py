"""Shared by the commands: options, positional arguments, and the device."""

from collections.abc import Callable
from dataclasses import Field, dataclass, fields, is_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin

import torch
import tyro
from tyro.constructors import (
    ConstructorRegistry,
    PrimitiveConstructorSpec,
    PrimitiveTypeInfo,
    StructConstructorSpec,
    StructFieldSpec,
    StructTypeInfo,
)

from fluvial import methods
from fluvial.config import Run
from fluvial.flow.solvers import SolverName
from fluvial.run.folder import RunFolder
from fluvial.sampling.settings import SOLVERS, SampleConfig
from fluvial.utils.checks import misfit
from fluvial.utils.errors import UsageError
from fluvial.utils.run_format import present_option

T = TypeVar("T")
HELP = ("-h", "--help")


def parse(
    kind: type[T],
    default: T | None,
    arguments: list[str],
    prog: str,
    description: str | None,
    run: Run | None = None,
) -> T:
    """The options of a command. What has no effect on the run that they are for, or hold, is not in their help.

    Raises UsageError for values that are refused; SystemExit, after printing, for unknown options and for --help.
    """
    arguments = [present_option(word) for word in arguments]
    refuse_repeated(arguments)
    config = (tyro.conf.AvoidSubcommands, tyro.conf.FlagConversionOff)
    options: Any = {"args": arguments, "prog": prog, "description": description, "config": config}
    try:
        if default is None:  # some options must be given
            return tyro.cli(kind, registry=_registry(lambda field: False), **options)
        default = _in_place(default, arguments)
        run = getattr(default, "run", run and replace(run, sample=getattr(default, "sample", run.sample)))
        unmet = set() if run is None else run.unmet
        asked_for_help = bool(set(arguments) & set(HELP))  # what tyro hides it does not parse either

        def hidden(field: Field[Any]) -> bool:
            return asked_for_help and (field.metadata.get("found", False) or field.metadata.get("needs") in unmet)

        return tyro.cli(kind, default=default, registry=_registry(hidden), **options)
    except ValueError as error:  # a __post_init__ that refuses a value
        raise UsageError(str(error)) from error


@dataclass(frozen=True, kw_only=True)
class _Sample:
    solver: str | None = None
    steps: tuple[str, ...] | None = None
    grid: str | None = None
    shift: str | None = None


@dataclass(frozen=True, kw_only=True)
class _Data:
    name: str | None = None
    path: str | None = None


@dataclass(frozen=True, kw_only=True)
class _Given:
    """Options that decide on others: None where they are not given."""

    sample: _Sample = _Sample()
    data: _Data = _Data()


def _in_place(default: Any, arguments: list[str]) -> Any:  # noqa: ANN401 - options of any command
    """The defaults with what an option stands in place of: the solver of that name, and data.name of data.path."""
    given, _ = tyro.cli(_Given, args=arguments, return_unknown_args=True, add_help=False)
    if hasattr(default, "run"):
        return replace(default, run=_replaced(default.run, given))
    return _replaced(default, given)


def _replaced(default: Any, given: _Given) -> Any:  # noqa: ANN401
    sample, data = given.sample, given.data
    if hasattr(default, "sample"):
        if sample.solver in SOLVERS and sample.solver != default.sample.solver_settings.name:
            default = replace(default, sample=replace(default.sample, solver=sample.solver))
        solver, chosen = default.sample.solver_settings, ("steps", "grid", "shift")
        if solver.is_adaptive and (wrong := [name for name in chosen if getattr(sample, name) is not None]):
            listed = ", ".join(f"--sample.{name}" for name in wrong)
            raise UsageError(f"the solver {solver.name} chooses its own steps: leave out {listed}")
    if hasattr(default, "data") and data.name is not None:
        if data.path is not None:
            raise UsageError(f"--data.name {data.name} and --data.path {data.path} are two data sets: give one of them")
        default = replace(default, data=replace(default.data, path=""))
    return default


RECORDS = ("run.json", "log.jsonl", "samples.json", "manifest.json", "plan.json", "checkpoint.json")


def check_output(option: str, file: Path | None, ending: str) -> None:
    """Raises ValueError for a file of another ending, or one that would replace a record of a run or of samples."""
    if file is None:
        return
    if file.suffix != ending:
        raise ValueError(f"{option} writes a {ending} file, got {file}")
    if file.name in RECORDS or (file.parent / "checkpoint.json").exists():
        raise ValueError(f"{option} {file} would take a place among the files of a run; choose another name")


def refuse_repeated(arguments: list[str]) -> None:
    """Raises UsageError for an option given twice, in whatever spelling: tyro lets the last win, and has no hook.

    What begins with -- and a letter is an option: as a value tyro takes it only where it is attached, --name=--value.
    """
    words = [word for word in arguments if word[:2] == "--" and word[2:3].isalpha() and word not in HELP]
    names = [word.partition("=")[0].replace("_", "-") for word in words]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(
            f"given more than once: {', '.join(repeated)}; give each option once (several values go after one name, "
            f"as in --classes 3 7)"
        )


def _registry(hidden: Callable[[Field[Any]], bool]) -> ConstructorRegistry:
    """tyro's rules for numbers, paths and solvers, and for the settings that are left out."""
    registry = ConstructorRegistry()
    registry.primitive_rule(_numbers_and_paths)
    registry.struct_rule(partial(_options, hidden=hidden))
    return registry


ASKED = "asked"  # a marker: the rules of tyro are asked for the same type


def _options(info: StructTypeInfo, *, hidden: Callable[[Field[Any]], bool]) -> StructConstructorSpec | None:
    """The options of a dataclass.

    A solver is chosen by its name, beside the settings that it has: --sample.solver dopri5 --sample.solver.atol 1e-3.
    """
    if info.type is methods.Config:  # the settings of whatever method the default is of
        info = replace(info, type=type(info.default))
    if ASKED in info.markers or not is_dataclass(info.type):
        return None
    spec = ConstructorRegistry.get_struct_spec(replace(info, markers=(*info.markers, ASKED)))
    assert isinstance(spec, StructConstructorSpec)
    left_out = {field.name for field in fields(info.type) if hidden(field)}
    options = tuple(
        replace(field, type=Annotated[field.type, tyro.conf.Suppress]) if field.name in left_out else field
        for field in spec.fields
    )
    if info.type is not SampleConfig:
        return replace(spec, fields=options)
    parts = [_of_solver(field) if field.name == "solver" else [field] for field in options]
    return StructConstructorSpec(instantiate=_sampling, fields=tuple(field for part in parts for field in part))


def _of_solver(field: StructFieldSpec) -> list[StructFieldSpec]:
    """The options that choose a solver and set what only it has."""
    solver: Any = field.default
    chosen = replace(field, type=SolverName, default=solver.name)
    own: Any = Annotated[type(solver), tyro.conf.arg(name="solver")]
    return [chosen, *([StructFieldSpec("of_solver", own, solver)] if fields(solver) else [])]


def _sampling(*, solver: str, of_solver: Any = None, **rest: Any) -> SampleConfig:  # noqa: ANN401
    return SampleConfig(solver=of_solver or SOLVERS[solver](), **rest)


def _numbers_and_paths(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """A number or a path, several numbers, one or several, or None: as `misfit` wants them, and no empty path.

    "" is what a shell makes of a variable that is not set, and Python takes it for the present folder.
    """
    kind, parts = info.type, get_args(info.type)
    one = next((known for known in (int, float, Path) if known is kind or known in parts), None)
    if one is None:
        return None
    several = get_origin(kind) is tuple
    one_or_several = any(get_origin(part) is tuple for part in parts)
    name = ("{None}|" if type(None) in parts else "") + ("PATH" if one is Path else one.__name__.upper())
    count = "*" if one_or_several else 1 if not several else "*" if Ellipsis in parts else len(parts)

    def read(words: list[str]) -> Any:  # noqa: ANN401
        if one is Path and "" in words:
            raise ValueError("must be a path, got ''")
        values = [None if word == "None" and type(None) in parts else one(word) for word in words]
        value = tuple(values) if several or (one_or_several and len(values) != 1) else values[0]
        if wrong := misfit(value, kind):
            raise ValueError(wrong)
        return value

    return PrimitiveConstructorSpec(
        nargs=count,
        metavar=f"[{name} [{name} ...]]" if count == "*" else " ".join([name] * count),
        instance_from_str=read,
        is_instance=lambda value: not misfit(value, kind),
        str_from_instance=lambda value: [str(each) for each in (value if isinstance(value, tuple) else [value])],
    )


def positional(
    arguments: list[str], command: str, what: str, meaning: str, *, has_own_help: bool = False
) -> tuple[str, list[str]]:
    """The first argument and the rest. `has_own_help`: the options do not depend on it, so their help needs none."""
    asked_for_help = bool(arguments) and arguments[0] in HELP
    if has_own_help and asked_for_help:
        return what, arguments
    if not arguments or arguments[0].startswith("-"):
        text = f"usage: fluvial {command} {what} [options]\n\n{what} is {meaning}"
        if asked_for_help:
            print(text)
            raise SystemExit(0)
        raise UsageError(text)
    if not arguments[0]:
        raise UsageError(f"fluvial {command}: {what} is '' (of a variable that is not set?); it is {meaning}")
    return arguments[0], arguments[1:]


def several(arguments: list[str], command: str, what: str, meaning: str) -> tuple[list[str], list[str]]:
    """The arguments before the first option, at least one, and the rest; for commands with a help of their own."""
    first, rest = positional(arguments, command, what, meaning, has_own_help=True)
    count = next((i for i, argument in enumerate(rest) if argument.startswith("-")), len(rest))
    return [first, *rest[:count]], rest[count:]


def nothing_more(arguments: list[str], command: str, about: str, *, what: str = "arguments") -> None:
    """For a command without options: prints its help if that is asked for. Raises UsageError for anything else."""
    if set(arguments) & set(HELP):
        print(f"usage: fluvial {command}\n\n{about}")
        raise SystemExit(0)
    if arguments:
        raise UsageError(f"fluvial {command} takes no {what}, got {' '.join(arguments)}")


def device_of(name: str) -> str | None:
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: this machine, or this build of PyTorch, has no CUDA; use --device cpu")
    return None if name == "auto" else name


def of_a_run(kind: type[T], arguments: list[str], command: str, description: str) -> tuple[Path, Run, T]:
    """The run folder that a command names, its run, and the options, whose sampling fits the run's method."""
    meaning = "a folder that `fluvial train` or `fluvial import` wrote, such as runs/digits-arflow"
    name, rest = positional(arguments, command, "RUN", meaning)
    run = RunFolder(name).run()
    default: Any = kind
    options: Any = parse(kind, default(sample=run.sample), rest, f"fluvial {command} RUN", description, run)
    try:
        run.sampled_with(options.sample)
    except ValueError as error:
        raise UsageError(str(error)) from error
    return Path(name), run, options
