"""The result of planning: a run, and the reasons for its settings."""

from dataclasses import dataclass
from pathlib import Path

from fluvial.config import Run
from fluvial.tools.plan.dataset import Dataset
from fluvial.utils.files import check_room


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One thing that a plan chose."""

    what: str
    chosen: str
    why: str
    option: str
    """The option of the command line that changes it, or ""."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A run for a data set, with the reasons for its settings."""

    run: Run
    dataset: Dataset
    parameters: int
    images: int
    """Images of training, without those for validation."""
    seconds: float
    """Estimated seconds of training steps; 0 if no step was measured."""
    beside: float
    """Estimated seconds of validations and pictures."""
    encoding: float
    """Estimated seconds in which the images are encoded before the first step; 0 without an autoencoder."""
    memory: int
    """Estimated bytes at the peak of a training step."""
    checkpoints: int
    """Estimated bytes of the checkpoints on disk, with one that is being written."""
    choices: tuple[Choice, ...] = ()
    """What was chosen, and why."""

    @property
    def epochs(self) -> float:
        """The number of times that training sees every image."""
        return self.run.train.steps * self.run.images_per_step / self.images

    def check_disk(self, folder: Path | str) -> None:
        """Raises ValueError if the disk of that folder has too little space for the checkpoints."""
        advice = "choose another disk with --out, or a smaller model with --size"
        check_room(Path(folder), self.checkpoints, what="the checkpoints", advice=advice)
