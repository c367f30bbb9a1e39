"""The runs below a folder with their newest pictures, looked at again where something has changed. No PyTorch."""

import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from urllib.parse import quote, urlencode

from fluvial.studio.places import name_of_run, run_named, runs_below
from fluvial.tools.runs import Listed, is_running, look

GRID = re.compile(r"step-(\d{8,})\.png")
PNG = b"\x89PNG\r\n\x1a\n"
WATCHED = ("run.json", "log.jsonl", "checkpoints", ".saved", "score.json", "samples", "")  # "": the folder itself


@dataclass(frozen=True)
class Shown:
    """A run as a card shows it."""

    name: str
    listed: Listed
    picture: str
    """The address of the newest picture; "" without one."""


class Gallery:
    """The runs below a folder. Looking again reads only what has changed."""

    def __init__(self, root: Path) -> None:
        self.root, self._lock = root, Lock()
        self._known: dict[Path, tuple[object, Shown]] = {}

    def look(self) -> list[Shown]:
        """All runs, in the order of their names."""
        found = runs_below(self.root)
        with self._lock:
            for gone in self._known.keys() - set(found):
                del self._known[gone]
            return [self._fresh(path) for path in found]

    def of(self, path: Path) -> Shown:
        """One of the runs."""
        with self._lock:
            return self._fresh(path)

    def _fresh(self, path: Path) -> Shown:
        key = (is_running(path), *(_stamp(path / name) for name in WATCHED))
        if (known := self._known.get(path)) is None or known[0] != key:
            name = name_of_run(self.root, path)
            known = key, Shown(name, look(path), address_of(name, newest_picture(path), path))
            self._known[path] = known
        return known[1]


def grids(run: Path) -> list[tuple[int, Path]]:
    """The pictures that training drew, with their steps, in order."""
    try:
        names = os.listdir(run / "samples")
    except OSError:
        return []
    return sorted((int(match[1]), run / "samples" / name) for name in names if (match := GRID.fullmatch(name)))


def newest_picture(run: Path) -> Path | None:
    """The newest grid of a run: of training or `fluvial sample`, or else one drawn in another folder of it."""
    for found in ([path for _, path in grids(run)[-1:]] + [run / "samples" / "grid.png"], list(run.glob("*/grid.png"))):
        dated = {path: stamp for path in found if (stamp := _stamp(path))[0]}
        if dated:
            return max(dated, key=lambda path: dated[path])
    return None


def address_of(name: str, picture: Path | None, run: Path) -> str:
    """The address of a picture of the run of this name; another one whenever the file has changed."""
    if picture is None:
        return ""
    asked = {"file": picture.relative_to(run).as_posix(), "of": _stamp(picture)[0]}
    return f"/picture/{quote(name)}?{urlencode(asked)}"


def run_address(name: str) -> str:
    """The address of the page of a run."""
    return f"/run/{quote(name)}"


def picture_file(root: Path, name: str, file: str) -> Path:
    """The PNG file of a run below the folder. Raises ValueError if it is none, or lies outside."""
    run = run_named(root, name)
    try:
        path = (run / file).resolve()
        inside = path.is_relative_to(run.resolve()) and path.is_relative_to(root.resolve())
        if inside and path.suffix == ".png" and path.is_file():
            with path.open("rb") as opened:
                if opened.read(len(PNG)) == PNG:
                    return path
    except (OSError, ValueError):  # a name that no file can have
        pass
    raise ValueError(f"{file[:200]!r} is no picture of {name[:200]!r}")


def ago(then: float, now: float | None = None) -> str:
    """A time in words, such as 3 min ago."""
    seconds = max(0.0, (time.time() if now is None else now) - then)
    for length, unit in ((86400 * 365, "y"), (86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit} ago" if seconds < 2e9 else "long ago"
    return "just now"


def _stamp(path: Path) -> tuple[int, int]:
    """Time and size of a file, by which a change is noticed; zeros without one."""
    try:
        status = path.stat()
    except OSError:
        return 0, 0
    return status.st_mtime_ns, status.st_size
