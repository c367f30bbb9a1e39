"""Places that a user names: paths, with suggestions for wrong ones, and repositories of the Hugging Face hub."""

import difflib
import re
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

HUB = "hub:"  # before the name of a repository on the Hugging Face hub
PART = r"[A-Za-z0-9][\w.-]*"  # of the name of a repository
LISTED = 10_000  # names in a folder among which the closest is looked for


def missing(place: str, known: Iterable[str] = ()) -> str:
    """The message for images or weights that are not at a path, with the closest path or known name."""
    return f"{place} does not exist{closest(place, known)} (of the Hugging Face hub it would be {HUB}OWNER/NAME)"


def closest(place: str, known: Iterable[str] = ()) -> str:
    """The end of "PLACE does not exist": the closest path or known name, where a dangling link points, or nothing."""
    path = Path(place).expanduser()
    if path.is_symlink():
        return f": it is a link to {path.readlink()}"
    if not path.parents:  # the root, or the folder that we are in
        return ""
    there = next((parent for parent in path.parents if parent.is_dir()), Path("."))
    wanted, *rest = path.relative_to(there).parts or ("",)
    try:
        names = [entry.name for entry in islice(there.iterdir(), LISTED)]
    except OSError:  # a folder that may not be listed
        names = []
    close = difflib.get_close_matches(wanted, [*names, *known], n=1)
    if not close:
        return ""
    whole = Path(there, close[0], *rest)
    return f"; did you mean {whole if whole.exists() else there / close[0]}?"


def repository(name: str) -> str | None:
    """The repository of hub:OWNER/NAME or, where the hub is usual, OWNER/NAME; None for a path.

    A name without hub: is a path if it has another form, or its first part is a folder here. Raises ValueError for a
    name with hub: that has another form, or is a folder here, which libraries of the hub would read in its place.
    """
    if name.startswith(HUB):
        found = name.removeprefix(HUB)
        if not re.fullmatch(rf"{PART}(/{PART})*", found):
            raise ValueError(f"{name!r} names nothing on the Hugging Face hub, expected {HUB}OWNER/NAME")
        if (here := Path(*found.split("/")[:2])).exists():
            raise ValueError(
                f"{name} is on the Hugging Face hub, but there is also {here} here, which would be read in its place: "
                f"name that as a path, without {HUB}, or start from another folder"
            )
        return found
    is_name = re.fullmatch(rf"{PART}/{PART}", name) and not Path(name.partition("/")[0]).is_dir()
    return name if is_name else None
