"""The runs that the studio shows: those below its folder, and nothing outside it."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from fluvial.tools.runs import find, is_run

MOST_SEED = 2**31  # of the fields for seeds


def runs_below(root: Path) -> list[Path]:
    """The run folders below a folder, or the folder itself; not those that links lead out to."""
    return [path for path in find(root) if path.resolve().is_relative_to(root.resolve())]


def name_of_run(root: Path, run: Path) -> str:
    """The path of a run from the folder on, by which pages know it; "." for the folder itself."""
    return run.relative_to(root).as_posix()


def names_below(root: Path) -> list[str]:
    """The names of the runs below a folder."""
    return [name_of_run(root, path) for path in runs_below(root)]


def newest(root: Path, names: Sequence[str]) -> str:
    """The run that has changed last, by its log, or else its settings."""

    def changed(name: str) -> float:
        for file in ("log.jsonl", "run.json"):
            with suppress(OSError):
                return (root / name / file).stat().st_mtime
        return 0.0

    return max(names, key=changed)


def run_named(root: Path, name: str) -> Path:
    """The run folder of this name. Raises ValueError if it is none, or lies outside the folder."""
    path = root / name
    try:
        inside = path.resolve().is_relative_to(root.resolve())
        found = inside and is_run(path)
    except (OSError, ValueError):  # a name that no file can have
        found = False
    if not found:
        raise ValueError(f"{name[:200]!r} is no run in {root}")
    return path
