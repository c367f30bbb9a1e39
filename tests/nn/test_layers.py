import math

import pytest
import torch
from torch.nn import functional as F

from fluvial.nn import layers
from fluvial.nn.layers import linear


@pytest.mark.parametrize("lead", [(), (2,), (2, 3)])
@pytest.mark.parametrize(("size", "patch"), [((8, 8), 2), ((4, 12), 4), ((6, 3), 3), ((5, 7), 1)])
def test_unpatchify_inverts_patchify(lead, size, patch):
    x = torch.randn(*lead, 3, *size)
    tokens = layers.patchify(x, patch)
    assert tokens.shape == (*lead, size[0] // patch * (size[1] // patch), 3 * patch**2)
    assert torch.equal(layers.unpatchify(tokens, patch, (size[0] // patch, size[1] // patch)), x)


def test_a_patch_embedding_is_a_strided_convolution():
    embed = layers.PatchEmbedding((6, 4), 2, 3, 8)
    x = torch.randn(5, 3, 6, 4)
    kernel = embed.project.weight.reshape(8, 2, 2, 3).permute(0, 3, 1, 2)
    expected = F.conv2d(x, kernel, embed.project.bias, stride=2).flatten(2).transpose(1, 2) + embed.positions
    torch.testing.assert_close(embed(x), expected)


def test_positions_are_the_released_ones(sit_golden):
    torch.testing.assert_close(layers.sincos_positions(64, (4, 4)), sit_golden.state_dict["pos_embed"][0])


def test_positions_of_a_grid_that_is_not_square():
    """The token at row r, column c has the sines and cosines of c first, then those of r."""
    p = layers.sincos_positions(8, (2, 3)).reshape(2, 3, 8)
    w = torch.tensor([1.0, 0.01])  # 10000^-0 and 10000^-(1/2)
    expected = torch.cat([(2 * w).sin(), (2 * w).cos(), (1 * w).sin(), (1 * w).cos()])
    torch.testing.assert_close(p[1, 2], expected)


def test_time_embedding_is_cosines_then_sines_of_t_itself():
    embed = layers.TimeEmbedding(16)
    t = torch.tensor([[0.25, 0.75]])
    frequencies = torch.tensor([math.exp(-math.log(10000) * i / 128) for i in range(128)])
    waves = torch.cat([torch.cos(0.75 * frequencies), torch.sin(0.75 * frequencies)])
    torch.testing.assert_close(embed(t)[0, 1], embed.out(F.silu(embed.hidden(waves))))


def test_no_label_is_the_last_row():
    embed = layers.LabelEmbedding(10, 4)
    assert torch.equal(embed(None, 3), embed.table.weight[10].expand(3, 4))
    assert torch.equal(embed(torch.tensor([2, 10]), 2), embed.table.weight[[2, 10]])
    assert layers.LabelEmbedding(0, 4)(None, 2).shape == (2, 4)


def test_a_latent_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"8 x 8, got \(6, 8\)"):
        layers.PatchEmbedding((8, 8), 2, 3, 8)(torch.zeros(1, 3, 6, 8))


def test_weights_of_one_class_are_embedded_as_its_id_bit_for_bit():
    embed, ids = layers.LabelEmbedding(10, 37), torch.arange(11)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(embed(F.one_hot(ids, 11).float(), 11), embed(ids, 11))


def test_weights_of_classes_mix_their_embeddings():
    embed, weights = layers.LabelEmbedding(4, 6), torch.tensor([[0.25, 0, 0.75, 0, 0], [0, 0, 0, 0.5, 0.5]])
    table = embed.table.weight
    expected = torch.stack([0.25 * table[0] + 0.75 * table[2], (table[3] + table[4]) / 2])
    torch.testing.assert_close(embed(weights, 2), expected)
    with pytest.raises(ValueError, match="weights of classes must be of 5, the null id last, got 4"):
        embed(weights[:, :4], 2)


@pytest.mark.parametrize("shape", [(64, 4), (384, 128), (48, 160)])
def test_rows_do_not_depend_on_their_number_or_on_where_they_lie(shape):
    weight, bias, apart = torch.randn(shape), torch.randn(shape[0]), torch.randn(300, 5, shape[1])
    with torch.no_grad():
        whole = linear(apart[:, :1].contiguous(), weight, bias)
        for count in (1, 3, 5, 16, 64, 250, 256, 300):
            assert torch.equal(linear(apart[:count, :1], weight, bias), whole[:count]), count
            assert torch.equal(linear(apart[:count, :1].contiguous(), weight, bias), whole[:count]), count
