"""Cost of verifying checksums when reading checkpoints and safetensors files.

    python benchmarks/verify.py [--mebibytes 256] [--folder DIR]

Each file is read with and without the check, alternating, from the page cache; the median of five and the ratio are
printed. The check reads the file once more, at the speed of SHA-256 on one core.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file

from fluvial.training import checkpoint
from fluvial.utils.tensors import check_tensors, write_tensors

REPEATS = 5


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--mebibytes", type=int, default=256, help="size of the weights")
    options.add_argument("--folder", type=Path, help="where to write; a temporary folder by default")
    arguments = options.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        compare(Path(folder), arguments.mebibytes * 2**18)


def compare(folder: Path, numbers: int) -> None:
    """Prints a line for each kind of file that holds this many float32 numbers."""
    weights = {f"blocks.{i}.weight": torch.randn(numbers // 8) for i in range(8)}
    run, file = folder / "run", folder / "weights.safetensors"
    run.mkdir()
    saver = checkpoint.Saver(run, keep=1)
    moments = {f"{name}/{moment}": value for name, value in weights.items() for moment in ("exp_avg", "exp_avg_sq")}
    saver.save(1, {"model": weights, "ema": weights, "optimizer": moments}, {"seconds": 0.0})
    saver.wait()
    write_tensors(file, weights)
    there = checkpoint.newest(run)
    assert there is not None
    into = {f"ema/{name}": torch.empty_like(value) for name, value in weights.items()}
    everything = into | {f"optimizer/{name}": torch.empty_like(value) for name, value in moments.items()}
    everything |= {f"model/{name}": torch.empty_like(value) for name, value in weights.items()}

    def read(tensors: dict[str, torch.Tensor]) -> Callable[[], None]:
        return lambda: checkpoint.fill(tensors, there, verified=True)

    def copy() -> None:
        for name, value in load_file(file).items():
            into[f"ema/{name}"].copy_(value)

    print(f"{'read':<44} {'alone':>8} {'check':>8}   seconds; the whole over reading alone")
    for what, reading, check in (
        ("checkpoint: the averaged weights, to sample", read(into), lambda: checkpoint.verify(there)),
        ("checkpoint: everything, to go on training", read(everything), lambda: checkpoint.verify(there)),
        ("safetensors file: an export or a snapshot", copy, lambda: check_tensors(file)),
    ):
        alone, checking = in_turns(reading, check)
        print(f"{what:<44} {alone:>8.2f} {checking:>8.2f}   {(alone + checking) / alone:.2f}")


def in_turns(*functions: Callable[[], object]) -> list[float]:
    """Median seconds of each function; calls alternate."""
    seconds: list[list[float]] = [[] for _ in functions]
    for _ in range(REPEATS):
        for function, taken in zip(functions, seconds, strict=True):
            started = time.perf_counter()
            function()
            taken.append(time.perf_counter() - started)
    return [statistics.median(taken) for taken in seconds]


if __name__ == "__main__":
    main()
