import math

import torch
from torch.distributions import Normal

from fluvial.data import dequantise as it
from fluvial.data.pixels import to_signed, to_uint8

PIXELS = torch.arange(256, dtype=torch.uint8).view(4, 1, 8, 8)


def test_dequantised_pixels_are_rounded_back_to_themselves():
    for seed in range(20):
        values = it.dequantised(PIXELS, range(4), seed=seed)
        assert torch.equal(to_uint8(values), PIXELS)
        assert float((values - to_signed(PIXELS)).abs().max()) <= 0.5 / it.LEVELS + 1e-6


def test_the_noise_fills_the_level_and_depends_on_seed_and_index_alone():
    black = torch.zeros(50, 1, 8, 8, dtype=torch.uint8)
    noise = (it.dequantised(black, range(50), seed=3) - to_signed(black)) * it.LEVELS
    assert abs(float(noise.mean())) < 4 / math.sqrt(12 * noise.numel())  # a uniform width of 1 has variance 1 / 12
    assert abs(float(noise.var()) * 12 - 1) < 0.1
    alone = it.dequantised(black[:1], [7], seed=3)
    assert torch.equal(alone[0], it.dequantised(black, range(50), seed=3)[7])
    assert not torch.equal(alone[0], it.dequantised(black[:1], [7], seed=4)[0])


def test_the_probabilities_of_all_levels_add_up_to_one():
    """2^-bits, the mean over the noise, is the probability of a level; a density inside the range has all 256."""
    density = Normal(0.1, 0.2)
    noise = (torch.arange(100, dtype=torch.float64) + 0.5) / 100 - 0.5
    values = (torch.arange(256)[:, None] + noise) / 127.5 - 1
    bits = it.bits_per_dim(density.log_prob(values).flatten(), 1).view(256, 100)
    probabilities = (2**-bits).mean(dim=1)
    torch.testing.assert_close(probabilities.sum(), torch.tensor(1.0, dtype=torch.float64), atol=1e-5, rtol=0)
    edges = (torch.arange(257) - 0.5) / 127.5 - 1
    torch.testing.assert_close(probabilities, density.cdf(edges).diff().double(), atol=1e-6, rtol=0)
    assert (bits.mean(dim=1) >= -probabilities.log2() - 1e-9).all()  # the bound of Jensen


def test_a_uniform_density_takes_eight_bits():
    """Over the 256 levels, an interval of 256 / 127.5, for an image of any number of pixels."""
    for numbers in (1, 64):
        nats = torch.tensor([-numbers * math.log(256 / 127.5)], dtype=torch.float64)
        torch.testing.assert_close(it.bits_per_dim(nats, numbers), torch.tensor([8.0], dtype=torch.float64))
