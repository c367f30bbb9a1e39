"""Precision and recall, density and coverage: which samples lie where real images are, and the other way round."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from fluvial.metrics import Estimate, mean, share
from fluvial.metrics.neighbours import BLOCK, squared_distances

PRECISION_K = 3  # neighbours that make the radius of a ball: arXiv 1904.06991, section 3
DENSITY_K = 5  # arXiv 2002.09797, section 4


class Overlap(NamedTuple):
    precision: Estimate
    """Share of samples in the ball of some real image (arXiv 1904.06991, eq. 2)."""
    recall: Estimate
    """Share of real images in the ball of some sample."""
    density: Estimate
    """Real images' balls that a sample lies in, over k: 1 for one distribution (arXiv 2002.09797, eq. 4)."""
    coverage: Estimate
    """Share of real images with a sample in their ball (eq. 5)."""


def overlap(samples: Float[Tensor, "n d"], real: Float[Tensor, "m d"], block: int = BLOCK) -> Overlap:
    """All four. A ball reaches to the k-th nearest of its own kind. Raises ValueError for no more than 5 of either."""
    if min(len(samples), len(real)) <= DENSITY_K:
        raise ValueError(f"neighbourhoods need more than {DENSITY_K} of each, got {len(samples)} and {len(real)}")
    wide, narrow = _radii(real, block)
    of_samples = _radii(samples, block)[1]
    inside, balls, recalled, covered = [], [], *torch.zeros(2, len(real), dtype=torch.bool, device=real.device)
    for part, distances in squared_distances(samples, real, block):
        inside.append((distances <= narrow).any(dim=1))
        in_wide = distances <= wide
        balls.append(in_wide.sum(dim=1))
        covered |= in_wide.any(dim=0)
        recalled |= (distances <= of_samples[part, None]).any(dim=0)
    density = mean(torch.cat(balls).double() / DENSITY_K)
    return Overlap(share(torch.cat(inside)), share(recalled), density, share(covered))


def _radii(x: Float[Tensor, "n d"], block: int) -> tuple[Float[Tensor, "n"], Float[Tensor, "n"]]:
    """Squared distances to the 5th and the 3rd nearest other."""
    parts = [d.topk(DENSITY_K + 1, largest=False).values for _, d in squared_distances(x, x, block)]
    ordered = torch.cat(parts)  # the first is the feature itself
    return ordered[:, DENSITY_K], ordered[:, PRECISION_K]
