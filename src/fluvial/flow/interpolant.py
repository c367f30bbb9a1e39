"""The path from noise to data, and conversions between velocity, score, noise and data along it.

x0 is standard normal noise, x1 is data, t runs from 0 (noise) to 1 (data):

    x_t = alpha_t x1 + sigma_t x0,        u_t = d x_t / d t = alpha'_t x1 + sigma'_t x0.

An interpolant is a function t -> (alpha, sigma, alpha', sigma'). The conversions in this file solve the two equations
above, so they divide by w = alpha' sigma - alpha sigma', alpha or sigma, none of which is zero for 0 < t < 1. `t` has
the leading axes of `x` (one time per image) and is broadcast over the rest.

Source: SiT (arXiv 2401.08740), section 2 and appendix; released file transport/path.py.
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class Coefficients(NamedTuple):
    """alpha, sigma and their derivatives in t, each shaped like t."""

    alpha: Tensor
    sigma: Tensor
    d_alpha: Tensor
    d_sigma: Tensor


Interpolant = Callable[[Tensor], Coefficients]
InterpolantName = Literal["linear", "gvp", "vp"]

VP_BETA_MIN, VP_BETA_MAX = 0.1, 20.0
VP_T_MAX = 1 - 1e-5  # sigma' of the VP path is infinite at t = 1


def linear(t: Tensor) -> Coefficients:
    """The linear path x_t = t x1 + (1 - t) x0."""
    one = torch.ones_like(t)
    return Coefficients(t, 1 - t, one, -one)


def gvp(t: Tensor) -> Coefficients:
    """The generalised variance-preserving (cosine) path: alpha = sin(pi t / 2), sigma = cos(pi t / 2)."""
    angle, rate = t * math.pi / 2, math.pi / 2
    return Coefficients(angle.sin(), angle.cos(), rate * angle.cos(), -rate * angle.sin())


def vp(t: Tensor) -> Coefficients:
    """The variance-preserving path of Song et al. (2021) with beta from 0.1 to 20; t is clamped to at most 1 - 1e-5."""
    r = 1 - t.clamp(max=VP_T_MAX)
    slope = VP_BETA_MAX - VP_BETA_MIN
    log_alpha = -0.25 * slope * r**2 - 0.5 * VP_BETA_MIN * r
    d_log_alpha = 0.5 * slope * r + 0.5 * VP_BETA_MIN
    alpha, variance = log_alpha.exp(), -torch.expm1(2 * log_alpha)
    sigma = variance.sqrt()
    return Coefficients(alpha, sigma, alpha * d_log_alpha, -(alpha**2) * d_log_alpha / sigma)


INTERPOLANTS: dict[InterpolantName, Interpolant] = {"linear": linear, "gvp": gvp, "vp": vp}


def expand(t: Tensor, x: Tensor) -> Tensor:
    """t with singleton axes appended until it broadcasts against x."""
    return t.reshape(t.shape + (1,) * (x.ndim - t.ndim))


def x_t(
    interpolant: Interpolant, x0: Float[Tensor, "..."], x1: Float[Tensor, "..."], t: Float[Tensor, "..."]
) -> Float[Tensor, "..."]:
    """The noisy point alpha x1 + sigma x0, shaped like x1."""
    c = interpolant(expand(t, x1))
    return c.alpha * x1 + c.sigma * x0


def u_t(
    interpolant: Interpolant, x0: Float[Tensor, "..."], x1: Float[Tensor, "..."], t: Float[Tensor, "..."]
) -> Float[Tensor, "..."]:
    """The velocity d x_t / d t = alpha' x1 + sigma' x0, which a model is trained to predict."""
    c = interpolant(expand(t, x1))
    return c.d_alpha * x1 + c.d_sigma * x0


def contrasted(u: Float[Tensor, "b ..."], weight: float) -> Float[Tensor, "b ..."]:
    """The target (u - weight u') / (1 - weight) of contrastive flow matching, u' being that of the next in the batch.

    Its squared error times 1 - weight is |v - u|^2 - weight |v - u'|^2 plus a constant: the objective of
    arXiv 2506.05350. Weight 0 is u, and so is a batch of one.
    """
    return u if weight == 0 else torch.lerp(u.roll(1, 0), u, 1 / (1 - weight))


def log_snr(interpolant: Interpolant, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """The logarithm of the signal-to-noise ratio alpha^2 / sigma^2, which grows in t; infinite where one is 0."""
    c = interpolant(t)
    return 2 * (c.alpha.log() - c.sigma.log())


def data_from_velocity(interpolant: Interpolant, v: Tensor, x: Tensor, t: Tensor) -> Tensor:
    """The data x1 = (sigma v - sigma' x) / w predicted by the velocity v at x."""
    c = interpolant(expand(t, x))
    return (c.sigma * v - c.d_sigma * x) / _w(c)


def noise_from_velocity(interpolant: Interpolant, v: Tensor, x: Tensor, t: Tensor) -> Tensor:
    """The noise x0 = (alpha' x - alpha v) / w predicted by the velocity v at x."""
    c = interpolant(expand(t, x))
    return (c.d_alpha * x - c.alpha * v) / _w(c)


def score_from_velocity(interpolant: Interpolant, v: Tensor, x: Tensor, t: Tensor) -> Tensor:
    """The score grad log p_t(x) = -x0 / sigma; infinite at t = 1, where sigma is 0."""
    c = interpolant(expand(t, x))
    return -noise_from_velocity(interpolant, v, x, t) / c.sigma


def velocity_from_data(interpolant: Interpolant, x1: Tensor, x: Tensor, t: Tensor) -> Tensor:
    """The velocity (w x1 + sigma' x) / sigma, the inverse of `data_from_velocity`; undefined at t = 1."""
    c = interpolant(expand(t, x))
    return (_w(c) * x1 + c.d_sigma * x) / c.sigma


def velocity_from_noise(interpolant: Interpolant, x0: Tensor, x: Tensor, t: Tensor) -> Tensor:
    """The velocity (alpha' x - w x0) / alpha, the inverse of `noise_from_velocity`; undefined where alpha is 0."""
    c = interpolant(expand(t, x))
    return (c.d_alpha * x - _w(c) * x0) / c.alpha


def velocity_from_score(interpolant: Interpolant, score: Tensor, x: Tensor, t: Tensor) -> Tensor:
    """The velocity (alpha' x + w sigma score) / alpha, the inverse of `score_from_velocity`; undefined at alpha 0."""
    c = interpolant(expand(t, x))
    return velocity_from_noise(interpolant, -c.sigma * score, x, t)


def _w(c: Coefficients) -> Tensor:
    """The determinant alpha' sigma - alpha sigma' of the equations of x_t and u_t."""
    return c.d_alpha * c.sigma - c.alpha * c.d_sigma
