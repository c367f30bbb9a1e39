"""Benchmarks of training and sampling speed, relative to the machine's speed in large matrix products.

A training step or the sampling of one batch is timed on random latents of the run's shape. Every measurement lies
between two of matrix products in the same process and dtype, so that a busy machine slows down both; utilisation is
model FLOP/s over the FLOP/s of the matrix products.
"""

import math
import os
import platform
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch.profiler import DeviceType, ProfilerActivity

import fluvial
from fluvial.autoencoders.pixels import Pixels
from fluvial.config import Run, to_json
from fluvial.run.load import Sampler
from fluvial.tools import estimate
from fluvial.tools.timing import Call, model_of, training_call
from fluvial.utils.devices import seconds_of, synchronise
from fluvial.utils.precision import Precision, matmul_precision

What = Literal["train", "sample"]

SIDE = {"cpu": 2048, "cuda": 8192}  # of the square matrices
COPIED = {"cpu": 2**28, "cuda": 2**32}  # bytes
STRETCH = 0.2  # minimal seconds of one measurement
PRODUCTS = 0.25  # time for matrix products, as a fraction of the measurement beside them
OPERATIONS = 15  # of a profile that are listed
NAME = 80  # longest name; names of kernels are whole signatures
COMPILED = ("## Call CompiledFxGraph", "triton_")


def settings(
    what: What, run: Run, *, batch: int | None = None, dtype: Precision | None = None, compile: bool | None = None
) -> Run:
    """The run with batch, precision and compile replaced in `run.train` or `run.sample`, where given."""
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

    Repeated measurements are given as median and quartiles. seconds, flops (of the model): per step or batch.
    flops_per_second, matrix_peak: in FLOP/s. utilisation: their ratio, with matrix products of that `side`. memory: in
    bytes, `before` the model was made and at the `peak` of a call after the `warmup`; on a CPU the peak of the process
    since it started. Raises ValueError for a warmup or repeats below 1.
    """
    if min(warmup, repeats) < 1:
        raise ValueError(f"warmup and repeats must be at least 1, got {warmup} and {repeats}")
    device, asked = torch.device(device), run.train if what == "train" else run.sample
    dtype, on_gpu = asked.precision, device.type == "cuda"
    before = torch.cuda.memory_allocated(device) if on_gpu else memory(device)
    with torch.random.fork_rng([device] if on_gpu else []), matmul_precision(dtype):
        call, images = (training_call if what == "train" else _sampling)(run, device)
        for _ in range(warmup):
            call()
        if on_gpu:
            torch.cuda.reset_peak_memory_stats(device)  # compiling takes more memory than running
        evaluations = dict[str, int]()
        once = seconds_of(lambda: evaluations.update(call()), device)
        peak = memory(device)
        calls = math.ceil(STRETCH / once)
        product = partial(matrix_peak, dtype, device, side=side, seconds=PRODUCTS * max(once, STRETCH))
        rates, seconds = [product()], list[float]()
        for _ in range(repeats):
            seconds.append(seconds_of(call, device, calls))
            rates.append(product())
        operations = profile(call, device) if profiled else []
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
        "profile": operations,
        "machine": machine(device),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "fluvial": fluvial.__version__,
        "run": to_json(run),
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """The median, lower and upper quartile."""
    low, median, high = (float(q) for q in np.quantile(values, (0.25, 0.5, 0.75)))
    return {"median": median, "low": low, "high": high}


def utilisations(flops: float | int, seconds: Sequence[float], rates: Sequence[float]) -> list[float]:
    """FLOP/s of each repeat over the mean FLOP/s of the matrix products before and after it."""
    return [flops / s / ((a + b) / 2) for s, a, b in zip(seconds, rates[:-1], rates[1:], strict=True)]


def matrix_peak(
    dtype: Precision, device: torch.device | str, *, side: int | None = None, seconds: float = STRETCH
) -> float:
    """FLOP/s of square matrix products in this dtype, measured for about `seconds`."""
    device = torch.device(device)
    side, kind = side or SIDE[device.type], torch.bfloat16 if dtype == "bf16" else torch.float32
    a, b, out = (torch.randn(side, side, device=device).to(kind) for _ in range(3))
    with torch.no_grad(), matmul_precision(dtype):
        product = partial(torch.mm, a, b, out=out)
        product()  # initialises libraries
        once = seconds_of(product, device)
        return 2 * side**3 / seconds_of(product, device, math.ceil(seconds / once))


def bandwidth(device: torch.device | str, *, size: int | None = None) -> float:
    """Memory bandwidth in bytes/s, reads plus writes, of a large copy on the device."""
    device = torch.device(device)
    source = torch.ones(size or COPIED[device.type], dtype=torch.uint8, device=device)
    copy = partial(torch.empty_like(source).copy_, source)
    copy()
    return 2 * len(source) / float(np.median([seconds_of(copy, device) for _ in range(5)]))


def memory(device: torch.device) -> int | None:
    """Peak memory in bytes, of PyTorch on a GPU or of this process on a CPU; None if unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")  # not ru_maxrss, which includes the parent process
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), None)


def machine(device: torch.device | str = "cpu") -> dict[str, Any]:
    """The processor, GPU and versions that the numbers were measured with."""
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
    """The operations that take the most time in one call, as listed by `shares`."""
    on_gpu = device.type == "cuda"
    with torch.profiler.profile(
        activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])], acc_events=True
    ) as found:
        call()
        synchronise(device)
    return shares(found.key_averages(), on_gpu)


def shares(events: Iterable[Any], on_gpu: bool) -> list[dict[str, Any]]:
    """The operations with the most self time: name, share and number of calls. On a GPU only kernels count.

    A kernel's time is also listed with the operation that launched it and with annotations, so those are left out.
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


def _training_flops(run: Run) -> int:
    """Model FLOPs of a training step; activation checkpointing does not count."""
    cost = estimate.flops(run)
    return cost.forward + cost.backward


def _sampling(run: Run, device: torch.device) -> tuple[Call, int]:
    """A function that draws one batch, and its number of images."""
    model = model_of(run, device).requires_grad_(False).eval()
    sampler = Sampler(model=model, run=run, autoencoder=Pixels())

    def call() -> Mapping[str, int]:
        return sampler.sample(run.sample.batch).nfe

    return call, run.sample.batch
