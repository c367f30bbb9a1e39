"""Shared by the commands: options, positional arguments, and the device."""

import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass, replace
from functools import partial
from io import StringIO
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
from fluvial.cli.known import Known, negated, options_of, refuse_missing, refuse_unknown, switches
from fluvial.cli.short import HELP, SHORT, is_option, lengthened, long_name, short_help
from fluvial.config import Run
from fluvial.data.labels import ids_of_words
from fluvial.flow.guidance import Guidance
from fluvial.flow.solvers import SolverName
from fluvial.run.folder import RunFolder
from fluvial.run.load import within
from fluvial.sampling.settings import SOLVERS, SampleConfig
from fluvial.utils import devices
from fluvial.utils.checks import misfit
from fluvial.utils.errors import UsageError

T = TypeVar("T")
Device = Annotated[str, tyro.conf.arg(metavar="DEVICE")]
"""Where to compute, as `device_of` takes it."""
WIDE = "100000"  # columns, for messages of tyro that are not wrapped


def parse(
    kind: type[T],
    default: T | None,
    arguments: list[str],
    prog: str,
    description: str | None,
    run: Run | None = None,
) -> T:
    """The options of a command. What has no effect on the run that they are for, or hold, is not in their help.

    Short names, former names and switches are put in the words that tyro takes. Raises UsageError for what is refused,
    with options named as they were written; SystemExit after printing the help.
    """
    _, command, what = (*prog.split(" ", 2), "", "", "")[:3]
    refuse_repeated(arguments, command)
    words, written = lengthened(command, arguments)
    asked = set(words) & set(HELP)
    with plain_errors(written, wide=not asked):
        if default is not None:
            default = _in_place(default, words)
            run = getattr(default, "run", run and replace(run, sample=getattr(default, "sample", run.sample)))
        known = options_of(kind, default)
        refuse_unknown(command, words, known, written)
        if asked and "--help-all" not in asked and command in SHORT:
            about = [text for text in (description or "").split("\n\n") if not text.startswith("--")]  # of switches
            print(short_help(command, what, about=about, defaults=_shown(known)))
            raise SystemExit(0)
        if not asked:
            refuse_missing(prog, words, known)
        words = ["--help"] if asked else _for_tyro(words, known)
        unmet = set() if run is None else run.unmet

        def hidden(field: Field[Any]) -> bool:  # what tyro hides it does not parse either
            return bool(asked) and (field.metadata.get("found", False) or field.metadata.get("needs") in unmet)

        options: Any = {} if default is None else {"default": default}
        options |= {"args": words, "prog": prog, "description": description}
        return tyro.cli(kind, config=(tyro.conf.AvoidSubcommands,), registry=_registry(hidden), **options)


def _for_tyro(words: list[str], known: Mapping[str, Known]) -> list[str]:
    """The words with switches as tyro takes them."""
    values, rest = switches(words, {name for name, option in known.items() if option.is_switch})
    for name, value in values.items():
        plain = known[name].type is bool and value != "None"
        rest += [f"--{name if value == 'True' else negated(name)}"] if plain else [f"--{name}", value]
    return rest


def _shown(known: Mapping[str, Known]) -> dict[str, str]:
    """The defaults that a help shows, by option."""
    shown = {name: option.value for name, option in known.items()}
    shown["data.path"] = shown.get("data.path") or shown.get("data.name", "")
    return {
        name: " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
        for name, value in shown.items()
        if not (isinstance(value, bool) or value in (None, "", (), MISSING))
    }


@contextmanager
def plain_errors(written: Mapping[str, str], *, wide: bool = True) -> Iterator[None]:
    """Turns errors of options into a UsageError of one line that names them as they were `written`.

    `wide` keeps tyro from wrapping them to the width of the terminal.
    """
    said, columns = StringIO(), os.environ.get("COLUMNS")
    try:
        if wide:
            os.environ["COLUMNS"] = WIDE
        with redirect_stderr(said):
            yield
    except SystemExit as stop:
        if not stop.code:  # after the help
            raise
        raise UsageError(_as_written(_message(said.getvalue()), written)) from None
    except ValueError as error:  # a __post_init__ that refuses a value
        raise UsageError(_as_written(str(error), written)) from error
    finally:
        if wide and columns is None:
            os.environ.pop("COLUMNS", None)
        elif wide:
            os.environ["COLUMNS"] = columns or ""


def _message(box: str) -> str:
    """The message in a box that tyro has printed, without its frame, the names of classes, and the help it adds."""
    title, *lines = (line.strip(" │") for line in re.sub(r"\x1b\[[0-9;]*m", "", box).strip().splitlines())
    if not title.startswith("╭"):  # a box without lines around it: where the output is not UTF-8
        lines = lines[1:]
    end = next((i for i, line in enumerate(lines) if line and not line.strip("-─╰╯")), len(lines))
    text = " ".join(lines[:end]) or title
    text = re.sub(r"^Unrecognized options: (.*)", r"no option takes \1", text)
    return re.sub(r"^Error parsing (?:(--[^ ]*: )|[^ ]*: )", lambda found: found[1] or "", text)


def _as_written(text: str, written: Mapping[str, str]) -> str:
    """The text with each option under the name that it was given by: --steps for --train.steps or train.steps."""
    if of_one := re.fullmatch(r"must be ([^:]*): \{'(\w+)': ([^{}]*)\}", text):
        names = [name for long, name in written.items() if re.split(r"[.]|--", long)[-1] == of_one[2].replace("_", "-")]
        if len(names) == 1:
            return f"{names[0]} must be {of_one[1]}, got {of_one[3]}"
    for long, name in written.items():
        if name != long:
            setting = re.escape(long[2:]).replace(r"\-", "[-_]")
            text = re.sub(rf"(?<![\w.-])(--)?{setting}(?![\w-]|\.\w)", name, text)
    return text


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
class _Weight:
    weight: str | None = None
    scale_weights: tuple[str, ...] | None = None

    @property
    def is_off(self) -> bool:
        return {self.weight, *(self.scale_weights or ())} <= {None, "1", "1.0"}


@dataclass(frozen=True, kw_only=True)
class _Train:
    guidance: _Weight = _Weight()


@dataclass(frozen=True, kw_only=True)
class _Given:
    """Options that decide on others: None where they are not given."""

    sample: _Sample = _Sample()
    data: _Data = _Data()
    train: _Train = _Train()


def _in_place(default: Any, arguments: list[str]) -> Any:  # noqa: ANN401 - options of any command
    """The defaults with what an option stands in place of: the solver of that name, data.name of data.path, and learned
    guidance of guidance in sampling."""
    given, _ = tyro.cli(_Given, args=arguments, return_unknown_args=True, add_help=False)
    if hasattr(default, "run"):
        return replace(default, run=_replaced(default.run, given))
    return _replaced(default, given)


def _replaced(default: Any, given: _Given) -> Any:  # noqa: ANN401
    sample, data = given.sample, given.data
    if hasattr(default, "train") and not given.train.guidance.is_off:
        default = replace(default, sample=replace(default.sample, guidance=Guidance()))
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


def refuse_repeated(arguments: list[str], command: str = "") -> None:
    """Raises UsageError for an option given twice, in whatever spelling: tyro lets the last win, and has no hook."""
    given = dict[str, list[str]]()
    for word in arguments:
        name = word.partition("=")[0].replace("_", "-")
        if is_option(word) and name not in HELP:
            given.setdefault(re.sub(r"(^|\.)no-", r"\1", long_name(command, name[2:])), []).append(name)
    if repeated := sorted(" and ".join(sorted(set(names))) for names in given.values() if len(names) > 1):
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
        replace(field, type=Annotated[field.type, tyro.conf.Suppress] if field.name in left_out else field.type)
        for field in map(_unwrapped, spec.fields)
    )
    if info.type is not SampleConfig:
        return replace(spec, fields=options)
    parts = [_of_solver(field) if field.name == "solver" else [field] for field in options]
    return StructConstructorSpec(instantiate=_sampling, fields=tuple(field for part in parts for field in part))


def _unwrapped(field: StructFieldSpec) -> StructFieldSpec:
    """The option, its help without the line breaks of the source, since the help has another width."""
    text = field.helptext

    def on_one_line() -> str:
        return " ".join(((text() if callable(text) else text) or "").split())

    return replace(field, helptext=on_one_line)


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
        try:
            values = [None if word == "None" and type(None) in parts else one(word) for word in words]
        except ValueError as error:
            kind_of = "a whole number" if one is int else "a number"
            raise ValueError(f"must be {kind_of}, got {' '.join(words)!r:.100}") from error
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
    arguments: list[str], command: str, what: str, meaning: str, *, has_own_help: bool = False, more: bool = False
) -> tuple[str, list[str]]:
    """The first argument and the rest, which are options unless `more` can follow.

    `has_own_help`: the options do not depend on the argument, so their help needs none.
    """
    asked_for_help = bool(arguments) and arguments[0] in HELP
    if has_own_help and asked_for_help:
        return what, arguments
    if not arguments or arguments[0].startswith("-"):
        first = f"{what} comes before the options: " if arguments and not asked_for_help else ""
        text = f"{first}usage: fluvial {command} {what} [options]\n\n{what} is {meaning}"
        if asked_for_help:
            print(text)
            raise SystemExit(0)
        raise UsageError(text)
    if not arguments[0]:
        raise UsageError(f"fluvial {command}: {what} is '' (of a variable that is not set?); it is {meaning}")
    if not more and arguments[1:] and not arguments[1].startswith("-"):
        raise UsageError(f"fluvial {command} takes one {what}, got {arguments[0]} and {arguments[1]}")
    return arguments[0], arguments[1:]


def several(arguments: list[str], command: str, what: str, meaning: str) -> tuple[list[str], list[str]]:
    """The arguments before the first option, at least one, and the rest; for commands with a help of their own."""
    first, rest = positional(arguments, command, what, meaning, has_own_help=True, more=True)
    count = next((i for i, argument in enumerate(rest) if argument.startswith("-")), len(rest))
    return [first, *rest[:count]], rest[count:]


def nothing_more(arguments: list[str], command: str, about: str, *, what: str = "arguments") -> None:
    """For a command without options: prints its help if that is asked for. Raises UsageError for anything else."""
    if set(arguments) & set(HELP):
        print(f"usage: fluvial {command}\n\n{about}")
        raise SystemExit(0)
    if arguments:
        raise UsageError(f"fluvial {command} takes no {what}, got {' '.join(arguments)}")


def device_of(name: str) -> torch.device:
    """The device that --device names. Raises ValueError for one that is unknown or not here."""
    return devices.device_of(None if name == "auto" else name)


def device_of_rank(name: str) -> torch.device:
    """The device that --device names; for cuda under torchrun, the GPU of this process. Raises as `device_of`."""
    device = device_of(name)
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if str(device) == "cuda" else device


def of_a_run(
    kind: type[T], arguments: list[str], command: str, description: str, *, what: str = "RUN"
) -> tuple[Path, Run, T]:
    """The run folder that a command names, its run, and the options, whose sampling fits the run's method.

    `what` is what the command takes, in its usage; the last of it is the run.
    """
    meaning = "a folder that `fluvial train` or `fluvial import` wrote, such as runs/digits-arflow"
    default: Any = kind
    if arguments[:1] == ["--help-all"]:
        parse(kind, default(sample=SampleConfig()), arguments, f"fluvial {command} {what}", description)
    name, rest = positional(arguments, f"{command} {what}".removesuffix(" RUN"), "RUN", meaning)
    run = RunFolder(name).run()
    options: Any = parse(kind, default(sample=run.sample), rest, f"fluvial {command} {what}", description, run)
    if not getattr(options, "guide", ""):  # guidance by another run needs neither classes nor a null branch
        with plain_errors(lengthened(command, rest)[1]):
            run.sampled_with(options.sample)
    return Path(name), run, options


def spent(run: Run, settings: SampleConfig, nfe: int) -> SampleConfig:
    """The settings for --nfe. Raises UsageError if there are --steps too, or it is too few."""
    if settings.steps != run.sample.steps:
        raise UsageError("give --steps or --nfe, got both")
    try:
        return within(run, settings, nfe)
    except ValueError as error:
        raise UsageError(re.sub(r"^nfe\b", "--nfe", str(error))) from error


def class_ids_of(words: tuple[str, ...], run: Run) -> tuple[int, ...]:
    """The ids of classes given by name, or by number: of the class that is called so, if all are called by numbers."""
    try:
        return ids_of_words(words, run.data.class_names, run.method.classes)
    except ValueError as error:
        raise UsageError(f"--{error}") from error
