"""--plugin FILE.py: a file that registers methods and recipes, imported before the command."""

from pathlib import Path

from fluvial.utils.errors import UsageError
from fluvial.utils.python_file import import_file

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
    import_file(file, f"{PLUGIN} {name}")
