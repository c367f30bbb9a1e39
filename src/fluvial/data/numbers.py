"""Reads data set columns that hold pixels as nested lists of numbers."""

import hashlib
from typing import Any

import numpy as np


def holds_numbers(feature: Any) -> bool:  # noqa: ANN401 - a feature of `datasets`
    """True if a column holds pixels as nested lists of numbers, which `datasets` would decode as 32-bit images."""
    import datasets

    if isinstance(feature, datasets.Array2D | datasets.Array3D):
        return True
    depth = 0
    while isinstance(feature, datasets.List | datasets.LargeList):
        feature, depth = feature.feature, depth + 1
    return depth > 0 and isinstance(feature, datasets.Value) and not feature.dtype.endswith(("string", "binary"))


def sha256_of_numbers(column: Any) -> str:  # noqa: ANN401 - pyarrow.ChunkedArray
    """The SHA-256 of all numbers of a column of nested lists, in order."""
    import pyarrow

    digest = hashlib.sha256()
    for values in column.chunks:
        values = values.storage if isinstance(values, pyarrow.ExtensionArray) else values
        while pyarrow.types.is_nested(values.type):
            values = values.flatten()
        digest.update(values.to_numpy(zero_copy_only=False).tobytes())
    return digest.hexdigest()


def to_array(row: Any) -> np.ndarray | bytes:  # noqa: ANN401 - lists of any kind
    """One row as an array; of dtype object if its lists differ in length; b"" for a row without an image."""
    if row is None:
        return b""
    try:
        return np.asarray(row)
    except ValueError:
        return np.asarray(row, object)
