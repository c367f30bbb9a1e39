"""--plugin FILE.py: a file that registers methods and recipes, imported before the command."""

import hashlib
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

from fluvial.utils.errors import UsageError

PLUGIN = "--plugin"


def taken_from(arguments: list[str]) -> tuple[list[str], list[str]]:
    """The files that --plugin names, wherever it stands, and the other arguments."""
    files, rest, given = list[str](), list[str](), iter(arguments)
    for argument in given:
        name, attached, value = argument.partition("=")
        if name != PLUGIN:
            rest.append(argument)
        elif not (value := value if attached else next(given, "")) or value.startswith("-"):
            raise UsageError(f"{PLUGIN} takes a file, as in {PLUGIN} method.py, got {value!r}")
        else:
            files.append(value)
    return files, rest


def load(name: str) -> None:
    """Imports the file, if it was not before. Raises ValueError naming it if it is none of Python, or raises itself."""
    file = Path(name).expanduser().resolve()
    if file.suffix != ".py":
        raise UsageError(f"{PLUGIN} {name}: not a .py file; a package is installed, and found by its entry point")
    if not file.is_file():
        raise UsageError(f"{PLUGIN} {name}: there is no such file")
    module_name = f"fluvial_plugin_{file.stem}_{hashlib.sha256(bytes(file)).hexdigest()[:8]}"
    if module_name in sys.modules:
        return
    spec = spec_from_file_location(module_name, file)
    assert spec is not None and spec.loader is not None
    module = sys.modules[module_name] = module_from_spec(spec)  # where dataclasses look for their module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[module_name]
        raise ValueError(f"{PLUGIN} {name} cannot be imported: {type(error).__name__}: {error}") from error
