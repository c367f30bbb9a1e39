"""Memory estimates compared with measured peaks on a CPU, and the estimated largest batch of each ImageNet preset.

    python benchmarks/memory.py [--batches]

Each run is measured in its own process over three training steps; its peak is the growth of resident memory since
before the model was built. The table of batches is estimated, not measured on such GPUs.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from fluvial import recipes
from fluvial.config import Run
from fluvial.methods import arflow, flowar, method_of, sit
from fluvial.run.train import learner_of
from fluvial.tools.estimate import batch_shape, largest_batch, memory
from fluvial.training import loop
from fluvial.training.config import TrainConfig
from fluvial.training.distributed import ALONE
from fluvial.utils.randomness import generator

SHAPE = {"size": (16, 16), "channels": 4, "classes": 10}
DIT = {**SHAPE, "patch": 2, "depth": 4, "width": 256, "heads": 4}
FLOWAR = flowar.Config(
    **SHAPE, scales=(1, 2, 4, 8, 16), depth=4, width=256, heads=4, head_width=256, head_heads=4, dropout=0.1
)
SMALL = {
    "SiT": Run(method=sit.Config(**DIT), train=TrainConfig(batch=32)),
    "SiT, bf16": Run(method=sit.Config(**DIT), train=TrainConfig(batch=32, precision="bf16")),
    "ARFlow, 2 micro-batches": Run(method=arflow.Config(**DIT), train=TrainConfig(batch=8, accumulate=2)),
    "FlowAR": Run(method=FLOWAR, train=TrainConfig(batch=2)),
    "FlowAR, activation checkpointing of every block": Run(
        method=FLOWAR, train=TrainConfig(batch=2, activation_checkpointing=1)
    ),
}
GPUS = {"80 GB": 80e9, "141 GB": 141e9}
FREE = 0.05  # fraction of a GPU's memory for the CUDA context, libraries and fragmentation
PRESETS = (
    "imagenet128-arflow-xl2",
    "imagenet256-arflow-xl2",
    "imagenet256-sit-xl2",
    "imagenet256-flowar-s",
    "imagenet256-flowar-b",
    "imagenet256-flowar-l",
    "imagenet256-flowar-h",
    "imagenet512-flowar-l",
)
# Freed blocks return to the system at once, so that resident memory is the memory in use.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}


def measured(name: str) -> int:
    """Peak memory in bytes of three training steps of a small run, in a new process."""
    command = [sys.executable, __file__, "--measure", name]
    environment = {**os.environ, **MALLOC, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, text=True)
    return int(done.stdout.split()[-1])


def measure(run: Run) -> int:
    """Peak memory in bytes of three training steps of a small run, in this process."""
    tiny = {"depth": 2, "width": 16, "heads": 2}
    if isinstance(run.method, flowar.FlowARConfig):
        tiny |= {"head_width": 16, "head_heads": 2}
    _train(replace(run, method=replace(run.method, **tiny), train=replace(run.train, batch=2)))  # initialises libraries
    before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    return _train(run) - before


def _peak() -> int:
    """Peak memory of this process in bytes; ru_maxrss would include the parent process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def _train(run: Run, steps: int = 3) -> int:
    """Trains and returns the peak of resident memory in bytes, before the final checkpoint is written."""
    method, peaks = method_of(run.method), list[int]()

    def batch(step: int) -> tuple[Tensor, Tensor]:
        peaks.append(_peak())
        draws = generator(0, "benchmark", step)
        labels = torch.randint(run.method.classes, (run.train.batch,), generator=draws)
        return torch.randn(batch_shape(run), generator=draws), labels

    with tempfile.TemporaryDirectory() as folder:
        run = replace(run, train=replace(run.train, steps=steps + 1))
        learner = learner_of(run, method.Model(run.method), ALONE)
        loop.train(learner, lambda order: batch, Path(folder))
    return peaks[-1]


def compared() -> list[list[str]]:
    """Rows of method, estimate, measured peak, and their ratio."""
    rows = []
    for name, run in SMALL.items():
        estimate, peak = memory(run).total, measured(name)
        rows.append([name, f"{estimate / 1e6:.0f} MB", f"{peak / 1e6:.0f} MB", f"{estimate / peak:.3f}"])
    return rows


def batches() -> list[list[str]]:
    """Rows of preset and largest micro-batch on each GPU, without and with activation checkpointing."""
    rows = []
    for name in PRESETS:
        run = recipes.get(name)
        each = run.method.images_per_sequence or 1
        row = [name]
        for capacity in GPUS.values():
            for checkpointing in (0, 1):
                run = replace(run, train=replace(run.train, precision="bf16", activation_checkpointing=checkpointing))
                row.append(f"{each * largest_batch(run, capacity * (1 - FREE), device='cuda'):,}")
        rows.append(row)
        print(row, file=sys.stderr, flush=True)
    return rows


def markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--batches", action="store_true", help="also the largest batches, which takes minutes")
    options.add_argument("--measure", choices=SMALL, help=argparse.SUPPRESS)
    arguments = options.parse_args()
    if arguments.measure:
        print(measure(SMALL[arguments.measure]))
        return
    print(markdown(["method", "estimate", "measured peak", "estimate / measured"], compared()), flush=True)
    if arguments.batches:
        head = ["preset"] + [f"{gpu}{how}" for gpu in GPUS for how in ("", ", checkpointing")]
        print("\n" + markdown(head, batches()))


if __name__ == "__main__":
    main()
