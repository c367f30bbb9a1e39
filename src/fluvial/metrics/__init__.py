"""Numbers about generated images: functions of features, each with its error bar.

An error bar is one standard error over drawing as many samples again, the reference as it is. It does not hold the bias
of a small count.
"""

from typing import NamedTuple

from jaxtyping import Bool, Float
from torch import Tensor


class Estimate(NamedTuple):
    value: float
    error: float
    """One standard error."""


def mean(values: Float[Tensor, "n"]) -> Estimate:
    """The mean of independent values."""
    values = values.double()
    return Estimate(float(values.mean()), float(values.std() / len(values) ** 0.5))


def share(hits: Bool[Tensor, "n"]) -> Estimate:
    """The share of hits; its error is the standard deviation of Beta(hits + 1/2, misses + 1/2), which is never 0."""
    n, k = len(hits), int(hits.sum())
    p = (k + 0.5) / (n + 1)
    return Estimate(k / n, (p * (1 - p) / (n + 2)) ** 0.5)
