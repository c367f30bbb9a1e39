"""The kernel distance against its definition, its spread over draws, and what it should be on average."""

import pytest
import torch

from fluvial.metrics.kid import kernel_distance


def test_it_is_the_unbiased_estimate():
    torch.manual_seed(0)
    x, y = torch.randn(61, 5).double(), torch.randn(47, 5).double() + 0.5

    def k(a, b):
        return (a @ b / 5 + 1) ** 3

    within = sum(k(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j) / (61 * 60)
    real = sum(k(a, b) for i, a in enumerate(y) for j, b in enumerate(y) if i != j) / (47 * 46)
    between = sum(k(a, b) for a in x for b in y) / (61 * 47)
    assert kernel_distance(x, y, block=200).value == pytest.approx(float(within + real - 2 * between), rel=1e-10)
    with pytest.raises(ValueError, match="at least 2 of each, got 1 samples and 47"):
        kernel_distance(x[:1], y)


def test_its_error_is_its_spread_over_draws_of_samples():
    torch.manual_seed(1)
    real = torch.randn(300, 4)
    draws = [kernel_distance(torch.randn(150, 4) + 0.5, real) for _ in range(200)]
    values, told = torch.tensor([d.value for d in draws]), torch.tensor([d.error for d in draws])
    assert float(values.std() / told.mean()) == pytest.approx(1, abs=0.15)


def test_of_one_distribution_it_is_zero_on_average_and_its_error_is_not_too_small():
    torch.manual_seed(2)
    draws = [kernel_distance(torch.randn(100, 4), torch.randn(2000, 4)) for _ in range(60)]
    values, told = torch.tensor([d.value for d in draws]), torch.tensor([d.error for d in draws])
    assert abs(float(values.mean())) < 3 * float(values.std()) / 60**0.5
    assert 0.6 < float(values.std() / told.mean()) < 1.1
