import math
from functools import partial

import pytest
import torch
from torch.distributions import MultivariateNormal

from fluvial.flow import likelihood as it
from fluvial.flow.interpolant import INTERPOLANTS
from fluvial.flow.solvers import ODE_SOLVERS, dopri5, euler, heun
from fluvial.flow.timesteps import grid

FULL = torch.tensor([[0.8, 0.3, 0.1], [0.3, 0.5, -0.2], [0.1, -0.2, 0.3]], dtype=torch.float64)
DIAGONAL = torch.diag(torch.tensor([0.2, 0.5, 1.5], dtype=torch.float64))
MEAN = torch.tensor([0.5, -1.0, 0.2], dtype=torch.float64)
POINTS = torch.tensor([[0.1, -0.5, 0.3], [1.5, -1.2, 0.4], [-2.0, 0.0, 0.0]], dtype=torch.float64)


def gaussian(covariance, path="linear"):
    """The velocity of data N(MEAN, covariance): alpha' E[x1 | x] + sigma' E[x0 | x]."""

    def velocity(x, t):
        alpha, sigma, d_alpha, d_sigma = (c[:, None, None] for c in INTERPOLANTS[path](t))
        residual = x[..., None] - alpha * MEAN[:, None]
        whitened = torch.linalg.solve(alpha**2 * covariance + sigma**2 * torch.eye(3).double(), residual)
        x1, x0 = MEAN[:, None] + alpha * covariance @ whitened, sigma * whitened
        return (d_alpha * x1 + d_sigma * x0)[..., 0]

    return velocity


def mixing(x, t):
    """A field that is not linear, with a Jacobian that is not symmetric."""
    return torch.tanh(x.flatten(1) @ (FULL + torch.tensor([0.0, 1.0, -1.0])) + t[:, None]).view_as(x) * x


@pytest.mark.parametrize("path", ["linear", "gvp"])
@pytest.mark.parametrize("covariance", [DIAGONAL, FULL], ids=["diagonal", "full"])
def test_gaussian_data_have_their_log_density(covariance, path):
    found = it.log_density(gaussian(covariance, path), POINTS, grid(400))
    torch.testing.assert_close(found.value, MultivariateNormal(MEAN, covariance).log_prob(POINTS), atol=1e-3, rtol=0)
    assert found.nfe == 800 and not found.error.any()
    root = torch.linalg.eigh(covariance)  # the flow of a Gaussian is linear: x0 = S^(-1/2) (x1 - m)
    whitened = (POINTS - MEAN) @ root.eigenvectors @ torch.diag(root.eigenvalues.rsqrt()) @ root.eigenvectors.T
    torch.testing.assert_close(found.noise, whitened, atol=1e-3, rtol=0)


@pytest.mark.parametrize(("name", "order"), [("euler", 1), ("ab2", 2), ("heun", 2), ("midpoint", 2)])
def test_every_solver_converges_in_its_order(name, order):
    exact = MultivariateNormal(MEAN, FULL).log_prob(POINTS)
    errors = [
        float((it.log_density(gaussian(FULL), POINTS, grid(n), solver=ODE_SOLVERS[name]).value - exact).abs().max())
        for n in (100, 200)
    ]
    assert abs(math.log2(errors[0] / errors[1]) - order) < 0.2, errors


def test_dopri5_agrees_with_the_closed_form_in_few_evaluations():
    found = it.log_density(gaussian(FULL), POINTS, grid(1), solver=partial(dopri5, atol=1e-7, rtol=1e-7))
    torch.testing.assert_close(found.value, MultivariateNormal(MEAN, FULL).log_prob(POINTS), atol=1e-5, rtol=0)
    assert found.nfe < 400


def test_the_times_of_a_grid_are_followed_backwards():
    """A grid that is denser near noise: the times that the field sees are its times."""
    seen, times = [], grid(4, shift_factor=3.0)

    def velocity(x, t):
        seen.append(float(t[0]))
        return x

    it.log_density(velocity, POINTS, times, solver=euler)
    assert seen == pytest.approx(times.flip(0)[:-1].tolist())


@pytest.mark.parametrize("shape", [(3,), (1, 1, 3)])
def test_the_exact_divergence_is_the_trace_of_the_jacobian(shape):
    x, t = POINTS.view(3, *shape), torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    v, divergence = it.with_divergence(mixing, x, t)
    alone = [torch.func.jacrev(lambda a, i=i: mixing(a[None], t[i : i + 1])[0].flatten())(x[i]) for i in range(3)]
    torch.testing.assert_close(divergence[0], torch.stack([j.reshape(3, 3).trace() for j in alone]))
    assert torch.equal(v, mixing(x, t)) and not v.requires_grad


def test_hutchinson_is_unbiased_with_the_variance_that_it_has_in_theory():
    """For signs e the variance of e^T J e is 2 sum over i != j of S_ij^2, S the symmetric part of J."""
    probes = torch.randn(8_000, 3, 3, generator=torch.Generator().manual_seed(0)).sign().double()
    x, t = POINTS, torch.full((3,), 0.3, dtype=torch.float64)
    jacobian = torch.tensor([[0.5, 2.0, 0.0], [0.0, -1.0, 1.0], [0.3, 0.0, 0.2]], dtype=torch.float64)
    _, rows = it.with_divergence(lambda x, t: x @ jacobian.T, x, t, probes)
    symmetric = (jacobian + jacobian.T) / 2
    variance = 2 * (symmetric.square().sum() - symmetric.diagonal().square().sum())
    error = (variance / len(probes)).sqrt()
    assert ((rows.mean(dim=0) - jacobian.trace()).abs() < 4 * error).all()
    torch.testing.assert_close(rows.var(dim=0), variance.expand(3), rtol=0.1, atol=0)


def test_signs_are_exact_where_the_jacobian_is_diagonal():
    probes = torch.randn(2, 3, 3, generator=torch.Generator().manual_seed(0)).sign().double()
    field = gaussian(DIAGONAL)
    found, exact = (it.log_density(field, POINTS, grid(20), probes=p) for p in (probes, None))
    torch.testing.assert_close(found.value, exact.value)
    assert float(found.error.max()) < 1e-12
    other = it.log_density(gaussian(FULL), POINTS, grid(20), probes=probes)
    assert float(other.error.max()) > 0.1


def test_the_error_over_probes_is_that_of_the_value():
    probes = torch.randn(240, 3, 3, generator=torch.Generator().manual_seed(1)).sign().double()
    exact = it.log_density(mixing, POINTS, grid(10)).value
    parts = [it.log_density(mixing, POINTS, grid(10), probes=p) for p in probes.split(8)]
    off = torch.stack([(p.value - exact) / p.error for p in parts])
    assert 0.6 < float(off.square().mean().sqrt()) < 1.7  # a t distribution of 7 degrees of freedom has 1.18
    assert torch.isnan(it.log_density(mixing, POINTS, grid(10), probes=probes[:1]).error).all()


def test_a_linear_sampler_has_the_determinant_of_its_steps():
    """Euler's steps with A_i are the map of product (I + h A_i), whose determinant is the product of theirs."""
    matrices = torch.randn(5, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x0 = torch.randn(2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    @torch.no_grad()
    def sample(noise):
        def field(x, t, state):
            return (x.flatten(1) @ matrices[round(float(t[0]) * 5)].T).view_as(x), state

        return euler(field, noise, grid(5)).x

    x1, value = it.log_density_of_map(sample, x0)
    steps = torch.eye(4).double() + matrices / 5
    torch.testing.assert_close(x1, sample(x0[None])[0])
    torch.testing.assert_close(value, it.log_normal(x0[None])[0] - steps.det().abs().log().sum())


def test_the_density_of_a_sampler_goes_to_that_of_its_ode():
    x0 = torch.tensor([0.3, -1.0, 0.5], dtype=torch.float64)
    field = gaussian(FULL)
    x1, value = it.log_density_of_map(lambda x: heun(lambda x, t, s: (field(x, t), s), x, grid(200)).x, x0)
    torch.testing.assert_close(value, MultivariateNormal(MEAN, FULL).log_prob(x1), atol=1e-3, rtol=0)


def test_the_normal_density():
    x = torch.randn(4, 2, 3)
    expected = torch.distributions.Normal(0.0, 1.0).log_prob(x.double()).sum(dim=(1, 2))
    torch.testing.assert_close(it.log_normal(x), expected)


def test_what_has_no_density_is_refused():
    with pytest.raises(ValueError, match=r"times from 0 to 1, got 0 to 0\.9"):
        it.log_density(mixing, POINTS, grid(4, t1=0.9))
    with pytest.raises(ValueError, match=r"for at most 1,024 numbers, got 1,025.*estimate it with probes"):
        it.log_density(lambda x, t: x, torch.zeros(1, 1025), grid(2))
    with pytest.raises(ValueError, match=r"the Jacobian of a sampler .* got 1,025"):
        it.log_density_of_map(lambda x: x, torch.zeros(1025))
    with pytest.raises(ValueError, match="as many numbers of noise as of a sample, got 6 and 5"):
        it.log_density_of_map(lambda x: x[:, :5], torch.zeros(6))
    with pytest.raises(RuntimeError, match=r"the velocity is not finite near t = 1"):
        it.log_density(lambda x, t: x / (1 - t[:, None]), POINTS, grid(4))
