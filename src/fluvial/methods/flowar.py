"""FlowAR: next-scale autoregression with a flow-matching head (arXiv 2412.15205).

A latent is a pyramid of maps (scales), coarse to fine. A transformer takes the class and the upsampled coarser maps and
outputs a condition for every token of the next scale; the flow head, one network for all scales, turns noise into that
scale's map under this condition. Both are trained together on the velocity error of the head.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from fluvial.flow.guidance import Guidance, guided, joined, together
from fluvial.flow.interpolant import contrasted, linear, u_t, x_t
from fluvial.flow.solvers import Field, OnStep, Solver, Step, StepNoise, euler
from fluvial.flow.timesteps import TIME_SAMPLINGS
from fluvial.methods.method import Draws, Flow
from fluvial.nn.flow_head import Condition, FlowHead
from fluvial.nn.layers import LabelEmbedding, Labels, Linear, TimeEmbedding, patchify, unpatchify
from fluvial.nn.next_scale import PRESETS as PRESETS
from fluvial.nn.next_scale import FlowARConfig
from fluvial.nn.next_scale import framed as framed
from fluvial.nn.next_scale import part_weights as part_weights
from fluvial.nn.next_scale import preset as preset
from fluvial.nn.next_scale import proportioned as proportioned
from fluvial.nn.next_scale import resampled as resampled
from fluvial.nn.next_scale import scales as scales
from fluvial.nn.next_scale import small as small
from fluvial.nn.next_scale import tokens as tokens
from fluvial.nn.rope import axial_rotary
from fluvial.nn.scales import CausalBlock, KeysValues, per_token

Config = FlowARConfig


def pyramid(latents: Float[Tensor, "b c h w"], config: FlowARConfig) -> list[Float[Tensor, "b c _ _"]]:
    """The targets: the latent pooled to every scale, s^i = Down(F) (section 3.1; the release pools by area).

    Raises ValueError for a latent of another shape than the configuration's.
    """
    if latents.shape[1:] != (config.channels, *config.size):
        raise ValueError(
            f"the scales are made for latents of {(config.channels, *config.size)} (channels, height, width), "
            f"got {tuple(latents.shape[1:])}; set channels, size and scales in the method's configuration"
        )
    return [F.interpolate(latents, size=(h * config.patch, w * config.patch), mode="area") for h, w in config.maps]


def upsampled(coarser: Float[Tensor, "b c _ _"], config: FlowARConfig, scale: int) -> Float[Tensor, "b c _ _"]:
    """The transformer's input at this scale: the previous scale upsampled, Up(s^(i-1))."""
    h, w = (side * config.patch for side in config.maps[scale])
    if config.upsample == "direct":
        return F.interpolate(coarser, size=(h, w), mode="bicubic", align_corners=False)
    full = F.interpolate(coarser, size=config.size, mode="bicubic", align_corners=False)
    return F.interpolate(full, size=(h, w), mode="area")


def packed(maps: Sequence[Float[Tensor, "b c _ _"]], patch: int) -> Float[Tensor, "b n p"]:
    """The tokens of several maps, concatenated."""
    return torch.cat([patchify(m, patch) for m in maps], dim=1)


Cache = tuple[KeysValues, ...]


class FlowAR(nn.Module):
    """FlowAR's network: the transformer over scales and the flow head."""

    rotary: Tensor
    head: FlowHead
    evaluated = ("transformer", "head.forward")
    """The functions that sampling evaluates: see `sampling/remember.py`."""

    def __init__(self, config: FlowARConfig) -> None:
        super().__init__()
        self.config = config
        tokens, width, zero = config.noise_shape[0], config.width, config.init == "zero"
        self.embed_label = LabelEmbedding(config.classes, width)
        self.embed = Linear(config.noise_shape[1], width)
        self.embed_level = TimeEmbedding(width) if config.context_noise > 0 else None
        self.positions = nn.Parameter(torch.empty(3, tokens, width))
        self.norms = nn.ModuleList(nn.RMSNorm(width, eps=1e-6) for _ in range(3))
        self.blocks = nn.ModuleList(
            CausalBlock(width, config.heads, dropout=config.dropout, zero=zero) for _ in range(config.depth)
        )
        self.middle = Linear(width, width)
        self.head = FlowHead(
            config.maps,
            token_width=config.noise_shape[1],
            condition_width=width,
            width=config.head_width,
            heads=config.head_heads,
            depth=config.head_depth,
            cross=config.head == "cross_attention",
            floor_time=config.floor_time,
            zero=zero,
        )
        self.register_buffer("rotary", axial_rotary(config.maps, width // config.heads), persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.positions, std=0.02)

    def forward(
        self,
        x_t: Float[Tensor, "b n p"],
        t: Float[Tensor, "b s"],
        labels: Labels | None,
        inputs: Float[Tensor, "b m p"],
        level: Float[Tensor, "b s"] | None = None,
    ) -> Float[Tensor, "b n p"]:
        """The velocity of the noisy tokens x_t of all scales at once, as in training; t has one time per scale.

        inputs are the tokens of the upsampled maps for all scales but the first, from `upsampled` and `packed`.
        `level` is the noise level of each scale's inputs, see `transformer`.
        """
        scales = range(len(self.config.sizes))
        labels = self.embed_label.null(len(x_t)) if labels is None else labels
        z, _ = self.transformer(inputs, labels, scales, level=level)
        return self.head(x_t, t, self.head.condition(z, scales), scales)

    def of_parts(self, values: Float[Tensor, "b s"]) -> Float[Tensor, "b n 1"]:
        """A number for each scale, as it multiplies a velocity of all scales."""
        return per_token(values, self.config.sizes).unsqueeze(-1)

    def transformer(
        self,
        inputs: Float[Tensor, "b m p"] | None,
        labels: Labels,
        scales: range,
        cache: Cache | None = None,
        level: Float[Tensor, "b s"] | None = None,
    ) -> tuple[Float[Tensor, "b n c"], Cache]:
        """The condition for the flow head at every token of these scales, and the key-value cache including them.

        inputs are the tokens of the upsampled maps of these scales, except for the coarsest scale, whose input is the
        class. `cache` holds the keys and values of the scales before. `level` is the noise level of each scale's inputs
        (0 if not given), which only a model with `context_noise` uses.
        """
        config, span = self.config, self.config.span(scales)
        sizes = config.sizes[scales.start : scales.stop]
        label = self.embed_label(labels, len(labels)).unsqueeze(1)
        parts = [label.expand(-1, config.sizes[0], -1)] if scales.start == 0 else []
        x = torch.cat([*parts, *([] if inputs is None else [self.embed(inputs)])], dim=1)
        if self.embed_level is not None:
            level = x.new_zeros(len(x), len(scales)) if level is None else level
            x = x + per_token(self.embed_level(1000 * level), sizes)
        first, middle, last = self.positions[:, span]
        x = self.norms[0](x + first)
        rotary, caches = self.rotary[:, span], []
        for i, block in enumerate(self.blocks):
            if i == config.depth // 2:
                x = self.middle(self.norms[1](x)) + middle
            x, keys_values = block(x, label, rotary, sizes, None if cache is None else cache[i])
            caches.append(keys_values)
        return self.norms[2](x) + last, tuple(caches)


Model = FlowAR


@dataclass(frozen=True, kw_only=True)
class ContextDraws(Draws):
    """The random draws of one training step, including the noise in the transformer's inputs with `context_noise`."""

    level: Float[Tensor, "b s"] | None = None
    """Noise level of each scale's inputs; 0 at the first, whose input is the class."""
    level_noise: Float[Tensor, "b n p"] | None = None
    """Standard normal noise mixed into the inputs."""


def draws(
    config: FlowARConfig, shape: Sequence[int], *, generator: torch.Generator | None = None, device: torch.device | str
) -> ContextDraws:
    """Samples t (b, s), noise (b, n, p) and the label-drop mask (b,) of one training step on latents of this shape.

    Every scale of every image has its own time and noise. With context_noise also the level (b, s) and noise (b, n, p)
    of the transformer's inputs.
    """
    batch, scales = shape[0], len(config.sizes)
    drawn = ContextDraws(
        t=TIME_SAMPLINGS[config.time_sampling]((batch, scales), generator=generator, device=device),
        noise=torch.randn(batch, *config.noise_shape, generator=generator, device=device),
        drop=torch.rand(batch, generator=generator, device=device) < config.label_drop,
    )
    if not config.context_noise:
        return drawn
    level = config.context_noise * torch.rand(batch, scales, generator=generator, device=device)
    level[:, 0] = 0
    noise = torch.randn(batch, *config.noise_shape, generator=generator, device=device)
    return replace(drawn, level=level, level_noise=noise)


def errors(
    model: nn.Module, latents: Float[Tensor, "b c h w"], labels: Int[Tensor, "b"] | None, draws: ContextDraws
) -> Float[Tensor, "b s"]:
    """The mean squared velocity error |v - u_t|^2 of each scale of each image, in one forward pass (equation 9).

    Labels are dropped in training mode only.
    """
    config = cast(FlowARConfig, model.config)
    if model.training and labels is not None:
        labels = labels.masked_fill(draws.drop, config.classes)

    maps = pyramid(latents, config)
    x1, inputs = packed(maps, config.patch), inputs_of(maps, config)

    if draws.level is not None and draws.level_noise is not None:
        mix = per_token(draws.level, config.sizes)[:, config.sizes[0] :, None]
        inputs = (1 - mix) * inputs + mix * draws.level_noise[:, config.sizes[0] :]
    time = per_token(draws.t, config.sizes)
    velocity = model(x_t(linear, draws.noise, x1, time), draws.t, labels, inputs, draws.level)
    u = u_t(linear, draws.noise, x1, time)
    return _by_scale(velocity.float() - (contrasted(u, config.contrast) if model.training else u), config)


def velocities_along(
    model: nn.Module,
    x: Float[Tensor, "b k n p"],
    t: Float[Tensor, "b k"],
    labels: Int[Tensor, "b"] | None,
    ends: Float[Tensor, "b n p"],
) -> Float[Tensor, "b k n p"]:
    """The velocities at k points of the trajectories of all scales.

    As in sampling, the condition of a scale is that of the maps that the coarser trajectories end with.
    """
    config, count = cast(FlowARConfig, model.config), x.shape[1]
    tokens = ends.split(config.sizes, dim=1)
    maps = [unpatchify(part, config.patch, size) for part, size in zip(tokens, config.maps, strict=True)]
    inputs = inputs_of(maps, config).repeat_interleave(count, dim=0)
    each = None if labels is None else labels.repeat_interleave(count)
    time = t.flatten().unsqueeze(1).expand(-1, len(config.sizes))
    return model(x.flatten(0, 1), time, each, inputs).view_as(x)


def mean_squares(config: FlowARConfig, difference: Float[Tensor, "b k n p"]) -> Float[Tensor, "b s"]:
    """The mean square of each scale, over all points."""
    each = _by_scale(difference.float().flatten(0, 1), config)
    return each.unflatten(0, difference.shape[:2]).mean(dim=1)


def follower(config: FlowARConfig, steps: int) -> FlowARConfig:
    """The settings without dropout in the transformer, which stays as it is."""
    return replace(config, dropout=0.0)


def followed(model: nn.Module) -> nn.Module:
    """The flow head, which alone is sampled in many steps."""
    return model.get_submodule("head")


def inputs_of(maps: Sequence[Float[Tensor, "b c _ _"]], config: FlowARConfig) -> Float[Tensor, "b m p"]:
    """The tokens of the transformer's inputs for all scales but the first: the maps before them, upsampled."""
    larger = [upsampled(coarser, config, i + 1) for i, coarser in enumerate(maps[:-1])]
    return packed(larger, config.patch) if larger else patchify(maps[0], config.patch)[:, :0]


def _by_scale(difference: Float[Tensor, "b n p"], config: FlowARConfig) -> Float[Tensor, "b s"]:
    """The mean squares of the tokens of each scale."""
    squares = difference.square().mean(dim=2)
    return torch.stack([of_scale.mean(dim=1) for of_scale in squares.split(config.sizes, dim=1)], dim=1)


def targets(config: FlowARConfig, latents: Float[Tensor, "n c h w"]) -> Sequence[tuple[float, Tensor]]:
    """Pairs (weight in the loss, clean map) for every scale."""
    return list(zip(part_weights(config), pyramid(latents, config), strict=True))


def ends(config: FlowARConfig, latents: Float[Tensor, "n c h w"]) -> Sequence[Float[Tensor, "n t p"]]:
    """The tokens of every scale, coarse to fine."""
    return [patchify(map_, config.patch) for map_ in pyramid(latents, config)]


@torch.no_grad()
def sample(
    model: nn.Module,
    labels: Labels | None,
    *,
    noise: Float[Tensor, "b n p"],
    times: Sequence[float] | Tensor | list[Tensor],
    guidance: Guidance = Guidance(),
    solver: Solver | Sequence[Solver] = euler,
    step_noise: StepNoise | None = None,
    on_step: OnStep | None = None,
    evaluations: Counter[str] | None = None,
    context_noise: float = 0.0,
    level_noise: Float[Tensor, "b n p"] | None = None,
    careful: bool = False,
    guide: nn.Module | None = None,
) -> Float[Tensor, "b c h w"]:
    """Samples of latents, drawn scale by scale (section 3.4).

    For each scale: run the transformer, integrate the head's velocity from noise, upsample the map for the next scale.
    `noise` has the tokens of all scales (`config.noise_shape`), and so has `step_noise`, the noise of a stochastic
    solver, whose step numbers run on from scale to scale. `times` is one grid for all scales, or a list of one per
    scale, and so is `solver`. Guidance follows `Guidance.at_scale`; the null branch is not evaluated where it has no
    effect. For a model trained with context noise, `level_noise` is mixed into the transformer's inputs at the level
    `context_noise`. `guide`, a smaller or less trained model, takes the place of the null branch, with the labels
    (autoguidance).
    `on_step` gets the current scale's map and velocity upsampled to the full latent; `evaluations` counts "transformer
    4x4", "conditional 4x4", "null 4x4" and so on. Raises ValueError if a list of times or solvers has not one per
    scale, if guidance is limited to some channels, or for context noise with a model trained without; RuntimeError as
    `guided`.
    """
    assert isinstance(model, FlowAR)
    config, count = model.config, len(model.config.maps)
    several = isinstance(times, list) and isinstance(times[0], Tensor)
    grids = cast(list[Tensor], times) if several else [torch.as_tensor(times)] * count
    if guidance.channels:
        raise ValueError(f"FlowAR guides all channels, got guidance of the first {guidance.channels}")
    if context_noise > 0 and (model.embed_level is None or level_noise is None):
        raise ValueError(
            f"context_noise {context_noise} needs a model trained with context_noise "
            f"({config.context_noise}) and the draws level_noise"
        )
    solvers = list(solver) if isinstance(solver, Sequence) else [solver] * count
    for given, what in ((grids, "grid of times"), (solvers, "solver")):
        if len(given) != count:
            raise ValueError(f"{count} scales need one {what}, or a list of {count}, got {len(given)}")
    nulls = model.embed_label.null(len(noise))
    if labels is None:
        labels, guidance = nulls, guidance if guide is not None else Guidance()  # else both branches are equal
    other = model if guide is None else cast(FlowAR, guide)
    weights = [guidance.at_scale(i, count).weight for i in range(count)]
    branches, caches = (
        [(model, labels), (other, nulls if guide is None else labels)],
        cast(list[Cache | None], [None, None]),
    )
    latents, done, tally = noise[:0], 0, Counter[str]() if evaluations is None else evaluations
    shown: list[Step] = []

    for i, size in enumerate(config.maps):
        scales = range(i, i + 1)
        span = config.span(scales)
        inputs = None if i == 0 else patchify(upsampled(latents, config, i), config.patch)
        if inputs is not None and level_noise is not None:
            inputs = (1 - context_noise) * inputs + context_noise * level_noise[:, span]
        level = noise.new_full((len(noise), 1), context_noise if i > 0 else 0.0)
        if all(weight == 1 for weight in weights[i:]):
            branches = branches[:1]  # neither this scale nor any finer one needs the null branch
        fields, conditions = [], []
        for j, (network, ids) in enumerate(branches):
            z, caches[j] = network.transformer(inputs, ids, scales, caches[j], level)
            conditions.append(network.head.condition(z, scales))
            fields.append(_field(network.head, conditions[j], scales))
        at_once = guide is None and len(fields) == 2 and together(model, len(noise), size[0] * size[1])
        both = _field(model.head, joined(*conditions), scales) if at_once else None
        calls = Counter(transformer=len(fields))
        scale, at = f"{size[0]}x{size[1]}", guidance.at_scale(i, count)
        solution = solvers[i](
            guided(
                fields[0], fields[-1], at, both=both, evaluations=calls, place=f" of scale {scale}", careful=careful
            ),
            noise[:, span],
            grids[i],
            on_step=on_step and _at_full_size(on_step, config, i, shown),
            **({} if step_noise is None else {"noise": _noise_of_scale(step_noise, span, done)}),
        )
        tally.update({f"{name} {scale}": n for name, n in calls.items()})
        latents, done = unpatchify(solution.x, config.patch, size), done + len(grids[i]) - 1
    return latents


@torch.no_grad()
def flows(model: nn.Module, latents: Float[Tensor, "b c h w"], labels: Int[Tensor, "b"] | None) -> Sequence[Flow]:
    """The ODE of the flow head at each scale, ending at the tokens of its map.

    The transformer reads the class and the coarser maps of the same latents (without context noise), as in training.
    """
    assert isinstance(model, FlowAR)
    config, maps = model.config, pyramid(latents, model.config)
    inputs = inputs_of(maps, config)
    labels = model.embed_label.null(len(latents)) if labels is None else labels
    z, _ = model.transformer(inputs, labels, range(len(maps)))
    found = []
    for i, of_scale in enumerate(maps):
        scales = range(i, i + 1)
        field = _field(model.head, model.head.condition(z[:, config.span(scales)], scales), scales)
        found.append(Flow(lambda x, t, field=field: field(x, t, None)[0], patchify(of_scale, config.patch)))
    return found


def _field(head: FlowHead, condition: Condition, scales: range) -> Field:
    """The velocity field of these scales under a condition."""
    return lambda x, t, state: (head(x, t.unsqueeze(1), condition, scales), state)


def _at_full_size(on_step: OnStep, config: FlowARConfig, scale: int, shown: list[Step]) -> OnStep:
    """A callback that passes tokens to `on_step` as latents of the full size; step numbers and NFE run on over scales.

    `shown` holds the last step that was passed on, if any.
    """
    number, nfe = (shown[0].number, shown[0].nfe) if shown else (0, 0)
    height, width = config.maps[scale]

    def full(tokens: Tensor) -> Tensor:
        return F.interpolate(unpatchify(tokens, config.patch, (height, width)), size=config.size)

    def show(step: Step) -> None:
        seen = step.seen._replace(x=full(step.seen.x), velocity=full(step.seen.velocity))  # full is linear
        counted = {"number": number + step.number, "nfe": nfe + step.nfe}
        shown[:] = [step._replace(x=full(step.x), seen=seen, scale=f"{height}x{width}", **counted)]
        on_step(shown[0])

    return show


def _noise_of_scale(noise: StepNoise, span: slice, done: int) -> Callable[[int], Tensor]:
    """The step noise of one scale as a function of its step, after `done` steps of coarser scales."""
    return lambda i: (noise[done + i] if isinstance(noise, Tensor) else noise(done + i))[:, span]
