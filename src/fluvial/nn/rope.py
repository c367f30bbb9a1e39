"""Rotary position embedding on 2-D maps of several sizes (RoFormer, arXiv 2104.09864; axial as in EVA-02)."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


def axial_frequencies(head_width: int, *, theta: float = 10_000.0) -> Float[Tensor, "f"]:
    """The rotary frequencies of one axis, head_width / 4 of them, in float64."""
    if head_width % 4:
        raise ValueError(f"2-D rotary positions need heads whose width is divisible by 4, got {head_width}")
    return theta ** -(torch.arange(0, head_width // 2, 2, dtype=torch.float64) / (head_width // 2))


def axial_angles(maps: Sequence[tuple[int, int]], head_width: int, *, span: float = 16.0) -> Float[Tensor, "n k"]:
    """The rotary angle of every token of every map, in raster order, for each of the k = head_width channels.

    Both channels of a pair have the same angle. The first half of the channels rotates with the row, the second with
    the column. All maps share one frame: row r of h is at r / h of the height, so that a coarse token is at the top
    left corner of the cell it covers. The longer side of the last map spans [0, span).
    """
    frequencies, (height, width) = axial_frequencies(head_width), maps[-1]
    unit = span / max(height, width)
    angles = []
    for h, w in maps:
        rows = torch.arange(h, dtype=torch.float64) / h * height * unit
        cols = torch.arange(w, dtype=torch.float64) / w * width * unit
        grid = torch.meshgrid(rows, cols, indexing="ij")
        angles.append(torch.cat([axis.reshape(-1, 1) * frequencies for axis in grid], dim=1))
    return torch.cat(angles).repeat_interleave(2, dim=1).float()


def axial_rotary(maps: Sequence[tuple[int, int]], head_width: int) -> Float[Tensor, "2 n k"]:
    """Cosines and sines of `axial_angles`, a table computed once for the tokens of all maps."""
    angles = axial_angles(maps, head_width)
    return torch.stack([angles.cos(), angles.sin()])


def rotate(x: Float[Tensor, "*b heads n k"], rotary: Float[Tensor, "2 n k"]) -> Float[Tensor, "*b heads n k"]:
    """x with each pair of neighbouring channels rotated by its angle, whose cosine and sine are in `rotary`."""
    cos, sin = rotary.to(x.dtype)
    if x.dtype in (torch.float32, torch.float64) and not torch.compiler.is_compiling():
        pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)))  # one pass over x, and on a CPU ten times as fast
        return torch.view_as_real(pairs * torch.complex(cos[..., ::2], sin[..., ::2])).flatten(-2)
    turned = torch.stack([-x[..., 1::2], x[..., 0::2]], dim=-1).flatten(-2)
    return x * cos + turned * sin
