"""ARFlow: a flow transformer on a sequence of noisy images, noisiest first (arXiv 2501.16085).

A training example is s different images of one class at s ascending times. Tokens of one image attend to each other;
from earlier to later images information passes only through the history of gated linear attention. In sampling the
sequence is the trajectory of the solver: every accepted point is the next image.

`methods/method.py` defines the interface. Latents have a standard deviation of about 1.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from fluvial.flow.guidance import Guidance, guided, labels_of_both
from fluvial.flow.interpolant import INTERPOLANTS, contrasted, u_t, x_t
from fluvial.flow.solvers import Field, OnStep, Solver, State, StepNoise, euler
from fluvial.flow.timesteps import TIME_SAMPLINGS, sorted_along_sequence
from fluvial.methods.method import Draws, Flow
from fluvial.nn.attention import History, HistoryDecay, HybridLinearAttention, ImageDecay, QkvNorm, Recent
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
from fluvial.utils.checks import at_least, probabilities


@dataclass(frozen=True, kw_only=True)
class ARFlowConfig(DiTConfig):
    """The settings of ARFlow."""

    images_per_sequence: int = 5
    """Images in a training sequence (release: 5, hard-wired)."""
    sorted_times: bool = True
    """Sort the times of a sequence, noisiest image first (release); False leaves them as drawn."""
    own_path: float = 0.0
    """Share of the training sequences that are one image on its path from one noise, as in sampling, where the release
    always takes different images of the class. It is not of the paper."""
    qkv_norm: QkvNorm = "width"
    """RMS norm of q, k and v over the whole width (release) or per head."""
    history_decay: HistoryDecay = "raster"
    """Decay of the history as a token reads it: along the raster order (release), the same for an image, or none."""
    image_decay: ImageDecay = "mean"
    """Decay of the history from image to image: the mean of its tokens' log-gates (release), or their sum."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(1, self, "images_per_sequence")
        probabilities(self, "own_path")


def preset(name: str, **overrides: Any) -> ARFlowConfig:  # noqa: ANN401 - any field of ARFlowConfig
    """The released configuration "S/2" ... "XL/8" (released models.py), with some fields replaced."""
    settings = preset_settings(name)
    if name == "XL/2":
        settings["heads"] = 18  # heads of 64; the released XL/4 and XL/8 keep SiT's 16
    return ARFlowConfig(**{**settings, **overrides})


def proportioned(*, depth: int, width: int, **shape: Any) -> ARFlowConfig:  # noqa: ANN401 - size, channels, classes, patch
    """The settings of a network of this depth and width."""
    return ARFlowConfig(depth=depth, width=width, heads=heads_of(width), **shape)


class Block(nn.Module):
    """One adaLN-Zero block with hybrid linear attention and an MLP; every image has its own modulation."""

    def __init__(self, config: ARFlowConfig) -> None:
        super().__init__()
        self.modulation = Modulation(config.width, 6)
        self.attention = HybridLinearAttention(
            config.width,
            config.heads,
            qkv_norm=config.qkv_norm,
            history_decay=config.history_decay,
            image_decay=config.image_decay,
            grid=grid(config),
        )
        self.mlp = MLPS[config.backbone](config.width, config.mlp_ratio)
        self.norm = NORMS[config.backbone]

    def forward(
        self, x: Float[Tensor, "b s n d"], condition: Float[Tensor, "b s d"], history: History | Recent | None
    ) -> tuple[Float[Tensor, "b s n d"], History | Recent]:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition)
        attended, after = self.attention(modulate(self.norm(x), shift1, scale1), condition, history)
        x = x + gate1.unsqueeze(-2) * attended
        return x + gate2.unsqueeze(-2) * self.mlp(modulate(self.norm(x), shift2, scale2)), after


class ARFlow(nn.Module):
    """The network that predicts ARFlow's velocity on sequences of images; its output is zero at initialisation."""

    def __init__(self, config: ARFlowConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = PatchEmbedding(config.size, config.patch, config.channels, config.width, config.position_size)
        self.embed_t = TimeEmbedding(config.width)
        self.embed_label = LabelEmbedding(config.classes, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        norm = NORMS[config.backbone]
        self.head = VelocityHead(self.embed.grid, config.patch, config.channels, config.width, norm)

    def forward(
        self,
        x_t: Float[Tensor, "b s c h w"],
        t: Float[Tensor, "b s"],
        labels: Labels | None = None,
        state: tuple[History | Recent, ...] | None = None,
    ) -> tuple[Float[Tensor, "b s c h w"], tuple[History | Recent, ...]]:
        """The velocities of s images, and the history after them: one matrix per head and block, in float32.

        labels (b,) holds for the whole sequence: class ids, the null id `classes`, or None for no label at all.
        Passing `state` back with the next images continues the sequence, so that s images at once and one at a time
        give the same velocities.
        """
        x = self.embed(x_t)
        condition = self.embed_t(t) + self.embed_label(labels, len(x_t)).unsqueeze(1)
        histories: list[History | Recent] = []
        for i, block in enumerate(self.blocks):
            x, history = block(x, condition, None if state is None else state[i])
            histories.append(history)
        return self.head(x, condition), tuple(histories)


Config = ARFlowConfig
Model = ARFlow


@dataclass(frozen=True, kw_only=True)
class SequenceDraws(Draws):
    """The random draws of a training step on sequences."""

    own: Bool[Tensor, " b"] | None = None
    """True for a sequence that is the path of its first image, from its first noise; None if none is."""


def draws(
    config: ARFlowConfig, shape: Sequence[int], *, generator: torch.Generator | None = None, device: torch.device | str
) -> SequenceDraws:
    """Samples t (b, s), noise and the label-drop mask (b,) of one training step on latents of this shape.

    Every image of a sequence has its own time and its own noise; the label is dropped for the sequence as a whole.
    """
    t = TIME_SAMPLINGS[config.time_sampling](shape[:2], generator=generator, device=device)
    found = SequenceDraws(
        t=sorted_along_sequence(t) if config.sorted_times else t,
        noise=torch.randn(shape, generator=generator, device=device),
        drop=torch.rand(shape[:1], generator=generator, device=device) < config.label_drop,
    )
    if not config.own_path:
        return found
    return replace(found, own=torch.rand(shape[:1], generator=generator, device=device) < config.own_path)


def errors(
    model: nn.Module, latents: Float[Tensor, "b s c h w"], labels: Int[Tensor, "b"] | None, draws: Draws
) -> Float[Tensor, "b s"]:
    """The mean squared velocity error |v - u_t|^2 of each image of each sequence (released transport.py).

    Labels are dropped, and sequences of one image made, in training mode only.
    """
    config, noise = cast(ARFlowConfig, model.config), draws.noise
    if model.training and labels is not None:
        labels = labels.masked_fill(draws.drop, config.classes)
    own = getattr(draws, "own", None)
    if model.training and own is not None:
        latents, noise = (torch.where(own[:, None, None, None, None], x[:, :1], x) for x in (latents, noise))
    path = INTERPOLANTS[config.interpolant]
    velocity, _ = model(x_t(path, noise, latents, draws.t), draws.t, labels)
    u = u_t(path, noise, latents, draws.t)
    return mean_squares(config, velocity.float() - (contrasted(u, config.contrast) if model.training else u))


def velocities_along(
    model: nn.Module,
    x: Float[Tensor, "b s c h w"],
    t: Float[Tensor, "b s"],
    labels: Int[Tensor, "b"] | None,
    ends: Float[Tensor, "b c h w"],
) -> Float[Tensor, "b s c h w"]:
    """The velocities at points that are the images of a sequence, as in sampling."""
    return model(x, t, labels)[0]


def mean_squares(config: ARFlowConfig, difference: Float[Tensor, "b s c h w"]) -> Float[Tensor, "b s"]:
    """The mean square of each image."""
    return difference.float().square().mean(dim=(-3, -2, -1))


def follower(config: ARFlowConfig, steps: int) -> ARFlowConfig:
    """The settings with sequences as long as a trajectory of this many steps."""
    return replace(config, images_per_sequence=steps)


def part_weights(config: ARFlowConfig) -> Sequence[float]:
    """The weight of each image of a sequence in the loss: equal, with sum 1."""
    return (1 / config.images_per_sequence,) * config.images_per_sequence


def recent(config: ARFlowConfig, batch: int, images: int, device: torch.device | str) -> tuple[Recent, ...]:
    """The empty history of every block that is to hold the last `images` images."""
    one = Recent.empty(batch, images, config.heads, config.width // config.heads, device)
    return (one,) * config.depth


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
    history: int | None = None,
) -> Float[Tensor, "b c h w"]:
    """Samples of latents: the solution at the end of `times`, integrated from `noise` along the guided velocity.

    Every point that the solver accepts enters the history, as the next image of the sequence; trial points do not (see
    `fluvial.flow.solvers`). The null branch of guidance has a history of its own.

    labels are class ids (b,) or None for no class. `solver` is one of `fluvial.flow.solvers`, with its settings bound;
    the release uses `euler_maruyama`, whose noise is `step_noise`.
    `guide`, a smaller or less trained model, takes the place of the null branch, with the labels and a history of its
    own (autoguidance).
    `history` is the number of accepted points, the last ones, that the history holds: all for None, and with 0 every
    point is the first of a sequence. `evaluations`, if given, counts the calls of each guidance branch. Raises
    RuntimeError for a velocity that is not finite; on a GPU only if `careful`, which synchronises at every step.
    """

    def branch(model: nn.Module, labels: Tensor | None) -> Field:
        def field(x: Tensor, t: Tensor, state: State) -> tuple[Tensor, State]:
            if state is None and history:
                state = recent(cast(ARFlowConfig, model.config), len(x), history, x.device)
            velocity, state = model(x.unsqueeze(1), t.unsqueeze(1), labels, state)
            return velocity.squeeze(1), None if history == 0 else state

        return field

    if guide is None:
        guidance = Guidance() if labels is None else guidance  # without labels both branches are equal
    null = branch(model, None) if guide is None else branch(guide, labels)
    config = cast(ARFlowConfig, model.config)
    ids = labels_of_both(model, labels, config.classes, tokens(config)) if guide is None else None
    both = None if ids is None else branch(model, ids)
    path = INTERPOLANTS[config.interpolant]
    told = {"evaluations": evaluations, "careful": careful, "both": both}
    field = guided(branch(model, labels), null, guidance, interpolant=path, **told)
    draws = {} if step_noise is None else {"noise": step_noise}
    return solver(field, noise, times, on_step=on_step, **draws).x


def flows(model: nn.Module, latents: Float[Tensor, "b c h w"], labels: Int[Tensor, "b"] | None) -> Sequence[Flow]:
    """The ODE of the velocities with an empty history, which every point is given as the first of its sequence.

    It is another model than the one that is sampled: there a velocity also depends on the points before, and so on the
    steps of the solver, which makes the trajectory no solution of an ODE in x.
    """
    return [Flow(lambda x, t: model(x.unsqueeze(1), t.unsqueeze(1), labels)[0].squeeze(1), latents)]
