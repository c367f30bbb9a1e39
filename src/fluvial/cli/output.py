"""The console that commands print tables with, the commands to give next, and folders that results go to."""

import shlex
from pathlib import Path

from rich.console import Console


def console() -> Console:
    """A console that prints text as it is: names of classes and files may look like rich's markup or emoji."""
    return Console(markup=False, emoji=False, highlight=False)


def scaled(value: float | int) -> str:
    """1.5e12 as "1.5 T", to be followed by a unit."""
    for prefix in ("", "k", "M", "G", "T"):
        if value < 1000:
            return f"{value:.4g} {prefix}"
        value /= 1000
    return f"{value:,.4g} P"


def next_commands(folder: Path | str, *commands: str) -> None:
    """Prints commands to give next, "sample" as `fluvial sample FOLDER`."""
    print("next: " + "  or  ".join(f"fluvial {command} {shlex.quote(str(folder))}" for command in commands))


def check_unused(out: Path) -> None:
    """Raises ValueError if the folder holds anything."""
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} holds files already; choose another folder, or remove that one")
