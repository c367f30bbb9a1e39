"""The contents of a report about a run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from fluvial.config import Run
from fluvial.tools.doctor.check import Check
from fluvial.tools.runs import Listed
from fluvial.training.rows import Row


class Picture(NamedTuple):
    """The content of a picture file, and its caption."""

    content: bytes
    kind: str
    caption: str


@dataclass(frozen=True, kw_only=True)
class Gathered:
    """A run, with the reason in place of each part that is not there."""

    name: str
    folder: Path
    listed: Listed
    run: Run
    recipe: str | None
    original: Run | None
    """The run of the recipe, if it is known."""
    parameters: int | None
    rows: list[Row] | str
    card: dict[str, Any] | str
    checks: list[Check] | str
    grids: list[Picture] | str
    """Sample grids by step, the newest last."""
