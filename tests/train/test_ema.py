import torch
from torch import nn

from fluvial.train import ema


def test_the_average_is_the_weighted_sum_of_all_weights():
    model = nn.Linear(3, 2)
    average, history = ema.start(model), [model.weight.detach().clone()]
    for step in range(5):
        with torch.no_grad():
            model.weight.add_(step + 1.0)
        history.append(model.weight.detach().clone())
        ema.update(average, model, 0.9)
    expected = 0.9**5 * history[0] + sum(0.1 * 0.9 ** (5 - i) * history[i] for i in range(1, 6))
    torch.testing.assert_close(average.weight, expected)
    assert not average.training and not average.weight.requires_grad and model.weight.requires_grad
