"""Commands that mend what a check found."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fluvial import recipes
from fluvial.config import Run, differences

FOUND = ("data.class_names", "data.digest", "data.names_given", "autoencoder.shift", "autoencoder.scale")
FOUND += ("autoencoder.hash", "data.cache")  # set by training
MOST = 8  # options in a command: with more of them it starts from the run itself


def option(setting: str) -> str:
    """A setting as the command line names it: --train.ema-decay for train.ema_decay."""
    return f"--{setting.replace('_', '-')}"


def command(text: str, folder: Path | str) -> str:
    """The command of a check, with the folder in the place of RUN."""
    return text.replace("RUN", shlex.quote(str(folder)))


def trained_again(mends: Sequence[Mapping[str, Any]], folder: Path | str, run: Run, recipe: str | None) -> str:
    """The command that trains again with these settings, in another folder; "" without any. The first win.

    It is that of the recipe with the run's own options, or where that would be long or there is no recipe, it starts
    from the weights of the run.
    """
    settings = {key: value for mend in reversed(mends) for key, value in mend.items()}
    if not settings:
        return ""
    start = shlex.quote(str(folder))
    if recipe in recipes.RECIPES:
        own = {key: here for key, (here, _) in differences(run, recipes.get(recipe)).items() if _matters(key, here)}
        whole = {**own, **settings}
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
