"""MAR's KL-16 (kl16.ckpt; github.com/LTH14/mar, models/vae.py) to diffusers' AutoencoderKL.

16 channels, stride 16, attention in the encoder's last level and in both middles. FlowAR is trained on its latents.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from fluvial.upstream.translation import Source, Translation, count

TELLTALE = r"(encoder\.down|decoder\.up)\.\d+\."
SCALE = 0.2325  # released FlowAR main.py and MAR: posterior draws times this have about unit standard deviation
# diffusers' name -> the release's; LEVEL is counted from the other end
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
    """The arguments of diffusers' AutoencoderKL: widths from the shapes, attention where the encoder has it.

    Raises ValueError if this is another autoencoder of the same family.
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
    """What diffusers' tensors of these names are made of: attention's 1 x 1 convolutions become linear layers."""
    levels = len(config["block_out_channels"])
    loss = {key: "the loss that it was trained with" for key in state_dict if key.startswith("loss.")}
    return Translation({name: _source_of(name, levels) for name in names}, {}, loss)


def _source_of(name: str, levels: int) -> Source:
    key = name
    for ours, theirs in NAMES.items():
        key = re.sub(ours, theirs, key)
    key = re.sub(r"LEVEL(\d+)", lambda match: str(levels - 1 - int(match[1])), key)
    linear = ".attentions." in name
    return Source((key,), lambda value: value[:, :, 0, 0] if linear and value.ndim == 4 else value)
