"""Layers of a diffusion transformer: patches, positions, embeddings, adaLN-Zero, MLP (DiT, arXiv 2212.09748)."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F


def patchify(x: Float[Tensor, "*b c h w"], patch: int) -> Float[Tensor, "*b n p"]:
    """Tokens of square patches in raster order, each flattened as (row, column, channel)."""
    *lead, c, h, w = x.shape
    x = x.reshape(*lead, c, h // patch, patch, w // patch, patch)
    k = len(lead)
    x = x.permute(*range(k), k + 1, k + 3, k + 2, k + 4, k)
    return x.reshape(*lead, (h // patch) * (w // patch), patch * patch * c)


def unpatchify(tokens: Float[Tensor, "*b n p"], patch: int, grid: tuple[int, int]) -> Float[Tensor, "*b c h w"]:
    """The inverse of `patchify`; grid is the number of rows and columns of patches."""
    *lead, _, p = tokens.shape
    rows, cols = grid
    c, k = p // patch**2, len(lead)
    x = tokens.reshape(*lead, rows, cols, patch, patch, c)
    x = x.permute(*range(k), k + 4, k, k + 2, k + 1, k + 3)
    return x.reshape(*lead, c, rows * patch, cols * patch)


def sincos_positions(
    width: int, grid: tuple[int, int], frame: tuple[float, float] | None = None
) -> Float[Tensor, "n d"]:
    """Fixed 2-D position embeddings in raster order: half the width for columns, half for rows, sines then cosines.

    Row positions lie in [0, height of the `frame`), column positions in [0, its width); the frame is the grid by
    default.
    Source: MAE's get_2d_sincos_pos_embed, as DiT, SiT and ARFlow use it (base 10000, columns first).
    """
    if width % 4:
        raise ValueError(f"2-D sin-cos positions need a width divisible by 4, got {width}")
    axes = (torch.arange(n, dtype=torch.float64) * (end / n) for n, end in zip(grid, frame or grid, strict=True))
    rows, cols = torch.meshgrid(*axes, indexing="ij")
    frequencies = 10000 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angles = [axis.reshape(-1, 1) * frequencies for axis in (cols, rows)]
    return torch.cat([f(a) for a in angles for f in (torch.sin, torch.cos)], dim=1).float()


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """The modulation x (1 + scale) + shift, with one shift and scale (..., d) for all tokens of x (..., n, d)."""
    return torch.addcmul(shift.unsqueeze(-2), x, 1 + scale.unsqueeze(-2))


def layer_norm(x: Tensor) -> Tensor:
    """Layer norm without weights, eps 1e-6."""
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


FEW = 256  # rows that `linear` fills up, to a multiple of
TILE = 16  # rows


def linear(x: Float[Tensor, "*b k"], weight: Float[Tensor, "n k"], bias: Tensor | None = None) -> Float[Tensor, "*b n"]:
    """x W^T + b; in sampling on a CPU, a row's result does not depend on the number of rows.

    A CPU's matrix product adds up a few rows in another order (in MKL, fewer than 4 rows a thread), which changes the
    last bits, and so would an image with the batch that it is sampled in. Few rows are filled up with zeros. Rows that
    lie apart in memory, which another product takes, are put together.
    """
    rows = x.shape[:-1].numel()
    is_computed = x.device.type == "cpu" and type(x) is Tensor  # and not a fake tensor, by which FLOPs are counted
    if torch.is_grad_enabled() or not is_computed:
        return F.linear(x, weight, bias)
    if rows >= FEW or rows % TILE == 0:
        return F.linear(x.contiguous(), weight, bias)
    filled = F.pad(x.reshape(rows, -1), (0, 0, 0, -rows % TILE))
    return F.linear(filled, weight, bias)[:rows].reshape(*x.shape[:-1], -1)


class PlainLinear(nn.Linear):
    """A linear layer that computes with `linear`."""

    def forward(self, input: Float[Tensor, "*b k"]) -> Float[Tensor, "*b n"]:
        return linear(input, self.weight, self.bias)


class Linear(PlainLinear):
    """A linear layer with Xavier-uniform weight and zero bias at initialisation, as in both releases."""

    def reset_parameters(self) -> None:
        nn.init.xavier_uniform_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class ZeroLinear(PlainLinear):
    """A linear layer initialised to zero, for the gates and outputs of adaLN-Zero."""

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)


class Modulation(nn.Module):
    """adaLN modulation: SiLU and a linear layer, zero at first if `zero`, from a condition to `count` vectors."""

    def __init__(self, width: int, count: int, *, zero: bool = True) -> None:
        super().__init__()
        self.count = count
        self.linear = (ZeroLinear if zero else Linear)(width, count * width)

    def forward(self, condition: Float[Tensor, "*b d"]) -> tuple[Float[Tensor, "*b d"], ...]:
        return self.linear(F.silu(condition)).chunk(self.count, dim=-1)


class Mlp(nn.Module):
    """The MLP of a block: linear, tanh-GELU, linear."""

    def __init__(self, width: int, ratio: float = 4.0) -> None:
        super().__init__()
        self.expand = Linear(width, int(width * ratio))
        self.contract = Linear(int(width * ratio), width)

    def forward(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        return self.contract(F.gelu(self.expand(x), approximate="tanh"))


class TimeEmbedding(nn.Module):
    """The embedding of a time, not rescaled: `features` / 2 cosines and sines each (max period 10000), then an MLP.

    The MLP is linear, SiLU, linear; its weights start as N(0, std^2), or Xavier-uniform for std None.
    """

    frequencies: Tensor
    float32 = ("hidden", "out")

    def __init__(self, width: int, features: int = 256, *, std: float | None = 0.02) -> None:
        super().__init__()
        self.std, half = std, features // 2
        self.register_buffer(
            "frequencies", torch.exp(-math.log(10000) * torch.arange(half).float() / half), persistent=False
        )
        self.hidden = Linear(features, width)
        self.out = Linear(width, width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        if self.std is not None:
            for layer in (self.hidden, self.out):
                nn.init.normal_(layer.weight, std=self.std)

    def forward(self, t: Float[Tensor, "*b"]) -> Float[Tensor, "*b d"]:
        with torch.autocast(t.device.type, enabled=False):  # bfloat16 is too coarse for the angles
            angles = t.float().unsqueeze(-1) * self.frequencies
            waves = torch.cat([angles.cos(), angles.sin()], dim=-1)
            return self.out(F.silu(self.hidden(waves.to(self.hidden.weight.dtype))))


Labels = Int[Tensor, "b"] | Float[Tensor, "b _"]
"""Class ids in 0 ... classes, where `classes` is the null id; or weights of all of these, to mix their embeddings."""


class LabelEmbedding(nn.Module):
    """The embedding of class ids; the last row, the null id, stands for an absent or dropped label.

    Weights of classes (b, classes + 1) are embedded as the weighted sum of the rows; those of one class alone as its id
    is, bit for bit.
    """

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.classes = classes
        self.table = nn.Embedding(classes + 1, width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.table.weight, std=0.02)

    def forward(self, labels: Labels | None, batch: int) -> Float[Tensor, "b d"]:
        """The embedding of labels; None are all null ids. Raises ValueError for weights of other classes."""
        if labels is not None and labels.is_floating_point():
            return self._mixed(labels)
        return self.table(self.null(batch) if labels is None else labels)

    def _mixed(self, weights: Float[Tensor, "b _"]) -> Float[Tensor, "b d"]:
        rows = len(self.table.weight)
        if weights.shape[-1] != rows:
            raise ValueError(f"weights of classes must be of {rows}, the null id last, got {weights.shape[-1]}")
        ids = torch.arange(rows, device=weights.device).expand(len(weights), -1)
        # no matrix product, which TF32 or autocast would round
        return F.embedding_bag(ids, self.table.weight, per_sample_weights=weights.to(self.table.weight), mode="sum")

    def null(self, batch: int) -> Int[Tensor, "b"]:
        """A batch of null ids."""
        return torch.full((batch,), self.classes, device=self.table.weight.device)


class PatchEmbedding(nn.Module):
    """The embedding of patches as tokens, plus fixed positions; size is (height, width) of the latent.

    `position_size`, if given, is the height and width whose positions are stretched over the latent.
    """

    positions: Tensor

    def __init__(
        self, size: tuple[int, int], patch: int, channels: int, width: int, position_size: tuple[int, ...] = ()
    ) -> None:
        super().__init__()
        self.patch = patch
        self.grid = size[0] // patch, size[1] // patch
        self.project = Linear(patch * patch * channels, width)
        height, width_ = position_size or size
        positions = sincos_positions(width, self.grid, (height / patch, width_ / patch))
        self.register_buffer("positions", positions, persistent=False)

    def forward(self, x: Float[Tensor, "*b c h w"]) -> Float[Tensor, "*b n d"]:
        rows, cols = self.grid
        if x.shape[-2:] != (rows * self.patch, cols * self.patch):
            raise ValueError(
                f"the model takes latents of {rows * self.patch} x {cols * self.patch}, got {tuple(x.shape[-2:])}; "
                f"set `size` in the method's configuration"
            )
        return self.project(patchify(x, self.patch)) + self.positions


class VelocityHead(nn.Module):
    """The output layer, from tokens to a latent: norm, adaLN, a zero-initialised linear layer, unpatchify.

    The releases' layer has twice the channels, of which the second half is unused.
    """

    def __init__(
        self,
        grid: tuple[int, int],
        patch: int,
        channels: int,
        width: int,
        norm: Callable[[Tensor], Tensor] = layer_norm,
    ) -> None:
        super().__init__()
        self.grid, self.patch, self.norm = grid, patch, norm
        self.modulation = Modulation(width, 2)
        self.project = ZeroLinear(width, patch * patch * channels)

    def forward(self, tokens: Float[Tensor, "*b n d"], condition: Float[Tensor, "*b d"]) -> Float[Tensor, "*b c h w"]:
        shift, scale = self.modulation(condition)
        out = self.project(modulate(self.norm(tokens), shift, scale))
        return unpatchify(out, self.patch, self.grid)


def heads_of(width: int) -> int:
    """Attention heads of a width, for sizes that are not published: 32 wide up to a width of 256, then 64."""
    return width // (32 if width <= 256 else 64)
