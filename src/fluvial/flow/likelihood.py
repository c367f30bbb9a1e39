"""The log density of data under a flow from noise x0 ~ N(0, I) at t = 0 to data x1 at t = 1.

Of the ODE dx/dt = v(x, t) it follows from the divergence of v along the path through x1 (arXiv 1806.07366, theorem 1):

    log p(x1) = log N(x0; 0, I) - integral over t from 0 to 1 of div v(x_t, t).

The divergence is the trace of the Jacobian J of v in x: exact, or Hutchinson's estimate e^T J e for probes e whose
numbers are independent, of mean 0 and variance 1 (arXiv 1810.01367). Of a sampler as a whole, with its finite steps and
whatever it remembers between them, x1 = f(x0), it follows from the Jacobian of f:

    log p(x1) = log N(x0; 0, I) - log |det df/dx0|.

All interpolants end at N(0, I) at t = 0, as samplers begin there. That of `vp` keeps 0.7 % of the data at t = 0: the
density is that of the model, which begins with noise alone, and not that of the path it was trained on.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from fluvial.flow.solvers import Solver, State, check_finite, checks_are_free, heun

Velocity = Callable[[Tensor, Tensor], Tensor]
"""velocity(x, t) for x (b, ...) and t (b,), shaped like x; that of a row depends on this row alone."""
MOST = 1024  # numbers of a point up to which the exact trace and the Jacobian are computed: one pass for each


class LogDensity(NamedTuple):
    """Log densities in nats, and where they come from."""

    value: Float[Tensor, "b"]
    error: Float[Tensor, "b"]
    """Standard error over the probes; 0 for the exact trace, NaN for one probe."""
    noise: Float[Tensor, "b ..."]
    """The noise x0 that flows to the points."""
    nfe: int
    """Evaluations of the velocity, each with one backward pass for each probe, or for each number of a point."""


def log_density(
    velocity: Velocity,
    x1: Float[Tensor, "b ..."],
    times: Sequence[float] | Tensor,
    *,
    probes: Float[Tensor, "p b ..."] | None = None,
    solver: Solver = heun,
) -> LogDensity:
    """The log density at x1 of the ODE's solution at t = 1, with the trace by Hutchinson's estimate or exact.

    `times` ascend from 0 to 1, as for sampling; the ODE is solved backwards along them, by any solver of
    `fluvial.flow.solvers.ODE_SOLVERS`, for x together with an integral for each probe. `probes` are fixed along the
    path; without them the trace is exact, which takes a backward pass for each number of a point.

    Raises ValueError for the exact trace of points of more than 1,024 numbers, or times that are not from 0 to 1;
    RuntimeError for a velocity that is not finite.
    """
    size, count = x1[0].numel(), 1 if probes is None else len(probes)
    ends = torch.as_tensor(times, dtype=torch.float64)
    if (float(ends[0]), float(ends[-1])) != (0, 1):
        raise ValueError(f"a log density needs times from 0 to 1, got {float(ends[0]):g} to {float(ends[-1]):g}")
    if probes is None and size > MOST:
        raise ValueError(_too_large("the exact trace", size, "estimate it with probes"))

    def field(y: Tensor, s: Tensor, state: State) -> tuple[Tensor, State]:
        t = 1 - s  # solvers need times that ascend
        v, divergence = with_divergence(velocity, y[:, :size].view_as(x1), t, probes)
        if checks_are_free(v):  # here and not in the solver, which would tell s in place of t
            check_finite(v, t, "the velocity")
            check_finite(divergence.T, t, "the divergence of the velocity")
        return torch.cat([-v.flatten(1), -divergence.T], dim=1), state

    start = torch.cat([x1.flatten(1), x1.new_zeros(len(x1), count)], dim=1)
    end, _, nfe = solver(field, start, 1 - ends.flip(0))
    noise, integrals = end[:, :size].view_as(x1), end[:, size:].double()
    mean = integrals.mean(dim=1)
    error = integrals.std(dim=1) / count**0.5 if count > 1 else torch.full_like(mean, 0 if probes is None else math.nan)
    return LogDensity(log_normal(noise) + mean, error, noise, nfe)


def with_divergence(
    velocity: Velocity, x: Float[Tensor, "b ..."], t: Float[Tensor, "b"], probes: Float[Tensor, "p b ..."] | None = None
) -> tuple[Float[Tensor, "b ..."], Float[Tensor, "p b"]]:
    """The velocity at x and its divergence: an estimate for each probe, or without probes one exact row."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        v = velocity(x, t).to(x.dtype)
        exact = probes is None
        directions = torch.eye(x[0].numel()).to(x).view(-1, 1, *x.shape[1:]).expand(-1, *x.shape) if exact else probes
        rows = []
        for i, e in enumerate(directions):
            (pulled,) = torch.autograd.grad(v, x, e, retain_graph=i + 1 < len(directions))
            rows.append((pulled * e).flatten(1).sum(dim=1))
    divergence = torch.stack(rows)
    return v.detach(), divergence.sum(dim=0, keepdim=True) if exact else divergence


@torch.no_grad()
def log_density_of_map(
    sample: Callable[[Tensor], Tensor], x0: Float[Tensor, "..."]
) -> tuple[Float[Tensor, "..."], Float[Tensor, ""]]:
    """The sample x1 = f(x0) for one point of noise, and its log density in nats by the Jacobian of f.

    `sample` takes a batch of noise, each row alone; its gradient may be switched off, as the derivatives are taken in
    forward mode: for one number of x0 each, as rows of one batch. It holds for a stochastic sampler with its draws
    fixed only as a density under these draws. If f takes two points of noise to one x1, the value is a lower bound.

    Raises ValueError for noise of more than 1,024 numbers, or of another number than the samples have.
    """
    size = x0.numel()
    if size > MOST:
        raise ValueError(_too_large("the Jacobian of a sampler", size, "take smaller images"))
    with sdpa_kernel(SDPBackend.MATH), forward_ad.dual_level():  # other attention has no derivative in forward mode
        rows = forward_ad.make_dual(x0.expand(size, *x0.shape).clone(), torch.eye(size).to(x0).view(-1, *x0.shape))
        x1, jacobian = forward_ad.unpack_dual(sample(rows))
        if x1[0].numel() != size:
            raise ValueError(
                f"a density by the Jacobian needs as many numbers of noise as of a sample, got {size} and "
                f"{x1[0].numel()}"
            )
        assert jacobian is not None, "the samples depend on the noise"
        log_volume = torch.linalg.slogdet(jacobian.reshape(size, size).double()).logabsdet
    return x1[0].clone(), log_normal(x0[None])[0] - log_volume


def log_normal(x: Float[Tensor, "b ..."]) -> Float[Tensor, "b"]:
    """The log density of N(0, I) at x, in float64."""
    x = x.double().flatten(1)
    return -0.5 * x.square().sum(dim=1) - 0.5 * x.shape[1] * math.log(2 * math.pi)


def _too_large(what: str, size: int, advice: str) -> str:
    return f"{what} is computed for at most {MOST:,} numbers, got {size:,}: it takes a pass for each; {advice}"
