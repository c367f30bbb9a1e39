"""Expected values of the velocity loss: of an untrained model, and of the best model linear in x_t.

For an entry of the latents with second moment m, at time t,

    E u^2 = alpha'^2 m + sigma'^2                                          a model with zero output
    min over a of E (u - a x_t)^2 = m w^2 / (alpha^2 m + sigma^2)          the best multiple of x_t

with w = alpha' sigma - alpha sigma'. On the linear path, with m = 1 and uniform t, the means over t are 2 and pi / 2.
The second is a bound for any data: a model that uses more than one entry is soon below it.

A contrastive target is (u - c u') / (1 - c), and u' is that of another image: for images whose mean is 0, both values
grow by c^2 E u^2 and are divided by (1 - c)^2.
"""

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from fluvial.flow.interpolant import INTERPOLANTS
from fluvial.flow.timesteps import TIME_SAMPLINGS
from fluvial.methods import Config, method_of
from fluvial.utils.randomness import generator

TIMES = 100_000


class Level(NamedTuple):
    """Expected losses of two trivial models."""

    zero: float
    """The loss of a model with zero output, as at initialisation."""
    multiple: float
    """The loss of the best multiple of x_t at each t."""


def level(config: Config, latents: Float[Tensor, "n c h w"] | None = None) -> Level:
    """The two expected losses, with the second moments of these latents or 1 (an upper bound for coarse scales)."""
    t = TIME_SAMPLINGS[config.time_sampling]((TIMES,), generator=generator(0, "level")).double()
    alpha, sigma, d_alpha, d_sigma = INTERPOLANTS[config.interpolant](t)
    w = d_alpha * sigma - alpha * d_sigma
    method = method_of(config)
    if latents is None:
        parts = [(sum(method.part_weights(config)), 1.0)]
    else:
        parts = [(weight, float(x.double().square().mean())) for weight, x in method.targets(config, latents)]
    c, zero, multiple = getattr(config, "contrast", 0.0), 0.0, 0.0  # which methods of others need not have
    for weight, m in parts:
        u2 = d_alpha**2 * m + d_sigma**2
        least = (m * w**2 / (alpha**2 * m + sigma**2)).nan_to_num()
        zero += weight * float(((1 + c**2) * u2).mean()) / (1 - c) ** 2
        multiple += weight * float((least + c**2 * u2).mean()) / (1 - c) ** 2
    return Level(zero, multiple)
