"""SiT's objective and sampler with a network of your own, here a convolutional one; examples/pixel_flow.py has it all.

fluvial train digits-conv-flow --plugin examples/own_network.py
"""

import sys
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from fluvial import methods, recipes
from fluvial.config import Run
from fluvial.methods import sit
from fluvial.nn.layers import LabelEmbedding, Mlp, Modulation, TimeEmbedding, layer_norm, modulate


@dataclass(frozen=True, kw_only=True)
class Config(sit.Config):
    """SiT's settings, a class of its own to be told apart by; heads are the groups of the convolutions."""


class Block(nn.Module):
    """Convolution, then an MLP at each place, modulated by time and class."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.modulation = Modulation(config.width, 3)
        self.mix = nn.Conv2d(config.width, config.width, 3, padding=1, groups=config.heads)
        self.mlp = Mlp(config.width, config.mlp_ratio)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift, scale, gate = self.modulation(condition)
        places = self.mix(x).flatten(2).transpose(1, 2)  # (b, n, width)
        places = gate.unsqueeze(1) * self.mlp(modulate(layer_norm(places), shift, scale))
        return x + places.transpose(1, 2).reshape(x.shape)


class Model(nn.Module):
    """The velocity at x_t (b, c, h, w) and t (b,), as SiT's: any network with this `forward` and a `config` will do."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Conv2d(config.channels, config.width, config.patch, stride=config.patch)
        self.embed_t = TimeEmbedding(config.width)
        self.embed_label = LabelEmbedding(config.classes, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.head = nn.ConvTranspose2d(config.width, config.channels, config.patch, stride=config.patch)
        for p in self.head.parameters():  # the velocity is 0 at first
            nn.init.zeros_(p)

    def forward(self, x_t: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        condition = self.embed_t(t) + self.embed_label(labels, len(x_t))
        x = self.embed(x_t)
        for block in self.blocks:
            x = block(x, condition)
        return self.head(x)


# a method is this module; what is SiT's is used as it is
draws, errors, part_weights, sample = sit.draws, sit.errors, sit.part_weights, sit.sample
targets, scales, tokens, small = sit.targets, sit.scales, sit.tokens, sit.small
framed, resampled, PRESETS = sit.framed, sit.resampled, sit.PRESETS


def preset(name: str, **overrides: Any) -> Config:
    return Config(**{**vars(sit.preset(name)), **overrides})


def digits_conv_flow() -> Run:
    """A convolutional network with SiT's objective on the handwritten digits: a minute or two on one CPU core."""
    method = Config(size=(8, 8), channels=1, classes=10, patch=1, depth=3, width=64, heads=4)
    return replace(recipes.get("digits-sit"), method=method)


methods.register("conv-flow", sys.modules[__name__])
recipes.register("digits-conv-flow", digits_conv_flow)
