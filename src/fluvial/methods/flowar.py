"""FlowAR: next-scale autoregression with a flow-matching head (arXiv 2412.15205).

A latent is a pyramid of maps, coarse to fine. A transformer reads the class and the enlarged maps before a scale and
says what that scale should hold, token by token; the flow head, one small network for all scales, turns noise into the
map under that condition. Both are trained together by the velocity error of the head.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Literal, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from fluvial.checks import MOST, as_declared, at_least, at_most, probabilities, whole_patches
from fluvial.guidance import Guidance, guided
from fluvial.integrate import Field, OnStep, Solver, Step, StepNoise, euler
from fluvial.interpolant import InterpolantName, linear, u_t, x_t
from fluvial.nn.flow_head import FlowHead
from fluvial.nn.layers import LabelEmbedding, Linear, TimeEmbedding, patchify, unpatchify
from fluvial.nn.rope import axial_rotary
from fluvial.nn.scales import CausalBlock, KeysValues, per_token, span_of
from fluvial.timesteps import TIME_SAMPLINGS, TimeSampling

HeadForm = Literal["spatial_adaln", "cross_attention"]


@dataclass(frozen=True, kw_only=True)
class FlowARConfig:
    size: tuple[int, int] = (16, 16)
    """Height and width of the latent."""
    channels: int = 16
    """Channels of the latent."""
    classes: int = 1000
    """Number of classes; 0 trains without labels."""
    patch: int = 1
    """Side of a patch, in latent pixels; divides the size."""
    scales: tuple[int, ...] = (1, 2, 4, 8, 16)
    """Rows of tokens of each scale, coarse to fine; the last is the height over patch."""
    scale_columns: tuple[int, ...] = ()
    """Columns of tokens of each scale; as many as rows if not given."""
    depth: int = 12
    """Blocks of the transformer: half before and half after the second position table."""
    width: int = 768
    """Width of the transformer."""
    heads: int = 12
    """Attention heads of the transformer."""
    head: HeadForm = "spatial_adaln"
    """Form of the flow head: the condition modulates attention and MLP (paper; released S), or enters by
    cross-attention and modulates the MLP (released L and H)."""
    head_depth: int = 2
    """Blocks of the flow head."""
    head_width: int = 1024
    """Width of the flow head."""
    head_heads: int = 16
    """Attention heads of the flow head (release: width / 64)."""
    dropout: float = 0.1
    """Dropout in the transformer; the head has none."""
    label_drop: float = 0.1
    """Probability that a label is dropped in training, so that guidance has a null branch."""
    loss_weight: Literal["token", "scale"] = "token"
    """Weigh all tokens alike (release, equation 9), or all scales alike."""
    enlarge: Literal["via_full", "direct"] = "via_full"
    """Enlarge a map for the next scale by bicubic to the full latent and area down (release), or by bicubic alone."""
    time_sampling: TimeSampling = "uniform"
    """How t is drawn in training, for each image and scale."""
    floor_time: bool = False
    """Round the noise level down to 1/1000 before it is embedded, as the release does."""
    init: Literal["zero", "release"] = "zero"
    """Start with zero gates and zero velocity, or Xavier everywhere: in the release the zeros are overwritten."""
    context_noise: float = 0.0
    """Largest noise level mixed into the transformer's inputs in training, and told to it; 0 for clean inputs."""

    images_per_sequence: ClassVar[None] = None
    """A training example is one image."""
    interpolant: ClassVar[InterpolantName] = "linear"

    def __post_init__(self) -> None:
        as_declared(self)
        at_least(1, self, "channels", "patch", "width", "heads", "head_depth", "head_width", "head_heads")
        at_most(MOST, self, "channels", "patch", "width", "heads", "depth", "head_depth", "head_width", "head_heads")
        at_least(0, self, "classes")
        probabilities(self, "dropout", "label_drop", "context_noise")
        whole_patches(self.size, self.patch)
        full = self.size[0] // self.patch, self.size[1] // self.patch
        if self.scale_columns and len(self.scale_columns) != len(self.scales):
            raise ValueError(f"scale_columns must be as many as scales, got {self.scale_columns} and {self.scales}")
        grow = all(a[0] <= b[0] and a[1] <= b[1] and a != b for a, b in pairwise(self.maps))
        if not self.maps or min(min(m) for m in self.maps) < 1 or not grow or self.maps[-1] != full:
            raise ValueError(
                f"scales must be growing maps of tokens that end with {full[0]} x {full[1]} (size over patch), "
                f"got {' '.join(f'{h}x{w}' for h, w in self.maps) or 'none'}; set scales (rows) and scale_columns"
            )
        if self.depth < 2 or self.depth % 2:
            raise ValueError(f"depth must be even (half of it before the second position table), got {self.depth}")
        for name, width, heads in (("width", self.width, self.heads), ("head_width", self.head_width, self.head_heads)):
            if width % (4 * heads):
                raise ValueError(f"{name} must be divisible by 4 times its heads, got {width} and {heads} heads")

    @property
    def maps(self) -> tuple[tuple[int, int], ...]:
        """Rows and columns of tokens of each scale."""
        return tuple(zip(self.scales, self.scale_columns or self.scales, strict=True))

    @property
    def sizes(self) -> tuple[int, ...]:
        """Tokens of each scale."""
        return tuple(h * w for h, w in self.maps)

    @property
    def noise_shape(self) -> tuple[int, int]:
        """Tokens of all scales, and numbers in a token: the noise of one image."""
        return sum(self.sizes), self.patch**2 * self.channels

    def span(self, scales: range) -> slice:
        """Where the tokens of these scales are among all."""
        return span_of(self.sizes, scales)


Config = FlowARConfig
PRESETS: dict[str, dict[str, Any]] = {
    "S": {"depth": 12, "width": 768, "heads": 12, "head_depth": 2, "head": "spatial_adaln"},
    # B is in the paper's Table 7 only; its heads are our reading
    "B": {"depth": 16, "width": 768, "heads": 12, "head_depth": 6, "head": "spatial_adaln"},
    "L": {"depth": 16, "width": 1024, "heads": 16, "head_depth": 12, "head": "cross_attention"},
    # the paper's Table 7 says 18 blocks in the head, the released H has 12
    "H": {"depth": 30, "width": 1536, "heads": 16, "head_depth": 12, "head": "cross_attention"}
    | {"head_width": 1536, "head_heads": 24},
}


def preset(name: str, **overrides: Any) -> FlowARConfig:  # noqa: ANN401 - any field of FlowARConfig
    """The released configuration "S", "B", "L" or "H", with some fields replaced."""
    if name not in PRESETS:
        raise ValueError(f"unknown size {name!r}: expected one of {', '.join(PRESETS)}")
    return FlowARConfig(**{**PRESETS[name], **overrides})


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


def enlarged(smaller: Float[Tensor, "b c _ _"], config: FlowARConfig, scale: int) -> Float[Tensor, "b c _ _"]:
    """The transformer's input at this scale: Up(s^(i-1)), the scale before enlarged."""
    h, w = (side * config.patch for side in config.maps[scale])
    if config.enlarge == "direct":
        return F.interpolate(smaller, size=(h, w), mode="bicubic", align_corners=False)
    full = F.interpolate(smaller, size=config.size, mode="bicubic", align_corners=False)
    return F.interpolate(full, size=(h, w), mode="area")


def packed(maps: Sequence[Float[Tensor, "b c _ _"]], patch: int) -> Float[Tensor, "b n p"]:
    """The tokens of several maps one after another."""
    return torch.cat([patchify(m, patch) for m in maps], dim=1)


Cache = tuple[KeysValues, ...]


class FlowAR(nn.Module):
    """The transformer over scales and the flow head."""

    rotary: Tensor
    head: FlowHead

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
        labels: Int[Tensor, "b"] | None,
        inputs: Float[Tensor, "b m p"],
        level: Float[Tensor, "b s"] | None = None,
    ) -> Float[Tensor, "b n p"]:
        """The velocity of the noisy tokens of all scales at once, a time for each scale.

        inputs are the enlarged maps for all scales but the first, as `enlarged` and `packed` make them.
        """
        scales = range(len(self.config.sizes))
        labels = self.embed_label.null(len(x_t)) if labels is None else labels
        z, _ = self.transformer(inputs, labels, scales, level=level)
        return self.head(x_t, t, self.head.condition(z, scales), scales)

    def transformer(
        self,
        inputs: Float[Tensor, "b m p"] | None,
        labels: Int[Tensor, "b"],
        scales: range,
        cache: Cache | None = None,
        level: Float[Tensor, "b s"] | None = None,
    ) -> tuple[Float[Tensor, "b n c"], Cache]:
        """What these scales should hold, and the cache of keys and values with them.

        inputs are the enlarged maps of these scales but the very first, which starts from the class. `cache` holds the
        scales before. `level` is the noise level of each scale's inputs (0 if not given), of which only a
        model with `context_noise` is told.
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


def draws(
    config: FlowARConfig, shape: Sequence[int], *, generator: torch.Generator | None = None, device: torch.device | str
) -> dict[str, Tensor]:
    """What chance decides in a step on latents of this shape: t (b, s), noise (b, n, p), whose label is dropped (b,).

    Every scale of every image has its own time and noise. With context_noise also the level (b, s) and noise (b, n, p)
    of the transformer's inputs.
    """
    batch, scales = shape[0], len(config.sizes)
    drawn = {
        "t": TIME_SAMPLINGS[config.time_sampling]((batch, scales), generator=generator, device=device),
        "noise": torch.randn(batch, *config.noise_shape, generator=generator, device=device),
        "drop": torch.rand(batch, generator=generator, device=device) < config.label_drop,
    }
    if config.context_noise > 0:
        drawn["level"] = config.context_noise * torch.rand(batch, scales, generator=generator, device=device)
        drawn["level"][:, 0] = 0  # the first scale starts from the class, which has no noise
        drawn["level_noise"] = torch.randn(batch, *config.noise_shape, generator=generator, device=device)
    return drawn


def loss(
    model: nn.Module,
    latents: Float[Tensor, "b c h w"],
    labels: Int[Tensor, "b"] | None,
    **chance: Any,  # noqa: ANN401
) -> Float[Tensor, ""]:
    """sum_i w_i |v^i - u^i|^2 (section 3.3, equation 9); the keywords are those of `errors`.

    w_i is n_i / n_last for tokens n_i of the scale (release: every token counts alike), or 1 / number of scales.
    """
    config = cast(FlowARConfig, chance.get("config") or model.config)
    each = errors(model, latents, labels, **chance).mean(dim=0).unbind()
    weights = [n / config.sizes[-1] if config.loss_weight == "token" else 1 / len(each) for n in config.sizes]
    return torch.stack([weight * error for weight, error in zip(weights, each, strict=True)]).sum()


def errors(
    model: nn.Module,
    latents: Float[Tensor, "b c h w"],
    labels: Int[Tensor, "b"] | None,
    *,
    config: FlowARConfig | None = None,
    generator: torch.Generator | None = None,
    t: Float[Tensor, "b s"] | None = None,
    noise: Float[Tensor, "b n p"] | None = None,
    drop: Bool[Tensor, "b"] | None = None,
    level: Float[Tensor, "b s"] | None = None,
    level_noise: Float[Tensor, "b n p"] | None = None,
) -> Float[Tensor, "b s"]:
    """|v - u_t|^2 of each scale of each image, the mean over its entries, all scales in one pass.

    What is not given is drawn from `generator`; labels are dropped in training only. A wrapped model needs `config`.
    """
    config = cast(FlowARConfig, model.config) if config is None else config
    given = {"t": t, "noise": noise, "drop": drop, "level": level, "level_noise": level_noise}
    drawn = {k: v for k, v in given.items() if v is not None}
    if not (given.keys() if config.context_noise > 0 else {"t", "noise", "drop"}) <= drawn.keys():
        drawn = draws(config, latents.shape, generator=generator, device=latents.device) | drawn
    if model.training and labels is not None:
        labels = labels.masked_fill(drawn["drop"], config.classes)

    targets = pyramid(latents, config)
    x1 = packed(targets, config.patch)
    grown = [enlarged(smaller, config, i + 1) for i, smaller in enumerate(targets[:-1])]
    inputs = packed(grown, config.patch) if grown else x1[:, :0]

    if "level" in drawn:
        mix = per_token(drawn["level"], config.sizes)[:, config.sizes[0] :, None]
        inputs = (1 - mix) * inputs + mix * drawn["level_noise"][:, config.sizes[0] :]
    time = per_token(drawn["t"], config.sizes)
    velocity = model(x_t(linear, drawn["noise"], x1, time), drawn["t"], labels, inputs, drawn.get("level"))
    error = (velocity.float() - u_t(linear, drawn["noise"], x1, time)).square().mean(dim=2)
    return torch.stack([of_scale.mean(dim=1) for of_scale in error.split(config.sizes, dim=1)], dim=1)


@torch.no_grad()
def sample(
    model: nn.Module,
    labels: Int[Tensor, "b"] | None,
    *,
    noise: Float[Tensor, "b n p"],
    times: Sequence[float] | Tensor | list[Tensor],
    guidance: Guidance = Guidance(),
    solver: Solver = euler,
    step_noise: StepNoise | None = None,
    on_step: OnStep | None = None,
    evaluations: Counter[str] | None = None,
    context_noise: float = 0.0,
    level_noise: Float[Tensor, "b n p"] | None = None,
    careful: bool = False,
) -> Float[Tensor, "b c h w"]:
    """Latents, drawn scale by scale (section 3.4): transformer, integral of the head's velocity, enlarge, next scale.

    noise are the tokens of all scales (`config.noise_shape`), as are the draws `step_noise` of a stochastic solver,
    whose steps are counted on over the scales. times is one grid for every scale, or a list of one for each. Guidance
    follows `Guidance.at_scale`; the null branch is not evaluated where it has no effect. A model trained with context
    noise is told the level `context_noise`, which is mixed into its inputs with the draws `level_noise`.
    `on_step` sees the map of the present scale enlarged to the full latent; `evaluations` counts "transformer 4x4",
    "conditional 4x4", "null 4x4" and so on. Raises ValueError for a list of times that is not one for each scale,
    guided channels, or context noise that the model does not know; RuntimeError as `guided` does.
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
    if len(grids) != count:
        raise ValueError(f"{count} scales need one grid of times, or a list of {count} grids, got {len(grids)}")
    nulls = model.embed_label.null(len(noise))
    labels, guidance = (nulls, Guidance()) if labels is None else (labels, guidance)  # else both branches were alike
    weights = [guidance.at_scale(i, count).weight for i in range(count)]
    branches, caches = [labels, nulls], cast(list[Cache | None], [None, None])
    latents, done, tally = noise[:0], 0, Counter[str]() if evaluations is None else evaluations
    shown: Counter[int] = Counter()  # steps that on_step has seen, by scale

    for i, size in enumerate(config.maps):
        scales = range(i, i + 1)
        span = config.span(scales)
        inputs = None if i == 0 else patchify(enlarged(latents, config, i), config.patch)
        if inputs is not None and level_noise is not None:
            inputs = (1 - context_noise) * inputs + context_noise * level_noise[:, span]
        level = noise.new_full((len(noise), 1), context_noise if i > 0 else 0.0)
        if all(weight == 1 for weight in weights[i:]):
            branches = [labels]  # no scale from here on needs the null branch
        fields = []
        for j, ids in enumerate(branches):
            z, caches[j] = model.transformer(inputs, ids, scales, caches[j], level)
            fields.append(_field(model.head, z, scales))
        calls = Counter(transformer=len(fields))
        scale, at = f"{size[0]}x{size[1]}", guidance.at_scale(i, count)
        solution = solver(
            guided(fields[0], fields[-1], at, evaluations=calls, place=f" of scale {scale}", careful=careful),
            noise[:, span],
            grids[i],
            on_step=on_step and _enlarging(on_step, config, i, shown),
            **({} if step_noise is None else {"noise": _part_of(step_noise, span, done)}),
        )
        tally.update({f"{name} {scale}": n for name, n in calls.items()})
        latents, done = unpatchify(solution.x, config.patch, size), done + len(grids[i]) - 1
    return latents


def _field(head: FlowHead, z: Tensor, scales: range) -> Field:
    condition = head.condition(z, scales)
    return lambda x, t, state: (head(x, t.unsqueeze(1), condition, scales), state)


def _enlarging(on_step: OnStep, config: FlowARConfig, scale: int, shown: Counter[int]) -> OnStep:
    """`on_step` with maps of tokens turned into latents of the full size, and steps counted on over the scales."""
    before = shown.total()

    def show(step: Step) -> None:
        latents = F.interpolate(unpatchify(step.x, config.patch, config.maps[scale]), size=config.size)
        shown[scale] = step.number
        on_step(step._replace(x=latents, number=before + step.number))

    return show


def _part_of(noise: StepNoise, span: slice, done: int) -> Callable[[int], Tensor]:
    """The draws of one scale, whose first step is number `done` of all."""
    return lambda i: (noise[done + i] if isinstance(noise, Tensor) else noise(done + i))[:, span]
