"""The settings of FlowAR, its published sizes, and the functions of these settings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import log, prod
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from fluvial.flow.interpolant import InterpolantName
from fluvial.flow.timesteps import TimeSampling
from fluvial.nn.layers import heads_of
from fluvial.nn.scales import span_of
from fluvial.utils.checks import MOST, as_declared, at_least, at_most, below_one, probabilities, whole_patches

HeadForm = Literal["spatial_adaln", "cross_attention"]


@dataclass(frozen=True, kw_only=True)
class FlowARConfig:
    """The settings of FlowAR: its transformer over scales, its flow head, and their training."""

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
    """Columns of tokens of each scale; equal to the rows if not given."""
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
    """Give all tokens the same weight (release, equation 9), or all scales. The losses do not compare: by
    token, the weights of the scales add up to more than 1."""
    upsample: Literal["via_full", "direct"] = "via_full"
    """Upsample a map for the next scale by bicubic to the full latent and area down (release), or by bicubic alone."""
    time_sampling: TimeSampling = "uniform"
    """Distribution of t in training, for each image and scale."""
    contrast: float = 0.0
    """Weight with which another image of the micro-batch repels (arXiv 2506.05350), 0 for none (release)."""
    floor_time: bool = False
    """Round the noise level down to 1/1000 before it is embedded, as the release does."""
    init: Literal["zero", "release"] = "zero"
    """Start with zero gates and zero velocity, or Xavier everywhere: in the release the zeros are overwritten."""
    context_noise: float = 0.0
    """Largest noise level mixed into the transformer's inputs in training, and given to it; 0 for clean inputs."""

    images_per_sequence: ClassVar[None] = None
    """A training example is one image."""
    interpolant: ClassVar[InterpolantName] = "linear"
    guides_channels: ClassVar[bool] = False
    """False, as a token of the head holds all channels."""

    def __post_init__(self) -> None:
        as_declared(self)
        at_least(1, self, "channels", "patch", "width", "heads", "head_depth", "head_width", "head_heads")
        at_most(MOST, self, "channels", "patch", "width", "heads", "depth", "head_depth", "head_width", "head_heads")
        at_least(0, self, "classes")
        probabilities(self, "dropout", "label_drop", "context_noise")
        below_one(self, "contrast")
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
        """The number of rows and columns of tokens of each scale."""
        return tuple(zip(self.scales, self.scale_columns or self.scales, strict=True))

    @property
    def sizes(self) -> tuple[int, ...]:
        """The number of tokens of each scale."""
        return tuple(h * w for h, w in self.maps)

    @property
    def noise_shape(self) -> tuple[int, int]:
        """The shape of one image's noise: tokens of all scales, numbers in a token."""
        return sum(self.sizes), self.patch**2 * self.channels

    def span(self, scales: range) -> slice:
        """The slice of these scales' tokens among the tokens of all scales."""
        return span_of(self.sizes, scales)


PRESETS: dict[str, dict[str, Any]] = {
    "S": {"depth": 12, "width": 768, "heads": 12, "head_depth": 2, "head": "spatial_adaln"},
    # B is in the paper's Table 7 only, which does not give its heads: these are our choice
    "B": {"depth": 16, "width": 768, "heads": 12, "head_depth": 6, "head": "spatial_adaln"},
    "L": {"depth": 16, "width": 1024, "heads": 16, "head_depth": 12, "head": "cross_attention"},
    # the paper's Table 7 says 18 blocks in the head, the released H has 12
    "H": {"depth": 30, "width": 1536, "heads": 16, "head_depth": 12, "head": "cross_attention"}
    | {"head_width": 1536, "head_heads": 24},
}


def preset(name: str, **overrides: Any) -> FlowARConfig:  # noqa: ANN401 - any field of FlowARConfig
    """The published size "S", "B", "L" or "H", with some fields replaced; B is the paper's, without a release."""
    if name not in PRESETS:
        raise ValueError(f"unknown size {name!r}: expected one of {', '.join(PRESETS)}")
    return FlowARConfig(**{**PRESETS[name], **overrides})


def proportioned(
    *, depth: int, width: int, size: tuple[int, int], channels: int, classes: int, patch: int
) -> FlowARConfig:
    """The settings of a network of this depth and width: maps that double, and a head of the same width."""
    heads, full = heads_of(width), min(size) // patch
    scales = (*(2**i for i in range(full.bit_length()) if 2**i < full), full)
    return FlowARConfig(
        size=size,
        channels=channels,
        classes=classes,
        patch=patch,
        scales=scales,
        depth=depth + depth % 2,
        width=width,
        heads=heads,
        head_depth=max(2, depth // 3),
        head_width=width,
        head_heads=heads,
        dropout=0.0,
    )


def part_weights(config: FlowARConfig) -> Sequence[float]:
    """The weight of each scale in the loss: n_i / n_last for its n_i tokens (release), or 1 / number of scales."""
    if config.loss_weight == "scale":
        return (1 / len(config.sizes),) * len(config.sizes)
    return [n / config.sizes[-1] for n in config.sizes]


def scales(config: FlowARConfig) -> tuple[str, ...]:
    """Names of the scales, coarse to fine: rows and columns, such as "4x4"."""
    return tuple(f"{h}x{w}" for h, w in config.maps)


def tokens(config: FlowARConfig) -> int:
    """The number of tokens of all scales."""
    return sum(config.sizes)


def small(config: FlowARConfig) -> FlowARConfig:
    """The settings with two narrow blocks and one in the head, for a quick trial."""
    head = {"head_width": 64, "head_heads": 2, "head_depth": 1}
    return replace(config, width=64, heads=2, depth=2, **head)


def framed(config: FlowARConfig, start: FlowARConfig) -> FlowARConfig:
    """The unchanged settings: positions are learned, and `resampled` for another size."""
    return config


def resampled(
    weights: Mapping[str, Tensor], before: FlowARConfig, after: FlowARConfig
) -> tuple[dict[str, Tensor], str]:
    """The weights with the position table resampled for other scales, and a note in words ("" if unchanged).

    Each map is taken from the one of the same size, else bicubic from the one closest in area.
    """
    if before.maps == after.maps:
        return dict(weights), ""
    there = dict(zip(before.maps, weights["positions"].split(before.sizes, dim=1), strict=True))
    parts = []
    for map_ in after.maps:
        h, w = map_ if map_ in there else min(there, key=lambda old: abs(log(prod(old) / prod(map_))))
        grid = there[h, w].unflatten(1, (h, w)).movedim(-1, 1)
        if (h, w) != map_:
            grid = F.interpolate(grid.float(), size=map_, mode="bicubic", align_corners=False).to(grid.dtype)
        parts.append(grid.movedim(1, -1).flatten(1, 2))
    told = f"positions: resampled from maps of {' '.join(scales(before))} to {' '.join(scales(after))}"
    return {**weights, "positions": torch.cat(parts, dim=1)}, told
