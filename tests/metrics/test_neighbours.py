"""Neighbours, precision, recall, density and coverage against brute force and against scikit-learn."""

import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from fluvial.metrics import mean, neighbours, precision, share


@pytest.fixture
def two():
    torch.manual_seed(0)
    return torch.randn(203, 7), torch.randn(150, 7) * 0.8 + 0.4


def test_nearest_are_those_of_scikit_learn(two):
    x, among = two
    expected, who = NearestNeighbors(n_neighbors=4, algorithm="brute").fit(among.double()).kneighbors(x.double())
    distances, indices = neighbours.nearest(x, among, 4, block=1000)  # blocks of 6 rows: the last one is shorter
    torch.testing.assert_close(distances, torch.from_numpy(expected), rtol=1e-9, atol=0)
    assert indices.tolist() == who.tolist()
    with pytest.raises(ValueError, match="5 neighbours need at least 5 features to choose from, got 3"):
        neighbours.nearest(x, among[:3], 5)


def test_distances_far_from_the_origin_keep_their_digits(two):
    """One feature twice is at distance 0, and a near one at its own distance, wherever the features are."""
    x = torch.cat([two[0], two[0][:1]]).double() + 1e4
    near = x[:1] + 1e-4
    distances, _ = neighbours.nearest(x[:1], torch.cat([near, x[1:]]), 2)
    assert distances[0, 0] == 0
    assert float(distances[0, 1]) == pytest.approx(1e-4 * 7**0.5, rel=1e-4)


def test_overlap_is_the_definition(two):
    samples, real = two
    d = torch.cdist(samples.double(), real.double())

    def radius(x, k):
        return torch.cdist(x.double(), x.double(), compute_mode="donot_use_mm_for_euclid_dist").sort(1).values[:, k]

    got = precision.overlap(samples, real, block=1000)
    assert got.precision.value == (d <= radius(real, 3)).any(1).double().mean()
    assert got.recall.value == (d <= radius(samples, 3)[:, None]).any(0).double().mean()
    assert got.density.value == pytest.approx(float((d <= radius(real, 5)).double().sum(1).mean() / 5))
    assert got.coverage.value == (d <= radius(real, 5)).any(0).double().mean()
    assert 0 < got.precision.value < 1 and 0 < got.recall.value < 1 and 0 < got.coverage.value < 1
    with pytest.raises(ValueError, match="more than 5 of each, got 5 and 150"):
        precision.overlap(samples[:5], real)


def test_of_one_distribution_all_are_near_what_they_should_be():
    torch.manual_seed(1)
    got = precision.overlap(torch.randn(2000, 4), torch.randn(2000, 4))
    assert got.density.value == pytest.approx(1, abs=0.06)
    assert got.coverage.value == pytest.approx(1 - 0.5**5, abs=0.02)  # arXiv 2002.09797, lemma 2, for many of both


def test_errors_are_the_spread_over_draws_of_samples():
    """Those of precision and density, and in a rougher way those of recall and coverage."""
    torch.manual_seed(2)
    real = torch.randn(1000, 8)
    draws = [precision.overlap(torch.randn(200, 8) * 1.2, real) for _ in range(100)]
    for name, off in (("precision", 0.2), ("density", 0.2), ("recall", 0.4), ("coverage", 0.4)):
        values = torch.tensor([getattr(draw, name).value for draw in draws])
        told = torch.tensor([getattr(draw, name).error for draw in draws]).mean()
        assert float(values.std() / told) == pytest.approx(1, abs=off), name


def test_closer_is_a_half_for_one_distribution_and_knows_its_error():
    torch.manual_seed(3)
    draws = [neighbours.closer(torch.rand(80), torch.rand(120)) for _ in range(300)]
    values = torch.tensor([d.value for d in draws])
    assert float(values.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(values.std() / torch.tensor([d.error for d in draws]).mean()) == pytest.approx(1, abs=0.15)


def test_closer_counts_pairs_and_ties_for_half():
    a, b = torch.tensor([1.0, 2.0, 2.0]), torch.tensor([2.0, 3.0])
    pairs = [(x < y) + 0.5 * (x == y) for x in a for y in b]
    assert neighbours.closer(a, b).value == pytest.approx(float(sum(pairs)) / 6)


def test_a_share_has_an_error_even_at_its_ends():
    torch.manual_seed(4)
    assert share(torch.ones(100, dtype=torch.bool)) == (1, pytest.approx((0.5 / 101 * 100.5 / 101 / 102) ** 0.5))
    hits = torch.rand(4000) < 0.3
    assert share(hits).error == pytest.approx(mean(hits.double()).error, rel=1e-3)
