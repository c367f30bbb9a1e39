import os
import signal
import time

import pytest
import torch
from torch import nn

from fluvial.training.health import check_finite_weights, first_not_finite, stop_requests


class Root(nn.Module):
    """sqrt(0 x) is finite, and its gradient is not."""

    def forward(self, x):
        return (0 * x).sqrt()


class Log(nn.Module):
    def forward(self, x):
        return (x - x).log()


def model(middle):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), middle, nn.Linear(4, 1))


def test_the_module_where_it_began_is_named():
    x = torch.randn(8, 4)
    for middle, name in ((Log(), "the output of 1"), (Root(), "the gradient of 1")):
        net = model(middle)
        assert first_not_finite(net, lambda net=net: net(x).sum()) == name
        assert all(p.grad is None for p in net.parameters())
    net = model(nn.GELU())
    assert first_not_finite(net, lambda: net(x).sum() * float("inf")) == "the loss itself"
    assert first_not_finite(net, lambda: net(x).sum()) == "nothing that was found again"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(value):
    weights = model(nn.GELU()).state_dict()
    check_finite_weights(weights, "the model")
    weights["2.bias"][0] = value
    with pytest.raises(RuntimeError, match=r"^the weights at step 3 are not finite: 2.bias\. Go back"):
        check_finite_weights(weights, "the weights at step 3")
    weights["0.weight"][1, 2] = value
    with pytest.raises(RuntimeError, match="not finite: 0.weight, and 1 more of 4"):
        check_finite_weights(weights, "the model")


def test_a_second_interrupt_ends_at_once():
    before = signal.getsignal(signal.SIGINT)
    with stop_requests() as names:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.05)
        assert names == ["SIGINT"]
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
    assert signal.getsignal(signal.SIGINT) is before
