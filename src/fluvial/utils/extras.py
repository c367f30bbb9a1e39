"""Libraries that only some runs need."""

import importlib
from types import ModuleType


def require(library: str, *, extra: str, why: str) -> ModuleType:
    """The imported library. Raises ValueError naming the extra that installs it."""
    try:
        return importlib.import_module(library)
    except ImportError as error:
        raise ValueError(f"{why} needs {library}: pip install 'fluvial[{extra}]' ({error})") from error
