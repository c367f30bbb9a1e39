"""The result of a sweep: its rows, the best, and those that are not told apart from it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import stdev
from typing import Any

from fluvial.tools.guide.settings import Axes, Setting

FRECHET = ("fid", "frechet_distance")  # scores whose differences have an error of their own
APART = 2.0  # standard errors of a difference from which two rows are told apart


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A row: a setting with its score, one standard error of it, and its cost."""

    setting: Setting
    value: float
    error: float
    nfe: int
    """Evaluations of the network for an image, both branches of guidance together."""
    scores: Mapping[str, Any]
    """All scores of its card."""
    asked: int
    """Evaluations that drawing all images asked for, and those that were made: others were known from other rows."""
    made: int
    moves: tuple[float, ...] = field(default=(), repr=False)
    """By how much each image moves the Frechet distance, see `fluvial.metrics.frechet.moves`; () for other scores."""

    @staticmethod
    def of(setting: Setting, card: Mapping[str, Any], metric: str) -> "Measured":
        """The row of a card."""
        found, sampling = card["scores"][metric], card["sampling"]
        return Measured(
            setting=setting,
            value=found["value"],
            error=found["error"],
            nfe=sampling["nfe"] + sampling["nfe_null"],
            scores=card["scores"],
            asked=card["guide"]["asked"],
            made=card["guide"]["made"],
            moves=tuple(card["guide"]["moves"]) if metric in FRECHET else (),
        )


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """The rows of a sweep. All have the same noise, so that differences have smaller errors than values."""

    axes: Axes
    rows: tuple[Measured, ...]
    failed: Mapping[Setting, str] = field(default_factory=dict)
    """Settings that cannot be drawn, with the reason."""
    metric: str
    lower: bool
    """True if lower is better."""
    about: str
    """The run, the number of images, the features and the reference."""
    seconds: float
    folder: Path

    @property
    def ranked(self) -> tuple[Measured, ...]:
        """The rows, the best first."""
        return tuple(sorted(self.rows, key=lambda row: row.value if self.lower else -row.value))

    @property
    def best(self) -> Measured:
        """The row of the best value."""
        return self.ranked[0]

    def error_to_best(self, row: Measured) -> float | None:
        """The standard error of the row's difference from the best, by the same noise; None if it is not known."""
        if not row.moves or not self.best.moves:
            return None
        apart = [a - b for a, b in zip(row.moves, self.best.moves, strict=True)]
        return stdev(apart) / len(apart) ** 0.5

    @property
    def alike(self) -> tuple[Measured, ...]:
        """The rows that are not told apart from the best, which is one of them.

        They are those within two standard errors of the difference, which is that of the same noise under both. For
        scores other than the Frechet distance this error is not known, and is taken as half the best's own.
        """

        def reach(row: Measured) -> float:
            error = self.error_to_best(row)
            return self.best.error if error is None else APART * error

        return tuple(row for row in self.ranked if abs(row.value - self.best.value) <= reach(row))

    @property
    def chosen(self) -> Measured:
        """Of the rows that are not told apart, the one of the fewest evaluations, and of these the best."""
        return min(self.alike, key=lambda row: row.nfe)

    def chosen_of(self, average: str) -> Measured | None:
        """`chosen` among the rows of one average; None without any."""
        rows = tuple(row for row in self.rows if row.setting.average == average)
        return replace(self, rows=rows).chosen if rows else None

    @property
    def asked(self) -> int:
        """Evaluations of the network, on batches, that the rows asked for."""
        return sum(row.asked for row in self.rows)

    @property
    def made(self) -> int:
        """Those of them that were made."""
        return sum(row.made for row in self.rows)
