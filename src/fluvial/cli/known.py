"""The options that a command has, and the words that are none of them."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from difflib import get_close_matches
from types import UnionType
from typing import Any, NamedTuple, get_args, get_origin, get_type_hints

from fluvial.cli.short import FLAGS, HELP, PLANNED, SHORT, is_option
from fluvial.flow.solvers import SolverName
from fluvial.sampling.settings import SOLVERS, SolverConfig
from fluvial.utils.errors import UsageError


class Known(NamedTuple):
    """An option of a command."""

    type: Any
    value: Any
    """Its default; MISSING where it has to be given."""
    found: bool = False
    """True for what training finds by itself, which is offered nowhere."""

    @property
    def is_switch(self) -> bool:
        return self.type is bool or (get_origin(self.type) is UnionType and bool in get_args(self.type))


def options_of(kind: type, default: Any = None, prefix: str = "") -> dict[str, Known]:  # noqa: ANN401 - any options
    """The options of a dataclass by name, without dashes, as tyro names them; those of the default's own solver."""
    hints, found = get_type_hints(kind, include_extras=True), dict[str, Known]()
    for field in fields(kind):
        hint, value = hints[field.name], getattr(default, field.name, field.default)
        unnamed = any(getattr(mark, "name", None) == "" for mark in getattr(hint, "__metadata__", ()))
        name = prefix + field.name.replace("_", "-")
        if isinstance(value, SolverConfig):
            found[name] = Known(SolverName, value.name)
        if is_dataclass(value) and not isinstance(value, type):
            found |= options_of(type(value), value, prefix if unnamed else f"{name}.")
        else:
            found[name] = Known(hint, value, bool(field.metadata.get("found")))
    return found


def refuse_unknown(command: str, words: Sequence[str], known: Mapping[str, Known], written: Mapping[str, str]) -> None:
    """Raises UsageError for the first option that the command has not, with the closest that it has."""
    for word in words:
        name = word.partition("=")[0]
        if is_option(word) and name not in HELP and positive(name[2:], known) not in known:
            typed = written.get(name, name)
            raise UsageError(f"unknown option {typed}{_hint(typed[2:], command, known)}")


def refuse_missing(prog: str, words: Sequence[str], known: Mapping[str, Known]) -> None:
    """Raises UsageError for options that have to be given and are not."""
    given = {word.partition("=")[0] for word in words}
    needed = [f"--{name}" for name, option in known.items() if option.value is MISSING]
    if missing := [name for name in needed if name not in given]:
        raise UsageError(f"{prog} needs {' and '.join(missing)}; --help says what they are")


def positive(name: str, known: Collection[str]) -> str:
    """The name of a switch for its negation, train.compile for train.no-compile or no-train.compile."""
    return name if name in known else re.sub(r"(^|\.)no-", r"\1", name.replace("_", "-"), count=1)


def _hint(typed: str, command: str, known: Mapping[str, Known]) -> str:
    """The end of "unknown option --x": what it may stand for."""
    typed = typed.replace("_", "-")
    if typed in {short.name for short in SHORT.get(command, ())}:
        return ": it is for run folders alone"
    of_solver = [name for name, kind in SOLVERS.items() if f"sample.solver.{_setting(kind, typed)}" == typed]
    if of_solver:
        return f": it is a setting of the solver {' and '.join(of_solver)}, chosen with --sample.solver"
    planned = PLANNED if command == "train" else ()
    names = [short.name for short in SHORT.get(command, ()) if short.setting in {*known, *FLAGS, *planned}]
    names += [name for name, option in known.items() if not option.found and name not in names]
    last = {name: name.rpartition(".")[2] for name in names}
    close = [name for name in names if last[name] == typed][:3] or get_close_matches(typed, names, n=1, cutoff=0.7)
    close = close or [name for name in names if last[name] in get_close_matches(typed, last.values(), n=1, cutoff=0.8)]
    told = f"; did you mean {' or '.join(f'--{name}' for name in close[:3])}?" if close else ""
    return f"{told or '.'} --help lists the usual options, --help all the rest"


def _setting(kind: type, typed: str) -> str:
    """The setting of a solver that an option ends with; "" if it has none of that name."""
    name = typed.rpartition(".")[2]
    return name if name.replace("-", "_") in {field.name for field in fields(kind)} else ""


def switches(words: Sequence[str], names: Collection[str]) -> tuple[dict[str, str], list[str]]:
    """The values of these switches, "True", "False" or "None", and the other words.

    A switch is --gif or --no-gif, and was --gif True or --gif False. Raises UsageError for any other value.
    """
    values, rest, index = dict[str, str](), list[str](), 0
    while index < len(words):
        word, index = words[index], index + 1
        typed, attached, value = word.partition("=")
        name = positive(typed[2:].replace("_", "-"), names)
        if not (is_option(word) and name in names):
            rest.append(word)
            continue
        if not attached and index < len(words) and not words[index].startswith("-"):
            attached, value, index = "=", words[index], index + 1
        on = name == typed[2:].replace("_", "-")
        if attached and (not on or value not in ("True", "False", "None")):
            raise UsageError(f"--{name} is a switch: give --{name} or --{negated(name)}, without {value!r}")
        values[name] = value or str(on)
    return values, rest


def negated(name: str) -> str:
    """train.no-compile for train.compile."""
    prefix, dot, last = name.rpartition(".")
    return f"{prefix}{dot}no-{last}"
