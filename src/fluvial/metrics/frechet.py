"""The Frechet distance between two sets of features, taken as Gaussians."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class Gaussian(NamedTuple):
    """Mean and unbiased covariance of features, in float64."""

    mean: Float[Tensor, "d"]
    covariance: Float[Tensor, "d d"]


def fit(features: Float[Tensor, "n d"]) -> Gaussian:
    """The Gaussian of these features. Raises ValueError for fewer than two."""
    if len(features) < 2:
        raise ValueError(f"a covariance needs at least 2 samples, got {len(features)}")
    features = features.double()
    return Gaussian(features.mean(dim=0), torch.cov(features.T).reshape(features.shape[1], -1))


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """|m_a - m_b|^2 + tr(A + B - 2 (A^1/2 B A^1/2)^1/2), the squared 2-Wasserstein distance (arXiv 1706.08500, eq. 6).

    The last trace is taken from the eigenvalues of a symmetric matrix, so that singular covariances (constant pixels,
    fewer samples than dimensions) need no regularisation.
    """
    root = _square_root(a.covariance)
    cross = torch.linalg.eigvalsh(root @ b.covariance @ root).clamp(min=0).sqrt().sum()
    mean = (a.mean - b.mean).square().sum()
    return float(mean + a.covariance.trace() + b.covariance.trace() - 2 * cross)


def _square_root(matrix: Float[Tensor, "d d"]) -> Float[Tensor, "d d"]:
    values, vectors = torch.linalg.eigh(matrix)
    return vectors * values.clamp(min=0).sqrt() @ vectors.T
