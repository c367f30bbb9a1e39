"""Precision and recall, density and coverage: which samples lie where real images are, and the other way round."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
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
    inside, balls, recalled, covered = [], [], _Reached(real, samples), _Reached(real, samples)
    for part, distances in squared_distances(samples, real, block):
        inside.append((distances <= narrow).any(dim=1))
        in_wide = distances <= wide
        balls.append(in_wide.sum(dim=1))
        covered.add(part, in_wide)
        recalled.add(part, distances <= of_samples[part, None])
    density = mean(torch.cat(balls).double() / DENSITY_K)
    return Overlap(share(torch.cat(inside)), recalled.share(), density, covered.share())


class _Reached:
    """Which real images some sample reaches, and which a single one alone."""

    def __init__(self, real: Tensor, samples: Tensor) -> None:
        self.times = torch.zeros(len(real), dtype=torch.long, device=real.device)
        self.by = torch.zeros_like(self.times)
        self.samples = len(samples)

    def add(self, part: slice, hit: Bool[Tensor, "b m"]) -> None:
        """Counts for each real image the samples of this part that reach it."""
        here = hit.sum(dim=0)
        self.by = torch.where(here > 0, part.start + hit.int().argmax(dim=0), self.by)
        self.times += here

    def share(self) -> Estimate:
        """The share that is reached, and its jackknife over samples: without one, what it reached alone is lost.

        That the other samples' balls would then be larger is left aside. Against draws, the error of recall is up to a
        fifth too small, and both up to twice too large where nearly all is reached.
        """
        n, m = self.samples, len(self.times)
        alone = torch.bincount(self.by[self.times == 1], minlength=n).double() / m
        error = ((alone - alone.mean()).square().sum() * ((n - 1) / n)).sqrt()
        return Estimate(float((self.times > 0).double().mean()), float(error))


def _radii(x: Float[Tensor, "n d"], block: int) -> tuple[Float[Tensor, "n"], Float[Tensor, "n"]]:
    """Squared distances to the 5th and the 3rd nearest other."""
    parts = [d.topk(DENSITY_K + 1, largest=False).values for _, d in squared_distances(x, x, block)]
    ordered = torch.cat(parts)  # the first is the feature itself
    return ordered[:, DENSITY_K], ordered[:, PRECISION_K]
