"""The names and shapes of the released files, written down from the releases: of any size, without the weights."""

import math

import torch


def sit(*, depth, width, patch, size=32, channels=4, classes=1000, heads=None):
    """As SiT's models.py names them; the positions and the sigma half included."""
    blocks = {
        "attn.qkv.weight": (3 * width, width),
        "attn.qkv.bias": (3 * width,),
        "attn.proj.weight": (width, width),
        "attn.proj.bias": (width,),
    }
    return _transformer(blocks, depth, width, patch, size, channels, classes)


def arflow(*, depth, width, patch, heads, size=32, channels=4, classes=1000):
    """As ARFlow's models.py and gated_retnet_train.py name them."""
    blocks = {f"attn.{name}_proj.weight": (width, width) for name in ("q", "k", "v", "g", "out")}
    return _transformer({**blocks, "attn.gt_proj.weight": (heads, width)}, depth, width, patch, size, channels, classes)


def _transformer(attention, depth, width, patch, size, channels, classes):
    blocks = {
        **attention,
        "adaLN_modulation.1.weight": (6 * width, width),
        "adaLN_modulation.1.bias": (6 * width,),
        "mlp.fc1.weight": (4 * width, width),
        "mlp.fc1.bias": (4 * width,),
        "mlp.fc2.weight": (width, 4 * width),
        "mlp.fc2.bias": (width,),
    }
    return {
        "pos_embed": (1, (size // patch) ** 2, width),
        "x_embedder.proj.weight": (width, channels, patch, patch),
        "x_embedder.proj.bias": (width,),
        "t_embedder.mlp.0.weight": (width, 256),
        "t_embedder.mlp.0.bias": (width,),
        "t_embedder.mlp.2.weight": (width, width),
        "t_embedder.mlp.2.bias": (width,),
        "y_embedder.embedding_table.weight": (classes + 1, width),
        **{f"blocks.{i}.{name}": shape for i in range(depth) for name, shape in blocks.items()},
        "final_layer.linear.weight": (2 * channels * patch**2, width),
        "final_layer.linear.bias": (2 * channels * patch**2,),
        "final_layer.adaLN_modulation.1.weight": (2 * width, width),
        "final_layer.adaLN_modulation.1.bias": (2 * width,),
    }


def flowar(*, depth, width, heads, head_depth, head_width, head_heads, cross, channels=16, classes=1000):
    """As FlowAR's flowar.py and flowloss.py name them, fixed tables included; maps of 1 to 16 x 16."""
    tokens, hidden = 341, int(width * 8 / 3)

    def mlp(width, hidden):
        return {
            **{f"mlp.fc1_{x}.weight": (hidden, width) for x in "gx"},
            **{f"mlp.fc1_{x}.bias": (hidden,) for x in "gx"},
            "mlp.fc2.weight": (width, hidden),
            "mlp.fc2.bias": (width,),
        }

    block = {
        "ada_lin.1.weight": (6 * width, width),
        "ada_lin.1.bias": (6 * width,),
        "attn.qkv.weight": (3 * width, width),
        "attn.qkv.bias": (3 * width,),
        "attn.proj.weight": (width, width),
        "attn.proj.bias": (width,),
        "attn.rope.freqs": (width // heads // 4,),
        **mlp(width, hidden),
    }
    modulations = {"ada_lin_attn": 3, "ada_lin_mlp": 3} if cross else {"ada_lin": 6}
    in_head = {
        **{f"{name}.weight": (n * head_width, head_width) for name, n in modulations.items()},
        **{f"{name}.bias": (n * head_width,) for name, n in modulations.items()},
        "attn.qkv.weight": (3 * head_width, head_width),
        "attn.proj.weight": (head_width, head_width),
        "attn.proj.bias": (head_width,),
        "attn.rope.freqs": (head_width // head_heads // 4,),
        **mlp(head_width, int(head_width * 8 / 3)),
    }
    if cross:
        in_head |= {
            "crossattn.q.weight": (head_width, head_width),
            "crossattn.kv.weight": (2 * head_width, width),
            "crossattn.proj.weight": (head_width, head_width),
            "crossattn.proj.bias": (head_width,),
            "crossattn.rope.freqs": (head_width // head_heads // 4,),
            "norm2_1.weight": (head_width,),
            "norm2_2.weight": (width,),
        }
    return {
        "mask": (1, 1, tokens, tokens),
        **{f"{name}_pos_embed_learned": (1, tokens, width) for name in ("encoder", "decoder", "diffusion")},
        "class_emb.weight": (classes + 1, width),
        "z_proj.weight": (width, channels),
        "z_proj.bias": (width,),
        **{f"{name}.weight": (width,) for name in ("z_proj_ln", "encoder_norm", "decoder_norm")},
        "decoder_embed.weight": (width, width),
        "decoder_embed.bias": (width,),
        **{
            f"{stack}_blocks.{i}.{name}": shape
            for stack in ("encoder", "decoder")
            for i in range(depth // 2)
            for name, shape in block.items()
        },
        "flownet.input_proj.weight": (head_width, channels),
        "flownet.input_proj.bias": (head_width,),
        "flownet.time_embed.mlp.0.weight": (head_width, 256),
        "flownet.time_embed.mlp.0.bias": (head_width,),
        "flownet.time_embed.mlp.2.weight": (head_width, head_width),
        "flownet.time_embed.mlp.2.bias": (head_width,),
        "flownet.cond_embed.weight": (head_width, width),
        "flownet.cond_embed.bias": (head_width,),
        **{f"flownet.res_blocks.{i}.{name}": shape for i in range(head_depth) for name, shape in in_head.items()},
        "flownet.final_layer.adaLN_modulation.1.weight": (2 * head_width, head_width),
        "flownet.final_layer.adaLN_modulation.1.bias": (2 * head_width,),
        "flownet.final_layer.linear.weight": (channels, head_width),
        "flownet.final_layer.linear.bias": (channels,),
    }


def kl16(*, width):
    """As MAR's vae.py names them: `ch` is the width, multiplied by 1 1 2 2 4 over the levels."""
    widths, shapes = [width * m for m in (1, 1, 2, 2, 4)], {}

    def conv(name, out, into, side):
        shapes.update({f"{name}.weight": (out, into, side, side), f"{name}.bias": (out,)})

    def norm(name, channels):
        shapes.update({f"{name}.weight": (channels,), f"{name}.bias": (channels,)})

    def resnet(name, into, out):
        norm(f"{name}.norm1", into)
        conv(f"{name}.conv1", out, into, 3)
        norm(f"{name}.norm2", out)
        conv(f"{name}.conv2", out, out, 3)
        if into != out:
            conv(f"{name}.nin_shortcut", out, into, 1)

    def attention(name, channels):
        norm(f"{name}.norm", channels)
        for part in ("q", "k", "v", "proj_out"):
            conv(f"{name}.{part}", channels, channels, 1)

    def middle(side):
        resnet(f"{side}.mid.block_1", widths[-1], widths[-1])
        attention(f"{side}.mid.attn_1", widths[-1])
        resnet(f"{side}.mid.block_2", widths[-1], widths[-1])

    conv("encoder.conv_in", width, 3, 3)
    before = width
    for level, channels in enumerate(widths):
        for i in range(2):
            resnet(f"encoder.down.{level}.block.{i}", before, channels)
            before = channels
            if level == 4:
                attention(f"encoder.down.{level}.attn.{i}", channels)
        if level < 4:
            conv(f"encoder.down.{level}.downsample.conv", channels, channels, 3)
    middle("encoder")
    norm("encoder.norm_out", widths[-1])
    conv("encoder.conv_out", 32, widths[-1], 3)
    conv("decoder.conv_in", widths[-1], 16, 3)
    middle("decoder")
    for level in reversed(range(5)):
        for i in range(3):
            resnet(f"decoder.up.{level}.block.{i}", before, widths[level])
            before = widths[level]
        if level > 0:
            conv(f"decoder.up.{level}.upsample.conv", before, before, 3)
    norm("decoder.norm_out", width)
    conv("decoder.conv_out", 3, width, 3)
    conv("quant_conv", 32, 32, 1)
    conv("post_quant_conv", 16, 16, 1)
    return shapes


def on_meta(shapes):
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def count(shapes, without=()):
    """Numbers in all tensors but those whose name ends with one of these."""
    return sum(math.prod(shape) for name, shape in shapes.items() if not name.endswith(tuple(without)))
