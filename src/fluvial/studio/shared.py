"""The folder of runs, the queue of work, loaded runs, and trainings: all pages share them."""

from dataclasses import dataclass, field
from pathlib import Path

from fluvial.studio.draw import Samplers
from fluvial.studio.training import Trainings
from fluvial.studio.work import Work


@dataclass(frozen=True)
class Studio:
    """The state of the studio that all pages share."""

    root: Path
    """The folder of runs."""
    work: Work = field(default_factory=Work)
    samplers: Samplers = field(default_factory=Samplers)
    trainings: Trainings = field(default_factory=Trainings)
