"""Time and memory of computing scores, compared with torch-fidelity if it is installed.

    python benchmarks/metrics.py [--images 2000] [--data cifar10-train.parquet] [--vectors 50000]
                                 [--neighbours 10000] [--many 50000]

- statistics of 32 x 32 images with EfficientNet-Lite0: the time of the network and of all the rest;
- statistics and Frechet distance of given features, which fluvial reads in batches of 250 and torch-fidelity at once;
- precision, recall, density, coverage and the kernel distance of given features; torch-fidelity has no density and no
  coverage, and its kernel distance is computed on a single subset of all features, which gives the same number;
- the same for very many short features, by fluvial only: it works in blocks, where one matrix of all distances in
  float64 would take 20 GB.

Every measurement runs once in its own process, with as many threads as the main process: on a busy machine times vary
by tens of per cent. Both read the same features from the same files; the statistics' time includes reading. Memory is
the peak of the process above its memory after imports. torch-fidelity gets float32, as from its own networks: it
computes means, distances and kernels in float32, and covariances in float64.
"""

import argparse
import importlib
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fluvial.data.images import DataConfig, ImageSet, load
from fluvial.evaluation.opening import of_set
from fluvial.evaluation.statistics import BATCH, statistics
from fluvial.metrics.features import Features, extractor
from fluvial.metrics.frechet import Gaussian, frechet_distance, moments
from fluvial.metrics.kid import kernel_distance
from fluvial.metrics.precision import overlap

ORACLES = Path(__file__).parents[1] / ".venv" / "oracles"  # `make setup` puts torch-fidelity there
DIMENSIONS = (1280, 2048)  # of EfficientNet-Lite0's features, and of Inception's
MANY_DIMENSIONS = 64
OPERATORS: list[torch.library.Library] = []  # operators exist as long as their library object
Numbers = dict[str, float]


class Given(NamedTuple):
    """Two files of features, of samples and of real images: float32, row by row."""

    folder: Path
    n: int
    d: int

    @property
    def files(self) -> list[Path]:
        return [self.folder / f"{name}-{self.n}-{self.d}.f32" for name in ("samples", "real")]

    def write(self) -> None:
        """Writes random features with a few strong directions and many weak ones, like those of networks."""
        rng = np.random.default_rng(0)
        mix = rng.standard_normal((16, self.d), dtype=np.float32)
        for place, (file, width) in enumerate(zip(self.files, (0.9, 1.0), strict=True)):
            with file.open("wb") as opened:
                for start in range(0, self.n, 1000):
                    rows = min(1000, self.n - start)
                    strong = width * rng.standard_normal((rows, 16), dtype=np.float32) @ mix
                    opened.write((strong + rng.standard_normal((rows, self.d), dtype=np.float32) + place).tobytes())

    def whole(self, file: Path) -> Tensor:
        return torch.from_numpy(np.fromfile(file, np.float32).reshape(self.n, self.d))

    def batches(self, file: Path) -> Iterator[Tensor]:
        with file.open("rb") as opened:
            while len(content := np.fromfile(opened, np.float32, BATCH * self.d)):
                yield torch.from_numpy(content.reshape(-1, self.d))


def timed(numbers: Numbers, name: str, run: Callable[[], Any]) -> Any:  # noqa: ANN401
    """The result of `run`; its seconds are added to `numbers`."""
    started = time.perf_counter()
    result = run()
    numbers[name] = time.perf_counter() - started
    return result


def of_images(count: int, data: str) -> Numbers:
    """Times of computing statistics of images: in the network, and in all."""
    config = DataConfig(path=data)
    if data:
        images = load(config, "train", scan=False)
        assert images is not None
        images = images.subset(torch.arange(min(count, len(images.pixels))))
    else:
        images = ImageSet(torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8), None, ())
    lite0, spent = extractor("efficientnet-lite0"), [0.0]
    lite0.extract(images.rows(torch.arange(4)))  # libraries start up

    def extract(pixels: Tensor) -> Features:
        part: Numbers = {}
        features = timed(part, "s", lambda: lite0.extract(pixels))
        spent[0] += part["s"]
        return features

    numbers: Numbers = {}
    source = of_set(images, "images", config)
    found = timed(numbers, "all", lambda: statistics(source, replace(lite0, extract=extract)))
    numbers["network"], numbers["images"] = spent[0], found.n
    return numbers


def frechet(given: Given) -> Numbers:
    numbers: Numbers = {}

    def gaussian(file: Path) -> Gaussian:
        total = None
        for batch in given.batches(file):
            total = moments(batch, total)
        assert total is not None
        return total.gaussian

    fitted = timed(numbers, "statistics", lambda: [gaussian(file) for file in given.files])
    numbers["value"] = timed(numbers, "distance", lambda: frechet_distance(*fitted))
    return numbers


def neighbours(given: Given) -> Numbers:
    numbers: Numbers = {}
    samples, real = timed(numbers, "reading", lambda: [given.whole(file) for file in given.files])
    found = timed(numbers, "overlap", lambda: overlap(samples, real))
    kernel = timed(numbers, "kernel", lambda: kernel_distance(samples, real))
    return {**numbers, **{name: estimate.value for name, estimate in found._asdict().items()}, "kid": kernel.value}


def fidelity(name: str) -> Any:  # noqa: ANN401
    """A module of torch-fidelity. Raises ImportError with the reason if it cannot be imported."""
    if ORACLES.exists() and str(ORACLES) not in sys.path:
        sys.path.insert(0, str(ORACLES))
        library = torch.library.Library("torchvision", "DEF")  # its torchvision lacks operators beside a CPU-only torch
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        OPERATORS.append(library)
    return importlib.import_module(f"torch_fidelity.{name}")


def frechet_of_fidelity(given: Given) -> Numbers:
    fid, numbers = fidelity("metric_fid"), Numbers()
    fitted = timed(
        numbers, "statistics", lambda: [fid.fid_features_to_statistics(given.whole(file)) for file in given.files]
    )
    found = timed(numbers, "distance", lambda: fid.fid_statistics_to_metric(*fitted, verbose=False))
    return {**numbers, "value": found["frechet_inception_distance"]}


def neighbours_of_fidelity(given: Given) -> Numbers:
    prc, kid, numbers = fidelity("metric_prc"), fidelity("metric_kid"), Numbers()
    pair = timed(numbers, "reading", lambda: [given.whole(file) for file in given.files])
    found = timed(numbers, "overlap", lambda: prc.prc_features_to_metric(*pair, prc_neighborhood=3, verbose=False))
    whole = {"kid_subsets": 1, "kid_subset_size": given.n, "verbose": False}
    kernel = timed(numbers, "kernel", lambda: kid.kid_features_to_metric(*pair, **whole))
    both = {name: found[name] for name in ("precision", "recall")}
    return {**numbers, **both, "kid": kernel["kernel_inception_distance_mean"]}


MEASURED: dict[str, Callable[..., Numbers]] = {
    "images": of_images,
    "frechet": lambda *given: frechet(as_given(*given)),
    "frechet, torch-fidelity": lambda *given: frechet_of_fidelity(as_given(*given)),
    "neighbours": lambda *given: neighbours(as_given(*given)),
    "neighbours, torch-fidelity": lambda *given: neighbours_of_fidelity(as_given(*given)),
}


def as_given(folder: str, n: int, d: int) -> Given:
    return Given(Path(folder), n, d)


def measured(name: str, *arguments: str | int) -> Numbers | str:
    """The numbers measured in a new process, or the reason why there are none."""
    command = [sys.executable, __file__, "--measure", name, json.dumps(arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure(name: str, arguments: list[Any]) -> Numbers | str:
    """The numbers measured in this process, or the reason why there are none."""
    try:
        extractor("efficientnet-lite0") if name == "images" else None
        fidelity("metric_kid") if name.endswith("torch-fidelity") else None
    except (ImportError, RuntimeError, ValueError) as error:  # RuntimeError: compiled for another torch
        return f"not measured: {error}"
    before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    numbers = MEASURED[name](*arguments)
    return {**numbers, "memory": (_peak() - before) / 2**20}


def _peak() -> int:
    """Peak memory of this process in bytes; ru_maxrss would include the parent process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


class Compared(NamedTuple):
    """The numbers of one measurement, with torch-fidelity's or the reason why there are none."""

    what: str
    ours: Numbers
    theirs: Numbers | str

    @property
    def rows(self) -> list[list[str]]:
        rows = []
        for name, here in self.ours.items():
            there = self.theirs.get(name) if not isinstance(self.theirs, str) else None
            unit, digits = UNITS.get(name, ("", ".7g"))
            row = [f"{self.what}: {name}{unit}", f"{here:{digits}}", "", ""]
            if there is not None:
                row[2:] = f"{there:{digits}}", f"{there / here:{'.2f' if unit else '.7f'}}"
            rows.append(row)
        return rows


UNITS = dict.fromkeys(("statistics", "distance", "reading", "overlap", "kernel"), (", s", ".2f")) | {
    "memory": (", MiB", ".0f")
}


def compare(
    folder: Path, vectors: int, neighbourhoods: int, many: int, dimensions: tuple[int, ...]
) -> Iterator[Compared]:
    """Yields all measurements of given features; a count of 0 leaves one out."""
    asked = [("frechet", vectors, d, True) for d in dimensions]
    asked += [("neighbours", neighbourhoods, dimensions[-1], True), ("neighbours", many, MANY_DIMENSIONS, False)]
    for name, n, d, both in asked:
        if not n:
            continue
        given = Given(folder, n, d)
        given.write()
        ours = measured(name, str(folder), n, d)
        assert not isinstance(ours, str)
        theirs = measured(f"{name}, torch-fidelity", str(folder), n, d) if both else ""
        for file in given.files:
            file.unlink()
        yield Compared(f"2 x {n:,} x {d}", ours, theirs)


def markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--images", type=int, default=2000, help="images for the network; 0 leaves it out")
    options.add_argument("--data", default="", help="where they are: a folder or parquet file; random by default")
    options.add_argument("--vectors", type=int, default=50_000, help="features of either set for a Frechet distance")
    options.add_argument("--neighbours", type=int, default=10_000, help="features of either set for neighbours")
    options.add_argument("--many", type=int, default=50_000, help=f"the same, of {MANY_DIMENSIONS} dimensions")
    options.add_argument("--folder", type=Path, help="where to write features; a temporary folder by default")
    options.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    arguments = options.parse_args()
    if arguments.measure:
        name, rest = arguments.measure
        print(json.dumps(measure(name, json.loads(rest))))
        return
    print(
        f"{platform.machine()}, {torch.get_num_threads()} threads, Python {platform.python_version()}, "
        f"torch {torch.__version__}, numpy {np.__version__}\n"
    )
    if arguments.images:
        print_images(measured("images", arguments.images, arguments.data), arguments.data)
    reasons = set[str]()
    print(markdown(["", "fluvial", "torch-fidelity", "theirs / ours"], []), flush=True)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        for one in compare(Path(folder), arguments.vectors, arguments.neighbours, arguments.many, DIMENSIONS):
            print("\n".join(f"| {' | '.join(row)} |" for row in one.rows), flush=True)
            if isinstance(one.theirs, str) and one.theirs:
                reasons.add(one.theirs)
    for reason in reasons:
        print(f"\ntorch-fidelity: {reason}")


def print_images(found: Numbers | str, data: str) -> None:
    if isinstance(found, str):
        print(f"EfficientNet-Lite0: {found}\n")
        return
    n, rest = int(found["images"]), found["all"] - found["network"]
    head = ["EfficientNet-Lite0", "measured", "images / s", "10,000 images at this speed"]
    rows = [
        [name, f"{seconds:.1f} s", f"{n / seconds:,.0f}", f"{seconds / n * 10_000:.0f} s"]
        for name, seconds in (("network", found["network"]), ("reading and statistics", rest), ("all", found["all"]))
    ]
    print(f"{n:,} images, {Path(data).name if data else '32 x 32, random'}; memory {found['memory']:.0f} MiB\n")
    print(markdown(head, rows) + "\n", flush=True)


if __name__ == "__main__":
    if not Path("/proc/self/statm").exists():
        raise SystemExit("this benchmark reads its memory from /proc, which needs Linux")
    main()
