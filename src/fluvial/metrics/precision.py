"""Precision, recall, density and coverage: the overlap of samples and real images, by nearest neighbours."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fluvial.metrics import Estimate, mean, share
from fluvial.metrics.neighbours import BLOCK, squared_distances

PRECISION_K = 3  # the radius of a ball is the distance to this neighbour: arXiv 1904.06991, section 3
DENSITY_K = 5  # arXiv 2002.09797, section 4


class Overlap(NamedTuple):
    """Precision, recall, density and coverage. The ball of an image reaches to its k-th nearest neighbour."""

    precision: Estimate
    """Fraction of samples in the ball of any real image (arXiv 1904.06991, eq. 2)."""
    recall: Estimate
    """Fraction of real images in the ball of any sample."""
    density: Estimate
    """Mean number of real images' balls around a sample, over k: 1 for like distributions (arXiv 2002.09797, eq. 4)."""
    coverage: Estimate
    """Fraction of real images with a sample in their ball (eq. 5)."""


def overlap(samples: Float[Tensor, "n d"], real: Float[Tensor, "m d"], block: int = BLOCK) -> Overlap:
    """Precision, recall, density and coverage of samples against real images.

    The neighbours that set an image's radius are of its own set. Raises ValueError for 5 or fewer images in either.
    """
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
    """Counts, for each real image, of the samples that reach it; for the fraction reached and its error."""

    def __init__(self, real: Tensor, samples: Tensor) -> None:
        self.times = torch.zeros(len(real), dtype=torch.long, device=real.device)
        self.by = torch.zeros_like(self.times)
        self.samples = len(samples)

    def add(self, part: slice, hit: Bool[Tensor, "b m"]) -> None:
        """Adds the samples of this slice: `hit` tells which of them reach which real images."""
        here = hit.sum(dim=0)
        self.by = torch.where(here > 0, part.start + hit.int().argmax(dim=0), self.by)
        self.times += here

    def share(self) -> Estimate:
        """The fraction of real images reached, with its jackknife error over samples.

        Leaving out a sample loses the real images that it alone reaches; that the balls of other samples would then
        grow is ignored. Compared with the spread over real draws, the error of recall is up to a fifth too small, and
        the errors of both recall and coverage are up to twice too large where nearly all images are reached.
        """
        n, m = self.samples, len(self.times)
        alone = torch.bincount(self.by[self.times == 1], minlength=n).double() / m
        error = ((alone - alone.mean()).square().sum() * ((n - 1) / n)).sqrt()
        return Estimate(float((self.times > 0).double().mean()), float(error))


def _radii(x: Float[Tensor, "n d"], block: int) -> tuple[Float[Tensor, "n"], Float[Tensor, "n"]]:
    """Squared distances to the 5th and to the 3rd nearest other feature."""
    parts = [d.topk(DENSITY_K + 1, largest=False).values for _, d in squared_distances(x, x, block)]
    ordered = torch.cat(parts)  # the first is the feature itself
    return ordered[:, DENSITY_K], ordered[:, PRECISION_K]
