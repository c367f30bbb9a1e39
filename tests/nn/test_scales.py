import math

import pytest
import torch
from torch.nn import functional as F

from conftest import randomise
from fluvial.nn.rope import axial_angles, axial_rotary, rotate
from fluvial.nn.scales import ConditionedBlock, Geglu, ScaleAttention, ScaleCrossAttention, attend, per_token

SIZES = (1, 4, 9)
SCALE = torch.repeat_interleave(torch.arange(3), torch.tensor(SIZES))


@pytest.mark.parametrize("shape", [(), (5,)])
def test_what_holds_for_a_scale_holds_for_its_tokens(shape):
    values = torch.randn(2, 3, *shape)
    assert torch.equal(per_token(values, SIZES), values[:, SCALE])
    assert torch.equal(per_token(values[:, 1:2], (4,)), values[:, 1:2].expand(2, 4, *shape))


@pytest.mark.parametrize("cross", [None, 10])
def test_time_modulates_each_scale_once(cross):
    """Scales together are scales one by one; with cross-attention no token is modulated by itself."""
    block = ConditionedBlock(24, 3, cross, zero=False).double()
    x, time, z = (torch.randn(2, n, d, dtype=torch.float64) for n, d in ((14, 24), (3, 24), (14, cross or 24)))
    rotary = axial_rotary([(1, 1), (2, 2), (3, 3)], 8).double()
    condition, seen = torch.randn(2, 14, 24, dtype=torch.float64), []
    if cross:
        block.modulation_attention.register_forward_hook(lambda module, given, result: seen.append(given[0].shape))
    whole = block(x, time, condition, block.keys_values(z, rotary), rotary, SIZES)
    assert not cross or seen == [(2, 3, 24)]
    start = 0
    for i, n in enumerate(SIZES):
        s = slice(start, start + n)
        keys_values = block.keys_values(z[:, s], rotary[:, s])
        alone = block(x[:, s], time[:, i : i + 1], condition[:, s], keys_values, rotary[:, s], (n,))
        torch.testing.assert_close(alone, whole[:, s])
        start += n


def heads(n, seed=0):
    return torch.randn(2, 3, n, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("causal", [True, False])
def test_attention_by_scale_is_attention_under_a_mask(causal):
    q, k, v = (heads(14, seed) for seed in range(3))
    seen = SCALE[:, None] >= SCALE if causal else SCALE[:, None] == SCALE
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
    torch.testing.assert_close(attend(q, k, v, SIZES, causal=causal), expected)


def test_earlier_scales_may_be_in_the_keys_alone():
    q, k, v = (heads(14, seed) for seed in range(3))
    whole = attend(q, k, v, SIZES, causal=True)
    torch.testing.assert_close(attend(q[..., 5:, :], k, v, SIZES[2:], causal=True), whole[..., 5:, :])
    torch.testing.assert_close(attend(q[..., 1:, :], k, v, SIZES[1:], causal=True), whole[..., 1:, :])


@torch.no_grad()
def test_the_cache_continues_a_sequence_of_scales():
    module = ScaleAttention(24, 3, causal=True).double().eval()
    randomise(module)
    x = torch.randn(2, 14, 24, dtype=torch.float64)
    rotary = axial_rotary([(1, 1), (2, 2), (3, 3)], 8).double()
    whole, (k, v) = module(x, rotary, SIZES)
    parts, cache = [], None
    for xs, a, n in zip(x.split(SIZES, 1), rotary.split(SIZES, 1), SIZES, strict=True):
        part, cache = module(xs, a, (n,), cache)
        parts.append(part)
    torch.testing.assert_close(torch.cat(parts, 1), whole)
    torch.testing.assert_close(cache[0], k), torch.testing.assert_close(cache[1], v)


@torch.no_grad()
def test_cross_attention_sees_the_same_scale_only():
    module = ScaleCrossAttention(24, 10, 3).double()
    randomise(module)
    x, z = torch.randn(2, 14, 24, dtype=torch.float64), torch.randn(2, 14, 10, dtype=torch.float64)
    rotary = axial_rotary([(1, 1), (2, 2), (3, 3)], 8).double()
    whole = module(x, module.keys_values(z, rotary), rotary, SIZES)
    start = 0
    for n in SIZES:
        s = slice(start, start + n)
        alone = module(x[:, s], module.keys_values(z[:, s], rotary[:, s]), rotary[:, s], (n,))
        torch.testing.assert_close(alone, whole[:, s])
        start += n


def test_angles_of_maps_in_one_frame():
    """Rows then columns, theta 10000, interleaved pairs, coordinates arange(n) / n * 16 (specification, section 3)."""
    angles = axial_angles([(1, 1), (2, 2), (4, 4), (8, 8), (16, 16)], 16)
    frequencies = [10000 ** -(i / 4) for i in range(4)]
    at = 1 + 4 + 2 * 4 + 3  # row 2, column 3 of the 4 x 4 map
    expected = [8 * f for f in frequencies] + [12 * f for f in frequencies]
    torch.testing.assert_close(angles[at], torch.tensor(expected).repeat_interleave(2))
    assert (angles[0] == 0).all() and angles.shape == (341, 16)


def test_cells_of_an_oblong_map_are_square():
    angles = axial_angles([(2, 4)], 4).reshape(2, 4, 4)
    assert angles[1, 0, 0] == 4 and angles[0, 1, 2] == 4 and angles[0, 3, 2] == 12


def test_rotation_turns_pairs_and_scores_know_only_differences():
    x = torch.tensor([[[[3.0, 4.0, 0.0, 1.0]]]])
    angles = torch.tensor([[math.pi / 2, math.pi / 2, 0.0, 0.0]])
    turned = rotate(x, torch.stack([angles.cos(), angles.sin()]))
    torch.testing.assert_close(turned, torch.tensor([[[[-4.0, 3.0, 0.0, 1.0]]]]))
    q, k = heads(1), heads(1, 1)
    rotary = axial_rotary([(8, 8)], 8).double()
    score = [
        (rotate(q, rotary[:, a : a + 1]) * rotate(k, rotary[:, b : b + 1])).sum(-1) for a, b in ((9, 19), (27, 37))
    ]
    torch.testing.assert_close(score[0], score[1])  # one row and two columns apart, both


def test_geglu():
    module = Geglu(6)
    assert module.gate.out_features == 16 and Geglu(1024).gate.out_features == 2730
    x = torch.randn(2, 3, 6)
    gate = x @ module.gate.weight.T
    exact = 0.5 * gate * (1 + torch.erf(gate / math.sqrt(2)))
    torch.testing.assert_close(module(x), (exact * (x @ module.value.weight.T)) @ module.out.weight.T)
