"""The rows of a run's log as numbers: quantities by step, steps by seconds of training, averages for pictures.

PyTorch is not imported.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

Row = dict[str, Any]
EVENTS = ("skipped", "rolled_back_to")
HUGE = 1e300  # numbers are below: sums and ratios of them stay within float64
STOPPED = 20  # a gap of more than so many median gaps is a time when training stood still, and counts as one
SMOOTH = 40  # the training loss is averaged over 1/40 of its points on each side


def standing(rows: Iterable[Row]) -> list[Row]:
    """The rows without what a roll-back undid: the measurements of later steps before it."""
    kept: list[Row] = []
    for row in rows:
        if "rolled_back_to" in row:
            kept = [r for r in kept if r["step"] <= row["rolled_back_to"] or any(key in r for key in EVENTS)]
        kept.append(row)
    return kept


def series(rows: Sequence[Row], key: str, part: str | int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of one quantity, in float64; `part` is a name or place inside it. What is null is left out."""
    found = [(row["step"], value) for row in rows if (value := _value(row.get(key), part)) is not None]
    steps, values = zip(*found, strict=True) if found else ((), ())
    return np.array(steps, dtype=np.float64), np.array(values, dtype=np.float64)


def finite(rows: Sequence[Row], key: str, part: str | int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of one quantity, as `series` returns them, without values that are not finite."""
    steps, values = series(rows, key, part)
    kept = np.abs(values) < HUGE
    return steps[kept], values[kept]


def seconds(rows: Sequence[Row]) -> Callable[[np.ndarray], np.ndarray] | None:
    """A function from steps to seconds of training, without the time in which it stood still; None without times."""
    # the first line of each step, as a roll-back repeats steps
    at = dict(zip(*(column[::-1].tolist() for column in finite(rows, "time")), strict=True))
    if len(at) < 2:
        return None
    steps, times = np.array(sorted(at.items())).T
    gaps = np.diff(times) / np.diff(steps)  # seconds per step
    usual = float(np.median(gaps))
    gaps = np.where((gaps > STOPPED * usual) | (gaps < 0), usual, gaps)
    ends = np.cumsum([steps[0] * usual, *(gaps * np.diff(steps))])
    return lambda wanted: np.interp(wanted, steps, ends)


def smoothed(values: np.ndarray) -> np.ndarray:
    """A moving average with a window that shrinks towards the ends; few points are not averaged."""
    half = len(values) // SMOOTH
    sums = np.concatenate([[0.0], np.cumsum(values)])
    place = np.arange(len(values))
    reach = np.minimum(half, np.minimum(place, len(values) - 1 - place))  # a symmetric window does not shift slopes
    return (sums[place + reach + 1] - sums[place - reach]) / (2 * reach + 1)


def _value(value: Any, part: str | int | None) -> float | None:  # noqa: ANN401 - whatever stands in a log
    if isinstance(part, str):
        value = value.get(part) if isinstance(value, dict) else None
    elif part is not None:
        value = value[part] if isinstance(value, list) and part < len(value) else None
    whole = type(value) is int and abs(value) < HUGE  # a larger one is no float64
    return float(value) if whole or type(value) is float else None
