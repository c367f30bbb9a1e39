"""Imports of optional libraries."""

import importlib
from types import ModuleType


def require(library: str, *, extra: str, why: str) -> ModuleType:
    """The imported library. Raises ValueError that names the extra to install if it is missing."""
    try:
        return importlib.import_module(library)
    except ImportError as error:
        raise ValueError(f"{why} needs {library}: pip install 'fluvial[{extra}]' ({error})") from error
