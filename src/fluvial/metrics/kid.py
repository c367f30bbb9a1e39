"""The kernel distance (arXiv 1801.01401), unbiased at any count: KID, if the features are Inception's."""

import torch
from jaxtyping import Float
from torch import Tensor

from fluvial.metrics import Estimate

BLOCK = 2**24  # kernel values in memory at a time


def kernel_distance(samples: Float[Tensor, "n d"], real: Float[Tensor, "m d"], block: int = BLOCK) -> Estimate:
    """The unbiased squared MMD between all samples and all real images, with the kernel (x.y / d + 1)^3 (section 4).

    The usual mean over random subsets of 1,000 estimates the same number with more noise. The error is that of the
    mean over samples of k(x, other samples) - k(x, real); if both distributions are equal, it is up to 1.4 times too
    large. Raises ValueError for fewer than two of either.
    """
    n, m = len(samples), len(real)
    if min(n, m) < 2:
        raise ValueError(f"a kernel distance needs at least 2 of each, got {n} samples and {m} real images")
    among, between = _sums(samples, samples, block), _sums(samples, real, block) / m
    of_real = _sums(real, real, block)
    within = (among - _kernel_with_itself(samples)) / (n - 1)
    real_within = (of_real - _kernel_with_itself(real)).sum() / (m * (m - 1))
    error = 2 * (within - between).std() / n**0.5
    return Estimate(float(within.mean() + real_within - 2 * between.mean()), float(error))


def _sums(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"], block: int) -> Float[Tensor, "n"]:
    """The sum of k(x, y) over all y, in float64."""
    y = y.double().T / x.shape[1]
    parts = x.split(max(1, block // y.shape[1]))
    return torch.cat([(part.double() @ y).add_(1).pow_(3).sum(dim=1) for part in parts])


def _kernel_with_itself(x: Float[Tensor, "n d"]) -> Float[Tensor, "n"]:
    """k(x, x) of each x, in float64."""
    return (x.double().square().mean(dim=1) + 1) ** 3
