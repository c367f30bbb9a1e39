"""The folder of a run while it trains: whether it is still there, where to save if it is not, and its checkpoints."""

import json
import re
import tempfile
from pathlib import Path
from typing import Any

from fluvial.utils.files import json_checksum, read_bytes
from fluvial.utils.run_format import as_first_written

CHECKPOINT = re.compile(r"step-(\d{8,})")  # the name of a complete one


class Home:
    """A run folder, told by its place on the disk: another folder of the same name is not the same."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.identity = folder, _place(folder)
        run = folder / "run.json"
        self.run = read_bytes(run) if run.exists() else None

    def gone(self) -> bool:
        """True if the folder was removed or renamed."""
        return _place(self.folder) != self.identity

    def shelter(self) -> Path:
        """A new folder beside, in the temporary directory if that cannot be made, with the run.json of this one."""
        for parent in (self.folder.absolute().parent, Path(tempfile.gettempdir())):
            number, folder = 1, parent / f"{self.folder.name}-rescued"
            while folder.exists():
                number += 1
                folder = parent / f"{self.folder.name}-rescued-{number}"
            try:
                folder.mkdir(parents=True)
                if self.run is not None:
                    (folder / "run.json").write_bytes(self.run)
                return folder
            except OSError:
                continue
        raise OSError(f"no folder could be made to save {self.folder} in")


def _place(folder: Path) -> tuple[int, int] | None:
    try:
        status = folder.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def written(run: Path) -> dict[str, Any]:
    """The settings in a folder's run.json; none without a whole one. Raises OSError if it cannot be read."""
    try:
        return dict(json.loads(read_bytes(run / "run.json"))["run"])
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError, RecursionError):
        return {}


def identity(run: Path) -> str:
    """A checksum of what never changes in a run, its method and seed; "" for a folder without a whole run.json."""
    settings = written(run)
    if not settings.keys() >= {"method", "seed"} or not isinstance(settings["method"], dict):
        return ""
    return json_checksum({"method": as_first_written(settings["method"]), "seed": settings["seed"]})[:16]


def step_of(checkpoint: Path) -> int:
    """The training step that a checkpoint's name says."""
    return int(checkpoint.name.removeprefix("step-"))


def complete(run: Path) -> list[Path]:
    """The checkpoints with a complete name, by step; whether they are whole is not looked at."""
    named = (path for path in (run / "checkpoints").glob("step-*") if CHECKPOINT.fullmatch(path.name))
    return sorted((path for path in named if path.is_dir()), key=step_of)  # links to folders too, but not dangling ones
