"""Released FlowAR weights (github.com/OliverRensu/FlowAR, models/flowar.py and models/flowloss.py) to ours."""

import re
from typing import Any

import torch
from torch import Tensor

from fluvial.methods import flowar

# release name -> our name, outside the blocks and inside
NAMES = {
    r"class_emb\.weight": "embed_label.table.weight",
    r"z_proj\.(.*)": r"embed.\1",
    r"z_proj_ln\.weight": "norms.0.weight",
    r"encoder_norm\.weight": "norms.1.weight",
    r"decoder_norm\.weight": "norms.2.weight",
    r"decoder_embed\.(.*)": r"middle.\1",
    r"flownet\.input_proj\.(.*)": r"head.embed.\1",
    r"flownet\.time_embed\.mlp\.0\.(.*)": r"head.embed_t.hidden.\1",
    r"flownet\.time_embed\.mlp\.2\.(.*)": r"head.embed_t.out.\1",
    r"flownet\.cond_embed\.(.*)": r"head.project.\1",
    r"flownet\.final_layer\.adaLN_modulation\.1\.(.*)": r"head.modulation.linear.\1",
    r"flownet\.final_layer\.linear\.(.*)": r"head.out.\1",
}
IN_BLOCK = {
    r"ada_lin(?:\.1)?\.(weight|bias)": r"modulation.linear.\1",
    r"ada_lin_attn\.(.*)": r"modulation_attention.linear.\1",
    r"ada_lin_mlp\.(.*)": r"modulation_mlp.linear.\1",
    r"attn\.qkv\.(.*)": r"attention.qkv.\1",
    r"attn\.proj\.(.*)": r"attention.out.\1",
    r"crossattn\.proj\.(.*)": r"cross.out.\1",
    r"crossattn\.(q|kv)\.weight": r"cross.\1.weight",
    r"norm2_1\.weight": "norm_x.weight",
    r"norm2_2\.weight": "norm_z.weight",
    r"mlp\.fc1_g\.(.*)": r"mlp.gate.\1",
    r"mlp\.fc1_x\.(.*)": r"mlp.value.\1",
    r"mlp\.fc2\.(.*)": r"mlp.out.\1",
}
POSITIONS = ("encoder_pos_embed_learned", "decoder_pos_embed_learned", "diffusion_pos_embed_learned")
TABLES = re.compile(r"mask|.*\.rope\.freqs")  # fixed tables that our model makes itself


def config_from(state_dict: dict[str, Tensor], *, heads: int, **hints: Any) -> flowar.FlowARConfig:  # noqa: ANN401
    """The configuration these weights were made with, with every quirk of the release that they need.

    Shapes do not tell the transformer's heads. `hints` replaces what the release hard-wires: size, scales, patch.
    """
    classes, width = state_dict["class_emb.weight"].shape
    head_width, token = state_dict["flownet.input_proj.weight"].shape
    cross = "flownet.res_blocks.0.crossattn.q.weight" in state_dict
    settings = {
        "channels": token // hints.get("patch", 1) ** 2,
        "classes": classes - 1,
        "depth": _blocks(state_dict, "encoder_blocks") + _blocks(state_dict, "decoder_blocks"),
        "width": width,
        "heads": heads,
        "head": "cross_attention" if cross else "spatial_adaln",
        "head_depth": _blocks(state_dict, "flownet.res_blocks"),
        "head_width": head_width,
        "head_heads": head_width // 64,
        "floor_time": True,
        "init": "release",
    }
    return flowar.FlowARConfig(**{**settings, **hints})


def translate(state_dict: dict[str, Tensor], config: flowar.FlowARConfig) -> dict[str, Tensor]:
    """Our state dict. The output layer changes sign, since the released velocity runs from data to noise.

    Raises ValueError naming a key that is not the release's.
    """
    ours = {"positions": torch.cat([state_dict[name] for name in POSITIONS])}
    for key, value in state_dict.items():
        if key in POSITIONS or TABLES.fullmatch(key):
            continue
        sign = -1 if key.startswith("flownet.final_layer.linear.") else 1
        ours[_our_name(key, config)] = sign * value
    return ours


def _our_name(key: str, config: flowar.FlowARConfig) -> str:
    block = re.fullmatch(r"(encoder_blocks|decoder_blocks|flownet\.res_blocks)\.(\d+)\.(.*)", key)
    prefix, rest, names = "", key, NAMES
    if block:
        number = int(block[2]) + (config.depth // 2 if block[1] == "decoder_blocks" else 0)
        prefix = f"{'head.' if block[1].startswith('flownet') else ''}blocks.{number}."
        rest, names = block[3], IN_BLOCK
    for pattern, name in names.items():
        if match := re.fullmatch(pattern, rest):
            return prefix + match.expand(name)
    raise ValueError(f"unexpected key {key!r}: not part of a released FlowAR checkpoint")


def _blocks(state_dict: dict[str, Tensor], prefix: str) -> int:
    return 1 + max(int(key.removeprefix(prefix + ".").split(".")[0]) for key in state_dict if key.startswith(prefix))
