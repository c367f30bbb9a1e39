"""The Frechet distance between Gaussians fitted to two sets of features: FID, if the features are Inception's."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from fluvial.metrics import Estimate

SINGULAR = 1e-10  # eigenvalues below this fraction of the largest are rounding error


class Gaussian(NamedTuple):
    """Mean and unbiased covariance of features, in float64."""

    mean: Float[Tensor, "d"]
    covariance: Float[Tensor, "d d"]


class Moments(NamedTuple):
    """Running sums over features, in float64. The moments of two parts merge into those of the whole."""

    n: int
    mean: Float[Tensor, "d"]
    scatter: Float[Tensor, "d d"]
    """The sum of (x - mean)(x - mean)^T."""

    @property
    def gaussian(self) -> Gaussian:
        """The Gaussian with these moments. Raises ValueError for fewer than two samples."""
        if self.n < 2:
            raise ValueError(f"a covariance needs at least 2 samples, got {self.n}")
        return Gaussian(self.mean, self.scatter / (self.n - 1))


def moments(features: Float[Tensor, "n d"], before: Moments | None = None) -> Moments:
    """The moments of these features together with those of `before`.

    The update of `merged` is written as one more row of a single matrix product.
    """
    features = features.double()
    mean, k = features.mean(dim=0), len(features)
    centred = features - mean
    if before is None:
        return Moments(k, mean, centred.T @ centred)
    apart, n = mean - before.mean, before.n + k
    rows = torch.cat([centred, apart.unsqueeze(0) * (before.n * k / n) ** 0.5])
    return Moments(n, before.mean + apart * (k / n), torch.addmm(before.scatter, rows.T, rows))


def merged(a: Moments, b: Moments) -> Moments:
    """The moments of the union of two sets (Chan, Golub and LeVeque 1983, eq. 2.1)."""
    n = a.n + b.n
    apart = b.mean - a.mean
    scatter = a.scatter + b.scatter + apart.outer(apart) * (a.n * b.n / n)
    return Moments(n, a.mean + apart * (b.n / n), scatter)


def fit(features: Float[Tensor, "n d"]) -> Gaussian:
    """The Gaussian fitted to these features. Raises ValueError for fewer than two."""
    return moments(features).gaussian


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """|m_a - m_b|^2 + tr(A + B - 2 (A^1/2 B A^1/2)^1/2), the squared 2-Wasserstein distance (arXiv 1706.08500, eq. 6).

    The last trace is computed from the eigenvalues of a symmetric matrix, so that singular covariances (constant
    pixels, fewer samples than dimensions) need no regularisation.
    """
    values, vectors = _spectrum(a.covariance)
    root = vectors * values.sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ b.covariance @ root).clamp(min=0).sqrt().sum()
    mean = (a.mean - b.mean).square().sum()
    return float(mean + a.covariance.trace() + b.covariance.trace() - 2 * cross)


def frechet(a: Gaussian, b: Gaussian, count: int, features: Float[Tensor, "n d"] | None = None) -> Estimate:
    """`frechet_distance(a, b)` with its standard error over draws of the `count` samples that a was fitted to.

    By the delta method, a sample x moves the distance by 2 (m_a - m_b).(x - m_a) + (x - m_a)^T (I - T)(x - m_a), up to
    a constant and over the count, where T = A^-1/2 (A^1/2 B A^1/2)^1/2 A^-1/2 carries the one Gaussian to the other.
    `features` are those of the samples, or of some of them; without any, they are assumed to be Gaussian.
    """
    if features is not None and len(features) == count <= len(a.mean):
        distance, moved = _of_few(features.double() - a.mean, a.mean - b.mean, b.covariance)
        return Estimate(distance, float((moved.var() / count).sqrt()))
    distance, slope, curvature = _expanded(a, b)
    if features is None:
        spread = curvature @ a.covariance
        variance = slope @ a.covariance @ slope + 2 * (spread * spread.T).sum()
    else:
        variance = _moved(features.double() - a.mean, slope, curvature).var()
    return Estimate(distance, float((variance / count).sqrt()))


def moves(a: Gaussian, b: Gaussian, features: Float[Tensor, "n d"]) -> Float[Tensor, "n"]:
    """By how much each of the n samples that a was fitted to moves the distance, times n, up to a constant.

    The standard deviation over sqrt(n) is the error of `frechet`. Of two sets of samples that were drawn from the same
    noise, that of the difference of their moves is the error of the difference of their distances.
    """
    if len(features) <= len(a.mean):
        return _of_few(features.double() - a.mean, a.mean - b.mean, b.covariance)[1]
    _, slope, curvature = _expanded(a, b)
    return _moved(features.double() - a.mean, slope, curvature)


def _expanded(a: Gaussian, b: Gaussian) -> tuple[float, Float[Tensor, "d"], Float[Tensor, "d d"]]:
    """The distance, 2 (m_a - m_b), and I - T of `frechet`."""
    values, vectors = _spectrum(a.covariance)
    root, inverse = (vectors * power @ vectors.T for power in (values.sqrt(), _inverse_root(values)))
    inner, axes = _spectrum(root @ b.covariance @ root)
    slope, traces = 2 * (a.mean - b.mean), a.covariance.trace() + b.covariance.trace()
    distance = slope.square().sum() / 4 + traces - 2 * inner.sqrt().sum()
    curvature = torch.eye(len(root)).to(root) - inverse @ (axes * inner.sqrt() @ axes.T) @ inverse
    return float(distance), slope, curvature


def _moved(
    apart: Float[Tensor, "n d"], slope: Float[Tensor, "d"], curvature: Float[Tensor, "d d"]
) -> Float[Tensor, "n"]:
    """The moves of samples given by their deviations from their mean."""
    return apart @ slope + ((apart @ curvature) * apart).sum(1)


def _of_few(
    apart: Float[Tensor, "n d"], between: Float[Tensor, "d"], covariance: Float[Tensor, "d d"]
) -> tuple[float, Float[Tensor, "n"]]:
    """The distance and moves of no more samples than features, which are given by their deviations from their mean.

    With F = apart / sqrt(n - 1), A = F^T F, and F B F^T has the eigenvalues of A^1/2 B A^1/2 that are not zero. On the
    deviations, which lie in the range of A, T is (n - 1) (F B F^T)^1/2. So an n x n matrix replaces the d x d ones.
    """
    n, lengths = len(apart), apart.square().sum(1)
    inner, axes = _spectrum(apart @ covariance @ apart.T / (n - 1))
    carried = (axes.square() * inner.sqrt()).sum(1) * (n - 1)
    distance = between.square().sum() + lengths.sum() / (n - 1) + covariance.trace() - 2 * inner.sqrt().sum()
    return float(distance), 2 * apart @ between + lengths - carried


def frechet_bias(a: Gaussian, count: int) -> float:
    """The bias of a Frechet distance from `count` samples: the mean distance of such samples of this Gaussian to it.

    To second order in the deviations: (tr A + sum_ij l_i l_j / (2 (l_i + l_j)) + tr A / 4) / count, l the eigenvalues
    of A. It is exact to that order if both distributions are equal, and approximate otherwise. With few samples per
    dimension the true bias is larger, and with fewer samples than dimensions far larger.
    """
    l = torch.linalg.eigvalsh(a.covariance).clamp(min=0)  # noqa: E741
    pairs = l.outer(l) / (l[:, None] + l).clamp(min=torch.finfo(l.dtype).tiny)
    return float((1.25 * l.sum() + pairs.sum() / 2) / count)


def _spectrum(matrix: Float[Tensor, "d d"]) -> tuple[Float[Tensor, "d"], Float[Tensor, "d d"]]:
    """The eigenvalues of a covariance, clamped at zero, and its eigenvectors."""
    values, vectors = torch.linalg.eigh(matrix)
    return values.clamp(min=0), vectors


def _inverse_root(values: Float[Tensor, "d"]) -> Float[Tensor, "d"]:
    """1 / sqrt(x), and 0 where x is only rounding error."""
    return torch.where(values > SINGULAR * values[-1], values.rsqrt(), 0)
