"""Distances between features and nearest neighbours, computed in blocks so that 50,000 x 50,000 fit in memory."""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fluvial.metrics import Estimate

BLOCK = 2**24  # distances in memory at a time
SAME = 1e-13  # squared distances below this fraction of the largest squared lengths are rounding error


def squared_distances(
    x: Float[Tensor, "n d"], y: Float[Tensor, "m d"], block: int = BLOCK
) -> Iterator[tuple[slice, Float[Tensor, "b m"]]]:
    """The matrix of |x - y|^2 in float64, in blocks of rows, each with its slice of x."""
    middle = y.double().mean(dim=0)  # centring leaves distances as they are, and loses fewer digits
    y = y.double() - middle
    lengths = y.square().sum(dim=1)
    rows = max(1, block // len(y))
    for start in range(0, len(x), rows):
        part = slice(start, min(start + rows, len(x)))
        rows_of_x = x[part].double() - middle
        own = rows_of_x.square().sum(dim=1, keepdim=True)
        distances = (rows_of_x @ y.T).mul_(-2).add_(lengths).add_(own)
        yield part, distances.masked_fill_(distances <= SAME * (own.max() + lengths.max()), 0)


def nearest(
    x: Float[Tensor, "n d"], among: Float[Tensor, "m d"], k: int = 1, block: int = BLOCK
) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k"]]:
    """Distances to the k nearest neighbours in `among`, nearest first, and their indices.

    Raises ValueError if `among` has fewer than k.
    """
    if len(among) < k:
        raise ValueError(f"{k} neighbours need at least {k} features to choose from, got {len(among)}")
    found = [d.topk(k, largest=False) for _, d in squared_distances(x, among, block)]
    return torch.cat([f.values for f in found]).sqrt(), torch.cat([f.indices for f in found])


def closer(a: Float[Tensor, "n"], b: Float[Tensor, "m"]) -> Estimate:
    """The probability that a value of a is below one of b, ties counted as half (Mann-Whitney); 0.5 if both are alike.

    With a the distances of samples to their nearest training image and b those of test images, this is the memorisation
    test of arXiv 2004.05675 (section 3). The error is DeLong's (1988), over draws of both.
    """
    a, b = a.double(), b.double()

    def fractions_below(values: Tensor, others: Tensor) -> Tensor:
        """The fraction of `others` below each value, ties counted as half."""
        order = others.sort().values
        below, up_to = (torch.searchsorted(order, values.contiguous(), right=right) for right in (False, True))
        return (below + up_to).double() / (2 * len(others))

    of_a, of_b = 1 - fractions_below(a, b), fractions_below(b, a)
    return Estimate(float(of_b.mean()), float((of_a.var() / len(a) + of_b.var() / len(b)).sqrt()))
