"""Means of scores over seeds, and differences of runs at the same seed, with their errors."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fluvial.evaluation.better import HIGHER, LOWER, OF_INCEPTION, is_lower_better

ORDER = (*OF_INCEPTION, *LOWER, *HIGHER)
Result = Mapping[str, Any]


@dataclass(frozen=True)
class Mean:
    """A mean over seeds, with its standard error; None of one seed alone."""

    value: float
    error: float | None
    seeds: int


@dataclass(frozen=True)
class Difference:
    """The difference of a run's score from the baseline's at the same seed and noise, in the mean over seeds."""

    mean: Mean
    lower_is_better: bool

    @property
    def verdict(self) -> str:
        """The word better or worse if the difference is more than twice its error; else an empty text."""
        if self.mean.error is None or not abs(self.mean.value) > 2 * self.mean.error:
            return ""
        return "better" if (self.mean.value < 0) == self.lower_is_better else "worse"


def mean(values: Sequence[float]) -> Mean:
    """The mean of the values of the seeds, and its standard error."""
    found = np.array(values, dtype=np.float64)
    error = float(found.std(ddof=1)) / math.sqrt(len(found)) if len(found) > 1 else None
    return Mean(float(found.mean()), error, len(found))


def last(result: Result, sampling: str) -> Mapping[str, Any] | None:
    """The measurement in the end of the training, with this sampling."""
    rows = [row for row in result["measured"] if row["sampling"] == sampling and row["step"] == result["steps"]]
    return rows[-1] if rows else None


def score(row: Mapping[str, Any], name: str) -> float | None:
    """A score of a measurement; None if it has none of that name, or it is not finite."""
    value = row["scores"].get(name, {}).get("value")
    return float(value) if value is not None and math.isfinite(value) else None


def names(results: Sequence[Result]) -> list[str]:
    """The scores that the results have, distances first."""
    found = {name for result in results for row in result["measured"] for name in row["scores"]}
    return [name for name in ORDER if name in found]


def by_seed(results: Sequence[Result], run: str, sampling: str, name: str) -> dict[int, float]:
    """A score in the end of the training, by seed."""
    rows = {result["seed"]: last(result, sampling) for result in results if result["run"] == run}
    return {seed: value for seed, row in rows.items() if row and (value := score(row, name)) is not None}


def difference(values: Mapping[int, float], others: Mapping[int, float], name: str) -> Difference | None:
    """The difference of a score from the baseline's, of the seeds that both have; None without any."""
    seeds = sorted(values.keys() & others.keys())
    if not seeds:
        return None
    return Difference(mean([values[seed] - others[seed] for seed in seeds]), is_lower_better(name))


def curve(results: Sequence[Result], run: str, sampling: str, name: str, by: str) -> tuple[list[float], list[Mean]]:
    """Means of a score over seeds along the training: by seconds, images or flops."""
    found = dict[float, list[float]]()
    for result in results:
        if result["run"] == run:
            for row in result["measured"]:
                if row["sampling"] == sampling and (value := score(row, name)) is not None:
                    found.setdefault(float(row[by]), []).append(value)
    places = sorted(found)
    return places, [mean(found[place]) for place in places]
