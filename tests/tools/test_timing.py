"""The speed of training, from calls that take a made-up time."""

import pytest
import torch

from fluvial import recipes
from fluvial.tools import timing


def test_slow_steps_count_in_the_seconds_of_a_step(monkeypatch):
    taken = iter([0.5, 0.5, 1.5, 0.5, 9.0])
    monkeypatch.setattr(timing, "MEASURED", 3.0)
    monkeypatch.setattr(timing, "training_call", lambda run, device: (dict, 1))
    monkeypatch.setattr(timing, "seconds_of", lambda call, device: next(taken))
    assert timing.seconds_a_step(recipes.get("digits-sit"), torch.device("cpu")) == pytest.approx(0.75)
