"""Distances between features, block by block, so that 50,000 x 50,000 fit; and who is near whom."""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fluvial.metrics import Estimate

BLOCK = 2**24  # distances that are in memory at a time
SAME = 1e-13  # squared distances below this share of the largest squared lengths are rounding


def squared_distances(
    x: Float[Tensor, "n d"], y: Float[Tensor, "m d"], block: int = BLOCK
) -> Iterator[tuple[slice, Float[Tensor, "b m"]]]:
    """Rows of the matrix of |x - y|^2 in float64, with the slice of x that they are of."""
    middle = y.double().mean(dim=0)  # distances do not change, and lose fewer digits
    y = y.double() - middle
    lengths = y.square().sum(dim=1)
    rows = max(1, block // len(y))
    for start in range(0, len(x), rows):
        part = slice(start, min(start + rows, len(x)))
        of = x[part].double() - middle
        own = of.square().sum(dim=1, keepdim=True)
        distances = (of @ y.T).mul_(-2).add_(lengths).add_(own)
        yield part, distances.masked_fill_(distances <= SAME * (own.max() + lengths.max()), 0)


def nearest(
    x: Float[Tensor, "n d"], among: Float[Tensor, "m d"], k: int = 1, block: int = BLOCK
) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k"]]:
    """Distances to the k nearest of `among`, nearest first, and their indices. Raises ValueError for fewer than k."""
    if len(among) < k:
        raise ValueError(f"{k} neighbours need at least {k} features to be among, got {len(among)}")
    found = [d.topk(k, largest=False) for _, d in squared_distances(x, among, block)]
    return torch.cat([f.values for f in found]).sqrt(), torch.cat([f.indices for f in found])


def closer(a: Float[Tensor, "n"], b: Float[Tensor, "m"]) -> Estimate:
    """How often a value of a is below one of b, ties for half: 0.5 where both have one distribution (Mann-Whitney).

    Of distances to the nearest training image, a those of samples and b those of test images, it is the memorisation
    test of arXiv 2004.05675 (section 3). The error is DeLong's (1988), over draws of both.
    """
    a, b = a.double(), b.double()

    def shares(values: Tensor, others: Tensor) -> Tensor:
        """For each value the share of the others below it, ties for half."""
        order = others.sort().values
        below, up_to = (torch.searchsorted(order, values.contiguous(), right=right) for right in (False, True))
        return (below + up_to).double() / (2 * len(others))

    of_a, of_b = 1 - shares(a, b), shares(b, a)
    return Estimate(float(of_b.mean()), float((of_a.var() / len(a) + of_b.var() / len(b)).sqrt()))
