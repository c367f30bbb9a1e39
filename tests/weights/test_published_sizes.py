"""Every published size on the meta device: each key of the release is used or listed, each parameter of ours filled."""

import pytest
import released
import torch

from conftest import read_golden, shared
from fluvial.autoencoders import kl16
from fluvial.methods import arflow, flowar, sit
from fluvial.sampling.settings import EulerMaruyama
from fluvial.weights import released as upstream

SIT = {
    "S/2": 32_963_360,
    "S/4": 32_945_024,
    "S/8": 33_148_160,
    "B/2": 130_512_416,
    "B/4": 130_475_648,
    "B/8": 130_881_536,
    "L/2": 458_102_816,
    "L/4": 458_053_760,
    "L/8": 458_594_816,
    "XL/2": 675_129_632,
    "XL/4": 675_074_432,
    "XL/8": 675_683_072,
}
ARFLOW = {
    "S/2": 34_742_048,
    "S/4": 34_723_712,
    "S/8": 34_926_848,
    "B/2": 137_664_032,
    "B/4": 137_627_264,
    "B/8": 138_033_152,
    "L/2": 483_563_552,
    "L/4": 483_514_496,
    "L/8": 484_055_552,
    "XL/2": 712_740_128,
    "XL/4": 712_620_416,
    "XL/8": 713_229_056,
}
FLOWAR = {"S": 171.72, "L": 586.86, "H": 1913.3}  # millions
FIXED = ("mask", ".rope.freqs")
SHAPE = ("depth", "width", "heads", "head_depth", "head_width", "head_heads")


@pytest.mark.parametrize("name", ["sit_tiny", "arflow_tiny"])
def test_the_list_of_names_is_that_of_a_released_model(name):
    golden = read_golden(name)
    meta = golden.meta
    shapes = getattr(released, name.removesuffix("_tiny"))(
        depth=meta["depth"],
        width=meta["hidden_size"],
        patch=meta["patch_size"],
        heads=meta["num_heads"],
        size=meta["input_size"],
        channels=meta["in_channels"],
        classes=meta["num_classes"],
    )
    assert shapes == {key: tuple(value.shape) for key, value in golden.state_dict.items()}


@pytest.mark.parametrize("form", ["spatial_adaln", "cross_attention"])
def test_so_is_that_of_flowar(form):
    golden = read_golden(f"flowar_tiny_{form}")
    shapes = released.flowar(
        depth=4, width=32, heads=2, head_depth=2, head_width=64, head_heads=1, cross=golden.meta["cross"]
    )
    assert shapes == {key: tuple(value.shape) for key, value in golden.state_dict.items()}


def test_so_is_that_of_kl16():
    golden = read_golden("kl16_tiny", shared("golden/kl16_tiny.safetensors").parent)
    assert released.kl16(width=32) == {key: tuple(value.shape) for key, value in golden.state_dict.items()}


@pytest.mark.parametrize("size", SIT)
@pytest.mark.parametrize(("method", "counts"), [(sit, SIT), (arflow, ARFLOW)])
def test_sit_and_arflow(method, counts, size):
    kind, preset = method.__name__.rpartition(".")[2], method.preset(size)
    shapes = getattr(released, kind)(depth=preset.depth, width=preset.width, patch=preset.patch, heads=preset.heads)
    assert released.count(shapes) == counts[size]
    found = upstream.translated(released.on_meta(shapes))
    assert (found.kind, found.size, found.run.method) == (kind, size, preset)
    assert found.dropped.keys() == {"pos_embed", "half of final_layer.linear"}
    model, run = upstream.from_state_dict(released.on_meta(shapes))
    assert run == found.run and {p.device.type for p in model.parameters()} == {"meta"}
    ours = sum(p.numel() for p in model.parameters())
    sigma = (preset.width + 1) * preset.patch**2 * 4
    assert ours + sigma + preset.width * (32 // preset.patch) ** 2 == counts[size]


@pytest.mark.parametrize("size", FLOWAR)
def test_flowar(size):
    preset = flowar.preset(size)
    form = {name: getattr(preset, name) for name in SHAPE}
    shapes = released.flowar(**form, cross=preset.head == "cross_attention")
    assert round(released.count(shapes, FIXED) / 1e6, 2 if size != "H" else 1) == FLOWAR[size]
    found = upstream.translated(released.on_meta(shapes))
    assert (found.kind, found.size) == ("flowar", size)
    assert {name: getattr(found.run.method, name) for name in SHAPE} == form
    assert found.run.method.floor_time and found.run.method.head == preset.head
    assert found.dropped.keys() == {key for key in shapes if key.endswith(FIXED)}
    model, _ = upstream.from_state_dict(released.on_meta(shapes))
    assert sum(p.numel() for p in model.parameters()) == released.count(shapes, FIXED)


def test_kl16():
    pytest.importorskip("diffusers")
    shapes = released.kl16(width=128)
    assert round(released.count(shapes) / 1e6, 1) == 66.5  # FlowAR, Table 3
    model, tensors, dropped = kl16.translated(released.on_meta(shapes))
    assert sum(p.numel() for p in model.parameters()) == released.count(shapes) and not dropped
    assert {name: lazy.shape for name, lazy in tensors.items()} == {
        name: tuple(value.shape) for name, value in model.state_dict().items()
    }


SAMPLING = {
    "S": ({"steps": 24, "grid": "two-piece"}, {"weight": 4.3, "interval": (0.1, 1.0), "ramp": "linear"}),
    "L": ({"steps": 24, "grid": "two-piece"}, {"weight": 2.4, "interval": (0.1, 1.0), "ramp": "linear"}),
    "H": ({"steps": 50, "grid": "uniform"}, {"weight": 2.4, "interval": (0.3, 1.0), "ramp": "linear"}),
}


@pytest.mark.parametrize("size", SAMPLING)
def test_flowar_is_sampled_as_released(size):
    preset = flowar.preset(size)
    form = {name: getattr(preset, name) for name in SHAPE}
    _, run = upstream.from_state_dict(released.on_meta(released.flowar(**form, cross=preset.head == "cross_attention")))
    sampling, guidance = SAMPLING[size]
    assert {name: getattr(run.sample, name) for name in sampling} == sampling
    assert {name: getattr(run.sample.guidance, name) for name in guidance} == guidance
    assert (run.autoencoder.name, run.autoencoder.scale, run.data.size) == ("kl16.ckpt", (0.2325,), 256)
    assert run.train.activation_checkpointing == (size != "S")  # as they are trained


@pytest.mark.parametrize(("method", "pixels"), [(sit, 256), (arflow, 256), (arflow, 128)])
def test_sit_and_arflow_are_sampled_as_released(method, pixels):
    preset = method.preset("XL/2", size=(pixels // 8,) * 2)
    shapes = getattr(released, method.__name__.rpartition(".")[2])(
        depth=28, width=1152, patch=2, heads=preset.heads, size=pixels // 8
    )
    _, run = upstream.from_state_dict(released.on_meta(shapes))
    sample = run.sample
    solver = EulerMaruyama(diffusion="sigma", norm=1.0, last_step="mean", last_step_size=0.04)
    assert (sample.solver, sample.steps) == (solver, 250)
    assert (sample.guidance.weight, sample.guidance.channels, sample.guidance.interval) == (1.5, 3, (0.0, 1.0))
    assert (run.autoencoder.name, run.autoencoder.scale) == ("stabilityai/sd-vae-ft-ema", (0.18215,))
    assert (run.method, run.data.size) == (preset, pixels)


def test_meta_tensors_never_become_memory():
    """1.9 billion parameters: 7.6 GB, were they made."""
    shapes = released.flowar(depth=30, width=1536, heads=16, head_depth=12, head_width=1536, head_heads=24, cross=True)
    model, _ = upstream.from_state_dict(released.on_meta(shapes))
    assert all(isinstance(p, torch.nn.Parameter) and p.is_meta for p in model.parameters())
