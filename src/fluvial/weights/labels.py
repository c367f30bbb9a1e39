"""The class table of a released model: one row per class, and a last row for the null class if labels were dropped."""

from typing import NamedTuple

import torch
from torch import Tensor

from fluvial.utils.translation import Source, Translation

OURS = "embed_label.table.weight"


class Classes(NamedTuple):
    """The classes of a label table."""

    known: int
    """Number of classes, without the null class."""
    has_null: bool
    """True if the last row of the table is the null class."""
    assumed: str
    """The assumption made, as text; "" if none."""


def classes_of(rows: int, *, classes: int | None = None, label_drop: float | None = None) -> Classes:
    """The classes of a table with this many rows, given the number of classes or the label drop if either is known.

    The releases (DiT's `LabelEmbedder`) add a row for the null class only if labels are dropped. If neither is known,
    labels are assumed to have been dropped, as in all published weights. Raises ValueError if the numbers
    contradict each other.
    """
    if classes is None and label_drop is None:
        assumed = f"the last of {rows:,} rows of the label table is the null class; if not, give --classes {rows}"
        return Classes(rows - 1, True, assumed)
    if classes is None:
        return Classes(rows - bool(label_drop), bool(label_drop), "")
    if rows not in (classes, classes + 1):
        raise ValueError(f"the label table has {rows} rows, expected {classes} classes with or without a null class")
    if rows == classes and label_drop:
        raise ValueError(
            f"{rows:,} rows for {classes:,} classes leave no row for the null class, yet labels were dropped "
            f"(probability {label_drop:g}); give --classes {rows}, or {rows - 1} if the last row is the null class"
        )
    return Classes(classes, rows > classes, "")


def with_null_row(translation: Translation, key: str) -> Translation:
    """The translation with a row of zeros added for the null class, which our models always have.

    The row is never used: without label drop, no label is replaced in training or sampling.
    """
    made = Source((key,), lambda table: torch.cat([table, _zeros_like_row(table)]))
    return translation._replace(sources={**translation.sources, OURS: made})


def _zeros_like_row(table: Tensor) -> Tensor:
    return table.new_zeros(1, *table.shape[1:])
