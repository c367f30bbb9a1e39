"""Metrics of generated images: functions of features, each with its standard error.

The standard error is over drawing the same number of samples again, with the reference fixed. It does not include the
bias that comes from a small number of samples.
"""

from typing import NamedTuple

from jaxtyping import Bool, Float
from torch import Tensor


class Estimate(NamedTuple):
    """A value with its standard error."""

    value: float
    error: float
    """One standard error."""


def mean(values: Float[Tensor, "n"]) -> Estimate:
    """The mean of independent values, with its standard error."""
    values = values.double()
    return Estimate(float(values.mean()), float(values.std() / len(values) ** 0.5))


def share(hits: Bool[Tensor, "n"]) -> Estimate:
    """The fraction of hits. Its error is the standard deviation of Beta(hits + 1/2, misses + 1/2), which is never 0."""
    n, k = len(hits), int(hits.sum())
    p = (k + 0.5) / (n + 1)
    return Estimate(k / n, (p * (1 - p) / (n + 2)) ** 0.5)
