"""The settings that SiT and ARFlow share: both are diffusion transformers of the same published sizes."""

from dataclasses import dataclass
from typing import Any

from fluvial.interpolant import InterpolantName
from fluvial.timesteps import TimeSampling


@dataclass(frozen=True, kw_only=True)
class DiTConfig:
    size: tuple[int, int] = (32, 32)
    """Height and width of the latent."""
    channels: int = 4
    """Channels of the latent."""
    classes: int = 1000
    """Number of classes; 0 trains without labels."""
    patch: int = 2
    """Side of a patch, in latent pixels; divides the size."""
    depth: int = 12
    """Number of blocks."""
    width: int = 384
    """Width of a token, divisible by 4 and by the heads."""
    heads: int = 6
    """Attention heads."""
    mlp_ratio: float = 4.0
    """Hidden width of the MLP over the width."""
    label_drop: float = 0.1
    """Probability that a label is dropped in training, so that guidance has a null branch."""
    learn_sigma: bool = False
    """Carry the unused second half of the output channels, as the releases do."""
    interpolant: InterpolantName = "linear"
    """Path from noise to data."""
    time_sampling: TimeSampling = "uniform"
    """How t is drawn in training."""

    def __post_init__(self) -> None:
        counts = {name: getattr(self, name) for name in ("channels", "patch", "depth", "width", "heads")}
        if wrong := {name: value for name, value in counts.items() if value < 1}:
            raise ValueError(f"must be at least 1: {wrong}")
        if any(side < 1 or side % self.patch for side in self.size):
            raise ValueError(f"size must be a multiple of patch, got size {self.size} and patch {self.patch}")
        if self.width % self.heads or self.width % 4:
            raise ValueError(f"width must be divisible by heads and by 4, got width {self.width}, heads {self.heads}")
        if self.classes < 0:
            raise ValueError(f"classes must be at least 0 (0: no labels), got {self.classes}")
        if not 0 <= self.label_drop <= 1:
            raise ValueError(f"label_drop is a probability, got {self.label_drop}")


SIZES = {
    "S": {"depth": 12, "width": 384, "heads": 6},
    "B": {"depth": 12, "width": 768, "heads": 12},
    "L": {"depth": 24, "width": 1024, "heads": 16},
    "XL": {"depth": 28, "width": 1152, "heads": 16},
}
PRESETS = tuple(f"{size}/{patch}" for size in SIZES for patch in (2, 4, 8))


def preset_settings(name: str) -> dict[str, Any]:
    """depth, width, heads and patch of the published size "S/2" ... "XL/8" (SiT, table 1)."""
    if name not in PRESETS:
        raise ValueError(f"unknown size {name!r}: expected one of {', '.join(PRESETS)}")
    size, _, patch = name.partition("/")
    return {**SIZES[size], "patch": int(patch)}
