"""The settings of a run as YAML, with a comment for each."""

import textwrap
from collections.abc import Collection, Iterator
from dataclasses import Field, fields, is_dataclass
from functools import cache
from typing import Any, Literal, get_args, get_origin, get_type_hints

from docstring_parser.attrdoc import AttributeDocstrings

from fluvial.config import Run, to_json
from fluvial.utils.yaml_text import as_yaml

WIDTH = 100  # of comments


def commented(run: Run, only: Collection[str] | None = None) -> str:
    """The settings of a run, or those at some paths, as YAML, with their docstrings as comments."""
    return "".join(f"{line}\n" for line in _lines(run, to_json(run), "", only)).lstrip("\n")


def _lines(part: Any, values: dict[str, Any], prefix: str, wanted: Collection[str] | None) -> Iterator[str]:  # noqa: ANN401
    """The lines of a section: of each setting a comment, its name and its value; of all, or those that are wanted."""
    indent, about = "  " * prefix.count("."), comments(type(part))
    names = {field.name for field in fields(part)}
    if "name" in values and "name" not in names and (wanted is None or f"{prefix}name" in wanted):  # of method, solver
        yield f"{indent}name: {as_yaml(values['name'])}"
    for name in (field.name for field in fields(part)):
        value, path = getattr(part, name), prefix + name
        if wanted is not None and not any(each == path or each.startswith(f"{path}.") for each in wanted):
            continue
        yield from ([""] if not prefix else [])
        yield from (f"{indent}# {line}" for line in textwrap.wrap(about.get(name, ""), WIDTH))
        if is_dataclass(value) and not fields(value):  # a solver without settings
            yield f"{indent}{name}: {as_yaml(values[name]['name'])}"
        elif is_dataclass(value):
            yield f"{indent}{name}:"
            yield from _lines(value, values[name], f"{path}.", wanted)
        else:
            yield f"{indent}{name}: {as_yaml(values[name])}"


@cache
def comments(kind: type) -> dict[str, str]:
    """By field of a dataclass, its docstring, and the values it may have if they are a few."""
    docs: dict[str, str] = {}
    for each in reversed(kind.__mro__[:-1]):
        docs |= {name: text for name, (text, *_) in AttributeDocstrings().get_attr_docs(each).items()}
    hints = get_type_hints(kind)
    return {field.name: _comment(field, docs.get(field.name, ""), hints[field.name]) for field in fields(kind)}


def _comment(field: Field[Any], doc: str, hint: Any) -> str:  # noqa: ANN401
    choices = [as_yaml(choice) for choice in get_args(hint)] if get_origin(hint) is Literal else []
    return " ".join([*doc.split(), *([f"One of {', '.join(choices)}."] if choices else [])])
