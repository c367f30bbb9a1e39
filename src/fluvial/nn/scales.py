"""Transformer blocks on the tokens of several scales: maps of one image, coarse to fine, in one sequence."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from fluvial.nn.functional import dropout, merge_heads, rms_norm, softmax_attention, split_heads
from fluvial.nn.layers import Linear, Modulation
from fluvial.nn.rope import rotate

KeysValues = tuple[Float[Tensor, "b _ _ _"], Float[Tensor, "b _ _ _"]]  # (b, heads, tokens, width of a head)


def span_of(sizes: Sequence[int], scales: range) -> slice:
    """The slice of these scales' tokens in the sequence of all scales."""
    return slice(sum(sizes[: scales.start]), sum(sizes[: scales.stop]))


def per_token(values: Float[Tensor, "b s *d"], sizes: Sequence[int]) -> Float[Tensor, "b n *d"]:
    """Values per scale repeated for each token. (repeat_interleave with a tensor of sizes would wait for a GPU.)"""
    each = zip(values.split(1, dim=1), sizes, strict=True)
    parts = [value.expand(-1, size, *value.shape[2:]) for value, size in each]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def attend(
    q: Float[Tensor, "b heads n k"],
    k: Float[Tensor, "b heads m k"],
    v: Float[Tensor, "b heads m k"],
    sizes: Sequence[int],
    *,
    causal: bool,
    drop: float = 0.0,
) -> Float[Tensor, "b heads n k"]:
    """Softmax attention scale by scale; sizes are the token counts of the scales in q, the last ones of k.

    A scale attends to itself (in both directions) and, if causal, to all scales before it, also those only in k. As
    there is no mask, fused kernels apply, and nothing masked is computed.
    """
    past, start, out = k.shape[-2] - q.shape[-2], 0, []
    for size in sizes:
        end = start + size
        seen = slice(0 if causal else past + start, past + end)
        out.append(softmax_attention(q[..., start:end, :], k[..., seen, :], v[..., seen, :], drop))
        start = end
    return out[0] if len(out) == 1 else torch.cat(out, dim=-2)


class ScaleAttention(nn.Module):
    """Self-attention over scales with rotary positions: block-causal with a key-value cache, or within each scale."""

    def __init__(self, width: int, heads: int, *, causal: bool, bias: bool = True, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads, self.causal, self.dropout = heads, causal, dropout
        self.qkv = Linear(width, 3 * width, bias=bias)
        self.out = Linear(width, width)

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        rotary: Float[Tensor, "2 n k"],
        sizes: Sequence[int],
        cache: KeysValues | None = None,
    ) -> tuple[Float[Tensor, "b n d"], KeysValues]:
        """The output for the scales in x, and the keys and values of these scales and those in the cache."""
        q, k, v = (split_heads(a, self.heads) for a in self.qkv(x).chunk(3, dim=-1))
        q, k = rotate(q, rotary), rotate(k, rotary)
        if cache is not None:
            k, v = torch.cat([cache[0], k], dim=-2), torch.cat([cache[1], v], dim=-2)
        drop = self.dropout if self.training else 0.0
        out = self.out(merge_heads(attend(q, k, v, sizes, causal=self.causal, drop=drop)))
        return dropout(out, drop), (k, v)


class ScaleCrossAttention(nn.Module):
    """Cross-attention from each scale of x to the same scale of a condition, with rotary positions on both."""

    def __init__(self, width: int, condition_width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = Linear(width, width, bias=False)
        self.kv = Linear(condition_width, 2 * width, bias=False)
        self.out = Linear(width, width)

    def keys_values(self, condition: Float[Tensor, "b n c"], rotary: Float[Tensor, "2 n k"]) -> KeysValues:
        """The keys and values of the condition, which do not depend on x."""
        k, v = (split_heads(a, self.heads) for a in self.kv(condition).chunk(2, dim=-1))
        return rotate(k, rotary), v

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        keys_values: KeysValues,
        rotary: Float[Tensor, "2 n k"],
        sizes: Sequence[int],
    ) -> Float[Tensor, "b n d"]:
        q = rotate(split_heads(self.q(x), self.heads), rotary)
        return self.out(merge_heads(attend(q, *keys_values, sizes, causal=False)))


class Geglu(nn.Module):
    """GEGLU MLP, hidden width 8/3 of the input's, rounded down (arXiv 2002.05202; "SwiGLU" in FlowAR's release)."""

    def __init__(self, width: int, dropout: float = 0.0) -> None:
        super().__init__()
        hidden = int(width * 4 * 2 / 3)
        self.dropout = dropout
        self.gate = Linear(width, hidden)
        self.value = Linear(width, hidden)
        self.out = Linear(hidden, width)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        drop = self.dropout if self.training else 0.0
        hidden = dropout(F.gelu(self.gate(x)) * self.value(x), drop)
        return dropout(self.out(hidden), drop)


def modulated(x: Float[Tensor, "b n d"], shift: Float[Tensor, "b _ d"], scale: Float[Tensor, "b _ d"]) -> Tensor:
    """The modulation RMSNorm(x) (1 + scale) + shift, with one shift and scale for all tokens or one per token."""
    return torch.addcmul(shift, rms_norm(x), 1 + scale)


class CausalBlock(nn.Module):
    """A block of the transformer: block-causal attention and GEGLU, adaLN with one condition for all tokens."""

    def __init__(self, width: int, heads: int, *, dropout: float, zero: bool) -> None:
        super().__init__()
        self.modulation = Modulation(width, 6, zero=zero)
        self.attention = ScaleAttention(width, heads, causal=True, dropout=dropout)
        self.mlp = Geglu(width, dropout)

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        condition: Float[Tensor, "b 1 d"],
        rotary: Float[Tensor, "2 n k"],
        sizes: Sequence[int],
        cache: KeysValues | None,
    ) -> tuple[Float[Tensor, "b n d"], KeysValues]:
        gate1, gate2, scale1, scale2, shift1, shift2 = self.modulation(condition)
        attended, keys_values = self.attention(modulated(x, shift1, scale1), rotary, sizes, cache)
        x = x + gate1 * attended
        return x + gate2 * self.mlp(modulated(x, shift2, scale2)), keys_values


class ConditionedBlock(nn.Module):
    """A block of the flow head: attention within each scale and GEGLU, conditioned on time and on each token.

    Without cross_width, time and condition together modulate both (spatial adaLN). With it, time modulates the
    attention, time and condition the MLP, and between them the scale cross-attends to a condition of that width.
    """

    also_called = ("keys_values",)

    def __init__(self, width: int, heads: int, cross_width: int | None, *, zero: bool) -> None:
        super().__init__()
        self.attention = ScaleAttention(width, heads, causal=False, bias=False)
        self.mlp = Geglu(width)
        self.cross = None
        if cross_width is None:
            self.modulation = Modulation(width, 6, zero=zero)
        else:
            self.modulation_attention = Modulation(width, 3, zero=zero)
            self.modulation_mlp = Modulation(width, 3, zero=zero)
            self.norm_x = nn.RMSNorm(width, eps=1e-6)
            self.norm_z = nn.RMSNorm(cross_width, eps=1e-6)
            self.cross = ScaleCrossAttention(width, cross_width, heads)

    def keys_values(self, z: Float[Tensor, "b n c"], rotary: Float[Tensor, "2 n k"]) -> KeysValues | None:
        """Keys and values of the condition for cross-attention, independent of x and time; None without it."""
        return None if self.cross is None else self.cross.keys_values(self.norm_z(z), rotary)

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        time: Float[Tensor, "b s d"],
        condition: Float[Tensor, "b n d"],
        keys_values: KeysValues | None,
        rotary: Float[Tensor, "2 n k"],
        sizes: Sequence[int],
    ) -> Float[Tensor, "b n d"]:
        """The block's output; `time` has one embedding per scale, `condition` one per token, with the time added."""
        if self.cross is None:
            gate1, gate2, scale1, scale2, shift1, shift2 = self.modulation(condition)
        else:
            gate1, scale1, shift1 = (per_token(a, sizes) for a in self.modulation_attention(time))
            gate2, scale2, shift2 = self.modulation_mlp(condition)
        x = x + gate1 * self.attention(modulated(x, shift1, scale1), rotary, sizes)[0]
        if self.cross is not None:
            assert keys_values is not None
            x = x + self.cross(self.norm_x(x), keys_values, rotary, sizes)
        return x + gate2 * self.mlp(modulated(x, shift2, scale2))
