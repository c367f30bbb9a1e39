"""YAML as settings by their path, with the number of each line, and values as YAML.

Plain words are read as YAML 1.2 says: 1e-4 is a number, and no, on and 12:30 are texts, which YAML 1.1 reads otherwise.
"""

import math
import re
from typing import Any, NamedTuple

import yaml

TAG = "tag:yaml.org,2002:"
PLAIN = {
    "null": (r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    "bool": (r"^(?:true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    "int": (r"^[-+]?[0-9]+(?:_[0-9]+)*$", list("-+0123456789")),
    "float": (r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$", list("-+.0123456789")),
}
"""By type, the plain words that are of it, and their first letters."""


class Fault(NamedTuple):
    """A mistake in a text, and its line; 0 if it has none."""

    line: int
    text: str


class Settings(NamedTuple):
    """The settings of a text by their path, such as train.steps, whether they are nested or written with dots."""

    values: dict[str, Any]
    """Numbers, texts, truth values, None, and lists of them."""
    lines: dict[str, int]
    """The line of each setting, and of each section."""
    faults: list[Fault]
    """Settings given twice, aliases, and values of other types."""


class _Loader(yaml.SafeLoader):
    """The safe loader, which here only finds the parts of a text."""


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:  # noqa: ANN401
        return True


_Loader.yaml_implicit_resolvers = {}  # none of YAML 1.1
for _kind, (_pattern, _first) in PLAIN.items():  # the dumper keeps those of YAML 1.1: it quotes what either reads
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(TAG + _kind, re.compile(_pattern), _first)
_Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar(f"{TAG}str", text, style=None if text.isprintable() else '"'),
)


def as_yaml(value: Any) -> str:  # noqa: ANN401 - plain JSON
    """A value, or a list of them, as YAML in one line."""
    text = yaml.dump(value, Dumper=_Dumper, default_flow_style=True, width=math.inf, allow_unicode=True)
    return text.removesuffix("...\n").rstrip("\n")


def parse(text: str) -> Settings:
    """The settings of a text. Raises ValueError, with the line, if it is no YAML or no mapping."""
    try:
        node = yaml.compose(text, Loader=_Loader)
        if node is None or node.tag == f"{TAG}null":
            return Settings({}, {}, [])
        if not isinstance(node, yaml.MappingNode):
            raise ValueError("expected settings with a name each, such as train.steps: 2000")
        settings = Settings({}, {}, [])
        _collect(node, "", settings, set())
    except yaml.MarkedYAMLError as error:
        mark, said = error.problem_mark, " ".join(filter(None, (error.context, error.problem)))
        raise ValueError(f"line {mark.line + 1}: no YAML: {said}" if mark else f"no YAML: {said}") from error
    except yaml.YAMLError as error:
        raise ValueError(f"no YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise ValueError("it is nested too deeply for settings") from error
    return settings


def _collect(node: yaml.MappingNode, prefix: str, settings: Settings, seen: set[int]) -> None:
    """Adds what the mapping holds; `seen` are the nodes so far, of which an alias would be one again."""
    names = set()
    for key, value in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            settings.faults.append(Fault(line, "expected the name of a setting, got a list or a mapping"))
            continue
        path = prefix + key.value
        if there := settings.lines[path] if path in names else _line_of_another(path, value, settings):
            settings.faults.append(Fault(line, f"{path} is given twice, in line {there} as well: leave out one"))
            continue
        names.add(path)
        settings.lines.setdefault(path, line)
        if _is_mapping(value) and id(value) not in seen:
            seen.add(id(value))
            _collect(value, f"{path}.", settings, seen)
            continue
        try:
            settings.values[path] = _value(value, seen)
        except ValueError as error:
            settings.faults.append(Fault(line, f"{path}: {error}"))


def _is_mapping(node: yaml.Node) -> bool:
    return isinstance(node, yaml.MappingNode) and node.tag == f"{TAG}map"


def _line_of_another(path: str, value: yaml.Node, settings: Settings) -> int:
    """The line of a setting that leaves no room for this one: the same, one above it, or one below; 0 if none does."""
    for other in settings.values:
        is_below = other.startswith(f"{path}.") and not _is_mapping(value)
        if other == path or is_below or path.startswith(f"{other}."):
            return settings.lines[other]
    return 0


def _value(node: yaml.Node, seen: set[int]) -> Any:  # noqa: ANN401
    """The value of a scalar, or a list. Raises ValueError for anything else."""
    if id(node) in seen:
        raise ValueError("an alias (*) stands for what an anchor (&) names: write out what it stands for")
    seen.add(id(node))
    kind = node.tag.removeprefix(TAG)
    if isinstance(node, yaml.SequenceNode) and kind == "seq":
        return [_value(each, seen) for each in node.value]
    if not isinstance(node, yaml.ScalarNode) or kind not in ("str", *PLAIN):
        raise ValueError(f"must be a number, a text, true, false, null or a list of them, got {node.tag}")
    text = node.value
    try:
        match kind:
            case "str":
                return text
            case "null":
                return None
            case "bool":
                return text.lower() == "true"
            case "int":
                return int(text)
            case _:
                return float(text)
    except ValueError as error:  # of thousands of digits, or a text that a tag calls a number
        raise ValueError(f"must be a number, got {text!r:.40}") from error
