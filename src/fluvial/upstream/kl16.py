"""MAR's KL-16 (kl16.ckpt; github.com/LTH14/mar, models/vae.py) to diffusers' AutoencoderKL.

16 channels, stride 16, attention in the encoder's last level and in both middles. FlowAR is trained on its latents.
"""

import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from fluvial.autoencoders.vae import Vae
from fluvial.checks import other_weights
from fluvial.extras import require

SCALE = 0.2325  # released FlowAR main.py and MAR: posterior draws times this have about unit standard deviation
RESNET = {"nin_shortcut": "conv_shortcut"}
ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
# release name -> diffusers' name; LEVEL is counted from the other end in the decoder
NAMES = {
    r"(quant_conv|post_quant_conv)\.(.*)": r"\1.\2",
    r"(encoder|decoder)\.(conv_in|conv_out)\.(.*)": r"\1.\2.\3",
    r"(encoder|decoder)\.norm_out\.(.*)": r"\1.conv_norm_out.\2",
    r"(encoder|decoder)\.mid\.block_1\.(.*)": r"\1.mid_block.resnets.0.\2",
    r"(encoder|decoder)\.mid\.block_2\.(.*)": r"\1.mid_block.resnets.1.\2",
    r"(encoder|decoder)\.mid\.attn_1\.(.*)": r"\1.mid_block.attentions.0.\2",
    r"encoder\.down\.(\d+)\.block\.(\d+)\.(.*)": r"encoder.down_blocks.\1.resnets.\2.\3",
    r"encoder\.down\.(\d+)\.attn\.(\d+)\.(.*)": r"encoder.down_blocks.\1.attentions.\2.\3",
    r"encoder\.down\.(\d+)\.downsample\.(.*)": r"encoder.down_blocks.\1.downsamplers.0.\2",
    r"decoder\.up\.(\d+)\.block\.(\d+)\.(.*)": r"decoder.up_blocks.LEVEL\1.resnets.\2.\3",
    r"decoder\.up\.(\d+)\.upsample\.(.*)": r"decoder.up_blocks.LEVEL\1.upsamplers.0.\2",
}


def load(file: Path | str) -> Vae:
    """KL-16 from the released file, or its weights as safetensors.

    Raises ValueError if the file cannot be read without running code from it, or holds something else.
    """
    file = Path(file)
    try:
        content: Any = load_file(file) if file.suffix == ".safetensors" else torch.load(file, "cpu", weights_only=True)
    except FileNotFoundError:
        raise ValueError(f"the autoencoder {file} does not exist") from None
    except Exception as error:  # unpickling a damaged file raises nearly anything
        raise ValueError(f"the autoencoder {file} cannot be read ({type(error).__name__}: {error})") from error
    state_dict = content.get("model", content) if isinstance(content, dict) else content
    if not isinstance(state_dict, dict):
        raise ValueError(f"{file} holds no weights, but a {type(state_dict).__name__}")
    if odd := [key for key, value in state_dict.items() if not isinstance(value, Tensor)]:
        raise ValueError(f"{file}: not the weights of KL-16: {odd[0]} is no tensor")
    try:
        return from_state_dict(state_dict, identity=str(file))
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def from_state_dict(state_dict: dict[str, Tensor], *, identity: str = "kl16") -> Vae:
    """KL-16 with these released weights, of any width. Raises ValueError if they are not KL-16's."""
    diffusers = require("diffusers", extra="vae", why="KL-16")
    if any(key.startswith("encoder.down_blocks.") for key in state_dict):
        raise ValueError("these are the weights of a diffusers model: give the folder that they are in")
    try:
        config = config_from(state_dict)
    except KeyError as error:
        raise ValueError(f"not the weights of KL-16: {error.args[0]} is missing") from error
    if (config["latent_channels"], len(config["block_out_channels"])) != (16, 5):
        raise ValueError(
            f"not the weights of KL-16: 16 channels and 5 levels are expected, got {config['latent_channels']} and "
            f"{len(config['block_out_channels'])}. Other autoencoders are given as a diffusers folder"
        )
    model = diffusers.AutoencoderKL(**config)
    ours = translate(state_dict)
    if wrong := other_weights(model.state_dict(), ours):
        raise ValueError(f"not the weights of KL-16: {wrong}")
    model.load_state_dict({k: v.float() for k, v in ours.items()})
    return Vae(model, identity, scale=(SCALE,))


def config_from(state_dict: dict[str, Tensor]) -> dict[str, Any]:
    """The arguments of diffusers' AutoencoderKL: widths from the shapes, attention where the encoder has it."""
    levels = _numbers(state_dict, r"encoder\.down\.(\d+)\.")
    attends = [any(k.startswith(f"encoder.down.{i}.attn.") for k in state_dict) for i in range(levels)]
    resnets = _numbers(state_dict, r"encoder\.down\.0\.block\.(\d+)\.")
    return {
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": state_dict["post_quant_conv.weight"].shape[0],
        "block_out_channels": [len(state_dict[f"encoder.down.{i}.block.0.conv1.bias"]) for i in range(levels)],
        "down_block_types": ["AttnDownEncoderBlock2D" if attention else "DownEncoderBlock2D" for attention in attends],
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "layers_per_block": resnets,
        "scaling_factor": SCALE,
    }


def translate(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """diffusers' state dict. Attention's 1 x 1 convolutions become linear layers.

    Raises ValueError naming a key that is not the release's.
    """
    levels = _numbers(state_dict, r"decoder\.up\.(\d+)\.")
    ours = {}
    for key, value in state_dict.items():
        if key.startswith("loss."):
            continue  # the discriminator and LPIPS that it was trained with
        name = _our_name(key, levels)
        ours[name] = value[:, :, 0, 0] if ".attentions." in name and value.ndim == 4 else value
    return ours


def _numbers(state_dict: dict[str, Tensor], pattern: str) -> int:
    """One more than the largest number that the pattern finds in a name."""
    return max((1 + int(m[1]) for k in state_dict if (m := re.match(pattern, k))), default=0)


def _our_name(key: str, levels: int) -> str:
    for pattern, name in NAMES.items():
        if match := re.fullmatch(pattern, key):
            ours = re.sub(r"LEVEL(\d+)", lambda m: str(levels - 1 - int(m[1])), match.expand(name))
            for theirs, layer in (
                RESNET if ".resnets." in ours else ATTENTION if ".attentions." in ours else {}
            ).items():
                ours = re.sub(rf"\.{theirs}\.(weight|bias)$", rf".{layer}.\1", ours)
            return ours
    raise ValueError(f"unexpected key {key!r}: not part of KL-16")
