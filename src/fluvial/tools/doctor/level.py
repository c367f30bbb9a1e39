"""Expected values of the velocity loss: of an untrained model, and of the best model linear in x_t.

For an entry of the latents with second moment m, at time t,

    E u^2 = alpha'^2 m + sigma'^2                                          a model with zero output
    min over a of E (u - a x_t)^2 = m w^2 / (alpha^2 m + sigma^2)          the best multiple of x_t

with w = alpha' sigma - alpha sigma'. On the linear path, with m = 1 and uniform t, the means over t are 2 and pi / 2.
The second is a bound for any data: a model that uses more than one entry is soon below it.
"""

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from fluvial.flow.interpolant import INTERPOLANTS
from fluvial.flow.timesteps import sampled
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
    shifted = getattr(config, "time_shift", 1.0)  # which a method of another module need not have
    t = sampled(config.time_sampling, (TIMES,), shift_factor=shifted, generator=generator(0, "level")).double()
    alpha, sigma, d_alpha, d_sigma = INTERPOLANTS[config.interpolant](t)
    w = d_alpha * sigma - alpha * d_sigma
    method = method_of(config)
    if latents is None:
        parts = [(sum(method.part_weights(config)), 1.0)]
    else:
        parts = [(weight, float(x.double().square().mean())) for weight, x in method.targets(config, latents)]
    zero = multiple = 0.0
    for weight, m in parts:
        zero += weight * float((d_alpha**2 * m + d_sigma**2).mean())
        multiple += weight * float((m * w**2 / (alpha**2 * m + sigma**2)).nan_to_num().mean())
    return Level(zero, multiple)
