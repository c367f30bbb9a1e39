import numpy as np
import pytest
import scipy.linalg
import torch

from fluvial.metrics.frechet import Gaussian, fit, frechet, frechet_bias, frechet_distance, merged, moments, moves


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


@pytest.mark.parametrize(("n", "d"), [(5, 30), (30, 30), (2, 3)])
def test_of_few_samples_it_is_what_the_matrices_of_all_dimensions_give(n, d):
    """Value and error; features given twice take the general way, with the divisor of a variance of 2 n."""
    x, other = torch.randn(n, d), fit(torch.randn(40, d) * 2 + 1)
    few, general = frechet(fit(x), other, n, x), frechet(fit(x), other, n, torch.cat([x, x]))
    assert few.value == pytest.approx(frechet_distance(fit(x), other), rel=1e-7)
    assert few.error * ((2 * n - 2) / (2 * n - 1)) ** 0.5 == pytest.approx(general.error, rel=1e-6)


def test_a_covariance_needs_two_samples():
    with pytest.raises(ValueError, match="at least 2 samples, got 1"):
        fit(torch.zeros(1, 3))


def test_parts_of_any_size_merge_to_the_whole():
    """To the digits of float64, at a mean a million times the spread, where sums of squares would lose them all."""
    torch.manual_seed(0)
    x = torch.randn(1000, 6, dtype=torch.float64) + 1e6
    whole = moments(x)
    parts = [moments(part) for part in x.split([1, 2, 500, 497])]
    by_pairs = merged(merged(parts[0], parts[1]), merged(parts[2], parts[3]))
    one_by_one = None
    for part in x.split([1, 2, 500, 497]):
        one_by_one = moments(part, one_by_one)
    for together in (by_pairs, one_by_one):
        assert together.n == 1000
        torch.testing.assert_close(together.mean, whole.mean, rtol=1e-14, atol=0)
        torch.testing.assert_close(together.scatter, whole.scatter, rtol=1e-9, atol=1e-7)
        torch.testing.assert_close(together.gaussian.covariance, torch.cov(x.T), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("spread", [0.0, 1.0])
def test_the_error_is_the_spread_over_draws(spread):
    """Of features that are not Gaussian, also where their covariance is singular."""
    torch.manual_seed(1)
    width = torch.tensor([1.0, 2.0, 0.5, spread])
    there = Gaussian(torch.tensor([0.5, 0, 0, 0]).double(), torch.eye(4).double())
    values, told = [], []
    for _ in range(200):
        x = (torch.rand(400, 4) ** 2 - 1 / 3) * 3 * width
        here = fit(x)
        values.append(frechet_distance(here, there))
        found = frechet(here, there, 400, x[:300])
        told.append(found.error)
        assert found.value == pytest.approx(values[-1], rel=1e-9)
    assert float(torch.tensor(values).std() / torch.tensor(told).mean()) == pytest.approx(1, abs=0.15)


def test_without_samples_the_error_and_the_bias_are_those_of_a_gaussian():
    torch.manual_seed(2)
    mix = torch.randn(5, 5, dtype=torch.float64)
    truth = Gaussian(torch.zeros(5).double(), mix @ mix.T)
    other = Gaussian(torch.ones(5).double(), torch.eye(5).double())
    draws = [fit(torch.randn(500, 5, dtype=torch.float64) @ mix.T) for _ in range(300)]
    values = torch.tensor([frechet_distance(draw, other) for draw in draws])
    told = torch.tensor([frechet(draw, other, 500).error for draw in draws])
    assert float(values.std() / told.mean()) == pytest.approx(1, abs=0.12)
    apart = torch.tensor([frechet_distance(draw, truth) for draw in draws])
    assert float(apart.mean()) == pytest.approx(frechet_bias(truth, 500), rel=0.08)


@pytest.mark.parametrize("n", [60, 4])
def test_moves_are_the_derivatives_in_the_weights_of_samples(n):
    """A sample counted a little more often moves the distance by its move over n, but for the mean of all."""
    x, other, step = torch.randn(n, 5).double(), fit(torch.randn(90, 5) * 2 + 1), 1e-5

    def distance(weights):
        share = weights / weights.sum()
        mean = share @ x
        return frechet_distance(Gaussian(mean, ((x - mean).T * share) @ (x - mean) * n / (n - 1)), other)

    found = moves(fit(x), other, x)
    for i in range(3):
        more, less = (distance(torch.ones(n).double().index_fill(0, torch.tensor([i]), 1 + d)) for d in (step, -step))
        expected = n * (more - less) / (2 * step)
        spread = (x - x.mean(0)).square().sum(1)[i] / (n - 1)  # the divisor n - 1 in place of n
        assert float(found[i] - found.mean()) == pytest.approx(expected, rel=0.05, abs=0.05 + float(spread) * 2)
    assert float(found.std()) / n**0.5 == pytest.approx(frechet(fit(x), other, n, x).error, rel=1e-6)


def test_the_error_of_a_difference_is_that_of_many_pairs_from_the_same_noise():
    n, other, tries = 200, fit(torch.randn(400, 3) + 1), []
    for _ in range(300):
        noise = torch.randn(n, 3)
        pair = noise, 1.1 * noise + 0.1 * torch.randn(n, 3)
        apart = [frechet(fit(x), other, n, x) for x in pair]
        paired = (moves(fit(pair[0]), other, pair[0]) - moves(fit(pair[1]), other, pair[1])).std() / n**0.5
        tries.append((apart[0].value - apart[1].value, float(paired), sum(each.error**2 for each in apart) ** 0.5))
    differences, paired, independent = (torch.tensor(column) for column in zip(*tries, strict=True))
    assert float(paired.mean()) == pytest.approx(float(differences.std()), rel=0.15)
    assert float(independent.mean()) > 3 * float(differences.std())
