"""SiT: a flow transformer on single images (arXiv 2401.08740), the baseline of both papers.

`methods/method.py` defines the interface. Latents are (b, c, h, w), with a standard deviation of about 1.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from fluvial.flow.guidance import Guidance, guided, labels_of_both
from fluvial.flow.interpolant import INTERPOLANTS, contrasted, u_t, x_t
from fluvial.flow.solvers import Field, OnStep, Solver, State, StepNoise, euler
from fluvial.flow.timesteps import TIME_SAMPLINGS
from fluvial.methods.method import Draws, Flow
from fluvial.nn.attention import Attention
from fluvial.nn.backbone import MLPS, NORMS
from fluvial.nn.dit import PRESETS as PRESETS
from fluvial.nn.dit import DiTConfig, grid, preset_settings
from fluvial.nn.dit import ends as ends
from fluvial.nn.dit import followed as followed
from fluvial.nn.dit import framed as framed
from fluvial.nn.dit import resampled as resampled
from fluvial.nn.dit import scales as scales
from fluvial.nn.dit import small as small
from fluvial.nn.dit import targets as targets
from fluvial.nn.dit import tokens as tokens
from fluvial.nn.layers import (
    LabelEmbedding,
    Labels,
    Modulation,
    PatchEmbedding,
    TimeEmbedding,
    VelocityHead,
    heads_of,
    modulate,
)


@dataclass(frozen=True, kw_only=True)
class SiTConfig(DiTConfig):
    """The settings of SiT: those of a diffusion transformer."""

    images_per_sequence: ClassVar[None] = None
    """A training example is one image."""


def preset(name: str, **overrides: Any) -> SiTConfig:  # noqa: ANN401 - any field of SiTConfig
    """The published configuration "S/2" ... "XL/8", with some fields replaced."""
    return SiTConfig(**{**preset_settings(name), **overrides})


def proportioned(*, depth: int, width: int, **shape: Any) -> SiTConfig:  # noqa: ANN401 - size, channels, classes, patch
    """The settings of a network of this depth and width."""
    return SiTConfig(depth=depth, width=width, heads=heads_of(width), **shape)


class Block(nn.Module):
    """One adaLN-Zero block: x + gate Attention(LN x), then x + gate MLP(LN x), both norms modulated."""

    def __init__(self, config: SiTConfig) -> None:
        super().__init__()
        self.modulation = Modulation(config.width, 6)
        self.attention = Attention(config.width, config.heads, grid(config))
        self.mlp = MLPS[config.backbone](config.width, config.mlp_ratio)
        self.norm = NORMS[config.backbone]

    def forward(self, x: Float[Tensor, "b n d"], condition: Float[Tensor, "b d"]) -> Float[Tensor, "b n d"]:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition)
        x = x + gate1.unsqueeze(-2) * self.attention(modulate(self.norm(x), shift1, scale1))
        return x + gate2.unsqueeze(-2) * self.mlp(modulate(self.norm(x), shift2, scale2))


class SiT(nn.Module):
    """The network that predicts SiT's velocity; its output is zero at initialisation."""

    def __init__(self, config: SiTConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = PatchEmbedding(config.size, config.patch, config.channels, config.width, config.position_size)
        self.embed_t = TimeEmbedding(config.width)
        self.embed_label = LabelEmbedding(config.classes, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        norm = NORMS[config.backbone]
        self.head = VelocityHead(self.embed.grid, config.patch, config.channels, config.width, norm)

    def forward(
        self, x_t: Float[Tensor, "b c h w"], t: Float[Tensor, "b"], labels: Labels | None = None
    ) -> Float[Tensor, "b c h w"]:
        """The velocity at x_t. labels are class ids, the null id `classes`, or None for no label at all."""
        x = self.embed(x_t)
        condition = self.embed_t(t) + self.embed_label(labels, len(x_t))
        for block in self.blocks:
            x = block(x, condition)
        return self.head(x, condition)


Config = SiTConfig
Model = SiT


def draws(
    config: SiTConfig, shape: Sequence[int], *, generator: torch.Generator | None = None, device: torch.device | str
) -> Draws:
    """Samples t (b,), noise and the label-drop mask (b,) of one training step on latents of this shape."""
    return Draws(
        t=TIME_SAMPLINGS[config.time_sampling](shape[:1], generator=generator, device=device),
        noise=torch.randn(shape, generator=generator, device=device),
        drop=torch.rand(shape[:1], generator=generator, device=device) < config.label_drop,
    )


def errors(
    model: nn.Module, latents: Float[Tensor, "b c h w"], labels: Int[Tensor, "b"] | None, draws: Draws
) -> Float[Tensor, "b 1"]:
    """The mean squared velocity error |v - u_t|^2 of each image (SiT section 2; transport.py `training_losses`).

    Labels are dropped in training mode only.
    """
    config = cast(SiTConfig, model.config)
    if model.training and labels is not None:
        labels = labels.masked_fill(draws.drop, config.classes)
    path = INTERPOLANTS[config.interpolant]
    velocity = model(x_t(path, draws.noise, latents, draws.t), draws.t, labels)
    u = u_t(path, draws.noise, latents, draws.t)
    error = (velocity.float() - (contrasted(u, config.contrast) if model.training else u)).square()
    return error.mean(dim=(-3, -2, -1)).unsqueeze(-1)


def velocities_along(
    model: nn.Module,
    x: Float[Tensor, "b k c h w"],
    t: Float[Tensor, "b k"],
    labels: Int[Tensor, "b"] | None,
    ends: Float[Tensor, "b c h w"],
) -> Float[Tensor, "b k c h w"]:
    """The velocities at k points of each trajectory."""
    each = None if labels is None else labels.repeat_interleave(x.shape[1])
    return model(x.flatten(0, 1), t.flatten(), each).view_as(x)


def mean_squares(config: SiTConfig, difference: Float[Tensor, "b k c h w"]) -> Float[Tensor, "b 1"]:
    """The mean square over all points."""
    return difference.float().square().flatten(1).mean(dim=1, keepdim=True)


def follower(config: SiTConfig, steps: int) -> SiTConfig:
    """The settings as they are, for any number of steps."""
    return config


def part_weights(config: SiTConfig) -> Sequence[float]:
    """The weight 1 of the only part, the image."""
    return (1.0,)


@torch.no_grad()
def sample(
    model: nn.Module,
    labels: Labels | None,
    *,
    noise: Float[Tensor, "b c h w"],
    times: Sequence[float] | Tensor,
    guidance: Guidance = Guidance(),
    solver: Solver = euler,
    step_noise: StepNoise | None = None,
    on_step: OnStep | None = None,
    evaluations: Counter[str] | None = None,
    careful: bool = False,
    guide: nn.Module | None = None,
) -> Float[Tensor, "b c h w"]:
    """Samples of latents: the solution at the end of `times`, integrated from `noise` along the guided velocity.

    labels are class ids (b,) or None for no class. `solver` is one of `fluvial.flow.solvers`, with its settings bound;
    a stochastic one takes its noise from `step_noise`.
    `guide`, a smaller or less trained model, takes the place of the null branch, with the labels (autoguidance).
    `on_step` is called after every step; `evaluations`, if given, counts the calls of each guidance branch. Raises
    RuntimeError for a velocity that is not finite; on a GPU only if `careful`, which synchronises at every step.
    """

    def branch(model: nn.Module, labels: Tensor | None) -> Field:
        def field(x: Tensor, t: Tensor, state: State) -> tuple[Tensor, State]:
            return model(x, t, labels), state

        return field

    if guide is None:
        guidance = Guidance() if labels is None else guidance  # without labels both branches are equal
    null = branch(model, None) if guide is None else branch(guide, labels)
    config = cast(SiTConfig, model.config)
    ids = labels_of_both(model, labels, config.classes, tokens(config)) if guide is None else None
    both = None if ids is None else branch(model, ids)
    path = INTERPOLANTS[config.interpolant]
    told = {"evaluations": evaluations, "careful": careful, "both": both}
    field = guided(branch(model, labels), null, guidance, interpolant=path, **told)
    draws = {} if step_noise is None else {"noise": step_noise}
    return solver(field, noise, times, on_step=on_step, **draws).x


def flows(model: nn.Module, latents: Float[Tensor, "b c h w"], labels: Int[Tensor, "b"] | None) -> Sequence[Flow]:
    """The one ODE that samples follow without guidance, ending at these latents."""
    return [Flow(lambda x, t: model(x, t, labels), latents)]
