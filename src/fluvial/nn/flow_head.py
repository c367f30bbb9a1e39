"""FlowAR's flow-matching head, one network shared by all scales (arXiv 2412.15205, section 3.3)."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fluvial.nn.layers import Linear, Modulation, TimeEmbedding, ZeroLinear
from fluvial.nn.rope import axial_rotary
from fluvial.nn.scales import ConditionedBlock, KeysValues, modulated, per_token, span_of


class Condition(NamedTuple):
    """The transformer's output for some scales, as the head uses it; independent of x and t."""

    projected: Float[Tensor, "b n d"]
    keys_values: tuple[KeysValues | None, ...]


class FlowHead(nn.Module):
    """The network that predicts the velocity of the maps of one or more scales, given the transformer's output.

    With `cross` the condition enters by cross-attention and modulates the MLP (released L and H), else it modulates
    attention and MLP (paper; released S). `floor_time` rounds the embedded noise level down to 1/1000, as the release
    does; `zero` initialises gates and output to zero.
    """

    rotary: Tensor

    def __init__(
        self,
        maps: Sequence[tuple[int, int]],
        *,
        token_width: int,
        condition_width: int,
        width: int,
        heads: int,
        depth: int,
        cross: bool,
        floor_time: bool,
        zero: bool,
    ) -> None:
        super().__init__()
        self.sizes, self.floor_time = tuple(h * w for h, w in maps), floor_time
        self.embed = Linear(token_width, width)
        self.embed_t = TimeEmbedding(width, std=0.02 if zero else None)
        self.project = Linear(condition_width, width)
        blocks = (ConditionedBlock(width, heads, condition_width if cross else None, zero=zero) for _ in range(depth))
        self.blocks = nn.ModuleList(blocks)
        self.modulation = Modulation(width, 2, zero=zero)
        self.out = (ZeroLinear if zero else Linear)(width, token_width)
        self.register_buffer("rotary", axial_rotary(maps, width // heads), persistent=False)

    def condition(self, z: Float[Tensor, "b n c"], scales: range) -> Condition:
        """The condition for these scales, computed once and used at every solver step."""
        rotary, blocks = self.rotary[:, span_of(self.sizes, scales)], cast(Iterable[ConditionedBlock], self.blocks)
        return Condition(self.project(z), tuple(block.keys_values(z, rotary) for block in blocks))

    def forward(
        self, x: Float[Tensor, "b n p"], t: Float[Tensor, "b s"], condition: Condition, scales: range
    ) -> Float[Tensor, "b n p"]:
        """The velocity of the noisy tokens x of these scales; t (0 noise, 1 data) has one time per scale."""
        span, sizes = span_of(self.sizes, scales), self.sizes[scales.start : scales.stop]
        # The release's time runs from data (0) to noise (1) and is embedded as 0 ... 1000: t is converted here.
        # (Its velocity has the opposite sign: the importer negates the output layer.)
        level = 1000 * (1 - t)
        if self.floor_time:
            level = torch.floor(level + 1e-3)  # 1 - (1 - 0.3) must still floor to 300
        time = self.embed_t(level)
        condition_t = condition.projected + per_token(time, sizes)
        h = self.embed(x).to(torch.promote_types(x.dtype, torch.float32))  # the residual stream, also under autocast
        for block, keys_values in zip(self.blocks, condition.keys_values, strict=True):
            h = block(h, time, condition_t, keys_values, self.rotary[:, span], sizes)
        return self.out(modulated(h, *self.modulation(condition_t)))
