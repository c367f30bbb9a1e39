"""Remembered evaluations: the samples are the same to the bit, and no evaluation is made twice."""

from collections import Counter
from dataclasses import replace

import pytest
import torch

from conftest import randomise
from fluvial.flow.guidance import Guidance
from fluvial.methods import arflow, flowar, sit
from fluvial.sampling.generate import generate
from fluvial.sampling.labels import labels_for
from fluvial.sampling.remember import Memory, by_shared_steps, remembered, remembering
from fluvial.sampling.settings import Dopri5, SampleConfig

SHAPE = {"size": (4, 4), "channels": 1, "classes": 3, "patch": 2, "depth": 2, "width": 16, "heads": 2}
SCALES = {**SHAPE, "patch": 1, "scales": (1, 2, 4), "head_depth": 1, "head_width": 16, "head_heads": 2}
METHODS = {"sit": (sit, SHAPE), "arflow": (arflow, SHAPE), "flowar": (flowar, SCALES)}
GUIDED = [
    Guidance(weight=weight, interval=interval)
    for interval in ((0.0, 1.0), (0.4, 1.0), (0.0, 0.6))
    for weight in (1.0, 1.5, 3.0)
]


def model_of(name):
    method, shape = METHODS[name]
    model = method.Model(method.Config(**shape)).eval()
    randomise(model)
    return model, method.sample


def drawn(model, sample, settings, count=5):
    options = {"indices": range(count), "labels": labels_for(range(count), (0, 2)), "seed": 3}
    latents = []
    generate(model, sample, lambda x: latents.append(x) or x, settings, **options)
    return torch.cat(latents)


def walked(model, sample, settings, order, memory):
    """The latents of all settings, walked in this order."""
    found = {}
    for i in order:
        memory.begin()
        found[i] = drawn(remembering(model, memory), sample, settings[i])
    return [found[i] for i in range(len(settings))]


OTHERS = ("euler", "heun", Dopri5(atol=0.1, rtol=0.1), "euler-maruyama")


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("solver", ["ab2", *(pytest.param(each, marks=pytest.mark.slow) for each in OTHERS)])
def test_samples_are_the_same_to_the_bit_and_fewer_evaluations_are_made(name, solver):
    model, sample = model_of(name)
    base = SampleConfig(steps=4, solver=solver, batch=3)
    settings = [replace(base, guidance=GUIDED[i]) for i in (0, 4, 5)]
    memory = Memory()
    found = walked(model, sample, settings, by_shared_steps(settings, scales=3 if name == "flowar" else 0), memory)
    for latents, each in zip(found, settings, strict=True):
        assert torch.equal(latents, drawn(model, sample, each)), each.guidance
    assert len({latents.numpy().tobytes() for latents in found}) == len(settings)  # settings do differ
    asked, made = memory.asked.total(), memory.made.total()
    assert 0 < made < asked


def distinct(settings, *, history):
    """Evaluations of the network, those of a step told apart by the weights of all steps before it."""
    found = set()
    for each in settings:
        weight, (low, high) = each.guidance.weight, each.guidance.interval
        times = each.times()[:-1].tolist()
        course = tuple(weight if low <= t <= high else 1.0 for t in times)
        for step, t in enumerate(times):
            found.add(("conditional", course[:step]))
            if course[step] != 1 or (history and weight != 1 and t <= high):
                found.add(("null", course[:step]))
    return len(found)


@pytest.mark.parametrize("name", ["sit", "arflow"])
def test_every_evaluation_is_made_once_in_the_memory_of_one_trajectory(name):
    model, sample = model_of(name)
    base = SampleConfig(steps=6, batch=5)
    # ARFlow's velocity before the interval, v_null + 1 (v_cond - v_null), is v_cond but for rounding: no weight 1 there
    settings = [replace(base, guidance=each) for each in GUIDED if name == "sit" or each.weight != 1]
    one = Memory()
    walked(model, sample, [replace(base, guidance=GUIDED[1])], [0], one)  # both branches at all steps
    memory = Memory(limit=one.held)
    walked(model, sample, settings, by_shared_steps(settings), memory)
    assert memory.made.total() == distinct(settings, history=name == "arflow") < memory.asked.total() / 1.5
    other = Memory(limit=one.held)
    walked(model, sample, settings, range(len(settings)), other)
    assert other.made.total() > memory.made.total()  # in another order more of them are


@pytest.mark.parametrize("share", [0, 0.3, 1])
def test_the_limit_is_kept_to_and_the_beginning_of_a_walk_stays(share):
    model, sample = model_of("sit")
    settings = [SampleConfig(steps=8, guidance=Guidance(weight=weight, interval=(0.5, 1.0))) for weight in (2.0, 3.0)]
    whole = Memory()
    walked(model, sample, settings[:1], [0], whole)
    memory = Memory(limit=int(share * whole.held))
    found = walked(model, sample, settings, [0, 1], memory)
    assert memory.held <= memory.limit
    assert torch.equal(found[1], drawn(model, sample, settings[1]))
    calls = memory.made.total()
    saved = 2 * whole.made.total() - calls
    assert saved == {0: 0, 0.3: 3, 1: 6}[share]  # 4 steps before the interval, the two branches where it opens


def counted():
    """A function that counts its calls."""
    calls = Counter()

    def function(x, *rest):
        calls["made"] += 1
        return x * 2

    return function, calls


def test_inputs_are_told_apart_by_content_type_shape_and_name():
    memory, (function, calls) = Memory(), counted()
    call = remembered(function, memory, "f")
    x = torch.arange(4.0)
    assert call(x) is call(x.clone()) and calls["made"] == 1
    for other in (x.view(2, 2), x.double(), x + 1, x.view(torch.int32), -x):
        before = calls["made"]
        assert torch.equal(call(other), other * 2) and calls["made"] == before + 1
    for rest in (1, 1.0, True, None, (None, 1), range(2), "a"):
        before = calls["made"]
        assert call(x, rest) is call(x, rest) and calls["made"] == before + 1, rest
    before = calls["made"]
    remembered(function, memory, "g")(x)
    assert calls["made"] == before + 1


def test_a_tensor_that_was_written_to_is_read_again():
    memory, (function, _) = Memory(), counted()
    call = remembered(function, memory, "f")
    x = torch.arange(4.0)
    call(x)
    x[0] = 9.0
    assert torch.equal(call(x), x * 2)
    made = call(torch.ones(2))
    assert torch.equal(call(made), 2 * made)
    made = made.clone()
    made += 1
    assert torch.equal(call(made), 2 * made)


def test_what_cannot_be_compared_is_not_remembered():
    memory, (function, calls) = Memory(), counted()
    call, x = remembered(function, memory, "f"), torch.ones(2)
    call(x, object()), call(x, object())
    assert calls["made"] == memory.made["f"] == 2 and memory.held == 0


def test_the_model_itself_stays_as_it_is_and_shares_its_weights():
    for name in METHODS:
        model, sample = model_of(name)
        before = drawn(model, sample, SampleConfig(steps=2))
        memory = Memory()
        other = remembering(model, memory)
        assert type(other) is type(model)
        assert all(p is q for p, q in zip(model.parameters(), other.parameters(), strict=True))
        drawn(other, sample, SampleConfig(steps=2))
        asked = memory.asked.total()
        assert torch.equal(drawn(model, sample, SampleConfig(steps=2)), before)
        assert memory.asked.total() == asked > 0
