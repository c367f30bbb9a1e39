"""Released SiT weights (github.com/willisma/SiT, models.py) to ours."""

from typing import Any

from torch import Tensor

from fluvial.methods import sit

# release prefix -> our prefix, inside a block and outside
OUTSIDE = {
    "t_embedder.mlp.0.": "embed_t.hidden.",
    "t_embedder.mlp.2.": "embed_t.out.",
    "y_embedder.embedding_table.": "embed_label.table.",
    "x_embedder.proj.": "embed.project.",
    "final_layer.adaLN_modulation.1.": "head.modulation.linear.",
    "final_layer.linear.": "head.project.",
}
IN_BLOCK = {"adaLN_modulation.1.": "modulation.linear.", "mlp.fc1.": "mlp.expand.", "mlp.fc2.": "mlp.contract."}
ATTENTION = {"attn.qkv.": "attention.qkv.", "attn.proj.": "attention.out."}


def config_from(state_dict: dict[str, Tensor], *, heads: int, size: tuple[int, int] | None = None) -> sit.Config:
    """The configuration these weights were made with. Shapes do not tell the heads, nor a size that is not square."""
    return sit.Config(**settings_from(state_dict, heads=heads, size=size))


def settings_from(state_dict: dict[str, Tensor], *, heads: int, size: tuple[int, int] | None = None) -> dict[str, Any]:
    """The settings shared by SiT and ARFlow, read off the shapes."""
    width, channels, patch, _ = state_dict["x_embedder.proj.weight"].shape
    side = round(state_dict["pos_embed"].shape[1] ** 0.5) * patch
    return {
        "size": (side, side) if size is None else size,
        "channels": channels,
        "classes": state_dict["y_embedder.embedding_table.weight"].shape[0] - 1,
        "patch": patch,
        "depth": 1 + max(int(key.split(".")[1]) for key in state_dict if key.startswith("blocks.")),
        "width": width,
        "heads": heads,
        "mlp_ratio": state_dict["blocks.0.mlp.fc1.weight"].shape[0] / width,
        "learn_sigma": state_dict["final_layer.linear.weight"].shape[0] == 2 * patch**2 * channels,
    }


def translate(state_dict: dict[str, Tensor], config: sit.SiTConfig) -> dict[str, Tensor]:
    """Our state dict. The released positions are left out: they are the fixed ones that our model makes itself."""
    return rename(state_dict, ATTENTION)


def rename(state_dict: dict[str, Tensor], attention: dict[str, str]) -> dict[str, Tensor]:
    """Every key but the positions under our name, and in our layout.

    Raises ValueError naming a key that is not the release's.
    """
    ours = {}
    for key, value in state_dict.items():
        if key == "pos_embed":
            continue
        head, names = "", OUTSIDE
        rest = key
        if key.startswith("blocks."):
            _, index, rest = key.split(".", 2)
            head, names = f"blocks.{index}.", {**IN_BLOCK, **attention}
        prefix = next((name for name in names if rest.startswith(name)), None)
        if prefix is None:
            raise ValueError(f"unexpected key {key!r}: not part of a released SiT or ARFlow checkpoint")
        if (
            key == "x_embedder.proj.weight"
        ):  # a convolution over (channel, row, column), here over (row, column, channel)
            value = value.permute(0, 2, 3, 1).flatten(1).contiguous()
        ours[head + names[prefix] + rest.removeprefix(prefix)] = value
    return ours
