"""The arguments of sampling, as they are given in Python, as values of the library."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from operator import index
from typing import Any

import numpy as np
from torch import Tensor

from fluvial.flow.guidance import Guidance
from fluvial.utils.checks import misfit

ADDRESSES = 2**63  # seeds and indices are below: each has random numbers of its own


def in_python(given: Any) -> Any:  # noqa: ANN401
    """Several values as a tuple, and those of arrays and tensors as Python's own numbers."""
    if isinstance(given, np.ndarray | np.generic | Tensor):
        given = given.tolist()
    several = isinstance(given, Iterable) and not isinstance(given, str | bytes)
    return tuple(map(in_python, given)) if several else given


def guidance_of(given: Any, own: Guidance) -> Guidance:  # noqa: ANN401
    """Guidance given by its settings, or by its weight alone. Raises ValueError for anything else."""
    if isinstance(given, Guidance):
        return given
    weight = in_python(given)
    if wrong := misfit(weight, float):
        raise ValueError(f"guidance {wrong}")
    return replace(own, weight=float(weight), scale_weights=())


def indices_of(count: int | None, indices: Sequence[int] | None) -> Sequence[int]:
    """The indices of images, given by their count, 16 by default, or themselves. Raises ValueError for neither."""
    if indices is None:
        if wrong := misfit(16 if count is None else count, int):
            raise ValueError(f"count {wrong}")
        if count is not None and count < 1:
            raise ValueError(f"count must be at least 1, got {count}")
        return range(16 if count is None else count)
    if count is not None:
        raise ValueError(f"give a count or indices, got count {count} and indices {indices!r:.100}")
    try:
        numbers = [index(one) for one in indices]
    except TypeError as error:
        raise ValueError(f"indices must be whole numbers from 0, got {indices!r:.100}") from error
    if not numbers or not 0 <= min(numbers) <= max(numbers) < ADDRESSES:
        raise ValueError(f"indices must be numbers from 0 on (below 2^63), at least one, got {numbers!r:.100}")
    return numbers
