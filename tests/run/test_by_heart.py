import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from fluvial import recipes
from fluvial.data.images import digits
from fluvial.run import by_heart
from fluvial.run.by_heart import nearness, rises_since, watched
from fluvial.run.folder import RunFolder
from fluvial.run.inputs import open_inputs
from fluvial.training.step import StepMetrics


@pytest.mark.parametrize(
    ("losses", "step", "since"),
    [
        ({100: 2.0, 200: 1.0, 300: 1.03, 400: 1.03, 500: 1.03}, 500, 200),
        ({100: 2.0, 200: 1.0, 300: 1.03, 400: 1.01, 500: 1.03}, 500, None),  # one of the last three is not 2 % above
        ({100: 2.0, 200: 1.0, 400: 1.03, 500: 1.03}, 500, None),  # two are too few
        ({100: 2.0, 850: 1.0, 900: 1.1, 950: 1.1, 1000: 1.2}, 1000, None),  # not a quarter of the steps ago
        ({100: 2.0, 200: 1.5, 300: 1.4, 400: 1.3}, 400, None),
        ({}, 10, None),
    ],
)
def test_a_rise_is_long_and_clear(losses, step, since):
    assert rises_since(losses, step) == since


@pytest.fixture(scope="module")
def inputs():
    return open_inputs(recipes.get("digits-sit"))


def test_copies_of_training_images_are_near_and_validation_images_as_usual(inputs):
    train, test = digits("train").pixels, digits("test").pixels
    assert nearness(inputs, lambda count: train[:count]) == 1.0
    assert nearness(inputs, lambda count: test[:: len(test) // count]) == pytest.approx(0.5, abs=0.1)
    assert nearness(inputs, lambda count: torch.randint(0, 256, (count, 1, 8, 8), dtype=torch.uint8)) == 0.0


def test_it_is_told_once_and_at_the_end(inputs, tmp_path, monkeypatch):
    """Validations at every 100 of 1,000 steps, the lowest at 300; the run is stopped at 800 and goes on."""
    monkeypatch.setattr(by_heart, "nearness", lambda inputs, sample: 0.93)
    inputs = replace(inputs, run=replace(inputs.run, train=replace(inputs.run.train, steps=1000)))
    metrics = StepMetrics(*[torch.zeros(())] * 3, 0.0, [], {})
    said, steps, calls = [], [], []

    def go(first, last):
        measure, count = watched(
            lambda model: {"held_out_loss": 1.0 + abs(step - 300) / 1000},
            lambda number, metrics: calls.append(number),
            RunFolder(tmp_path),
            inputs,
            lambda model, count: torch.zeros(count, 1, 8, 8),
            said.append,
        )
        for step in range(first, last + 1, 100):
            count(step, metrics)
            row = {"step": step, **measure(nn.Identity())}
            steps.append(step) if "rises_since" in row else None
            with open(tmp_path / "log.jsonl", "a") as file:
                file.write(json.dumps(row) + "\n")

    go(100, 800)
    go(900, 1000)
    assert steps == [600, 1000] and calls == list(range(100, 1001, 100))
    assert len(said) == 2 and said[0].startswith(
        "the validation loss rises since step 300 (1 -> 1.3): the model begins"
    )
    assert "nearer to training images than a validation image in 93% of cases (50% is usual). Stop here" in said[0]


def test_nothing_is_told_before_an_image_has_been_seen_twice_or_of_samples_that_are_no_copies(
    inputs, tmp_path, monkeypatch
):
    metrics = StepMetrics(*[torch.zeros(())] * 3, 0.0, [], {})
    losses = {1: 1.0, 2: 0.5, 3: 1.0, 4: 1.0, 5: 1.0, 6: 1.0, 7: 1.0, 8: 1.0, 9: 1.0}
    images, batch = len(inputs.train[0]), inputs.run.images_per_step
    first = -(-images // batch)  # the step at which the first epoch ends
    assert 5 < first < len(losses), first
    said, at = [], 0
    monkeypatch.setattr(by_heart, "nearness", lambda inputs, sample: 0.07)
    longer = replace(inputs, run=replace(inputs.run, train=replace(inputs.run.train, steps=1000)))
    validate = lambda model: {"held_out_loss": losses[at]}  # noqa: E731
    measure, count = watched(validate, None, RunFolder(tmp_path), longer, lambda model, n: None, said.append)
    for at in losses:
        count(at, metrics)
        (tmp_path / "log.jsonl").open("a").write(json.dumps({"step": at, **measure(nn.Identity())}) + "\n")
        assert bool(said) == (at >= first), at
    assert len(said) == 1 and "by heart" not in said[0] and "in 7% of cases (50% is usual)" in said[0]
