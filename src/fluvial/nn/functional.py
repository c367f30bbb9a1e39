"""Functions of attention and dropout, on tensors alone."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

EPS = 1e-6


def split_heads(x: Float[Tensor, "*b n d"], heads: int) -> Float[Tensor, "*b heads n k"]:
    """Tokens of width d as `heads` sets of tokens of width k = d / heads."""
    return x.unflatten(-1, (heads, -1)).transpose(-3, -2)


def merge_heads(x: Float[Tensor, "*b heads n k"]) -> Float[Tensor, "*b n d"]:
    """The inverse of `split_heads`."""
    return x.transpose(-3, -2).flatten(-2)


MATERIALISED = 512  # keys up to which a CPU keeps the attention weights in memory


def softmax_attention(
    q: Float[Tensor, "*b n k"], k: Float[Tensor, "*b m k"], v: Float[Tensor, "*b m k"], drop: float = 0.0
) -> Float[Tensor, "*b n k"]:
    """Softmax attention softmax(q k^T / sqrt(k)) v, with dropout of the weights.

    Compiled for a CPU and few keys it is `written_out`, which is faster there, above all in the backward pass.
    """
    if q.device.type == "cpu" and torch.compiler.is_compiling() and k.shape[-2] <= MATERIALISED:
        return written_out(q, k, v, drop)
    return F.scaled_dot_product_attention(q, k, v, dropout_p=drop)


def written_out(q: Tensor, k: Tensor, v: Tensor, drop: float = 0.0) -> Tensor:
    """Softmax attention by its definition; in bfloat16 the scores are rounded to it, the softmax is float32."""
    wide = torch.promote_types(q.dtype, torch.float32)
    weights = torch.softmax(q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1), dim=-1, dtype=wide)
    return dropout(weights, drop).to(v.dtype) @ v


def rms_norm(x: Tensor) -> Tensor:
    """RMS norm without weights, eps 1e-6."""
    return F.rms_norm(x, x.shape[-1:], eps=EPS)


def dropout(x: Tensor, p: float) -> Tensor:
    """Inverted dropout; `hashed_dropout` if compiled for a CPU, where Inductor draws random numbers one by one."""
    if p == 0 or x.device.type != "cpu" or not torch.compiler.is_compiling():
        return F.dropout(x, p)
    return hashed_dropout(x, p, torch.randint(-(2**31), 2**31 - 1, (1,), dtype=torch.int32, device=x.device))


def hashed_dropout(x: Tensor, p: float, seed: Int[Tensor, "1"]) -> Tensor:
    """Dropout that keeps entry i by a hash of i and the int32 seed: integer arithmetic, which vectorises."""
    entries = torch.arange(x.numel(), dtype=torch.int32, device=x.device).view(x.shape)
    keep = _mixed(_mixed(entries) ^ seed) >= int((p - 0.5) * 2**32)
    return torch.where(keep, x * (1 / (1 - p)), 0.0)


def _mixed(x: Tensor) -> Tensor:
    """An integer hash, a bijection of int32 (C. Wellons' hash-prospector, lowbias32)."""
    x = (x ^ (x >> 16) & 0xFFFF) * 0x21F0AAAD  # & after >>: the shift of a negative number copies its sign
    x = (x ^ (x >> 15) & 0x1FFFF) * (0xD35A2D97 - 2**32)
    return x ^ (x >> 15) & 0x1FFFF
