"""Softmax attention, and ARFlow's hybrid: softmax inside an image, gated linear attention across images."""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from fluvial.nn.functional import merge_heads, rms_norm, softmax_attention, split_heads
from fluvial.nn.layers import Linear, PlainLinear, linear
from fluvial.nn.rope import axial_rotary, rotate

EPS = 1e-6


class Attention(nn.Module):
    """Multi-head softmax attention over all tokens, with biases, as in DiT and SiT.

    With a `grid` of tokens, queries and keys pass an RMS norm with weights per head and rotary positions (modern
    blocks).
    """

    rotary: Tensor | None

    def __init__(self, width: int, heads: int, grid: tuple[int, int] | None = None) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = Linear(width, 3 * width)
        self.out = Linear(width, width)
        self.norms = nn.ModuleList() if grid is None else nn.ModuleList(nn.RMSNorm(width // heads, EPS) for _ in "qk")
        register_rotary(self, grid, width // heads)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        q, k, v = (split_heads(a, self.heads) for a in self.qkv(x).chunk(3, dim=-1))
        if self.rotary is not None:
            q, k = (rotate(norm(a).to(v.dtype), self.rotary) for norm, a in zip(self.norms, (q, k), strict=True))
        return self.out(merge_heads(softmax_attention(q, k, v)))


def register_rotary(module: nn.Module, grid: tuple[int, int] | None, head_width: int) -> None:
    """Gives a module the buffer `rotary` of a grid of tokens; None without a grid."""
    rotary = None if grid is None else axial_rotary([grid], head_width)
    module.register_buffer("rotary", rotary, persistent=False)


QkvNorm = Literal["width", "head"]
HistoryDecay = Literal["raster", "shared", "none"]
ImageDecay = Literal["mean", "sum"]
GATE_LOGIT_NORMALIZER = 16

History = Float[Tensor, "b heads k k"]


class Recent(NamedTuple):
    """The history of the last images only: what each of them adds to it, and its decay."""

    updates: Float[Tensor, "b m heads k k"]
    decays: Float[Tensor, "b m heads"]

    @classmethod
    def empty(cls, batch: int, images: int, heads: int, width: int, device: torch.device | str) -> "Recent":
        """A history that is to hold the last `images` images, before the first one; width is that of a head."""
        updates = torch.zeros(batch, images, heads, width, width, device=device)
        return cls(updates, torch.ones(batch, images, heads, device=device))


class HybridLinearAttention(nn.Module):
    """ARFlow's attention over a sequence of images (specification: released gated_retnet_train.py).

    With Q_i, K_i, V_i the tokens of image i in one head of width k, a_i <= 0 their log-gates, and M_0 the history:

        O_i = softmax(Q_i K_i^T / sqrt(k)) V_i  +  diag(read_i) Q_i M_{i-1}
        M_i = exp(decay_i) M_{i-1} + K_i^T V_i / sqrt(k)

    decay_i is the mean of a_i over the image ("mean", the release) or its sum ("sum"). read_i is exp of the running sum
    of a_i along the raster order ("raster": the release, a remnant of token-causal attention, so that the bottom of an
    image reads less history), exp(decay_i) for every token ("shared"), or 1 ("none").

    Then an RMS norm per head, a SiLU gate, and the output projection. q, k and v pass an RMS norm without weights over
    the whole width ("width", the release: its per-head norm never took effect) or per head ("head"). With a `grid` of
    tokens, q and k get rotary positions after it (modern blocks).
    """

    rotary: Tensor | None
    float32 = ("gate",)

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        qkv_norm: QkvNorm = "width",
        history_decay: HistoryDecay = "raster",
        image_decay: ImageDecay = "mean",
        grid: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.qkv_norm: QkvNorm = qkv_norm
        self.history_decay: HistoryDecay = history_decay
        self.image_decay: ImageDecay = image_decay
        self.qkvg = PlainLinear(width, 4 * width, bias=False)  # four projections of x in one matrix multiplication
        self.gate = Linear(width, heads, bias=False)
        self.out = Linear(width, width, bias=False)
        register_rotary(self, grid, width // heads)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for weight in self.qkvg.weight.chunk(4):  # one by one, as four separate layers would be initialised
            nn.init.xavier_uniform_(weight)

    def forward(
        self, x: Float[Tensor, "b s n d"], condition: Float[Tensor, "b s d"], history: History | Recent | None = None
    ) -> tuple[Float[Tensor, "b s n d"], History | Recent]:
        """The output for s images, and the history (float32 at least) for the images that follow them.

        A history that is `Recent` holds the last images alone, and so does the one returned.
        """
        wide = torch.promote_types(x.dtype, torch.float32)  # the dtype of gates and history, also under autocast
        qkv, g = self.qkvg(x).split([3 * x.shape[-1], x.shape[-1]], dim=-1)
        normed = x.shape[-1] // (1 if self.qkv_norm == "width" else self.heads)
        qkv = rms_norm(qkv.unflatten(-1, (-1, normed))).flatten(-2)
        q, k, v = (split_heads(a, self.heads) for a in qkv.chunk(3, dim=-1))
        if self.rotary is not None:
            q, k = rotate(q, self.rotary), rotate(k, self.rotary)
        inside = softmax_attention(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1))
        inside = inside.unflatten(0, x.shape[:2])
        with torch.autocast(x.device.type, enabled=False):
            gate = linear((x + condition.unsqueeze(-2)).to(wide), self.gate.weight.to(wide))
            log_gate = F.logsigmoid(gate).transpose(-2, -1) / GATE_LOGIT_NORMALIZER  # b s heads n
            decay = log_gate.mean(dim=-1) if self.image_decay == "mean" else log_gate.sum(dim=-1)  # b s heads
            updates = k.to(wide).transpose(-2, -1) @ v.to(wide) * k.shape[-1] ** -0.5  # b s heads k k
            carry = slid if isinstance(history, Recent) else scan
            before, after = carry(decay.exp(), updates, history)  # type: ignore[arg-type]
            across = q.to(wide) @ before * self._read(log_gate, decay).exp().unsqueeze(-1)
        o = merge_heads(rms_norm(inside + across.to(inside.dtype)))
        return self.out(F.silu(g) * o), after

    def _read(self, log_gate: Float[Tensor, "b s heads n"], decay: Float[Tensor, "b s heads"]) -> Tensor:
        """The logarithm of read_i."""
        match self.history_decay:
            case "raster":
                return log_gate.cumsum(dim=-1)
            case "shared":
                return decay.unsqueeze(-1)
            case "none":
                return torch.zeros_like(log_gate[..., :1])


def scan(
    decay: Float[Tensor, "b s heads"], updates: Float[Tensor, "b s heads k k"], history: History | None
) -> tuple[Float[Tensor, "b s heads k k"], History]:
    """The recurrence M_i = decay_i M_{i-1} + updates_i from M_0 = history or 0: M_0 ... M_{s-1}, and M_s."""
    current = torch.zeros_like(updates[:, 0]) if history is None else history
    before = []
    for keep, update in zip(decay[..., None, None].unbind(1), updates.unbind(1), strict=True):
        before.append(current)
        current = torch.addcmul(update, keep, current)
    return _stacked(before), current


def slid(
    decay: Float[Tensor, "b s heads"], updates: Float[Tensor, "b s heads k k"], recent: Recent
) -> tuple[Float[Tensor, "b s heads k k"], Recent]:
    """As `scan`, of the last images alone: every image that is added pushes out the oldest one."""
    kept, decays = recent
    before = []
    for keep, update in zip(decay.unbind(1), updates.unbind(1), strict=True):
        since = decays.flip(1).cumprod(1).flip(1)  # of every image with those after it
        since = torch.cat([since[:, 1:], torch.ones_like(since[:, :1])], dim=1)
        before.append((since[..., None, None] * kept).sum(1))
        kept = torch.cat([kept[:, 1:], update.unsqueeze(1)], dim=1)
        decays = torch.cat([decays[:, 1:], keep.unsqueeze(1)], dim=1)
    return _stacked(before), Recent(kept, decays)


def _stacked(histories: list[Tensor]) -> Float[Tensor, "b s heads k k"]:
    """Histories along an axis of their own; a single one, as in sampling, is not copied."""
    return histories[0].unsqueeze(1) if len(histories) == 1 else torch.stack(histories, dim=1)
