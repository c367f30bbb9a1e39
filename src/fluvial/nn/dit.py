"""The settings that SiT and ARFlow share, their published sizes, and the functions of these settings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeVar

from jaxtyping import Float
from torch import Tensor, nn

from fluvial.flow.interpolant import InterpolantName
from fluvial.flow.timesteps import TimeSampling
from fluvial.nn.backbone import Backbone
from fluvial.utils.checks import MOST, as_declared, at_least, at_most, below_one, positive, probabilities, whole_patches


@dataclass(frozen=True, kw_only=True)
class DiTConfig:
    """The settings of a diffusion transformer on patches of one latent."""

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
    position_size: tuple[int, ...] = ()
    """Height and width whose positions are stretched over the latent, for weights trained at another size; the size
    itself if not given."""
    interpolant: InterpolantName = "linear"
    """Path from noise to data."""
    time_sampling: TimeSampling = "uniform"
    """Distribution of t in training."""
    contrast: float = 0.0
    """Weight with which another image of the micro-batch repels, 0 for none (release). Contrastive flow matching
    (arXiv 2506.05350) takes 0.05, and reports an FID lower by up to 8.9 on ImageNet without guidance."""
    backbone: Backbone = "released"
    """Form of the blocks: as released, or with RMS norms, SwiGLU, norms of queries and keys, and rotary positions. In
    LightningDiT (arXiv 2501.01423, table 1) these and its training bring the FID from 17.2 to 7.1."""

    guides_channels: ClassVar[bool] = True
    """Guidance can be limited to the first channels."""
    context_noise: ClassVar[float] = 0.0
    """Zero, as there are no inputs besides x_t that noise could be mixed into."""

    @property
    def noise_shape(self) -> tuple[int, int, int]:
        """The shape of one image's noise: channels, height, width."""
        return self.channels, *self.size

    def __post_init__(self) -> None:
        as_declared(self)
        at_least(1, self, "channels", "patch", "depth", "width", "heads")
        at_most(MOST, self, "channels", "patch", "depth", "width", "heads", "mlp_ratio")
        at_least(0, self, "classes")
        positive(self, "mlp_ratio")
        probabilities(self, "label_drop")
        below_one(self, "contrast")
        whole_patches(self.size, self.patch)
        if self.position_size and (len(self.position_size) != 2 or min(self.position_size) < 1):
            raise ValueError(f"position_size must be a height and a width above 0, got {self.position_size}")
        if self.width % self.heads or self.width % 4:
            raise ValueError(f"width must be divisible by heads and by 4, got width {self.width}, heads {self.heads}")
        if self.backbone == "modern" and self.width % (4 * self.heads):
            raise ValueError(f"modern blocks need heads of a width divisible by 4, got {self.width} / {self.heads}")


C = TypeVar("C", bound=DiTConfig)


def grid(config: DiTConfig) -> tuple[int, int] | None:
    """The rows and columns of tokens that rotary positions are of; None for released blocks, which have none."""
    rows_and_columns = config.size[0] // config.patch, config.size[1] // config.patch
    return rows_and_columns if config.backbone == "modern" else None


def scales(config: object) -> tuple[str, ...]:
    """Names of the scales: none, as an image is drawn at once."""
    return ()


def targets(config: object, latents: Float[Tensor, "n c h w"]) -> Sequence[tuple[float, Tensor]]:
    """The clean values in the loss, with their weights: the latents, with weight 1."""
    return [(1.0, latents)]


def ends(config: object, latents: Float[Tensor, "n c h w"]) -> Sequence[Float[Tensor, "n c h w"]]:
    """The latents, as the end of the only integral."""
    return [latents]


def tokens(config: DiTConfig) -> int:
    """The number of patches of an image."""
    return (config.size[0] // config.patch) * (config.size[1] // config.patch)


def small(config: C) -> C:
    """The settings with two narrow blocks, for a quick trial."""
    return replace(config, width=64, heads=2, depth=2)


def followed(model: nn.Module) -> nn.Module:
    """The whole model, all of which learns to follow trajectories in few steps."""
    return model


def framed(config: C, start: C) -> C:
    """The settings to start from weights of `start`: the positions of its size are stretched over the new size."""
    frame = start.position_size or start.size
    return config if config.position_size or frame == config.size else replace(config, position_size=frame)


def resampled(weights: Mapping[str, Tensor], before: DiTConfig, after: DiTConfig) -> tuple[dict[str, Tensor], str]:
    """The unchanged weights (`framed` stretches the fixed positions), and a note if the size changed, else ""."""
    sizes = [f"{h} x {w}" for h, w in (before.size, after.size)]
    told = "" if before.size == after.size else f"positions: resampled from a latent of {sizes[0]} to {sizes[1]}"
    return dict(weights), told


SIZES = {
    "S": {"depth": 12, "width": 384, "heads": 6},
    "B": {"depth": 12, "width": 768, "heads": 12},
    "L": {"depth": 24, "width": 1024, "heads": 16},
    "XL": {"depth": 28, "width": 1152, "heads": 16},
}
PRESETS = tuple(f"{size}/{patch}" for size in SIZES for patch in (2, 4, 8))


def preset_settings(name: str) -> dict[str, Any]:
    """Depth, width, heads and patch of the published size "S/2" ... "XL/8" (SiT, table 1)."""
    if name not in PRESETS:
        raise ValueError(f"unknown size {name!r}: expected one of {', '.join(PRESETS)}")
    size, _, patch = name.partition("/")
    return {**SIZES[size], "patch": int(patch)}
