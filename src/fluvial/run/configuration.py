"""Files that settings are read from: YAML with a base and what differs, Python with a function, or a run.json."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_type_hints

from fluvial import methods, recipes
from fluvial.config import Run, WrongSettings, from_json, to_json
from fluvial.run.commented import commented
from fluvial.run.folder import RunFolder, run_of
from fluvial.sampling.settings import SOLVERS, AnySolver
from fluvial.utils.files import read_bytes
from fluvial.utils.places import closest
from fluvial.utils.python_file import import_file
from fluvial.utils.run_format import present_option
from fluvial.utils.yaml_text import Fault, Settings, as_yaml, parse

YAML = (".yaml", ".yml")
ENDINGS = (*YAML, ".py", ".json")
LARGEST = 2**20  # bytes of a file
BASE = "base"
NO_MODEL = "it says no model: give it a line such as base: digits-arflow (a recipe or a run folder), or method.name"
OF_COMMAND = ("out", "device")  # options of `fluvial train` that are no settings of a run
FOUND_OF_AUTOENCODER = ("autoencoder.shift", "autoencoder.scale", "autoencoder.hash")


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """A run as a file has it."""

    run: Run
    file: Path
    text: str
    """The content of the file."""

    @property
    def out(self) -> Path:
        """Folder of the run by default, runs/NAME for NAME.yaml."""
        return Path("runs") / self.file.stem

    @property
    def record(self) -> dict[str, Any]:
        """The file's entry in run.json: its name, hash and text; of a run.json all is in the settings beside it."""
        digest = hashlib.sha256(self.text.encode()).hexdigest()
        text = {} if self.file.suffix.lower() == ".json" else {"text": self.text}
        return {"file": str(self.file), "sha256": digest, **text}


def names_file(name: str) -> bool:
    """True for the name of a file of settings, by its ending."""
    return name not in recipes.RECIPES and Path(name).suffix.lower() in ENDINGS


def read_configuration(file: Path | str) -> Configuration:
    """The settings in a file: YAML, a Python file with a function run() that returns a Run, or the run.json of a run.

    Raises ValueError that names the file, and all that is wrong in it.
    """
    file = Path(file).expanduser()
    if file.suffix.lower() not in ENDINGS:
        raise ValueError(f"{file} has another ending than {', '.join(ENDINGS)}")
    if not file.exists():
        raise ValueError(f"{file} does not exist{closest(str(file))}")
    text = text_of(file)
    kinds = {".py": _of_python, ".json": run_of}
    kind = kinds.get(file.suffix.lower())
    return Configuration(run=_of_yaml(text, str(file)) if kind is None else kind(file), file=file, text=text)


def text_of(file: Path) -> str:
    """The text in a file of settings. Raises ValueError if it is none, or far too long."""
    content = read_bytes(file)
    if len(content) > LARGEST:
        raise ValueError(f"{file} has {len(content):,} bytes, more than any file of settings")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is no text in UTF-8: {error.reason} at byte {error.start}") from error


def configuration_text(run: Run, *, base: str = "") -> str:
    """A YAML file with all settings of a run, or with those that differ from a recipe or run folder.

    `read_configuration` makes the same Run of it. Raises ValueError for a base that is not there.
    """
    if not base:
        return commented(run)
    given = commented(run, changes(run, base_run(base)))
    return f"{BASE}: {as_yaml(base)}\n" + (f"\n{given}" if given else "")


def base_run(name: str) -> Run:
    """The settings of a recipe, or of a run folder but for what training found of its images.

    Raises ValueError, with the closest, if there is none of that name, or both.
    """
    folder = RunFolder(name)
    if name in recipes.RECIPES and folder.exists():
        raise ValueError(f"{name} is a recipe and a run folder here: ./{name} is the folder")
    if Path(name).suffix.lower() in ENDINGS:
        raise ValueError(f"{name} is a file, expected a recipe or a run folder")
    if folder.exists() or (name not in recipes.RECIPES and "/" in name):
        run = folder.run()
        names = run.data.class_names if run.data.names_given else ()
        return replace(run, data=replace(run.data, class_names=names, digest="", names_given=False))
    return recipes.get(name)


def changes(run: Run, base: Run) -> dict[str, Any]:
    """The settings of a run, by their path, that a file with this base has to give."""
    ours, theirs = _flat(to_json(run)), _flat(to_json(base))
    given = _unlike(ours, theirs)
    return {**given, **_unlike(ours, _kept(theirs, given))}


def _unlike(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
    return {path: value for path, value in ours.items() if path not in theirs or theirs[path] != value}


def _kept(base: dict[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a base that stay beside the given ones.

    Another method or solver begins with its own defaults, another data set takes the place of data.path, and of another
    autoencoder shift, scale and hash are found anew.
    """
    dropped: list[str] = []
    for section in ("method", "sample.solver"):
        if (name := f"{section}.name") in given and given[name] != base.get(name):
            dropped += [path for path in base if path.startswith(f"{section}.")]
    if given.get("data.name"):
        dropped.append("data.path")
    if {"autoencoder.name", "autoencoder.statistics"} & given.keys():
        dropped += FOUND_OF_AUTOENCODER
    return {path: value for path, value in base.items() if path not in dropped}


def _of_python(file: Path) -> Run:
    """The Run that the function run() of a Python file returns."""
    module = import_file(file, str(file))
    make = vars(module).get("run")
    if not callable(make):
        raise ValueError(
            f"{file} has no function run() that returns a fluvial.Run (a file that registers methods goes after "
            f"--plugin)"
        )
    try:
        run = make()
    except Exception as error:  # whatever the file's own code raises
        raise ValueError(f"{file}: run() raises {type(error).__name__}: {error}") from error
    if not isinstance(run, Run):
        raise ValueError(f"{file}: run() must return a fluvial.Run, got {run!r:.100}")
    return run


def _of_yaml(text: str, file: str) -> Run:
    """The Run that a YAML text describes. Raises ValueError that names the file and each fault."""
    try:
        settings = parse(text)
    except ValueError as error:
        raise ValueError(f"{file} cannot be used: {error}") from error
    return run_with(settings, file)


def run_with(settings: Settings, file: str) -> Run:
    """The Run of a base and settings by their path. Raises ValueError that names the file and each fault."""
    values, faults, run = dict(settings.values), list(settings.faults), None
    if isinstance(values.get("sample.solver"), str):
        values["sample.solver.name"] = values.pop("sample.solver")
    base, wrong = _base(values, settings)
    faults += wrong
    if not wrong:
        wrong = _not_known(values, base, settings)
        known = {path: value for path, value in values.items() if path not in wrong}
        faults += [fault for fault in wrong.values() if fault is not None]
        try:
            run = from_json(_nested({**_kept(base, known), **known}))
        except WrongSettings as error:  # without those that are not known, others may seem to be wrong
            reasons = [(reason, reason.partition(": ")[0]) for reason in error.reasons]
            faults += [_fault(reason, path, settings) for reason, path in reasons if not faults or path in known]
    if faults or run is None:
        told = [f"line {line}: {text}" if line else text for line, text in sorted(faults)]
        raise ValueError(f"{file} cannot be used: {'; '.join(told)}")
    return run


def _base(values: dict[str, Any], settings: Settings) -> tuple[dict[str, Any], list[Fault]]:
    """The settings of the base, which is taken out of the values, and what is wrong with base or method."""
    name, base = values.pop(BASE, None), dict[str, Any]()
    if BASE in settings.values:
        try:
            if not isinstance(name, str):
                raise ValueError(f"must be the name of a recipe or a run folder, got {name!r:.100}")
            base = _flat(to_json(base_run(name)))
        except ValueError as error:
            return {}, [Fault(settings.lines[BASE], f"{BASE}: {error}")]
    method = values.get("method.name", base.get("method.name"))
    if method is None:
        return {}, [Fault(0, NO_MODEL)]
    try:
        methods.check_known(method)
    except ValueError as error:
        close = get_close_matches(str(method), methods.METHODS, n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        return {}, [Fault(settings.lines.get("method.name", 0), f"{error}{hint}")]
    return base, []


def _not_known(values: dict[str, Any], base: dict[str, Any], settings: Settings) -> dict[str, Fault | None]:
    """The paths that are no settings, each with what is wrong; None for a section that is empty, which it may be."""
    solver = values.get("sample.solver.name", base.get("sample.solver.name", "euler"))
    solver_class = SOLVERS.get(solver) if isinstance(solver, str) else None
    known = known_settings({**base, **values}["method.name"], solver_class)
    sections = {path.rpartition(".")[0] for path in known}
    wrong: dict[str, Fault | None] = {}
    for path, value in values.items():
        if path in sections:
            told = f"must have settings below it, got {value!r:.100}"
            wrong[path] = None if value is None else Fault(settings.lines[path], f"{path}: {told}")
        elif path not in known:
            wrong[path] = Fault(settings.lines[path], f"{path}: {_unknown(path, known)}")
    if values.get("data.name") and values.get("data.path"):
        told = "data.name and data.path are two data sets: give one of them"
        wrong["data.path"] = Fault(settings.lines["data.path"], told)
    return wrong


def known_settings(method: str, solver: type | None) -> list[str]:
    """The paths of all settings of a run with this method and solver."""

    def below(kind: type, prefix: str) -> Iterable[str]:
        hints = get_type_hints(kind)
        for field in fields(kind):
            hint, path = hints[field.name], prefix + field.name
            named = {methods.Config: methods.METHODS[method].Config, AnySolver: solver}
            if hint in named:
                yield f"{path}.name"
            part = named.get(hint, hint)
            if isinstance(part, type) and is_dataclass(part):
                yield from below(part, f"{path}.")
            elif hint not in named:
                yield path

    return list(below(Run, ""))


def _unknown(path: str, known: list[str]) -> str:
    """The reason that a setting is unknown, with the closest that is known."""
    now = present_option(f"--{path}").removeprefix("--").replace("-", "_")
    if now != path and now in known:
        return f"is now {now}"
    if path in OF_COMMAND:
        return f"is no setting of a run: give it on the command line, --{path}"
    section, _, name = path.rpartition(".")
    inside = {each.rpartition(".")[2]: each for each in known if each.rpartition(".")[0] == section}
    near = get_close_matches(path, known, n=1, cutoff=0.8)
    near = near or [each for each in known if each.rpartition(".")[2] == name]
    near = near or [inside[each] for each in get_close_matches(name, inside, n=1)]
    if near:
        return f"there is no such setting; did you mean {' or '.join(near)}?"
    if not (section and inside):
        section, inside = "a run", dict.fromkeys(each.partition(".")[0] for each in known)
    return f"there is no such setting; {section} has {', '.join(inside)}"


def _fault(reason: str, path: str, settings: Settings) -> Fault:
    """A reason against a setting, with its line and, where the types of YAML are behind it, how to write it."""
    path = path if path in settings.lines else path.removesuffix(".name")
    value = settings.values.get(path)
    hint = ""
    if isinstance(value, str) and "must be True or False" in reason:
        hint = "; write true or false"
    elif isinstance(value, str) and " or None, got" in reason and value.lower() == "none":
        hint = "; write null for None"
    elif isinstance(value, str) and " number, " in reason:
        hint = "; write it without quotes" if _is_number(value) else ""
    elif "must be a text" in reason:
        hint = '; write it in quotes, such as "3"'
    return Fault(settings.lines.get(path, 0), f"{reason}{hint}")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The settings of nested JSON by their path."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `_flat`."""
    nested: dict[str, Any] = {}
    for path, value in flat.items():
        *sections, name = path.split(".")
        part = nested
        for section in sections:
            part = part.setdefault(section, {})
        part[name] = value
    return nested
