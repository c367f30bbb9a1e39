"""MAR's KL-16 autoencoder (kl16.ckpt; github.com/LTH14/mar, models/vae.py), loaded as diffusers' AutoencoderKL.

16 channels, stride 16, attention in the encoder's last level and in both middles. FlowAR is trained on its latents.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fluvial.autoencoders.vae import Vae
from fluvial.utils import weight_files
from fluvial.utils.extras import require
from fluvial.utils.tensors import Lazy
from fluvial.utils.translation import Source, Translation, count, reading, translate

TELLTALE = r"(encoder\.down|decoder\.up)\.\d+\."
SCALE = 0.2325  # released FlowAR main.py and MAR: posterior draws times this have about unit standard deviation
# patterns of diffusers' names -> the release's; LEVEL is counted from the other end
NAMES = {
    r"down_blocks\.(\d+)\.": r"down.\1.",
    r"up_blocks\.(\d+)\.": r"up.LEVEL\1.",
    r"mid_block\.resnets\.0\.": "mid.block_1.",
    r"mid_block\.resnets\.1\.": "mid.block_2.",
    r"mid_block\.attentions\.0\.": "mid.attn_1.",
    r"\.resnets\.(\d+)\.": r".block.\1.",
    r"\.attentions\.(\d+)\.": r".attn.\1.",
    r"(down|up)samplers\.0\.": r"\1sample.",
    r"conv_norm_out\.": "norm_out.",
    r"conv_shortcut\.": "nin_shortcut.",
    r"group_norm\.": "norm.",
    r"to_([qkv])\.": r"\1.",
    r"to_out\.0\.": "proj_out.",
}


def config_from(state_dict: Mapping[str, Tensor], *, scale: float = SCALE) -> dict[str, Any]:
    """The arguments of diffusers' AutoencoderKL for these weights: widths from shapes, attention from names.

    Raises ValueError if the weights are not of 16 channels and 5 levels, as KL-16's are.
    """
    levels = count(state_dict, r"encoder\.down\.(\d+)\.")
    channels = len(state_dict["post_quant_conv.weight"])
    if (channels, levels) != (16, 5):
        raise ValueError(
            f"16 channels and 5 levels are expected, got {channels} and {levels}. Other autoencoders are given as a "
            f"diffusers folder"
        )
    attends = [any(k.startswith(f"encoder.down.{i}.attn.") for k in state_dict) for i in range(levels)]
    return {
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": channels,
        "block_out_channels": [len(state_dict[f"encoder.down.{i}.block.0.conv1.bias"]) for i in range(levels)],
        "down_block_types": ["AttnDownEncoderBlock2D" if attention else "DownEncoderBlock2D" for attention in attends],
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "layers_per_block": count(state_dict, r"encoder\.down\.0\.block\.(\d+)\."),
        "scaling_factor": scale,
    }


def translation(state_dict: Mapping[str, Tensor], names: Iterable[str], config: Mapping[str, Any]) -> Translation:
    """The translation from the release to diffusers' names; attention's 1 x 1 convolutions become linear layers."""
    levels = len(config["block_out_channels"])
    loss = {key: "the loss that it was trained with" for key in state_dict if key.startswith("loss.")}
    return Translation({name: _source_of(name, levels) for name in names}, {}, loss)


def _source_of(name: str, levels: int) -> Source:
    """The release's tensor for diffusers' tensor of this name."""
    key = name
    for ours, theirs in NAMES.items():
        key = re.sub(ours, theirs, key)
    key = re.sub(r"LEVEL(\d+)", lambda match: str(levels - 1 - int(match[1])), key)
    linear = ".attentions." in name
    return Source((key,), lambda value: value[:, :, 0, 0] if linear and value.ndim == 4 else value)


def from_state_dict(state_dict: Mapping[str, Tensor], *, scale: float = SCALE, identity: str = "kl16") -> Vae:
    """KL-16 with these released weights, of any width: 16 channels, stride 16; latents are z * `scale`.

    Raises ValueError naming tensors that are missing, unexpected, of another shape or type, or not finite.
    """
    if any(key.startswith("encoder.down_blocks.") for key in state_dict):
        raise ValueError("these are the weights of a diffusers model: give the folder that they are in")
    model, tensors, _ = translated(state_dict, scale=scale)
    model.to_empty(device="cpu").load_state_dict({name: lazy.make() for name, lazy in tensors.items()})
    return Vae(model, identity, scale=(scale,))


def load(file: Path | str) -> Vae:
    """KL-16 loaded from the released file, or from its weights as safetensors. Raises ValueError naming the file."""
    state_dict = weight_files.read(file, [TELLTALE]).state_dict
    try:
        return from_state_dict(state_dict, identity=str(file))
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def translated(
    state_dict: Mapping[str, Tensor], *, scale: float = SCALE, dtype: torch.dtype | None = None
) -> tuple[nn.Module, dict[str, Lazy], dict[str, str]]:
    """KL-16 as a diffusers model on the meta device, its weights as lazy tensors, and the keys left out."""
    diffusers = require("diffusers", extra="vae", why="KL-16")
    with reading("KL-16"):
        config = config_from(state_dict, scale=scale)
        with torch.device("meta"):
            model = diffusers.AutoencoderKL(**config)
        plan = translation(state_dict, model.state_dict(), config)
        return model, translate(state_dict, plan, model.state_dict(), dtype), dict(plan.dropped)
