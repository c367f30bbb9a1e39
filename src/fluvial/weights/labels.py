"""The classes of a released model: a row each in a table, and the last row for no class if labels were dropped."""

from typing import NamedTuple

import torch
from torch import Tensor

from fluvial.utils.translation import Source, Translation

OURS = "embed_label.table.weight"


class Classes(NamedTuple):
    known: int
    has_null: bool
    """Whether the table has a row for no class, the last one."""
    assumed: str
    """What nothing told, in words; "" if it was told."""


def classes_of(rows: int, *, classes: int | None = None, label_drop: float | None = None) -> Classes:
    """What the rows of a class table stand for, by the number of classes or the label drop if either is known.

    The releases (DiT's `LabelEmbedder`) add the row for no class only where labels are dropped. Where nothing tells,
    labels were: all published weights are trained so. Raises ValueError if the numbers contradict each other.
    """
    if classes is None and label_drop is None:
        assumed = f"the last of {rows:,} rows of the label table is that of no class; if not, give --classes {rows}"
        return Classes(rows - 1, True, assumed)
    if classes is None:
        return Classes(rows - bool(label_drop), bool(label_drop), "")
    if rows not in (classes, classes + 1):
        told = f"{rows} rows, which are not {classes} classes, with a row of none or without"
        raise ValueError(f"the label table has {told}")
    if rows == classes and label_drop:
        raise ValueError(
            f"{rows:,} rows for {classes:,} classes leave none for no class, yet labels were dropped (probability "
            f"{label_drop:g}); give --classes {rows}, or {rows - 1} if the last row is for no class"
        )
    return Classes(classes, rows > classes, "")


def with_null_row(translation: Translation, key: str) -> Translation:
    """The same translation, with a row of zeros for no class behind those of the classes: the model's table has one.

    It is never used: without label drop no label is left out, in training or in sampling.
    """
    made = Source((key,), lambda table: torch.cat([table, _zeros_like_row(table)]))
    return translation._replace(sources={**translation.sources, OURS: made})


def _zeros_like_row(table: Tensor) -> Tensor:
    return table.new_zeros(1, *table.shape[1:])
