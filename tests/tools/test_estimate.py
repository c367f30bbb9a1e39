import importlib.util
import json
import os
from dataclasses import replace
from pathlib import Path

import jaxtyping
import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from conftest import randomise
from fluvial import recipes
from fluvial.cli import main
from fluvial.config import Run, from_json
from fluvial.methods import arflow, flowar, sit
from fluvial.run.folder import RunFolder, record_of
from fluvial.run.train import build
from fluvial.tools import estimate
from fluvial.training import checkpoint
from fluvial.training.config import TrainConfig
from fluvial.training.living import Living

SHAPE = {"size": (8, 8), "channels": 2, "classes": 10}
DIT = {**SHAPE, "patch": 2, "depth": 2, "width": 64, "heads": 2}
METHODS = {
    "sit": sit.Config(**DIT),
    "arflow": arflow.Config(**DIT, images_per_sequence=3),
    "flowar": flowar.Config(**SHAPE, scales=(1, 8), depth=2, width=64, heads=2, head_width=64, head_heads=2),
}
# specification of ARFlow, section 5: 10^9 multiply-adds of one evaluation on one image, at 128 and at 256 pixels
MACS = {
    (arflow, "B/4"): (1.54, 6.10),
    (arflow, "XL/2"): (31.7, 129.3),
    (sit, "B/2"): (5.56, 23.01),
    (sit, "XL/2"): (29.0, 118.6),
}


@pytest.fixture(autouse=True)
def shapes_unchecked():
    """Checking the shapes of tensors without memory takes many times as long as all else."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def checkpointing(run, every):
    return replace(run, train=replace(run.train, activation_checkpointing=every))


def averaging(run, **settings):
    return replace(run, train=replace(run.train, **settings))


def run_of(method, **train):
    return Run(method=METHODS[method], train=TrainConfig(**{"batch": 4, **train}))


@pytest.fixture(params=METHODS)
def run(request):
    return run_of(request.param)


@pytest.mark.parametrize(("method", "name"), MACS)
def test_forward_flops_are_those_of_the_specification(method, name):
    for side, macs in zip((16, 32), MACS[method, name], strict=True):
        one = Run(method=method.preset(name, size=(side, side)), train=TrainConfig(batch=8, accumulate=2))
        images = 8 * (one.method.images_per_sequence or 1)
        assert estimate.flops(one).forward / images / 2e9 == pytest.approx(macs, rel=0.01)


def test_flops_are_those_of_a_real_step(run):
    model = build(run)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        estimate._loss(run, model, estimate._batch(run)).backward()
    counted = estimate.flops(run)
    assert counted.total == pytest.approx(
        counter.get_total_flops(), rel=0.01
    )  # the first layer's input has no gradient
    assert counted.backward == 2 * counted.forward and counted.recomputed == 0


def test_recomputed_flops_are_those_of_the_blocks():
    run = run_of("sit")
    all_blocks, half = (estimate.flops(checkpointing(run, every)) for every in (1, 2))
    tokens, width = 4 * 16, 64
    # per token: qkv and out 4 d^2, MLP 8 d^2, two products with 16 keys; per image: modulation 6 d^2
    block = 2 * (tokens * (12 * width**2 + 2 * 16 * width) + 4 * 6 * width**2)
    assert all_blocks.recomputed == 2 * block and half.recomputed == block
    assert all_blocks.forward == half.forward


def test_parameters_are_those_of_the_model(run):
    parts, model = estimate.parameters(run), build(run)
    for part, count in parts.items():
        assert count == sum(p.numel() for name, p in model.named_parameters() if name.split(".")[0] == part)
    assert sum(parts.values()) == sum(p.numel() for p in model.parameters())


def test_a_linear_layers_step_in_closed_form():
    b, n, m = 5, 7, 11
    layer, x = nn.Linear(n, m), torch.randn(5, 7)
    with Living(layer) as living:
        value = layer(x).square().mean()
        living.end_forward()
        value.backward()
        living.end(p.grad for p in layer.parameters())
    history = living.history()
    assert history[:, 0].max() == 4 * (m * n + m)
    assert history[:, 1].max() == 4 * (b * m + 1)  # the square keeps its input; and the loss
    assert history[:, 2].max() == 4 * (4 * b * m + 1)  # dL/dL; then dL/ds, y, 2 y and dL/ds 2 y at once
    assert tuple(history[-1, :1]) == (4 * (m * n + m),)


def tensors_of(batch):
    return [t for t in (batch.latents, batch.labels, *vars(batch.draws).values()) if t is not None]


def saved_by_autograd(run):
    """Bytes of the distinct storages that autograd keeps, parameters and tables left out, on real tensors."""
    model, kept = build(run), {}
    randomise(model)
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    batch = estimate._batch(run)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        value = estimate._loss(run, model, batch)
    assert value.requires_grad
    batch_storages = {t.untyped_storage().data_ptr(): t.untyped_storage() for t in tensors_of(batch)}
    return sum(s.nbytes() for s in (kept | batch_storages).values())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_activations_are_what_autograd_saves(run, precision):
    run = replace(run, train=replace(run.train, batch=32, precision=precision))
    assert estimate.memory(run).activations == pytest.approx(saved_by_autograd(run), rel=0.05)


def test_the_state_is_so_many_copies_of_the_weights(run):
    model = build(run)
    trained, tables = sum(4 * p.numel() for p in model.parameters()), sum(b.nbytes for b in model.buffers())
    one = estimate.memory(run)
    assert one.weights == trained + tables and one.average == trained and one.moments == 2 * trained
    assert one.buckets == one.gathered == 0 and one.gradients <= trained
    assert estimate.memory(averaging(run, ema_decays=(0.9, 0.99))).average == 3 * trained
    assert estimate.memory(averaging(run, ema_device="cpu")).average == 0

    ddp = estimate.memory(run, world=2, parallel="ddp")
    alone = estimate.memory(replace(run, train=replace(run.train, batch=2)))
    assert ddp == replace(alone, buckets=trained)
    fsdp = estimate.memory(run, world=4, parallel="fsdp")
    assert fsdp.weights == trained / 4 + tables and fsdp.moments == trained / 2 and fsdp.gradients <= trained / 4
    block = sum(4 * p.numel() for p in model.blocks[0].parameters())
    assert fsdp.gathered >= 3 * block


def test_checkpointing_and_micro_batches_save_activations(run):
    run = replace(run, train=replace(run.train, batch=32))
    plain, half, every = (estimate.memory(checkpointing(run, k)) for k in (0, 2, 1))
    assert plain.total > half.total >= every.total and plain.weights == every.weights
    micro = estimate.memory(replace(run, train=replace(run.train, accumulate=4)))
    assert micro.activations < 0.4 * plain.activations
    assert micro.gradients == plain.weights - sum(b.nbytes for b in build(run).buffers())


def test_a_gpus_attention_keeps_no_matrix_for_dropout():
    run = run_of("flowar", batch=32)
    assert estimate.memory(run, device="cuda").total < estimate.memory(run).total
    sure = replace(run, method=replace(run.method, dropout=0.0))
    assert estimate.memory(sure, device="cuda") == estimate.memory(sure)


@pytest.mark.parametrize("every", [0, 1])
def test_the_largest_batch_fits_and_one_more_does_not(run, every):
    def need(batch):
        return estimate.memory(checkpointing(replace(run, train=replace(run.train, batch=batch)), every)).total

    for capacity in (need(7), need(40) - 1):
        batch = estimate.largest_batch(checkpointing(run, every), capacity)
        assert need(batch) <= capacity < need(batch + 1)
    assert estimate.largest_batch(run, 1000) == 0


def test_large_presets_need_no_memory():
    run = recipes.get("imagenet256-flowar-h")
    need = estimate.memory(replace(run, train=replace(run.train, batch=4, precision="bf16")), device="cuda")
    assert need.total > 4 * 4 * 1.9e9  # the state alone is four copies of 1.9 billion parameters


def test_wrong_options_are_refused():
    run = run_of("sit")
    wrong = [
        ({"world": 2}, "ddp or fsdp"),
        ({"world": 0}, "at least 1"),
    ]
    for options, reason in wrong:
        with pytest.raises(ValueError, match=reason):
            estimate.memory(run, **options)


def test_dry_run_prints_and_leaves_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ["train", "digits-flowar", "--dry-run", "--train.batch", "32", "--train.accumulate", "2"]
    assert main([*arguments, "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    start = printed.index("\n{")
    run = from_json(json.loads(printed[start:]))
    lines = {
        c[0].strip(): c[1].strip() for line in printed[:start].splitlines() if len(c := line.split("│")[1:-1]) == 2
    }
    assert (run.train.batch, run.train.accumulate) == (32, 2)
    assert lines["parameters"] == f"{sum(estimate.parameters(run).values()):,}"
    assert lines["images a step"] == "32" and lines["images an epoch"] == "1,257" and lines["steps an epoch"] == "39.3"
    assert float(lines["epochs"].replace(",", "")) == pytest.approx(run.train.steps * 32 / 1257, abs=0.1)
    assert lines["tokens an image"] == str(sum(run.method.sizes)) and lines["model FLOPs a step"].endswith(" GFLOP")
    assert not list(tmp_path.iterdir())

    assert main(["train", "imagenet256-sit-xl2", "--dry-run", "--device", "cuda"]) == 0  # no GPU is needed
    printed = capsys.readouterr().out
    assert "not known" in printed and "on cuda" in printed and not list(tmp_path.iterdir())
    assert main(["train", "digits-sit", "--dry-run", "--smoke"]) == 0
    assert '"width": 64' in capsys.readouterr().out and not list(tmp_path.iterdir())


def test_dry_run_of_a_run_folder(tmp_path, capsys):
    folder = tmp_path / "run"
    run = recipes.smoke(recipes.get("digits-sit"))
    RunFolder(folder).create(record_of(run), build(run).state_dict())
    before = sorted(tmp_path.rglob("*"))
    assert main(["train", str(folder), "--dry-run", "--out", str(tmp_path / "other"), "--train.steps", "7"]) == 0
    assert '"steps": 7' in capsys.readouterr().out
    assert sorted(tmp_path.rglob("*")) == before and checkpoint.newest(folder) is not None


def benchmark():
    spec = importlib.util.spec_from_file_location("memory", Path(__file__).parents[2] / "benchmarks" / "memory.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="reads the resident memory, as Linux tells it")
@pytest.mark.parametrize("name", benchmark().SMALL)
def test_the_estimate_is_within_15_percent_of_the_measured_peak(name):
    module = benchmark()
    measured = module.measured(name)
    assert measured > 100e6 and estimate.memory(module.SMALL[name]).total == pytest.approx(measured, rel=0.15)
