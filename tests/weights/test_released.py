"""State dicts of the releases through the public interface: hints, and what is refused. Numbers: tests/methods."""

import pytest
import released
import torch

import fluvial
from conftest import read_golden
from fluvial.nn.layers import sincos_positions
from fluvial.weights.released import translated

HINTS = {"sit_tiny": {"heads": 2}, "arflow_tiny": {}, "flowar_tiny_spatial_adaln": {}}
MATRIX = {  # a key of each release, and one of another shape
    "sit_tiny": ("blocks.0.mlp.fc1.weight", "blocks.0.mlp.fc2.weight"),
    "arflow_tiny": ("blocks.1.attn.k_proj.weight", "blocks.1.attn.gt_proj.weight"),
    "flowar_tiny_spatial_adaln": ("decoder_blocks.1.mlp.fc1_g.weight", "decoder_blocks.1.mlp.fc2.weight"),
}


@pytest.fixture(params=HINTS)
def golden(request):
    golden = read_golden(request.param)
    golden.name, golden.hints, golden.keys = request.param, HINTS[request.param], MATRIX[request.param]
    return golden


def refused(state_dict, golden, says):
    with pytest.raises(ValueError, match=says):
        fluvial.weights.from_state_dict(state_dict, **golden.hints)


def test_the_order_of_keys_does_not_matter(golden):
    backwards = dict(reversed(golden.state_dict.items()))
    models = [fluvial.weights.from_state_dict(s, **golden.hints)[0] for s in (golden.state_dict, backwards)]
    for a, b in zip(*(model.state_dict().values() for model in models), strict=True):
        assert torch.equal(a, b)
    assert not any(model.training for model in models)


def test_a_shuffled_file(golden):
    a, b = golden.keys
    shuffled = {**golden.state_dict, a: golden.state_dict[b], b: golden.state_dict[a]}
    refused(shuffled, golden, rf"not the weights of \w+: .*{a} \(\d+, \d+\).* does not give the model's \(")


def test_a_truncated_file(golden):
    some = dict(list(golden.state_dict.items())[: len(golden.state_dict) // 2])
    refused(some, golden, "not the weights of .*missing")
    without = {key: value for key, value in golden.state_dict.items() if key != golden.keys[0]}
    refused(without, golden, rf"not the weights of \w+: {golden.keys[0]} is missing$")


def test_a_renamed_key(golden):
    key = golden.keys[1]
    renamed = {key.replace("weight", "w") if k == key else k: v for k, v in golden.state_dict.items()}
    refused(renamed, golden, rf"{key} is missing; {key.replace('weight', 'w')} is unknown$")


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64, torch.bool])
def test_another_type(golden, dtype):
    key = golden.keys[0]
    wrong = {**golden.state_dict, key: golden.state_dict[key].to(dtype)}
    refused(wrong, golden, rf"{key} has the type \w+, not float32, bfloat16, float16 or float64$")


def test_float64_becomes_float32(golden):
    key = golden.keys[0]
    double = {**golden.state_dict, key: golden.state_dict[key].double()}
    models = [fluvial.weights.from_state_dict(s, **golden.hints)[0] for s in (golden.state_dict, double)]
    for a, b in zip(*(model.state_dict().values() for model in models), strict=True):
        assert torch.equal(a, b) and a.dtype == b.dtype


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite(golden, value):
    for key in golden.keys:
        wrong = {name: tensor.clone() for name, tensor in golden.state_dict.items()}
        wrong[key].view(-1)[3] = value
        refused(wrong, golden, rf"{key} holds numbers that are not finite")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_read_and_computed_with_in_float32(golden, dtype):
    half = {key: value.to(dtype) for key, value in golden.state_dict.items()}
    model, _ = fluvial.weights.from_state_dict(half, **golden.hints)
    exact, _ = fluvial.weights.from_state_dict(golden.state_dict, **golden.hints)
    for a, b in zip(model.parameters(), exact.parameters(), strict=True):
        assert a.dtype == torch.float32 and torch.equal(a, b.to(dtype).float())


def test_fixed_tables_must_be_those_of_the_release(golden):
    for key in golden.state_dict:
        if key == "pos_embed" or key == "mask" or key.endswith("freqs"):
            wrong = {**golden.state_dict, key: golden.state_dict[key].roll(1, -1)}
            refused(wrong, golden, f"{key} is not the fixed table of the release")


def test_tables_that_need_not_be_there():
    golden = read_golden("flowar_tiny_cross_attention")
    without = {k: v for k, v in golden.state_dict.items() if k != "mask" and not k.endswith("freqs")}
    with pytest.raises(ValueError, match="no published FlowAR has the width 32.* give heads"):
        fluvial.weights.from_state_dict(without)
    model, _ = fluvial.weights.from_state_dict(without, heads=2)
    expected, _ = fluvial.weights.from_state_dict(golden.state_dict)
    assert model.config == expected.config


def test_weights_of_something_else():
    with pytest.raises(ValueError, match=r"not weights of sit, arflow, flowar, kl16: .* 1 keys: linear.weight"):
        fluvial.weights.from_state_dict({"linear.weight": torch.zeros(2)})
    with pytest.raises(ValueError, match="not weights of"):
        fluvial.weights.from_state_dict({})
    sit = read_golden("sit_tiny").state_dict
    with pytest.raises(ValueError, match=r"not the weights of arflow: blocks.0.attn.gt_proj.weight is missing"):
        fluvial.weights.from_state_dict(sit, kind="arflow")
    with pytest.raises(ValueError, match="those of kl16, an autoencoder"):
        fluvial.weights.from_state_dict({"encoder.down.0.block.0.conv1.weight": torch.zeros(1)})


def shaped(size, rows, columns):
    """A SiT on a latent that is not square."""
    shapes = released.sit(depth=1, width=384, patch=2, size=2, classes=3)
    weights = {name: torch.randn(shape) for name, shape in shapes.items()}
    return {**weights, "pos_embed": sincos_positions(384, (rows, columns))[None]}


def test_heads_and_image_size_are_told_or_asked_for():
    tiny = read_golden("sit_tiny").state_dict
    with pytest.raises(ValueError, match="no published SiT has the width 64.* give heads"):
        fluvial.weights.from_state_dict(tiny)
    oblong = shaped(2, 4, 6)
    with pytest.raises(ValueError, match="24 tokens are not those of a square image: give image_size"):
        fluvial.weights.from_state_dict(oblong)
    for image_size in ((64, 96), (8, 12)):  # in pixels, in latent pixels
        model, run = fluvial.weights.from_state_dict(oblong, image_size=image_size)
        assert (run.method.size, run.method.heads) == ((8, 12), 6)
        assert torch.equal(model.embed.positions, oblong["pos_embed"][0])
    with pytest.raises(ValueError, match="pos_embed is not the fixed table"):
        fluvial.weights.from_state_dict(oblong, image_size=(96, 64))
    with pytest.raises(ValueError, match="image_size 64 x 64 does not give 24 patches of 2 x 2"):
        fluvial.weights.from_state_dict(oblong, image_size=64)
    with pytest.raises(ValueError, match="unknown hints colour; there are autoencoder, image_size, size"):
        fluvial.weights.from_state_dict(tiny, colour=3)


def test_scales_that_do_not_double_are_asked_for():
    shapes = released.flowar(depth=2, width=32, heads=2, head_depth=1, head_width=64, head_heads=1, cross=False)
    del shapes["mask"]
    tokens = 1 + 9 + 36
    shapes |= {name: (1, tokens, 32) for name in shapes if name.endswith("learned")}
    state_dict = released.on_meta(shapes)
    with pytest.raises(ValueError, match="46 tokens are not those of maps of side 1, 2, 4 and so on: give scales"):
        fluvial.weights.from_state_dict(state_dict)
    _, run = fluvial.weights.from_state_dict(state_dict, scales=[1, 3, 6], image_size=96)
    assert (run.method.scales, run.method.size, run.data.size) == ((1, 3, 6), (6, 6), 96)
    with pytest.raises(ValueError, match="image_size 256 x 256 does not give 36 patches"):
        fluvial.weights.from_state_dict(state_dict, scales=(1, 3, 6), image_size=256)


def test_the_autoencoder_is_that_of_the_release_or_named():
    shapes = released.sit(depth=1, width=384, patch=2, size=4, channels=3, classes=3)
    _, run = fluvial.weights.from_state_dict(released.on_meta(shapes))
    assert (run.autoencoder.name, run.data.size) == ("pixels", 4)
    odd = released.on_meta(released.sit(depth=1, width=384, patch=2, size=4, channels=8, classes=3))
    with pytest.raises(ValueError, match="no autoencoder of the releases has 8 channels: give autoencoder"):
        fluvial.weights.from_state_dict(odd)
    _, run = fluvial.weights.from_state_dict(odd, autoencoder="somewhere")
    assert run.autoencoder.name == "somewhere"


def test_weights_without_a_sigma_half(sit_golden):
    """As of a model trained with learn_sigma off: nothing is dropped but the positions."""
    plain = dict(sit_golden.state_dict)
    for name in ("final_layer.linear.weight", "final_layer.linear.bias"):
        plain[name] = plain[name].unflatten(0, (4, 8))[:, :4].flatten(0, 1)
    assert translated(plain, heads=2).dropped.keys() == {"pos_embed"}
    a, b = (fluvial.weights.from_state_dict(s, heads=2)[0] for s in (plain, sit_golden.state_dict))
    assert torch.equal(a.head.project.weight, b.head.project.weight)
