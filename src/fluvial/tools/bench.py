"""How fast a run trains and samples, measured against the machine's own limit: large matrix products.

What is timed is the step of the training loop and the sampling of `fluvial sample`, on random latents of the run's
shape. Every timed stretch lies between two of matrix products in the same process and dtype, so that a busy machine
slows both alike; the utilisation is the rate of model FLOPs over theirs.
"""

import math
import os
import platform
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from torch.profiler import DeviceType, ProfilerActivity

import fluvial
from fluvial.autoencoders.pixels import Pixels
from fluvial.config import Run, to_json
from fluvial.methods import method_of
from fluvial.run.load import Sampler
from fluvial.tools import estimate
from fluvial.training.health import Health
from fluvial.training.step import begin, step
from fluvial.utils.precision import Precision, matmul_precision

What = Literal["train", "sample"]
Call = Callable[[], Mapping[str, int]]  # does it once; evaluations that a sample took, nothing for a training step

SIDE = {"cpu": 2048, "cuda": 8192}  # of the matrices
COPIED = {"cpu": 2**28, "cuda": 2**32}  # bytes
STRETCH = 0.2  # seconds at least that are timed at once
PRODUCTS = 0.25  # the time of matrix products over that of what they are compared with
OPERATIONS = 15  # of a profile that are named
NAME = 80  # characters of a name; those of kernels are whole signatures
COMPILED = ("## Call CompiledFxGraph", "triton_")


def settings(
    what: What, run: Run, *, batch: int | None = None, dtype: Precision | None = None, compile: bool | None = None
) -> Run:
    """The run with these settings of what is measured, `run.train` or `run.sample`; by default as it says."""
    asked = {"batch": batch, "precision": dtype, "compile": compile}
    given = {name: value for name, value in asked.items() if value is not None}
    return replace(run, **{what: replace(run.train if what == "train" else run.sample, **given)})


def measure(
    what: What,
    run: Run,
    *,
    device: torch.device | str = "cpu",
    warmup: int = 2,
    repeats: int = 5,
    profiled: bool = False,
    side: int | None = None,
) -> dict[str, Any]:
    """Times a training step of the run, or the drawing of one batch, in the precision of `run.train` or `run.sample`.

    Of everything that was measured more than once there are the median and the quartiles. seconds: of a step or a
    batch. flops: of the same, those of the model alone. flops_per_second, matrix_peak: in FLOP/s. utilisation: flops
    over what matrix products of that `side` would have done in the time. memory: bytes, `before` the model was made and
    at the `peak` of a call after the `warmup`; on a CPU of the whole process since it began. Raises ValueError for a
    warmup or repeats below 1.
    """
    if min(warmup, repeats) < 1:
        raise ValueError(f"warmup and repeats must be at least 1, got {warmup} and {repeats}")
    device, asked = torch.device(device), run.train if what == "train" else run.sample
    dtype, on_gpu = asked.precision, device.type == "cuda"
    before = torch.cuda.memory_allocated(device) if on_gpu else memory(device)
    with torch.random.fork_rng([device] if on_gpu else []), matmul_precision(dtype):
        call, images = (_training if what == "train" else _sampling)(run, device)
        for _ in range(warmup):
            call()
        if on_gpu:
            torch.cuda.reset_peak_memory_stats(device)  # compiling takes more than what is compiled
        evaluations = dict[str, int]()
        once = seconds_of(lambda: evaluations.update(call()), device)
        peak = memory(device)
        calls = math.ceil(STRETCH / once)
        product = partial(matrix_peak, dtype, device, side=side, seconds=PRODUCTS * max(once, STRETCH))
        rates, seconds = [product()], list[float]()
        for _ in range(repeats):
            seconds.append(seconds_of(call, device, calls))
            rates.append(product())
        where = profile(call, device) if profiled else []
    flops = _training_flops(run) if what == "train" else images * estimate.sampling_flops(run, evaluations)
    return {
        "what": what,
        "images": images,
        "images_per_second": spread([images / s for s in seconds]),
        "seconds": spread(seconds),
        "repeats": repeats,
        "calls_a_repeat": calls,
        "evaluations": evaluations,
        "flops": flops,
        "flops_per_second": spread([flops / s for s in seconds]),
        "matrix_peak": spread(rates),
        "utilisation": spread(utilisations(flops, seconds, rates)),
        "memory": {"before": before, "peak": peak},
        "dtype": dtype,
        "compile": asked.compile,
        "profile": where,
        "machine": machine(device),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "fluvial": fluvial.__version__,
        "run": to_json(run),
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """The median, and the quartiles on either side of it."""
    low, median, high = (float(q) for q in np.quantile(values, (0.25, 0.5, 0.75)))
    return {"median": median, "low": low, "high": high}


def utilisations(flops: float | int, seconds: Sequence[float], rates: Sequence[float]) -> list[float]:
    """The rate of each repeat over the mean of those of the matrix products before and after it."""
    return [flops / s / ((a + b) / 2) for s, a, b in zip(seconds, rates[:-1], rates[1:], strict=True)]


def matrix_peak(
    dtype: Precision, device: torch.device | str, *, side: int | None = None, seconds: float = STRETCH
) -> float:
    """FLOP/s of square matrix products in this dtype, done for about so many seconds."""
    device = torch.device(device)
    side, kind = side or SIDE[device.type], torch.bfloat16 if dtype == "bf16" else torch.float32
    a, b, out = (torch.randn(side, side, device=device).to(kind) for _ in range(3))
    with torch.no_grad(), matmul_precision(dtype):
        product = partial(torch.mm, a, b, out=out)
        product()  # libraries start up
        once = seconds_of(product, device)
        return 2 * side**3 / seconds_of(product, device, math.ceil(seconds / once))


def bandwidth(device: torch.device | str, *, size: int | None = None) -> float:
    """Bytes a second, read and written, of a large copy in the device's memory."""
    device = torch.device(device)
    source = torch.ones(size or COPIED[device.type], dtype=torch.uint8, device=device)
    copy = partial(torch.empty_like(source).copy_, source)
    copy()
    return 2 * len(source) / float(np.median([seconds_of(copy, device) for _ in range(5)]))


def seconds_of(call: Callable[[], Any], device: torch.device, calls: int = 1) -> float:
    """Seconds a call, from an idle device until all of them are done."""
    synchronise(device)
    started = time.perf_counter()
    for _ in range(calls):
        call()
    synchronise(device)
    return (time.perf_counter() - started) / calls


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def memory(device: torch.device) -> int | None:
    """The most bytes that PyTorch has held on a GPU, or that this process has had; None where nothing tells."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")  # ru_maxrss begins with the bytes of the process that started this one
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), None)


def machine(device: torch.device | str = "cpu") -> dict[str, Any]:
    """What the numbers were measured on."""
    device, info = torch.device(device), Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor() or platform.machine(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def profile(call: Call, device: torch.device) -> list[dict[str, Any]]:
    """Where the time of one call goes, as `shares` has it."""
    on_gpu = device.type == "cuda"
    with torch.profiler.profile(
        activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])], acc_events=True
    ) as found:
        call()
        synchronise(device)
    return shares(found.key_averages(), on_gpu)


def shares(events: Iterable[Any], on_gpu: bool) -> list[dict[str, Any]]:
    """The operations with the most time of their own, their share of it, and how often; on a GPU its kernels.

    The time of a kernel also stands with the operation that started it and with every annotation around it.
    """
    times, calls = Counter[str](), Counter[str]()
    for event in events:
        if on_gpu and (event.device_type != DeviceType.CUDA or event.is_user_annotation):
            continue
        key = "compiled kernels" if event.key.startswith(COMPILED) else event.key[:NAME]
        times[key] += event.self_device_time_total if on_gpu else event.self_cpu_time_total
        calls[key] += event.count
    total, most = sum(times.values()), times.most_common(OPERATIONS)
    return [{"operation": key, "share": own / total, "calls": calls[key]} for key, own in most if own > 0]


def _model(run: Run, device: torch.device) -> nn.Module:
    """A model that has begun to learn: zeros, as in gates at the start, make products cheaper than they will be."""
    with device:
        model = method_of(run.method).Model(run.method)
    for p in model.parameters():
        if not bool(p.any()):
            nn.init.normal_(p, std=0.02)
    return model


def _training_flops(run: Run) -> int:
    """Those of the model: blocks that are computed again do not count."""
    cost = estimate.flops(run)
    return cost.forward + cost.backward


def _training(run: Run, device: torch.device) -> tuple[Call, int]:
    """A training step, and the images in it."""
    learner = begin(
        _model(run, device),
        method=method_of(run.method),
        config=run.train,
        optim=run.optim,
        seed=run.seed,
    )
    labels = torch.randint(run.method.classes, (run.train.batch,), device=device) if run.method.classes else None
    batch = torch.randn(estimate.batch_shape(run), device=device), labels
    health, numbers = Health(device), count()

    def call() -> Mapping[str, int]:
        step(learner, lambda number: batch, health, next(numbers))
        return {}

    return call, run.images_per_step


def _sampling(run: Run, device: torch.device) -> tuple[Call, int]:
    """The drawing of one batch, and the images in it."""
    model = _model(run, device).requires_grad_(False).eval()
    sampler = Sampler(model=model, run=run, autoencoder=Pixels())

    def call() -> Mapping[str, int]:
        return sampler.sample(run.sample.batch).nfe

    return call, run.sample.batch
