"""Curves of a run for a chart: the log is read in part, so that one of a million lines is drawn at once.

A row of training is read at every multiple of a stride, about 2,000 in all; measurements and events are all looked for,
up to a limit. Looking again at a log that has grown reads what is new. PyTorch is not imported.
"""

import json
import math
import time
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import IO, Any, Literal

import numpy as np

from fluvial.training.rows import EVENTS, Row, seconds, standing
from fluvial.utils.checks import LARGEST
from fluvial.utils.files import reading

By = Literal["steps", "images", "seconds"]
Points = list[tuple[float, float]]

WHOLE = 2**18  # bytes of a log that is read as a whole
POINTS = 2000  # rows of training that are read of a longer one, at most
KEPT = 4000  # measurements that are kept, and events
LINE = 2**16  # bytes of a line, at most; longer ones are no rows
CHUNK = 2**20  # bytes that are searched at once
BUDGET = 0.4  # seconds that a look searches for: the next one goes on from there
KINDS = ("held_out_loss", "score", *EVENTS)
NEEDLES = tuple(f'"{key}"'.encode() for key in KINDS)


def row_of(line: bytes) -> Row | None:
    """The row in a line of a log; None for one that is damaged, or cut short."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or not _is_count(row.get("step")):
        return None
    return {key: value for key, value in row.items() if key not in EVENTS or _is_count(value)}


class Reader:
    """The log of a run, of which more is read at every look."""

    def __init__(self, path: Path) -> None:
        self.path, self._lock = path, Lock()
        self.rows: list[Row] = []
        """What stands in the log, thinned if it is long, in the order of the log."""
        self.version = 0
        """Another number whenever the rows have changed."""
        self.searched = 1.0
        """The share of the log that was searched for measurements."""
        self._seen: tuple[int, int, int] | None = None
        self._begin()

    def _begin(self) -> None:
        self._sampled: dict[int, tuple[int, Row | None]] = {}
        self._kept: list[tuple[int, Row]] = []
        self._stride, self._place, self._gap = 0, 0, 0

    def look(self, budget: float = BUDGET) -> int:
        """Reads what is new in about so many seconds, and returns the version. A log that is not there has no rows."""
        with self._lock:
            try:
                status = self.path.stat()
                now = (status.st_ino, status.st_size, status.st_mtime_ns)
                if now == self._seen and self.searched >= 1:
                    return self.version
                if self._seen and (now[0] != self._seen[0] or now[1] < self._seen[1]):
                    self._begin()  # another file, as training goes on from an earlier step
                with reading(self.path) as file:
                    self.rows = standing(self._whole(file) if now[1] <= WHOLE else self._thinned(file, now[1], budget))
                self._seen = now
            except (OSError, ValueError):  # a ValueError is that of a name that is no file
                if self._seen is None and not self.rows:
                    return self.version
                self._begin()
                self.rows, self._seen, self.searched = [], None, 1.0
            self.version += 1
            return self.version

    def _whole(self, file: IO[bytes]) -> list[Row]:
        self.searched = 1.0
        return [row for line in file.read().split(b"\n") if line.strip() and (row := row_of(line)) is not None]

    def _thinned(self, file: IO[bytes], size: int, budget: float) -> list[Row]:
        """Rows of training at the multiples of the stride, the last one, and the measurements found so far."""
        end = time.monotonic() + budget
        stride = 2 ** math.ceil(math.log2(size / POINTS))
        if stride != self._stride:  # twice the last one, mostly: half of what was read stays
            self._sampled = {at: found for at, found in self._sampled.items() if at % stride == 0}
            self._stride = stride
        for at in range(0, size, stride):
            if at not in self._sampled:
                start, line = _line_after(file, at)
                if line.endswith(b"\n"):  # otherwise it is still being written
                    self._sampled[at] = start, row_of(line)
        self._search(file, size, end)
        found = {start: row for start, row in self._sampled.values() if row} | dict(self._kept) | _last(file, size)
        return [row for _, row in sorted(found.items(), key=lambda each: each[0])]

    def _search(self, file: IO[bytes], size: int, end: float) -> None:
        """Looks for measurements and events from where the last search ended, until a time."""
        self.searched = 1.0
        while self._place < size:
            file.seek(self._place)
            chunk = file.read(min(CHUNK, size - self._place))
            whole = chunk.rfind(b"\n") + 1
            if not whole and len(chunk) < CHUNK:
                return  # the last line is still being written
            for start in _lines_with(chunk[:whole]):
                row = row_of(chunk[start : chunk.index(b"\n", start)])
                if row is not None and any(key in row for key in KINDS):
                    self._kept.append((self._place + start, row))
            self._place += whole or len(chunk)  # a line as long as a chunk is no row
            if len(self._kept) > 2 * KEPT:
                self._thin(size)
            if time.monotonic() > end:
                self.searched = self._place / size
                return

    def _thin(self, size: int) -> None:
        """Leaves out measurements that are closer to the one before them than a gap, so that few enough are left."""
        self._gap = max(self._gap, 2 ** math.ceil(math.log2(size / KEPT)))
        while len(self._kept) > KEPT:
            found, last = [], dict[str, int]()
            for start, row in self._kept:
                kind = next(key for key in KINDS if key in row)
                if start - last.get(kind, -self._gap) >= self._gap:
                    last[kind] = start
                    found.append((start, row))
            self._kept = found
            self._gap *= 2 if len(found) > KEPT else 1


def _lines_with(chunk: bytes) -> list[int]:
    """The places at which lines begin that hold a measurement or an event."""
    found = set()
    for needle in NEEDLES:
        at = chunk.find(needle)
        while at >= 0:
            found.add(chunk.rfind(b"\n", 0, at) + 1)
            at = chunk.find(needle, chunk.find(b"\n", at))
    return sorted(found)


def _line_after(file: IO[bytes], at: int) -> tuple[int, bytes]:
    """The first line that begins at or after a place, and where it does."""
    file.seek(max(0, at - 1))
    skipped = file.readline(LINE) if at else b""
    return max(0, at - 1) + len(skipped), file.readline(LINE)


def _last(file: IO[bytes], size: int) -> dict[int, Row]:
    """The last row of the log, by its place."""
    start = max(0, size - LINE)
    file.seek(start)
    end = file.read(size - start)
    for _ in range(4):  # a line cut short, and those that are damaged
        begin = end.rstrip(b"\n").rfind(b"\n") + 1
        if (row := row_of(end[begin:])) is not None:
            return {start + begin: row}
        end = end[:begin]
    return {}


@lru_cache(maxsize=12)
def reader(path: Path) -> Reader:
    """The reader of a log, which pages share; those of the last few logs stay."""
    return Reader(path)


def scale(rows: Sequence[Row], by: By, images_per_step: int, wanted: np.ndarray) -> np.ndarray:
    """Steps as steps, as images seen, or as seconds of training without the time in which it stood still."""
    if by == "steps":
        return wanted
    if by == "images":
        return wanted * images_per_step
    found = seconds(rows)
    return np.full(len(wanted), np.nan) if found is None else found(wanted)


def names_within(rows: Sequence[Row], key: str) -> list[str]:
    """The names of the numbers inside a quantity, such as the scores, in the order of their first line."""
    return list({name: None for row in rows if isinstance(row.get(key), dict) for name in row[key]})


def places_within(rows: Sequence[Row], key: str) -> int:
    """The length of the longest list of a quantity, such as the validation losses by scale."""
    return max((len(row[key]) for row in rows if isinstance(row.get(key), list)), default=0)


def _is_count(value: Any) -> bool:  # noqa: ANN401 - whatever stands in a log
    return type(value) is int and 0 <= value < LARGEST
