"""The checkpoints of a run that stay on disk: the newest, every n-th step's, and that of the lowest validation loss."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from fluvial.training.log import Row, rows_of, validated


def superfluous(run: Path, steps: Sequence[int], *, keep: int, keep_every: int, keep_best: bool) -> list[int]:
    """Of the steps of checkpoints, in order, those that need not stay."""
    try:
        stay = {best(run, steps)} if keep_best else set()
    except OSError:  # of a log that cannot be read; the next save tries again
        return []
    return [step for step in steps[:-keep] if step not in stay and (not keep_every or step % keep_every)]


def best(run: Path, steps: Sequence[int]) -> int | None:
    """The step of the lowest validation loss in the log, the first of several; None if none of the steps has one."""
    return lowest(rows_of(run), steps)


def lowest(rows: Iterable[Row], steps: Sequence[int]) -> int | None:
    """The step of the lowest validation loss among these rows of a log; see `best`."""
    losses = validated(rows)
    return min((step for step in steps if step in losses), key=losses.__getitem__, default=None)
