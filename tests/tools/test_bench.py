import json
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import jaxtyping
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import DeviceType
from torch.utils.flop_counter import FlopCounterMode

from fluvial.cli import main
from fluvial.config import Run, from_json
from fluvial.flow.guidance import Guidance
from fluvial.methods import arflow, flowar, sit
from fluvial.sampling.settings import Dopri5, SampleConfig
from fluvial.tools import bench, estimate, timing
from fluvial.training.config import TrainConfig

SHAPE = {"size": (8, 8), "channels": 2, "classes": 10}
DIT = {**SHAPE, "patch": 2, "depth": 2, "width": 64, "heads": 2}
FLOWAR = {**SHAPE, "scales": (1, 2, 8), "depth": 2, "width": 64, "heads": 2, "head_width": 64, "head_heads": 2}
METHODS = {
    "sit": sit.Config(**DIT),
    "arflow": arflow.Config(**DIT, images_per_sequence=3),
    "flowar": flowar.Config(**FLOWAR),
    "flowar-cross": flowar.Config(**FLOWAR, head="cross_attention"),
}
GUIDANCE = {
    "none": Guidance(),
    "everywhere": Guidance(weight=2.0),
    "interval": Guidance(weight=2.0, interval=(0.3, 0.8)),
}
TINY = "--method.depth 1 --method.width 16 --method.heads 2 --batch 2 --repeats 3 --warmup 1 --device cpu".split()
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Little matrices and short stretches; checking the shapes of tensors without memory takes long."""
    monkeypatch.setattr(bench, "SIDE", {"cpu": 32})
    monkeypatch.setattr(bench, "COPIED", {"cpu": 4096})
    monkeypatch.setattr(bench, "STRETCH", 1e-4)
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(params=METHODS)
def run(request):
    train = TrainConfig(batch=4, accumulate=2, activation_checkpointing=1)
    return Run(method=METHODS[request.param], train=train, sample=SampleConfig(steps=3, batch=3))


def counted(call):
    """The FLOPs of what is really done, on tensors with numbers."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def test_training_flops_are_those_of_the_timed_step_without_what_is_recomputed(run):
    plain = replace(run, train=replace(run.train, activation_checkpointing=0))
    call, images = timing.training_call(plain, CPU)
    assert images == 4 * (run.method.images_per_sequence or 1)
    # the first layer's input has no gradient, which is counted as if it had
    assert bench._training_flops(run) == pytest.approx(counted(call), rel=0.02)
    recomputing, _ = timing.training_call(run, CPU)
    assert counted(recomputing) > 1.2 * bench._training_flops(run)


@pytest.mark.parametrize("guidance", GUIDANCE)
@pytest.mark.parametrize("solver", ["euler", "heun", "dopri5"])
def test_sampling_flops_are_those_of_the_evaluations(run, guidance, solver, monkeypatch):
    monkeypatch.setattr("fluvial.nn.layers.FEW", 0)  # rows that are filled up are not counted as work
    sample = replace(run.sample, guidance=GUIDANCE[guidance], batch=1)
    sample = replace(sample, solver=Dopri5(atol=0.1, rtol=0.1) if solver == "dopri5" else solver)
    run, evaluations = replace(run, sample=sample), Counter()
    call, _ = bench._sampling(run, CPU)
    assert counted(lambda: evaluations.update(call())) == estimate.sampling_flops(run, evaluations)
    if guidance != "none":
        assert any(name.startswith("null") for name in evaluations)


def test_the_flops_of_a_batch_are_those_of_its_images(run, monkeypatch):
    monkeypatch.setattr("fluvial.nn.layers.FEW", 0)
    call, images = bench._sampling(run, CPU)
    assert images == 3
    assert counted(call) == 3 * estimate.sampling_flops(run, call())


def test_spread_is_median_and_quartiles():
    assert bench.spread([5.0, 1.0, 2.0, 4.0, 3.0]) == {"median": 3.0, "low": 2.0, "high": 4.0}
    assert bench.spread([7.0]) == {"median": 7.0, "low": 7.0, "high": 7.0}
    assert bench.spread([1.0, 2.0])["median"] == 1.5


def test_utilisation_is_over_the_products_on_either_side():
    # 12 FLOPs in 2 s between products at 10 and 14 FLOP/s, and in 1 s between those at 14 and 2
    assert bench.utilisations(12, [2.0, 1.0], [10.0, 14.0, 2.0]) == [0.5, 1.5]


def test_a_machine_half_as_fast_has_the_same_utilisation(monkeypatch):
    """On a clock of our own: a step of 3 s, products of a hundredth of that, then everything twice as slow."""

    def clock(slow):
        def seconds_of(call, device, calls=1):
            result = call()
            return slow * (0.01 if isinstance(result, torch.Tensor) else 3.0)

        return seconds_of

    found = []
    for slow in (1, 2):
        monkeypatch.setattr(bench, "seconds_of", clock(slow))
        found.append(bench.measure("train", Run(method=METHODS["sit"], train=TrainConfig(batch=2)), repeats=2))
    fast, slow = found
    assert fast["utilisation"] == slow["utilisation"]
    assert fast["utilisation"]["median"] == pytest.approx(fast["flops"] / 3 / (2 * 32**3 / 0.01))
    assert fast["matrix_peak"]["median"] == 2 * slow["matrix_peak"]["median"] == 2 * 32**3 / 0.01
    assert fast["images_per_second"]["median"] == 2 / 3 and slow["images_per_second"]["median"] == 1 / 3


def test_settings_are_those_of_what_is_measured():
    run = Run(method=METHODS["sit"], train=TrainConfig(batch=4, precision="tf32", compile=True))
    train, sample = (bench.settings(what, run, batch=7) for what in ("train", "sample"))
    assert (train.train.batch, train.sample) == (7, run.sample)
    assert (sample.train, sample.sample.batch) == (run.train, 7)
    assert (train.train.precision, train.train.compile) == ("tf32", True)
    asked = bench.settings("sample", run, dtype="bf16", compile=True)
    assert (asked.sample.precision, asked.sample.compile) == ("bf16", True) and asked.train == run.train
    assert bench.settings("train", run, compile=False).train.compile is False


def test_measuring_leaves_random_numbers_and_precision_as_they_were(run):
    before, precision = torch.get_rng_state(), torch.get_float32_matmul_precision()
    bench.measure("train", replace(run, train=replace(run.train, precision="tf32")), warmup=1, repeats=1)
    assert torch.equal(torch.get_rng_state(), before) and torch.get_float32_matmul_precision() == precision


def test_no_weight_of_the_measured_model_is_zero(run):
    assert all(bool(p.any()) for p in timing.model_of(run, CPU).parameters())


def test_a_profile_names_what_takes_time():
    a, b = torch.randn(512, 512), torch.randn(512, 512)
    found = bench.profile(lambda: {"products": len([a @ b for _ in range(20)])}, CPU)
    assert found[0]["operation"] == "aten::mm" and found[0]["calls"] == 20 and found[0]["share"] > 0.5
    assert sum(row["share"] for row in found) <= 1 + 1e-9


def test_the_time_of_a_kernel_counts_once():
    """It also stands with the operation that starts it, and with the annotations around both, on either side."""

    def event(key, device, annotation=False, count=1):
        times = {"self_device_time_total": 100.0, "self_cpu_time_total": 10.0}
        return SimpleNamespace(key=key, device_type=device, is_user_annotation=annotation, count=count, **times)

    events = [
        event("aten::mm", DeviceType.CPU),
        event("## Call CompiledFxGraph abc ##", DeviceType.CPU, annotation=True),
        event("Optimizer.step#AdamW.step", DeviceType.CUDA, annotation=True),
        event("gemm", DeviceType.CUDA, count=3),
        event("triton_red_fused_1", DeviceType.CUDA),
        event("triton_poi_fused_2", DeviceType.CUDA),
    ]
    found = {row["operation"]: (row["share"], row["calls"]) for row in bench.shares(events, on_gpu=True)}
    assert found == {"compiled kernels": (pytest.approx(2 / 3), 2), "gemm": (pytest.approx(1 / 3), 3)}
    assert len(bench.shares(events[:2], on_gpu=False)) == 2


@pytest.mark.parametrize("warmup, repeats", [(0, 1), (1, 0)])
def test_nothing_is_measured_without_a_call(warmup, repeats):
    with pytest.raises(ValueError, match="at least 1"):
        bench.measure("train", Run(method=METHODS["sit"]), warmup=warmup, repeats=repeats)


def test_the_command_prints_a_table_and_writes_json(tmp_path, capsys):
    out = tmp_path / "some" / "train.json"
    assert main(["bench", "train", "digits-arflow", *TINY, "--profile", "True", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "images/s" in printed and "utilisation" in printed and "share of the time" in printed
    result = json.loads(out.read_text())
    run = from_json(result["run"])
    assert (result["recipe"], result["what"], result["images"], result["repeats"]) == ("digits-arflow", "train", 10, 3)
    assert (run.method.depth, run.method.width, run.train.batch) == (1, 16, 2)
    assert result["flops"] == bench._training_flops(run) and result["evaluations"] == {}
    assert result["machine"]["threads"] == 1 and result["machine"]["gpu"] is None
    assert result["machine"]["torch"] == torch.__version__
    assert result["dtype"] == "fp32" and result["compile"] is False and result["date"].endswith("+00:00")
    assert result["profile"][0]["share"] >= result["profile"][-1]["share"] > 0
    for key in ("images_per_second", "seconds", "flops_per_second", "matrix_peak", "utilisation"):
        assert 0 < result[key]["low"] <= result[key]["median"] <= result[key]["high"]
    middle = result["seconds"]["median"]
    assert result["images_per_second"]["median"] == pytest.approx(10 / middle)
    assert result["memory"]["peak"] >= result["memory"]["before"] > 0


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_sampling_is_measured_as_it_is_set(tmp_path, monkeypatch, capsys, dtype):
    monkeypatch.chdir(tmp_path)
    small = "--method.head-width 16 --method.head-heads 2 --sample.steps 3 --sample.guidance.interval 0.5 1.0"
    deeper = ["2" if before == "--method.depth" else word for before, word in pairwise(["", *TINY])]  # FlowAR's is even
    arguments = [*deeper, *small.split(), "--dtype", dtype]
    assert main(["bench", "sample", "digits-flowar", *arguments]) == 0
    assert "runs/bench/digits-flowar-sample.json" in capsys.readouterr().out
    result = json.loads((tmp_path / "runs" / "bench" / "digits-flowar-sample.json").read_text())
    assert result["dtype"] == dtype and result["images"] == 2
    assert result["evaluations"] == {
        f"{name} {n}x{n}": count
        for n in (1, 2, 4)
        for name, count in (("transformer", 2), ("conditional", 3), ("null", 1))
    }
    assert result["profile"] == []
    assert result["flops"] == 2 * estimate.sampling_flops(from_json(result["run"]), result["evaluations"])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "usage: fluvial bench train|sample"),
        (["draw"], "train and sample, got 'draw'"),
        (["train"], "usage: fluvial bench train RECIPE"),
        (["train", "digits-arflw"], "Did you mean digits-arflow?"),
        (["train", "digits-arflow", "--repeats", "0"], "--repeats must be at least 1, got 0"),
        (["sample", "digits-arflow", "--batch", "0"], "--batch must be at least 1, got 0"),
    ],
)
def test_a_wrong_command_line_is_code_2(arguments, says, capsys):
    assert main(["bench", *arguments]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_a_gpu_that_is_not_there_is_code_1(capsys):
    assert main(["bench", "train", "digits-arflow", "--device", "cuda"]) == 1
    assert "has no CUDA" in capsys.readouterr().err
