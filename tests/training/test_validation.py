from dataclasses import replace

import pytest
import torch

from conftest import randomise
from fluvial import recipes
from fluvial.run.inputs import open_inputs, validation_of
from fluvial.run.train import build
from fluvial.training.validation import by_time


def test_errors_fall_into_tenths_of_time():
    error = torch.tensor([[1.0, 2.0], [4.0, 8.0]])
    t = torch.tensor([[0.05, 0.09], [0.55, 1.0]])
    assert by_time(error, t) == [1.5, None, None, None, None, 4.0, None, None, None, 8.0]


@pytest.mark.parametrize("method", ["sit", "arflow", "flowar"])
def test_the_parts_add_up_to_the_loss_and_are_the_same_every_time(method):
    run = recipes.smoke(recipes.get(f"digits-{method}"))
    inputs = open_inputs(run)
    losses = validation_of(inputs, torch.device("cpu"))
    model = build(inputs.run).eval()
    randomise(model, std=0.05)
    found = losses(model)
    assert found == losses(model)
    if method == "flowar":
        sizes = run.method.sizes
        by_scale = sum(n / sizes[-1] * error for n, error in zip(sizes, found["held_out_by_scale"], strict=True))
        assert by_scale == pytest.approx(found["held_out_loss"], rel=1e-5)
    else:
        assert "held_out_by_scale" not in found
        times = [value for value in found["held_out_by_time"] if value is not None]
        assert min(times) <= found["held_out_loss"] <= max(times)
    assert len(found["held_out_by_time"]) == 10


def test_without_held_out_examples_there_is_no_loss():
    inputs = open_inputs(recipes.smoke(recipes.get("digits-sit")))
    assert validation_of(replace(inputs, held_out=None), torch.device("cpu")) is None
