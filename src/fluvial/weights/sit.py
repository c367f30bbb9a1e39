"""Translation of released SiT weights (github.com/willisma/SiT, models.py).

DiT weights have the same names and shapes, so they are accepted, but they do not predict a velocity.
"""

from collections.abc import Iterable, Mapping
from math import isqrt
from typing import Any

from torch import Tensor

from fluvial.methods import sit
from fluvial.nn.dit import SIZES, DiTConfig
from fluvial.nn.layers import sincos_positions
from fluvial.utils.translation import Source, Translation, count, latent_size, renamed

TELLTALE = r"blocks\.\d+\.attn\.qkv\."  # names that no other method has
LABELS = "y_embedder.embedding_table.weight"  # one row per class, and a null class
# our prefix -> the release's prefix, outside blocks and inside
OUTSIDE = {
    "embed_t.hidden.": "t_embedder.mlp.0.",
    "embed_t.out.": "t_embedder.mlp.2.",
    "embed_label.table.": "y_embedder.embedding_table.",
    "embed.project.": "x_embedder.proj.",
    "head.modulation.linear.": "final_layer.adaLN_modulation.1.",
    "head.project.": "final_layer.linear.",
}
IN_BLOCK = {"modulation.linear.": "adaLN_modulation.1.", "mlp.expand.": "mlp.fc1.", "mlp.contract.": "mlp.fc2."}
ATTENTION = {"attention.qkv.": "attn.qkv.", "attention.out.": "attn.proj."}


def config_from(state_dict: Mapping[str, Tensor], *, heads: int | None = None, **hints: Any) -> sit.Config:  # noqa: ANN401
    """The configuration of these weights, read off their shapes, which do not show heads or a size that is not square.

    Raises ValueError naming the hint that is needed: heads for a width that no published size has, or image_size.
    """
    width = len(state_dict["x_embedder.proj.weight"])
    heads = heads or next((size["heads"] for size in SIZES.values() if size["width"] == width), None)
    if heads is None:
        raise ValueError(f"no published SiT has the width {width}, and shapes do not tell the heads: give heads")
    return sit.Config(**settings_from(state_dict, heads=heads, **hints))


def settings_from(
    state_dict: Mapping[str, Tensor],
    *,
    image_size: int | tuple[int, int] | None = None,
    size: tuple[int, int] | None = None,
    **hints: Any,  # noqa: ANN401
) -> dict[str, Any]:
    """The settings shared by SiT and ARFlow, read off the shapes and completed by the hints."""
    width, channels, patch, _ = state_dict["x_embedder.proj.weight"].shape
    tokens = state_dict["pos_embed"].shape[1]
    if size is None and image_size is not None:
        size = latent_size(image_size, tokens, patch=patch, stride=8)
    if size is None and isqrt(tokens) ** 2 != tokens:
        raise ValueError(f"{tokens} tokens are not those of a square image: give image_size")
    return {
        "size": size or (isqrt(tokens) * patch,) * 2,
        "channels": channels,
        "patch": patch,
        "depth": count(state_dict, r"blocks\.(\d+)\."),
        "width": width,
        "mlp_ratio": len(state_dict["blocks.0.mlp.fc1.weight"]) / width,
        **hints,
    }


def translation(state_dict: Mapping[str, Tensor], names: Iterable[str], config: sit.Config) -> Translation:
    """The translation to our tensors of these names."""
    return transformer(state_dict, {name: source_of(name, config, ATTENTION) for name in names}, config)


def transformer(state_dict: Mapping[str, Tensor], sources: Mapping[str, Source], config: DiTConfig) -> Translation:
    """The translation for SiT and ARFlow: these sources, the fixed positions, and the unused sigma to drop."""
    grid = config.size[0] // config.patch, config.size[1] // config.patch
    sigma = len(state_dict["final_layer.linear.weight"]) == 2 * config.patch**2 * config.channels
    dropped = {"half of final_layer.linear": "the sigma that learn_sigma adds, which is never trained"} if sigma else {}
    height, width = config.position_size or config.size
    frame = height / config.patch, width / config.patch
    return Translation(sources, {"pos_embed": lambda: sincos_positions(config.width, grid, frame)[None]}, dropped)


def source_of(name: str, config: DiTConfig, attention: Mapping[str, str]) -> Source:
    """The released tensor from which ours of this name is made, with the change of layout."""
    head, rest, names = "", name, OUTSIDE
    if name.startswith("blocks."):
        _, index, rest = name.split(".", 2)
        head, names = f"blocks.{index}.", {**IN_BLOCK, **attention}
    prefix = next(prefix for prefix in names if rest.startswith(prefix))
    key = head + names[prefix] + rest.removeprefix(prefix)
    match name:
        case "embed.project.weight":  # a convolution over (channel, row, column), here over (row, column, channel)
            return Source((key,), lambda value: value.permute(0, 2, 3, 1).flatten(1))
        case "head.project.weight" | "head.project.bias":  # rows: for each pixel of a patch the velocity, then sigma
            return Source((key,), lambda value: _first_channels(value, config))
    return renamed(key)


def _first_channels(value: Tensor, config: DiTConfig) -> Tensor:
    """The rows of the output layer that predict the velocity."""
    if len(value) not in (config.patch**2 * config.channels, 2 * config.patch**2 * config.channels):
        raise IndexError(f"{len(value)} rows are neither velocities nor velocities and sigmas")
    return value.unflatten(0, (config.patch**2, -1))[:, : config.channels].flatten(0, 1)
