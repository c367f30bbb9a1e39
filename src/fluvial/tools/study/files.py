"""The files of a study: the run folders, and a JSON file for the result of each run and seed."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fluvial.utils.files import brief, read_bytes

FILE, RESULTS = "study.yaml", "results"
"""The study's file in its folder, and the folder of the results."""


def slug(name: str) -> str:
    """The name of a run's folder: its letters and digits, with - between them."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def folder_of(out: Path, name: str, seed: int) -> Path:
    """The run folder of a run with a seed."""
    return out / slug(name) / f"seed-{seed}"


def result_file(out: Path, name: str, seed: int) -> Path:
    """The file of the result of a run with a seed."""
    return out / RESULTS / f"{slug(name)}-seed-{seed}.json"


def speed_file(out: Path, name: str) -> Path:
    """The file of the speed of a run."""
    return out / RESULTS / f"{slug(name)}-speed.json"


def kept_steps(before: Mapping[str, Any], measured: Mapping[str, Any]) -> dict[str, Any]:
    """A speed that is measured again for a new sampling: training keeps the one that its steps follow from."""
    if not before:
        return dict(measured)
    return {**measured, "speed": {**measured["speed"], "seconds": before["speed"]["seconds"]}}


def read(file: Path) -> dict[str, Any]:
    """A JSON file of a study; empty if there is none. Raises ValueError if it is damaged."""
    if not file.exists():
        return {}
    try:
        found = json.loads(read_bytes(file))
        if not isinstance(found, dict):
            raise ValueError("no JSON object")
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{file} cannot be read ({brief(error)}): remove it, and it is made again") from error
    return found
