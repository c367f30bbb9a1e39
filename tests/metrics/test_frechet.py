import numpy as np
import pytest
import scipy.linalg
import torch

from fluvial.metrics.frechet import Gaussian, fit, frechet_distance


def test_commuting_covariances_have_a_closed_form():
    """Diagonal covariances: |m1 - m2|^2 + sum (s1 - s2)^2."""
    m1, m2, s1, s2 = (torch.rand(6, dtype=torch.float64) for _ in range(4))
    s1[0] = s2[1] = s1[2] = s2[2] = 0  # singular, as constant pixels make them
    expected = (m1 - m2).square().sum() + (s1 - s2).square().sum()
    got = frechet_distance(Gaussian(m1, s1.square().diag()), Gaussian(m2, s2.square().diag()))
    assert got == pytest.approx(float(expected), abs=1e-12)


def test_it_agrees_with_the_matrix_square_root():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(40, 7)) @ rng.normal(size=(7, 7)), rng.normal(size=(50, 7)) + 1
    ca, cb = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(ca @ cb).real
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(ca + cb - 2 * root)
    assert frechet_distance(fit(torch.from_numpy(a)), fit(torch.from_numpy(b))) == pytest.approx(expected, rel=1e-9)


def test_fewer_samples_than_dimensions():
    x = torch.randn(5, 30)
    assert frechet_distance(fit(x), fit(x)) == pytest.approx(0, abs=1e-5)
    assert frechet_distance(fit(x), fit(x + 2)) == pytest.approx(4 * 30, rel=1e-6)


def test_a_covariance_needs_two_samples():
    with pytest.raises(ValueError, match="at least 2 samples, got 1"):
        fit(torch.zeros(1, 3))
