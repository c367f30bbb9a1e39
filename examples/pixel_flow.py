"""How to add a method: a rectified flow (arXiv 2209.03003) on pixels with a small MLP, in a file that registers itself.

    fluvial train digits-pixel-flow --plugin examples/pixel_flow.py

The names at the top level are those that `fluvial/methods/method.py` describes.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fluvial import methods, recipes
from fluvial.config import Run
from fluvial.flow.guidance import Guidance, guided
from fluvial.flow.interpolant import linear, u_t, x_t
from fluvial.flow.solvers import euler
from fluvial.methods.method import Draws
from fluvial.nn import dit
from fluvial.nn.layers import LabelEmbedding, Linear, Mlp, TimeEmbedding, ZeroLinear, layer_norm


@dataclass(frozen=True, kw_only=True)
class Config:
    size: tuple[int, int] = (8, 8)  # fields are options (--method.width 64) and kept in run.json
    channels: int = 1
    classes: int = 10
    width: int = 192
    depth: int = 3
    label_drop: float = 0.1  # how often a label is left out in training, for the null branch of guidance
    interpolant: ClassVar = "linear"  # from here on what is not the user's to choose
    time_sampling: ClassVar = "uniform"
    images_per_sequence: ClassVar = None  # an example is one image
    guides_channels: ClassVar = True
    context_noise: ClassVar = 0.0
    noise_shape = property(lambda self: (self.channels, *self.size))


class Model(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config, pixels = config, prod(config.noise_shape)
        self.embed, self.embed_t = Linear(pixels, config.width), TimeEmbedding(config.width)
        self.embed_label = LabelEmbedding(config.classes, config.width)  # whose rows fine-tuning moves by class name
        self.blocks = nn.ModuleList(Mlp(config.width) for _ in range(config.depth))  # compiled and sharded one by one
        self.head = ZeroLinear(config.width, pixels)  # the velocity is 0 at first, as `fluvial doctor` expects

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """The velocity at x (b, c, h, w) and t (b,), with labels (b,) or without; the image is one vector."""
        condition = self.embed_t(t) + self.embed_label(labels, len(x))
        hidden = self.embed(x.flatten(1))
        for block in self.blocks:
            hidden = hidden + block(layer_norm(hidden) + condition)
        return self.head(layer_norm(hidden)).view_as(x)


def draws(config: Config, shape: Sequence[int], **options: Any) -> Draws:  # the options are generator and device
    """All that is random in a step, so that it is the same after a restart and on any number of GPUs."""
    t, drop = torch.rand(shape[:1], **options), torch.rand(shape[:1], **options) < config.label_drop
    return Draws(t=t, noise=torch.randn(shape, **options), drop=drop)


def errors(model: Any, latents: Tensor, labels: Tensor | None, draws: Draws) -> Tensor:
    """|v - u_t|^2 of each example, (b, 1): the image is the one part. Here the latents are pixels in [-1, 1]."""
    if model.training and labels is not None:
        labels = labels.masked_fill(draws.drop, model.config.classes)  # the id after the last: no class
    velocity = model(x_t(linear, draws.noise, latents, draws.t), draws.t, labels)
    target = u_t(linear, draws.noise, latents, draws.t)
    return (velocity.float() - target).square().flatten(1).mean(1, keepdim=True)


def part_weights(config: Config) -> Sequence[float]:
    return (1.0,)


@torch.no_grad()
def sample(model, labels, *, noise, times, guidance=Guidance(), solver=euler, step_noise=None, on_step=None, **rest):
    """Latents at the end of the times: the solver follows the guided velocity from the noise."""
    guidance = Guidance() if labels is None else guidance
    field = guided(lambda x, t, _: (model(x, t, labels), None), lambda x, t, _: (model(x, t), None), guidance, **rest)
    return solver(field, noise, times, on_step=on_step, **({} if step_noise is None else {"noise": step_noise})).x


def tokens(config: Config) -> int:  # for `fluvial train --dry-run`
    return 1


def small(config: Config) -> Config:  # for --smoke
    return replace(config, width=64, depth=2)


def framed(config: Config, start: Config) -> Config:  # this and the next fit weights to another size; an MLP has one
    return config


def resampled(weights: Mapping[str, Tensor], before: Config, after: Config) -> tuple[dict[str, Tensor], str]:
    return dict(weights), ""


targets, scales = dit.targets, dit.scales  # for `fluvial doctor`: the image is all of the loss, and drawn at once
PRESETS: dict[str, Config] = {"S": Config()}


def preset(name: str, **overrides: Any) -> Config:
    return replace(PRESETS[name], **overrides)


def digits_pixel_flow() -> Run:
    """A rectified flow on the pixels of the handwritten digits, by an MLP: less than a minute on one CPU core."""
    run = recipes.get("digits-sit")  # whose data, steps and sampling are right here
    return replace(run, method=preset("S"), optim=replace(run.optim, lr=1.5e-3))


methods.register("pixel-flow", sys.modules[__name__])
recipes.register("digits-pixel-flow", digits_pixel_flow)
