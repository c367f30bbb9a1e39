"""--plugin FILE.py: a file that registers methods and recipes, imported before the command."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from fluvial.utils.errors import UsageError
from fluvial.utils.python_file import given_to_children, import_file, import_those_of_parent

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


@contextmanager
def loaded(names: Sequence[str]) -> Iterator[None]:
    """Imports these files, and those of the command that began this one; processes begun in the block do so too."""
    files = [_found(name) for name in names]
    import_those_of_parent()
    for file, name in zip(files, names, strict=True):
        import_file(file, f"{PLUGIN} {name}")
    with given_to_children(files):
        yield


def _found(name: str) -> Path:
    """The path of a file of Python. Raises UsageError naming it if it is none, or is not there."""
    file = Path(name).expanduser().resolve()
    if file.suffix != ".py":
        raise UsageError(f"{PLUGIN} {name}: not a .py file; a package is installed, and found by its entry point")
    if not file.is_file():
        raise UsageError(f"{PLUGIN} {name}: there is no such file")
    return file
