"""Translation of released FlowAR weights (github.com/OliverRensu/FlowAR, models/flowar.py and models/flowloss.py)."""

import re
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fluvial.methods import flowar
from fluvial.nn.rope import axial_frequencies
from fluvial.utils.translation import Source, Translation, count, latent_size, renamed, stacked

LABELS = "class_emb.weight"  # one row per class, and a null class
TELLTALE = r"(flownet|encoder_blocks|decoder_blocks)\."  # names that no other method has
# our prefix -> the release's prefix: outside blocks, in transformer blocks, in blocks of the head
OUTSIDE = {
    "embed_label.table.": "class_emb.",
    "embed.": "z_proj.",
    "norms.0.": "z_proj_ln.",
    "norms.1.": "encoder_norm.",
    "norms.2.": "decoder_norm.",
    "middle.": "decoder_embed.",
    "head.embed.": "flownet.input_proj.",
    "head.embed_t.hidden.": "flownet.time_embed.mlp.0.",
    "head.embed_t.out.": "flownet.time_embed.mlp.2.",
    "head.project.": "flownet.cond_embed.",
    "head.modulation.linear.": "flownet.final_layer.adaLN_modulation.1.",
    "head.out.": "flownet.final_layer.linear.",
}
IN_BLOCK = {
    "modulation.linear.": "ada_lin.1.",
    "attention.qkv.": "attn.qkv.",
    "attention.out.": "attn.proj.",
    "mlp.gate.": "mlp.fc1_g.",
    "mlp.value.": "mlp.fc1_x.",
    "mlp.out.": "mlp.fc2.",
}
IN_HEAD = {
    **IN_BLOCK,
    "modulation.linear.": "ada_lin.",
    "modulation_attention.linear.": "ada_lin_attn.",
    "modulation_mlp.linear.": "ada_lin_mlp.",
    "cross.q.": "crossattn.q.",
    "cross.kv.": "crossattn.kv.",
    "cross.out.": "crossattn.proj.",
    "norm_x.": "norm2_1.",
    "norm_z.": "norm2_2.",
}
POSITIONS = ("encoder_pos_embed_learned", "decoder_pos_embed_learned", "diffusion_pos_embed_learned")
HEADS = {preset["width"]: preset["heads"] for preset in flowar.PRESETS.values()}


def config_from(state_dict: Mapping[str, Tensor], **hints: Any) -> flowar.Config:  # noqa: ANN401
    """The configuration of these weights, read off their shapes, with the release's quirks switched on.

    `hints` are settings that shapes do not show: scales that do not double up to a square latent, a patch, and heads
    if the file has no rotary frequencies. Raises ValueError naming the hint that is needed.
    """
    width = state_dict[LABELS].shape[1]
    head_width, token = state_dict["flownet.input_proj.weight"].shape
    patch, image_size = hints.get("patch", 1), hints.pop("image_size", None)
    rows = hints.get("scales") or _doubling(state_dict[POSITIONS[0]].shape[1])
    last = rows[-1], (hints.get("scale_columns") or rows)[-1]
    if image_size is not None:
        size = latent_size(image_size, last[0] * last[1], patch=patch, stride=16)
        if size != (last[0] * patch, last[1] * patch):
            raise ValueError(f"image_size {image_size} does not give a last map of {last[0]} x {last[1]}: give scales")
    heads = hints.get("heads") or _heads(state_dict, "encoder_blocks", width) or HEADS.get(width)
    if heads is None:
        raise ValueError(f"no published FlowAR has the width {width}, and shapes do not tell the heads: give heads")
    settings = {
        "size": (last[0] * patch, last[1] * patch),
        "channels": token // patch**2,
        "scales": rows,
        "depth": 2 * count(state_dict, r"encoder_blocks\.(\d+)\."),
        "width": width,
        "heads": heads,
        "head": "cross_attention" if "flownet.res_blocks.0.crossattn.q.weight" in state_dict else "spatial_adaln",
        "head_depth": count(state_dict, r"flownet\.res_blocks\.(\d+)\."),
        "head_width": head_width,
        "head_heads": _heads(state_dict, "flownet.res_blocks", head_width) or max(1, head_width // 64),
        "floor_time": True,
        "init": "release",
    }
    return flowar.Config(**{**settings, **hints})


def translation(state_dict: Mapping[str, Tensor], names: Iterable[str], config: flowar.Config) -> Translation:
    """The translation to our tensors of these names.

    The output layer changes sign, since the released velocity runs from data to noise.
    """
    fixed = {"mask": partial(_mask, config.sizes)}
    in_stack, in_head = config.width // config.heads, config.head_width // config.head_heads
    for key in state_dict:
        if key.endswith(".rope.freqs"):
            fixed[key] = partial(axial_frequencies, in_head if key.startswith("flownet.") else in_stack)
    return Translation({name: _source_of(name, config) for name in names}, fixed, {})


def _source_of(name: str, config: flowar.Config) -> Source:
    """The released tensor from which ours of this name is made."""
    if name == "positions":
        return stacked(POSITIONS)
    head, rest, names = "", name, OUTSIDE
    if block := re.fullmatch(r"(head\.)?blocks\.(\d+)\.(.*)", name):
        of_head, number, rest = block[1], int(block[2]), block[3]
        half = config.depth // 2
        stack, names = ("flownet.res_blocks", IN_HEAD) if of_head else ("encoder_blocks", IN_BLOCK)
        if not of_head and number >= half:
            stack, number = "decoder_blocks", number - half
        head = f"{stack}.{number}."
    prefix = next(prefix for prefix in names if rest.startswith(prefix))
    key = head + names[prefix] + rest.removeprefix(prefix)
    return Source((key,), torch.neg) if name.startswith("head.out.") else renamed(key)


def _mask(sizes: tuple[int, ...]) -> Tensor:
    """The attention mask: 0 for tokens of the same and earlier scales, -inf for later ones."""
    scale = torch.cat([torch.full((size,), i) for i, size in enumerate(sizes)])
    return torch.zeros(len(scale), len(scale)).masked_fill(scale[:, None] < scale, -torch.inf)[None, None]


def _doubling(tokens: int) -> tuple[int, ...]:
    """The scales 1, 2, 4 ... that have this many tokens in all. Raises ValueError if there are none."""
    scales = [1]
    while sum(side**2 for side in scales) < tokens:
        scales.append(2 * scales[-1])
    if sum(side**2 for side in scales) != tokens:
        raise ValueError(f"{tokens} tokens are not those of maps of side 1, 2, 4 and so on: give scales")
    return tuple(scales)


def _heads(state_dict: Mapping[str, Tensor], stack: str, width: int) -> int | None:
    """The number of heads, from the rotary frequencies, which number a quarter of a head's width; None without them."""
    frequencies = state_dict.get(f"{stack}.0.attn.rope.freqs")
    return None if frequencies is None else width // (4 * len(frequencies))
