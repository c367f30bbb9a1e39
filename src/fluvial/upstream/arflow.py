"""Released ARFlow weights (github.com/TheFllood/ARFlow, models.py and models_infer.py) to ours."""

import torch
from torch import Tensor

from fluvial.methods import arflow
from fluvial.upstream.sit import rename, settings_from

ATTENTION = {
    **{f"attn.{name}_proj.": f"attention.{name}." for name in "qkvg"},
    "attn.gt_proj.": "attention.gate.",
    "attn.out_proj.": "attention.out.",
}


def config_from(state_dict: dict[str, Tensor], *, size: tuple[int, int] | None = None) -> arflow.Config:
    """The configuration these weights were made with; shapes do not tell a size that is not square."""
    heads = state_dict["blocks.0.attn.gt_proj.weight"].shape[0]
    return arflow.Config(**settings_from(state_dict, heads=heads, size=size))


def translate(state_dict: dict[str, Tensor], config: arflow.Config) -> dict[str, Tensor]:
    """Our state dict: renamed, and the q, k, v and g projections of a block stacked into one."""
    ours = rename(state_dict, ATTENTION)
    for i in range(config.depth):
        prefix = f"blocks.{i}.attention."
        ours[prefix + "qkvg.weight"] = torch.cat([ours.pop(f"{prefix}{name}.weight") for name in "qkvg"])
    return ours
