"""Python files that a user names, imported as modules."""

import hashlib
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

GIVEN = "FLUVIAL_PLUGINS"
"""The environment variable by which processes that a command begins know the files that it was given."""


@contextmanager
def given_to_children(files: Sequence[Path]) -> Iterator[None]:
    """Inside the block, processes that are begun find these files, besides those that this process was given."""
    before = os.environ.get(GIVEN)
    os.environ[GIVEN] = os.pathsep.join(filter(None, [before, *map(str, files)]))
    try:
        yield
    finally:
        if before is None:
            del os.environ[GIVEN]
        else:
            os.environ[GIVEN] = before


def import_those_of_parent() -> None:
    """Imports the files that the command was given which began this process. Raises as `import_file` does."""
    for name in filter(None, os.environ.get(GIVEN, "").split(os.pathsep)):
        import_file(Path(name), f"--plugin {name}")


def import_file(file: Path, called: str) -> ModuleType:
    """The module of a Python file, imported once for each content that it has.

    Raises ValueError, which starts with `called`, if it cannot be imported.
    """
    file = file.resolve()
    key = hashlib.sha256(bytes(file) + b"\0" + file.read_bytes()).hexdigest()[:8]
    name = f"fluvial_plugin_{file.stem}_{key}"
    if name in sys.modules:
        return sys.modules[name]
    spec = spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = module_from_spec(spec)  # where dataclasses look for their module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise ValueError(f"{called} cannot be imported: {type(error).__name__}: {error}") from error
    return module
