"""Libraries that only some runs need."""

import importlib
import re
from types import ModuleType


def require(library: str, *, extra: str, why: str) -> ModuleType:
    """The imported library. Raises ValueError naming the extra that installs it."""
    try:
        return importlib.import_module(library)
    except ImportError as error:
        raise ValueError(f"{why} needs {library}: pip install 'fluvial[{extra}]' ({error})") from error


def said(error: BaseException) -> str:
    """What a library's error says, in one line, without PyTorch's advice to unpickle a file that it refuses."""
    sentences = re.split(r"(?<=[.!?])\s+|\s*\n\s*", str(error).strip())
    unsafe = re.compile(r"weights_only|torch\.load|trusted|arbitrary code", re.IGNORECASE)
    return " ".join(text for text in sentences if text and not unsafe.search(text)) or type(error).__name__
