import pytest
import torch
from torch import nn

from fluvial.training.optim import OptimConfig, adamw, clip_gradients, learning_rate


def test_only_matrices_decay():
    model = nn.Sequential(nn.Linear(3, 4), nn.Embedding(5, 2), nn.Conv2d(1, 2, 3))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = adamw(model, OptimConfig(lr=0.1, weight_decay=0.5))
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), before[name] * (0.95 if p.ndim > 1 else 1.0))


def test_the_rate_warms_up_and_follows_half_a_cosine():
    config = OptimConfig(lr=2.0, warmup=10, schedule="cosine", final_lr=0.5)
    assert [learning_rate(config, s, 110) for s in (0, 4, 9)] == pytest.approx([0.2, 1.0, 2.0])
    assert [learning_rate(config, s, 110) for s in (10, 60, 110)] == pytest.approx([2.0, 1.25, 0.5])
    constant = OptimConfig(lr=2.0, warmup=2)
    assert [learning_rate(constant, s, 110) for s in (0, 1, 50, 109)] == pytest.approx([1.0, 2.0, 2.0, 2.0])


def test_wsd_stays_at_the_peak_and_falls_by_a_root():
    config = OptimConfig(lr=2.0, warmup=10, schedule="wsd", decay=0.25, final_lr=0.5)
    assert [learning_rate(config, s, 400) for s in (4, 9, 10, 299, 300)] == pytest.approx([1.0, 2.0, 2.0, 2.0, 2.0])
    # progress 1/100, 1/4 and all of the last 100 steps: lr - (lr - final_lr) sqrt(progress)
    assert [learning_rate(config, s, 400) for s in (301, 325, 400)] == pytest.approx([1.85, 1.25, 0.5])
    early = OptimConfig(lr=2.0, warmup=300, schedule="wsd", decay=1.0)  # never before the end of the warm-up
    assert [learning_rate(early, s, 400) for s in (149, 299, 300, 325)] == pytest.approx([1.0, 2.0, 2.0, 1.0])
    rates = [learning_rate(config, s, 400) for s in range(400)]
    assert all(rate == 2.0 for rate in rates[9:301]) and rates[300:] == sorted(rates[300:], reverse=True)


def gradients(*values):
    parameters = [nn.Parameter(torch.zeros(len(v))) for v in values]
    for p, v in zip(parameters, values, strict=True):
        p.grad = torch.tensor(v)
    return parameters


def test_clipping():
    for clip, expected in (
        ("none", [3.0, 4.0, -12.0]),
        ("value", [3.0, 4.0, -5.0]),
        ("norm", [15 / 13, 20 / 13, -60 / 13]),
    ):
        parameters = gradients([3.0, 4.0], [-12.0])
        norm = clip_gradients(parameters, OptimConfig(clip=clip, clip_at=5.0))
        assert float(norm) == pytest.approx(13.0)  # before clipping
        torch.testing.assert_close(torch.cat([p.grad for p in parameters]), torch.tensor(expected), rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    "wrong", [{"lr": 0.0}, {"clip_at": -1.0}, {"betas": (0.9, 1.0)}, {"warmup": -1}, {"decay": 0.0}, {"decay": 1.5}]
)
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ValueError, match="got"):
        OptimConfig(**wrong)
