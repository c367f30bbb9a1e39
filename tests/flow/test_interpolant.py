import pytest
import torch

from fluvial.flow import interpolant as ip
from fluvial.flow.interpolant import INTERPOLANTS

NAMES = sorted(INTERPOLANTS)


def draw(seed=0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    x0, x1 = (torch.randn(64, 3, 2, generator=g, dtype=dtype) for _ in range(2))
    return x0, x1, 0.02 + 0.96 * torch.rand(64, generator=g, dtype=dtype)


@pytest.mark.parametrize("name", NAMES)
def test_paths_are_the_released_ones(name, sit_golden):
    g, path = sit_golden.tensors, INTERPOLANTS[name]
    x0, x1, t, v = g["noise"], g["data"], g["forward.t"], g["path.velocity_in"]
    x = ip.x_t(path, x0, x1, t)
    got = {
        "x_t": x,
        "u_t": ip.u_t(path, x0, x1, t),
        "score_from_velocity": ip.score_from_velocity(path, v, x, t),
        "noise_from_velocity": ip.noise_from_velocity(path, v, x, t),
    }
    for key, value in got.items():
        torch.testing.assert_close(value, g[f"path.{name}.{key}"], atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_velocity_is_the_time_derivative(name):
    x0, x1, t = draw()
    path = INTERPOLANTS[name]
    derivative = torch.autograd.functional.jvp(lambda t: ip.x_t(path, x0, x1, t), t, torch.ones_like(t))[1]
    torch.testing.assert_close(ip.u_t(path, x0, x1, t), derivative)


@pytest.mark.parametrize("name", NAMES)
def test_a_path_goes_from_noise_to_data(name):
    x0, x1, t = draw()
    path = INTERPOLANTS[name]
    end = ip.x_t(path, x0, x1, torch.ones_like(t))
    start = ip.x_t(path, x0, x1, torch.zeros_like(t))
    # the VP path starts at alpha = 0.0066, not 0, and stops at 1 - 1e-5
    tolerance = {"vp": 3e-2}.get(name, 1e-12)
    torch.testing.assert_close(end, x1, atol=tolerance, rtol=0)
    torch.testing.assert_close(start, x0, atol=tolerance, rtol=0)
    assert torch.isfinite(ip.u_t(path, x0, x1, torch.ones_like(t))).all()


@pytest.mark.parametrize("name", NAMES)
def test_the_velocity_reveals_noise_data_and_score(name):
    x0, x1, t = draw()
    path = INTERPOLANTS[name]
    x, v = ip.x_t(path, x0, x1, t), ip.u_t(path, x0, x1, t)
    sigma = path(t).sigma.reshape(-1, 1, 1)
    torch.testing.assert_close(ip.data_from_velocity(path, v, x, t), x1)
    torch.testing.assert_close(ip.noise_from_velocity(path, v, x, t), x0)
    torch.testing.assert_close(ip.score_from_velocity(path, v, x, t), -x0 / sigma)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("quantity", ["data", "noise", "score"])
def test_every_conversion_has_its_inverse(name, quantity):
    v, x, t = draw(1)
    path = INTERPOLANTS[name]
    there = getattr(ip, f"{quantity}_from_velocity")(path, v, x, t)
    back = getattr(ip, f"velocity_from_{quantity}")(path, there, x, t)
    torch.testing.assert_close(back, v, rtol=1e-6, atol=1e-8)


def test_the_score_is_the_gradient_of_the_log_density():
    """Data N(2, 0.5^2) has Gaussian marginals, whose score autograd knows."""
    m, s = 2.0, 0.5
    x = torch.linspace(-2, 3, 11, dtype=torch.float64, requires_grad=True)
    for name in NAMES:
        path = INTERPOLANTS[name]
        t = torch.full_like(x, 0.3)
        c = path(t)
        variance = c.alpha**2 * s**2 + c.sigma**2
        log_p = -((x - c.alpha * m) ** 2) / (2 * variance)
        expected = torch.autograd.grad(log_p.sum(), x)[0]
        x1 = m + c.alpha * s**2 / variance * (x - c.alpha * m)
        x0 = c.sigma / variance * (x - c.alpha * m)
        v = c.d_alpha * x1 + c.d_sigma * x0
        torch.testing.assert_close(ip.score_from_velocity(path, v, x, t), expected)


def test_one_time_per_image_of_a_sequence():
    x0, x1 = torch.randn(2, 3, 4, 5, 5), torch.randn(2, 3, 4, 5, 5)
    t = torch.rand(2, 3)
    x = ip.x_t(ip.linear, x0, x1, t)
    torch.testing.assert_close(x[1, 2], t[1, 2] * x1[1, 2] + (1 - t[1, 2]) * x0[1, 2])
