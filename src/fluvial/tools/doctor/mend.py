"""Commands that mend what a check found."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fluvial import recipes
from fluvial.config import Run, differences
from fluvial.tools.doctor.check import Check

FOUND = ("data.class_names", "data.digest", "data.names_given", "autoencoder.shift", "autoencoder.scale")
FOUND += ("autoencoder.hash", "data.cache")  # set by training
MOST = 8  # options in a command: with more of them it starts from the run itself


def option(setting: str) -> str:
    """A setting as the command line names it: --train.ema-decay for train.ema_decay."""
    return f"--{setting.replace('_', '-')}"


def command(check: Check, folder: Path | str, run: Run, recipe: str | None) -> str:
    """The command that mends what a check found; "" if no command can.

    Settings are mended by training again, in another folder: by the recipe with the run's own options, or where that
    would be a long command or there is no recipe, from the weights of the run.
    """
    if check.command:
        return check.command.replace("RUN", shlex.quote(str(folder)))
    if not check.settings:
        return ""
    start, settings = shlex.quote(str(folder)), check.settings
    if recipe in recipes.RECIPES:
        changed = {key: a for key, (a, _) in differences(run, recipes.get(recipe)).items() if _matters(key, a)}
        whole = {**changed, **check.settings}
        if len(whole) <= MOST and all(map(_is_simple, whole.values())):
            start, settings = recipe, whole
    return " ".join(["fluvial train", start, *_options(settings), "--out", shlex.quote(str(_beside(Path(folder))))])


def _matters(key: str, value: Any) -> bool:  # noqa: ANN401
    return key not in FOUND and not key.startswith("sample.") and (key, value) != ("data.name", "")


def _is_simple(value: Any) -> bool:  # noqa: ANN401
    """True for a value that is written as one word, or several."""
    parts = value if isinstance(value, tuple) else (value,)
    return bool(parts) and all(isinstance(part, bool | int | float | str) for part in parts)


def _options(settings: Mapping[str, Any]) -> list[str]:
    words = []
    for key, value in settings.items():
        parts = value if isinstance(value, tuple) else (value,)
        words += [option(key), *(f"{p:g}" if isinstance(p, float) else shlex.quote(str(p)) for p in parts)]
    return words


def _beside(folder: Path) -> Path:
    """A folder beside that is not there yet: RUN-2, or the next."""
    number = 2
    while (there := folder.with_name(f"{folder.name}-{number}")).exists():
        number += 1
    return there
