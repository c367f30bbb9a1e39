import math

import pytest
import torch

from fluvial.flow import timesteps as ts


def test_uniform_and_logit_normal_have_their_moments():
    t = ts.uniform((200_000,), generator=torch.Generator().manual_seed(0))
    assert abs(t.mean() - 0.5) < 2e-3 and abs(t.var() - 1 / 12) < 1e-3
    logit = torch.logit(
        ts.logit_normal((200_000,), mean=0.4, std=0.7, generator=torch.Generator().manual_seed(0)).double()
    )
    assert abs(logit.mean() - 0.4) < 5e-3 and abs(logit.std() - 0.7) < 5e-3


def test_sorted_times_have_the_means_of_order_statistics():
    """Position k of 5 sees Beta(k, 6 - k), of mean k / 6."""
    t = ts.sorted_along_sequence(ts.uniform((50_000, 5), generator=torch.Generator().manual_seed(0)))
    assert (t.diff(dim=1) >= 0).all()
    torch.testing.assert_close(t.mean(dim=0), torch.arange(1, 6) / 6, atol=3e-3, rtol=0)


def test_a_shifted_grid_shifts_the_noise_level():
    plain, shifted = ts.grid(10), ts.grid(10, shift_factor=3.0)
    s = 1 - plain
    torch.testing.assert_close(1 - shifted, 3 * s / (1 + 2 * s))
    assert shifted[0] == 0 and shifted[-1] == 1 and (shifted.diff() > 0).all() and shifted[1] < plain[1]
    torch.testing.assert_close(ts.shift(ts.shift(plain, 3.0), 1 / 3), plain)


def test_the_released_sde_grid():
    grid = ts.grid_with_last_step(250, 0.04)
    assert len(grid) == 251  # 250 evaluations
    torch.testing.assert_close(grid[:250], torch.linspace(0, 0.96, 250, dtype=torch.float64))
    torch.testing.assert_close(grid[1] - grid[0], torch.tensor(0.96 / 249, dtype=torch.float64))
    assert grid[-1] == 1


@pytest.mark.parametrize(
    "make",
    [
        lambda: ts.grid(0),
        lambda: ts.grid(3, shift_factor=0.0),
        lambda: ts.grid_with_last_step(1, 0.04),
        lambda: ts.grid_with_last_step(9, 1.0),
    ],
)
def test_impossible_grids_are_refused(make):
    with pytest.raises(ValueError, match="got"):
        make()


def test_the_two_piece_grid_of_the_release():
    """Noise levels linspace(1, 0.3, N // 2) and linspace(0.25, 0, N // 2 + 1); its N = 25 makes 24 steps."""
    level = 1 - ts.two_piece_grid(24)
    expected = torch.cat([torch.linspace(1, 0.3, 12), torch.linspace(0.25, 0, 13)]).double()
    torch.testing.assert_close(level, expected, atol=1e-6, rtol=0)
    assert (ts.two_piece_grid(5).diff() > 0).all() and len(ts.two_piece_grid(5)) == 6
    with pytest.raises(ValueError, match="at least 2 steps, got 1"):
        ts.two_piece_grid(1)


@pytest.mark.parametrize(
    "make",
    [
        lambda: ts.grid(3, shift_factor=math.nan),
        lambda: ts.grid(3, shift_factor=math.inf),
        lambda: ts.grid(3, shift_factor=1e-300),
        lambda: ts.grid_with_last_step(3, 1e-300),
    ],
)
def test_grids_of_times_that_coincide_or_are_no_numbers_are_refused(make):
    with pytest.raises(ValueError, match="got"):
        make()
