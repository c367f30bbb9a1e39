import math

import pytest
import torch
from torch import nn

from fluvial.training import ema


def moved(model, by):
    with torch.no_grad():
        for p in model.parameters():
            p.add_(by)
    return model.weight.detach().clone()


def test_an_average_is_the_weighted_sum_of_all_weights():
    model = nn.Linear(3, 2)
    averages, history = ema.start(model, ["ema", "ema-0.5"]), [model.weight.detach().clone()]
    for step in range(5):
        history.append(moved(model, step + 1.0))
        for name, average in averages.items():
            ema.update(average, model, ema.decay_of(name, 0.9, step + 1))
    for name, decay in (("ema", 0.9), ("ema-0.5", 0.5)):
        terms = ((1 - decay) * decay ** (5 - i) * history[i] for i in range(1, 6))
        expected = decay**5 * history[0] + sum(terms)
        torch.testing.assert_close(ema.tensors(averages[name], model)["weight"], expected)


def test_with_a_warm_up_the_first_weights_are_soon_forgotten():
    model = nn.Linear(3, 2)
    averages, history = ema.start(model, ["ema", "ema-0.5"]), [model.weight.detach().clone()]
    for step in range(1, 31):
        history.append(moved(model, step % 7 - 3.0))
        for name, average in averages.items():
            ema.update(average, model, ema.decay_of(name, 0.9999, step, warmup=True))
    # with decays a_n = (1 + n) / (10 + n), the product of a_k over k = n + 1 ... 30 telescopes over nine terms
    shares = [math.prod((1 + n + i + 1) / (30 + i + 2) for i in range(9)) for n in range(31)]
    terms = (9 / (10 + n) * shares[n] * history[n] for n in range(1, 31))
    torch.testing.assert_close(averages["ema"][0], shares[0] * history[0] + sum(terms), rtol=1e-4, atol=1e-5)
    decays = [ema.decay_of("ema-0.5", 0.9999, step, warmup=True) for step in (1, 7, 8, 9)]
    assert decays == pytest.approx([2 / 11, 8 / 17, 0.5, 0.5])
    assert ema.decay_of("ema", 0.9999, 10**6, warmup=True) == 0.9999 and ema.decay_of("ema", 0.9999, 1) == 0.9999
    power = f"power-{0.1:.3f}"
    assert ema.decay_of(power, 0.9, 50, warmup=True) == ema.decay_of(power, 0.9, 50)


def test_a_model_of_the_average():
    model = nn.Linear(3, 2)
    average = ema.start(model, ["ema"])["ema"]
    moved(model, 1.0)
    averaged = ema.module(average, model, lambda: nn.Linear(3, 2))
    assert not averaged.training and not averaged.weight.requires_grad and model.weight.requires_grad
    torch.testing.assert_close(averaged.weight, model.weight - 1)
    assert ema.name_of(0.999) == "ema-0.999" and ema.decay_of("ema-0.999", 0.9, 5) == 0.999
    ema.fill(average, list(model.parameters()))
    assert torch.equal(average[0], model.weight) and average[0] is not model.weight


@pytest.mark.gpu
def test_an_average_in_host_memory():
    model = nn.Linear(3, 2).cuda()
    average = ema.start(model, ["ema"], "cpu")["ema"]
    moved(model, 1.0)
    ema.update(average, model, 0.5)
    assert average[0].device.type == "cpu"
    torch.testing.assert_close(average[0], model.weight.detach().cpu() - 0.5)
