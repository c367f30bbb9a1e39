"""What neighbouring work found, as settings: contrastive targets, modern blocks."""

import pytest
import torch
from torch.nn import functional as F

from conftest import loss, randomise
from fluvial.flow.guidance import Guidance
from fluvial.flow.interpolant import contrasted
from fluvial.flow.timesteps import grid
from fluvial.methods import arflow, flowar, sit
from fluvial.nn.attention import Attention, HybridLinearAttention
from fluvial.nn.backbone import SwiGlu
from fluvial.nn.functional import rms_norm, split_heads
from fluvial.nn.layers import Mlp
from fluvial.nn.rope import axial_rotary, rotate
from fluvial.utils.randomness import generator

SHAPE = {"size": (4, 4), "channels": 2, "classes": 3, "patch": 2}
SETTINGS = {
    sit: {**SHAPE, "depth": 2, "width": 16, "heads": 2},
    arflow: {**SHAPE, "depth": 2, "width": 16, "heads": 2, "images_per_sequence": 3},
    flowar: {**SHAPE, "scales": (1, 2), "depth": 2, "width": 16, "heads": 2, "head_width": 16, "head_heads": 2},
}
METHODS = pytest.mark.parametrize("method", SETTINGS, ids=lambda method: method.__name__.split(".")[-1])


def build(method, **change):
    model = method.Model(method.Config(**{**SETTINGS[method], "label_drop": 0.0, **change}))
    randomise(model)
    return model


def batch(method, images=5):
    g = torch.Generator().manual_seed(2)
    lead = (images, 3) if method is arflow else (images,)
    return torch.randn(*lead, 2, 4, 4, generator=g), torch.arange(images) % 3


@METHODS
def test_the_contrastive_objective_is_that_of_its_paper_up_to_a_constant(method):
    """Its gradient is that of |v - u|^2 - weight |v - u'|^2, u' from the next example of the batch."""
    x, labels = batch(method)
    drawn = method.draws(build(method).config, x.shape, generator=generator(1), device="cpu")

    def gradient(losses):
        model = build(method, dropout=0.0, contrast=0.2) if method is flowar else build(method, contrast=0.2)
        return torch.autograd.grad(losses(model.train()), list(model.parameters()), materialize_grads=True)

    def ours(model):
        return 0.8 * method.errors(model, x, labels, drawn).mean()

    def papers(model):
        """With another model's errors on targets that are those of the next example."""
        plain, seen = method.errors(model.eval(), x, labels, drawn), []
        handle = model.register_forward_hook(lambda *call: seen.append(call[-1]))
        method.errors(model, x, labels, drawn)
        handle.remove()
        v = seen[0][0] if isinstance(seen[0], tuple) else seen[0]
        ends = flowar.packed(flowar.pyramid(x, model.config), 2) if method is flowar else x
        other = (ends - drawn.noise).roll(1, 0)
        if method is flowar:
            repelled = flowar.mean_squares(model.config, (v - other).unsqueeze(1))
        else:
            repelled = (v - other).square().flatten(-3).mean(-1)
        return plain.mean() - 0.2 * repelled.mean()

    for mine, theirs in zip(gradient(ours), gradient(papers), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-4)


@METHODS
def test_validation_and_a_weight_of_zero_leave_the_error_as_it_is(method):
    x, labels = batch(method)
    drawn = method.draws(build(method).config, x.shape, generator=generator(1), device="cpu")
    plain = method.errors(build(method).eval(), x, labels, drawn)
    assert torch.equal(method.errors(build(method, contrast=0.2).eval(), x, labels, drawn), plain)
    assert contrasted(x, 0.0) is x


@torch.no_grad()
def test_swiglu_is_its_formula_with_the_weights_of_an_mlp():
    module = SwiGlu(48).double()
    randomise(module)
    x = torch.randn(2, 5, 48, dtype=torch.float64)
    gate = x @ module.gate.weight.T + module.gate.bias
    value = x @ module.value.weight.T + module.value.bias
    expected = (gate * torch.sigmoid(gate) * value) @ module.out.weight.T + module.out.bias
    torch.testing.assert_close(module(x), expected)
    weights = [sum(p.numel() for p in one.parameters() if p.ndim == 2) for one in (module, Mlp(48))]
    assert weights[0] == weights[1]


@torch.no_grad()
def test_modern_attention_knows_positions_by_their_difference_and_bounds_its_scores():
    module = Attention(16, 2, (3, 3)).double()
    randomise(module, std=0.5)
    for norm in module.norms:
        norm.weight.fill_(1.0)
    x = torch.randn(1, 9, 16, dtype=torch.float64)
    module.qkv.bias.zero_()  # then the norms make the weights of attention independent of the length of x
    torch.testing.assert_close(
        module(1e3 * x) - module.out.bias, 1e3 * (module(x) - module.out.bias), atol=0, rtol=1e-4
    )
    same = x[:, :1].expand(-1, 9, -1)  # equal tokens: what they attend to is their value, wherever they are
    got = module(same)
    torch.testing.assert_close(got, got[:, :1].expand_as(got))
    turned = module(x.flip(1)).flip(1)
    assert not torch.allclose(turned, module(x)), "without positions the order of the tokens would not matter"


@torch.no_grad()
def test_modern_hybrid_attention_rotates_queries_and_keys_and_keeps_them_so():
    module = HybridLinearAttention(16, 2, qkv_norm="head", grid=(3, 3)).double()
    randomise(module, std=0.5)
    x, nothing = torch.randn(1, 1, 9, 16, dtype=torch.float64), torch.zeros(1, 1, 16, dtype=torch.float64)
    out, history = module(x, nothing)
    *weights, gate = module.qkvg.weight.chunk(4)
    q, k, v = (rms_norm(split_heads(x @ weight.T, 2))[:, 0] for weight in weights)
    q, k = (rotate(a, axial_rotary([(3, 3)], 8).double()) for a in (q, k))
    torch.testing.assert_close(history, k.transpose(-2, -1) @ v * 8**-0.5)
    attended = rms_norm(torch.softmax(q @ k.transpose(-2, -1) * 8**-0.5, dim=-1) @ v)
    expected = (F.silu(x @ gate.T) * attended.transpose(1, 2).reshape(1, 1, 9, 16)) @ module.out.weight.T
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize("method", [sit, arflow], ids=["sit", "arflow"])
def test_modern_blocks_train_and_sample(method):
    model = build(method, backbone="modern")
    x, labels = batch(method)
    loss(model, x, labels).backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.blocks.parameters())
    noise = torch.randn(5, 2, 4, 4)
    out = method.sample(model.eval(), labels, noise=noise, times=grid(3), guidance=Guidance(weight=2.0))
    assert out.shape == noise.shape and torch.isfinite(out).all()
    alone = method.sample(model, labels[:1], noise=noise[:1], times=grid(3), guidance=Guidance(weight=2.0))
    torch.testing.assert_close(alone, out[:1], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_modern_sequence_at_once_equals_image_by_image():
    model = build(arflow, backbone="modern").eval()
    (x, labels), t = batch(arflow), torch.rand(5, 3)
    whole, _ = model(x, t, labels)
    parts, state = [], None
    for i in range(3):
        v, state = model(x[:, i : i + 1], t[:, i : i + 1], labels, state)
        parts.append(v)
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("method", "wrong", "told"),
    [
        (sit, {"contrast": 1.0}, "below 1"),
        (flowar, {"contrast": -0.1}, "at least 0"),
        (sit, {"backbone": "modern", "width": 20, "heads": 10}, "divisible by 4"),
        (arflow, {"backbone": "new"}, "backbone"),
    ],
)
def test_impossible_settings_are_refused(method, wrong, told):
    with pytest.raises((ValueError, TypeError), match=told):
        method.Config(**{**SETTINGS[method], **wrong})
