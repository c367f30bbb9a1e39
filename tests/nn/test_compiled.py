"""What a graph compiled for a CPU computes in another way, against its plain twin."""

import subprocess
import sys

import pytest
import torch
from torch.nn import functional as F

from fluvial.nn.functional import dropout, hashed_dropout, written_out


def test_attention_written_out_is_the_kernels_own():
    q, k, v = (torch.randn(2, 3, n, 8, dtype=torch.float64, requires_grad=True) for n in (5, 7, 7))
    plain, fast = F.scaled_dot_product_attention(q, k, v), written_out(q, k, v)
    torch.testing.assert_close(fast, plain)
    by = torch.randn_like(plain)
    torch.testing.assert_close(torch.autograd.grad(fast, (q, k, v), by), torch.autograd.grad(plain, (q, k, v), by))


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_hashed_draws_are_independent_with_the_right_chance(p):
    """Of an entry, of its neighbours and of the same entry under another seed, within five standard deviations."""
    seeds = [torch.tensor([s], dtype=torch.int32) for s in (0, 1, -(2**31), 12345)]
    n = 2**20
    masks = [hashed_dropout(torch.ones(1024, 1024), p, seed).flatten() == 0 for seed in seeds]
    for mask in masks:
        assert abs(mask.double().mean() - p) < 5 * (p * (1 - p) / n) ** 0.5
        for lag in (1, 2, 64, 1024):
            both = (mask & mask.roll(lag)).double().mean()
            assert abs(both - p**2) < 5 * (p**2 * (1 - p**2) / n) ** 0.5
    for other in masks[1:]:
        assert abs((masks[0] & other).double().mean() - p**2) < 5 * (p**2 * (1 - p**2) / n) ** 0.5


def test_hashed_dropout_scales_what_it_keeps_and_its_gradient():
    x = torch.randn(64, 32, dtype=torch.float64, requires_grad=True)
    out = hashed_dropout(x, 0.25, torch.tensor([7], dtype=torch.int32))
    kept = out != 0
    torch.testing.assert_close(out, torch.where(kept, x / 0.75, 0.0))
    torch.testing.assert_close(torch.autograd.grad(out.sum(), x)[0], kept.double() / 0.75)
    assert hashed_dropout(x.bfloat16(), 0.25, torch.tensor([7], dtype=torch.int32)).dtype == torch.bfloat16


def test_plain_dropout_is_that_of_torch():
    x = torch.randn(64, 32)
    torch.manual_seed(3)
    expected = F.dropout(x, 0.3)
    torch.manual_seed(3)
    assert torch.equal(dropout(x, 0.3), expected) and torch.equal(dropout(x, 0.0), x)


PROGRAM = """
import torch
from fluvial.nn.attention import HybridLinearAttention
from fluvial.nn.functional import dropout, hashed_dropout
from fluvial.nn.rope import axial_rotary
from fluvial.nn.scales import ScaleAttention

torch.manual_seed(0)
x = torch.randn(2, 14, 24)
seed = torch.tensor([-5], dtype=torch.int32)
assert torch.equal(torch.compile(hashed_dropout)(x, 0.3, seed), hashed_dropout(x, 0.3, seed))

drawn = torch.compile(dropout)
torch.manual_seed(1)
one, two = drawn(x, 0.3), drawn(x, 0.3)
torch.manual_seed(1)
assert torch.equal(drawn(x, 0.3), one) and not torch.equal(one, two), "draws follow the generator"

rotary = axial_rotary([(1, 1), (2, 2), (3, 3)], 8)
scales = ScaleAttention(24, 3, causal=True)
hybrid = HybridLinearAttention(24, 3)
condition, history = torch.randn(2, 14, 24)[:, :3], torch.randn(2, 3, 8, 8)
images = torch.randn(2, 3, 5, 24)
for module, arguments in ((scales, (x, rotary, (1, 4, 9))), (hybrid, (images, condition, history))):
    results = []
    for f in (module, torch.compile(module)):
        out, state = f(*arguments)
        total = out.square().sum() + sum(s.square().sum() for s in (state if isinstance(state, tuple) else (state,)))
        results.append((out, state, torch.autograd.grad(total, tuple(module.parameters()))))
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-4)
"""


@pytest.mark.slow
def test_compiled_attention_and_dropout_are_the_plain_ones():
    """Outputs, gradients and states; in a process of its own: types that are checked cannot be traced."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=290)
    assert done.returncode == 0, done.stderr


BLOCKS = """
import dataclasses
import functools

import torch
from fluvial.sampling.settings import SampleConfig
from fluvial.methods import arflow, flowar, method_of
from fluvial.nn import functional
from fluvial.training.config import TrainConfig
from fluvial.training.health import Health
from fluvial.training.optim import OptimConfig
from fluvial.training.step import MicroBatch, begin, step
from fluvial.sampling.precision import ready

compiled = []


def compile_without_kernels(module, compile=torch.nn.Module.compile):  # making them takes minutes
    compile(module, backend="aot_eager_decomp_partition")
    compiled.append(module)


torch.nn.Module.compile = compile_without_kernels
torch.manual_seed(0)
shape = {"size": (4, 4), "channels": 2, "classes": 3, "depth": 2, "width": 32, "heads": 2}
far = arflow.Config(**shape, patch=1, images_per_sequence=3)
near = flowar.Config(**shape, scales=(1, 2, 4), head_width=32, head_heads=2, dropout=0.0)


def model_of(config):
    torch.manual_seed(1)
    model = method_of(config).Model(config)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.1)
    return model


def begun(config, **settings):
    method = method_of(config)
    return begin(
        model_of(config),
        method=method,
        config=TrainConfig(batch=4, **settings),
        optim=OptimConfig(),
        seed=0,
    )


for config, sequence in ((far, (3,)), (near, ())):
    batch = torch.randn(4, *sequence, 2, 4, 4), torch.tensor([0, 1, 2, 0])
    plain, fast = (
        step(learner, lambda number: batch, Health(torch.device("cpu")), 0, blocks_too=True)
        for learner in (begun(config), begun(config, compile=True, activation_checkpointing=1))
    )
    torch.testing.assert_close(fast.loss, plain.loss), torch.testing.assert_close(fast.grad_norm, plain.grad_norm)
    for name, numbers in plain.blocks.items():
        assert abs(fast.blocks[name]["grad_norm"] / numbers["grad_norm"] - 1) < 1e-3, name
    model, noise = model_of(config).requires_grad_(False).eval(), torch.randn(2, *config.noise_shape)
    drawn = [
        method_of(config).sample(m, batch[1][:2], noise=noise, times=[0.0, 0.3, 0.6, 1.0])
        for m in (model, ready(model, SampleConfig(compile=True)))
    ]
    torch.testing.assert_close(drawn[1], drawn[0], rtol=1e-3, atol=1e-4)

assert len(compiled) == 12, "in training and sampling the blocks: 2 of ARFlow, 2 and 2 of the head of FlowAR"

# dropout whose draws are made again in the backward pass: the gradient is that of the loss with these draws
learner = begun(dataclasses.replace(near, dropout=0.5), compile=True, activation_checkpointing=1)
draws = flowar.draws(near, (4, 2, 4, 4), generator=torch.Generator().manual_seed(0), device="cpu")
batch = MicroBatch(torch.randn(4, 2, 4, 4), torch.tensor([0, 1, 2, 0]), draws)


def loss():
    torch.manual_seed(7)
    return learner.loss(batch)


loss().backward()
direction = [p.grad.clone() for p in learner.model.parameters()]
length = sum(d.square().sum() for d in direction).sqrt()
ends = []
for side in (1, -1):
    for p, d in zip(learner.model.parameters(), direction, strict=True):
        p.data.add_(d / length, alpha=side * 0.01)
    ends.append(loss().item())
    for p, d in zip(learner.model.parameters(), direction, strict=True):
        p.data.sub_(d / length, alpha=side * 0.01)
slope = (ends[0] - ends[1]) / 0.02
assert abs(slope / length - 1) < 0.02, (slope, length)

# a compiled graph takes the CPU's own way for few keys and for dropout, and nothing else does
functional.written_out = lambda q, k, v, drop=0.0: torch.full_like(q, 7.0)
functional.hashed_dropout = lambda x, p, seed: torch.full_like(x, 7.0)
attend, drop = (torch.compile(f, backend="eager") for f in (functional.softmax_attention, functional.dropout))
few, many = torch.randn(1, 1, 512, 8), torch.randn(1, 1, 513, 8)
assert (attend(few, few, few) == 7).all() and not (attend(many, many, many) == 7).any()
assert not (functional.softmax_attention(few, few, few) == 7).any()
assert (drop(few, 0.5) == 7).all() and not (functional.dropout(few, 0.5) == 7).any()
"""


@pytest.mark.slow
def test_compiled_blocks_train_and_sample_as_plain_ones():
    done = subprocess.run([sys.executable, "-c", BLOCKS], capture_output=True, text=True, timeout=290)
    assert done.returncode == 0, done.stderr
