import pytest
import torch
from torch.nn import functional as F

from conftest import randomise
from fluvial.nn.attention import Attention, HybridLinearAttention, Recent

B, S, N, D, HEADS = 2, 4, 6, 12, 3
K = D // HEADS


def plain(module, x, condition, history=None):
    """The specification's formulas token by token and head by head, in their own words: no shared code."""
    wq, wk, wv, wg = module.qkvg.weight.chunk(4)

    def norm(a):
        if module.qkv_norm == "width":
            return a / (a.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        a = a.reshape(*a.shape[:-1], HEADS, K)
        return (a / (a.square().mean(-1, keepdim=True) + 1e-6).sqrt()).flatten(-2)

    out = torch.zeros_like(x)
    state = torch.zeros(B, HEADS, K, K, dtype=x.dtype) if history is None else history.clone()
    for b in range(B):
        for i in range(x.shape[1]):
            u = x[b, i]
            q, k, v = norm(u @ wq.T), norm(u @ wk.T) * K**-0.5, norm(u @ wv.T)
            a = F.logsigmoid((u + condition[b, i]) @ module.gate.weight.T) / 16  # tokens, heads
            rows = []
            for h in range(HEADS):
                part = slice(h * K, (h + 1) * K)
                qh, kh, vh, ah = q[:, part], k[:, part], v[:, part], a[:, h]
                whole = {"mean": ah.mean(), "sum": ah.sum()}[module.image_decay]
                o = torch.softmax(qh @ kh.T, dim=-1) @ vh
                for n in range(len(qh)):
                    read = {"raster": ah[: n + 1].sum(), "shared": whole, "none": torch.zeros(())}
                    o[n] = o[n] + read[module.history_decay].exp() * (qh[n] @ state[b, h])
                state[b, h] = whole.exp() * state[b, h] + kh.T @ vh
                rows.append(o / (o.square().mean(-1, keepdim=True) + 1e-6).sqrt())
            out[b, i] = (F.silu(u @ wg.T) * torch.cat(rows, dim=-1)) @ module.out.weight.T
    return out, state


def build(**options):
    module = HybridLinearAttention(D, HEADS, **options).double()
    randomise(module, std=0.5)
    g = torch.Generator().manual_seed(1)
    x, c = (torch.randn(*shape, generator=g, dtype=torch.float64) for shape in ((B, S, N, D), (B, S, D)))
    history = torch.randn(B, HEADS, K, K, generator=g, dtype=torch.float64)
    return module, x, c, history


@pytest.mark.parametrize("qkv_norm", ["width", "head"])
@pytest.mark.parametrize("history_decay", ["raster", "shared", "none"])
@pytest.mark.parametrize("image_decay", ["mean", "sum"])
@pytest.mark.parametrize("with_history", [False, True])
@torch.no_grad()
def test_hybrid_attention_is_its_formula(qkv_norm, history_decay, image_decay, with_history):
    module, x, c, history = build(qkv_norm=qkv_norm, history_decay=history_decay, image_decay=image_decay)
    history = history if with_history else None
    got, got_state = module(x, c, history)
    expected, expected_state = plain(module, x, c, history)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(got_state, expected_state)


@torch.no_grad()
def test_any_split_of_a_sequence_gives_the_same_outputs_and_history():
    """The release's inference kernel forgets the middle images of a call; every split must agree here."""
    module, x, c, _ = build()
    whole, end = module(x, c)
    for cut in (1, 2, 3):
        first, state = module(x[:, :cut], c[:, :cut])
        second, state = module(x[:, cut:], c[:, cut:], state)
        torch.testing.assert_close(torch.cat([first, second], 1), whole)
        torch.testing.assert_close(state, end)


def test_each_projection_starts_as_a_layer_of_its_own():
    weight = HybridLinearAttention(96, 3).qkvg.weight
    bound = (6 / (96 + 96)) ** 0.5  # Xavier of 96 x 96; of 384 x 96 it would be 0.63 of that
    for part in weight.chunk(4):
        assert 0.99 * bound < part.abs().max() <= bound


@torch.no_grad()
def test_softmax_attention_agrees_with_pytorch():
    ours, theirs = Attention(12, 3), torch.nn.MultiheadAttention(12, 3, batch_first=True)
    randomise(ours)
    theirs.in_proj_weight.copy_(ours.qkv.weight), theirs.in_proj_bias.copy_(ours.qkv.bias)
    theirs.out_proj.weight.copy_(ours.out.weight), theirs.out_proj.bias.copy_(ours.out.bias)
    x = torch.randn(2, 5, 12)
    torch.testing.assert_close(ours(x), theirs(x, x, x)[0], atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_a_recent_history_is_that_of_the_last_images():
    """The history of a window is what the last images add, by the formula written out; a wide one is the whole."""
    module, x, c, _ = build()
    whole, _ = module(x, c)
    wide, _ = module(x, c, Recent.empty(B, S, HEADS, K, "cpu"))
    assert torch.allclose(wide, whole)
    for images in (1, 2):
        found, state = module(x, c, Recent.empty(B, images, HEADS, K, "cpu"))
        for i in range(S):
            alone, _ = module(x[:, max(0, i - images) : i + 1], c[:, max(0, i - images) : i + 1])
            assert torch.allclose(found[:, i], alone[:, -1])  # in one layer, what an image adds needs no history
        assert state.updates.shape[1] == images
        halves, state = [], Recent.empty(B, images, HEADS, K, "cpu")
        for part in (slice(0, 3), slice(3, S)):
            out, state = module(x[:, part], c[:, part], state)
            halves.append(out)
        assert torch.allclose(torch.cat(halves, dim=1), found)
