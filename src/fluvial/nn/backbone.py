"""The forms of a block of SiT and ARFlow: as released, or as later work builds them (arXiv 2501.01423)."""

from collections.abc import Callable
from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from fluvial.nn.functional import rms_norm
from fluvial.nn.layers import Linear, Mlp, layer_norm

Backbone = Literal["released", "modern"]


class SwiGlu(nn.Module):
    """The gated MLP of a modern block, linear(SiLU(linear) * linear), with as many weights as an `Mlp` of this ratio.

    Source: arXiv 2002.05202.
    """

    def __init__(self, width: int, ratio: float = 4.0) -> None:
        super().__init__()
        hidden = int(width * ratio * 2 / 3)
        self.gate = Linear(width, hidden)
        self.value = Linear(width, hidden)
        self.out = Linear(hidden, width)

    def forward(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        return self.out(F.silu(self.gate(x)) * self.value(x))


MLPS: dict[Backbone, type[Mlp] | type[SwiGlu]] = {"released": Mlp, "modern": SwiGlu}
"""The MLP of a block, by its form."""
NORMS: dict[Backbone, Callable[[Tensor], Tensor]] = {"released": layer_norm, "modern": rms_norm}
"""The norm before each modulation, by the form of the blocks."""
