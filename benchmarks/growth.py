"""Growth of speed and memory with tokens, sequence length, scales, batch, and sampling steps.

    python benchmarks/growth.py [--only NAME ...] [--docs FOLDER] [--out FOLDER] [--tiny]

Small models on one CPU thread. Memory is measured in a separate process for each point, with an allocator that returns
freed memory at once; this is slow, so speed is measured in the main process. Draws docs/growth-<name>.png and writes
benchmarks/results/growth.json. Checks that ARFlow's memory is constant in the number of steps and that FlowAR's cache
grows in proportion to the tokens, and exits with 1 if not. `--tiny` measures two points of each curve.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from ablation import RESULTS, measured
from memory import MALLOC
from torch import Tensor, nn

from fluvial import recipes
from fluvial.config import Run
from fluvial.methods import flowar, method_of
from fluvial.tools import bench
from fluvial.tools.curves import COLOURS
from fluvial.utils.atomic import write_json
from fluvial.utils.extras import require

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DOCS = Path(__file__).parents[1] / "docs"
METHODS = {"SiT": "cifar10-sit", "ARFlow": "cifar10-arflow", "FlowAR": "cifar10-flowar"}
SMALL = "--method.depth 2 --method.width 128 --method.heads 4 --dtype fp32 --compile False".split()
SMALL_HEAD = "--method.head-depth 2 --method.head-width 128 --method.head-heads 4".split()
COMMON = "--sample.steps 4 --device cpu --warmup 2 --side 512".split()
SIDES = (8, 16, 24, 32)  # sides of the token map
LENGTHS, BATCHES, STEPS = (1, 2, 4, 8, 16), (1, 4, 16, 64), (5, 10, 20, 40)
SCALES = ("16", "8 16", "4 8 16", "2 4 8 16", "1 2 4 8 16")
SAME = 0.05  # fraction by which memory may vary between measurements
SECONDS = 120.0  # time limit of a point
WIDE = 10  # ratio of values from which on axes are logarithmic


class Point(NamedTuple):
    """A point of a curve: training or sampling of a method at `x`, with the options of the command."""

    what: bench.What
    method: str
    x: int
    options: tuple[str, ...]


class Found(NamedTuple):
    """The measurement of a point: images/s with quartiles, and the growth of the process in bytes."""

    what: bench.What
    method: str
    x: int
    speed: float
    low: float
    high: float
    memory: int


class Sweep(NamedTuple):
    """The points of one figure, with the label of its horizontal axis."""

    label: str
    points: tuple[Point, ...]


def sweeps() -> dict[str, Sweep]:
    """All sweeps, by name."""

    def batch(method: str, what: bench.What, images: int = 4) -> tuple[str, ...]:
        return ("--batch", str(max(1, images // 5 if (method, what) == ("ARFlow", "train") else images)))

    def tokens(method: str, side: int) -> tuple[str, ...]:
        size = f"--method.size {2 * side} {2 * side}"  # patches of 2 x 2; four scales each
        scales = f" --method.scales {side // 8} {side // 4} {side // 2} {side}" if method == "FlowAR" else ""
        return tuple((size + scales).split())

    both: tuple[bench.What, ...] = ("train", "sample")
    found = {
        "tokens": [
            Point(what, method, side**2, (*tokens(method, side), *batch(method, what)))
            for what in both
            for method in METHODS
            for side in SIDES
        ],
        "sequence": [
            Point("train", "ARFlow", n, ("--method.images-per-sequence", str(n), "--batch", "2")) for n in LENGTHS
        ],
        "scales": [
            Point(what, "FlowAR", len(scales.split()), ("--method.scales", *scales.split(), *batch("FlowAR", what)))
            for what in both
            for scales in SCALES
        ],
        "batch": [
            Point(what, method, 5 * n if (method, what) == ("ARFlow", "train") else n, ("--batch", str(n)))
            for what in both
            for method in METHODS
            for n in (BATCHES[:-1] if (method, what) == ("ARFlow", "train") else BATCHES)
        ],
        "steps": [
            Point("sample", method, n, (*batch(method, "sample"), "--sample.steps", str(n)))
            for method in METHODS
            for n in STEPS
        ],
    }
    labels = {
        "tokens": "tokens an image (the last scale of FlowAR)",
        "sequence": "images a sequence",
        "scales": "scales, the finest ones first",
        "batch": "images a batch (in training ARFlow 1, 4, 16 sequences of 5)",
        "steps": "sampling steps (of FlowAR at each scale)",
    }
    return {name: Sweep(labels[name], tuple(points)) for name, points in found.items()}


def ends(sweep: Sweep) -> Sweep:
    """The sweep with the first two points of each curve."""
    kept, seen = [], dict[tuple[str, str], int]()
    for point in sweep.points:
        seen[point.what, point.method] = seen.get((point.what, point.method), 0) + 1
        if seen[point.what, point.method] <= 2:
            kept.append(point)
    return sweep._replace(points=tuple(kept))


def measure(point: Point) -> Found:
    """Measures a point. Raises RuntimeError if a command fails, or memory cannot be measured."""
    head = SMALL_HEAD if point.method == "FlowAR" else []
    arguments = ["bench", point.what, METHODS[point.method], *SMALL, *head, *COMMON, *point.options]
    speed = _measured(arguments, None)["images_per_second"]
    memory = _measured([*arguments, "--repeats", "1"], SECONDS)["memory"]
    if memory["peak"] is None:
        raise RuntimeError("the memory of a process cannot be measured on this machine: growth needs Linux")
    grown = memory["peak"] - memory["before"]
    return Found(point.what, point.method, point.x, speed["median"], speed["low"], speed["high"], grown)


def _measured(arguments: Sequence[str], seconds: float | None) -> dict[str, Any]:
    result, reason = measured(arguments, seconds, {**MALLOC, "OMP_NUM_THREADS": "1"})
    if result is None:
        raise RuntimeError(f"fluvial {' '.join(arguments)}: {reason}")
    return result


def state_sizes(run: Run) -> list[int]:
    """Bytes of the model's state for one image after each forward pass: ARFlow's history or FlowAR's cache."""
    model, sizes = method_of(run.method).Model(run.method).eval(), list[int]()
    assert isinstance(model.blocks, nn.ModuleList)

    def note(block: nn.Module, given: object, result: tuple[Tensor, Any]) -> None:
        state = result[1]
        sizes.append(sum(t.nbytes for t in (state if isinstance(state, tuple) else (state,))))

    for block in model.blocks:
        block.register_forward_hook(note)
    noise, labels = torch.randn(1, *run.method.noise_shape), torch.zeros(1, dtype=torch.long)
    method_of(run.method).sample(model, labels, noise=noise, times=run.sample.times())
    depth = len(model.blocks)
    return [sum(sizes[i : i + depth]) for i in range(0, len(sizes), depth)]


def claims(points: Mapping[str, Sequence[Found]]) -> list[tuple[bool, str]]:
    """The claims about growth: whether each holds, and the numbers, of the models' state and measured memory."""
    history = state_sizes(_small("digits-arflow", steps=8))
    constant = len(set(history)) == 1
    found = [(constant, f"ARFlow's history after each of 8 steps: {_listed(history)} bytes")]
    run = _small("digits-flowar", steps=2)
    assert isinstance(run.method, flowar.FlowARConfig)
    cache, sizes = state_sizes(run), run.method.sizes
    tokens = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    rates = [held / n for held, n in zip(cache, tokens, strict=True)]
    found.append((len(set(rates)) == 1, f"FlowAR's cache a token, after each scale: {_listed(rates)} bytes"))
    peaks = [point.memory for point in points.get("steps", ()) if point.method == "ARFlow"]
    if peaks:
        text = f"memory of sampling ARFlow at {len(peaks)} numbers of steps: {min(peaks):,} to {max(peaks):,} bytes"
        found.append((max(peaks) <= (1 + SAME) * min(peaks), text))
    return found


def _small(recipe: str, steps: int) -> Run:
    run = recipes.get(recipe)
    return replace(run, sample=replace(run.sample, steps=steps))


def _listed(values: Sequence[float | int]) -> str:
    return ", ".join(f"{value:,.6g}" for value in dict.fromkeys(values))


def picture(sweep: Sweep, points: Sequence[Found]) -> "Figure":
    """The figure of a sweep: images/s and memory, with a row for training and one for sampling."""
    require("matplotlib", extra="plot", why="drawing curves")
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

    whats = [what for what in ("train", "sample") if any(point.what == what for point in points)]
    result = Figure(figsize=(9.6, 0.5 + 3.1 * len(whats)), dpi=120, layout="constrained")
    for row, what in enumerate(whats):
        speeds, memories = (result.add_subplot(len(whats), 2, 2 * row + column) for column in (1, 2))
        for colour, method in zip(COLOURS, METHODS, strict=False):
            curve = sorted(p for p in points if (p.what, p.method) == (what, method))
            x, speed = [p.x for p in curve], [p.speed for p in curve]
            if curve:
                speeds.plot(x, speed, "o-", color=colour, markersize=3.5, label=method)
                speeds.fill_between(x, [p.low for p in curve], [p.high for p in curve], color=colour, alpha=0.2)
                memories.plot(x, [p.memory / 1e6 for p in curve], "o-", color=colour, markersize=3.5, label=method)
        doing = "training" if what == "train" else "sampling"
        speeds.set_title(f"{doing}, images/s", fontsize=10.5, loc="left", fontweight="bold")
        memories.set_title(f"{doing}, memory in MB", fontsize=10.5, loc="left", fontweight="bold")
        highs = [p.high for p in points if p.what == what]
        if max(highs) > WIDE * min(highs):
            speeds.set_xscale("log", base=2)
            speeds.set_yscale("log")
            speeds.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        else:
            speeds.set_ylim(0, 1.08 * max(highs))
        memories.set_ylim(0, 1.08 * max(p.memory / 1e6 for p in points if p.what == what))
        ticks = [p.x for p in points if (p.what, p.method) == (what, points[0].method)]
        for axes in (speeds, memories):
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(True, color="#dddddd", linewidth=0.6)
            axes.xaxis.set_major_locator(FixedLocator(ticks))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.tick_params(labelsize=8)
            axes.set_xlabel(sweep.label, fontsize=9)
        speeds.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        speeds.yaxis.set_minor_formatter(NullFormatter())
    result.axes[0].legend(fontsize=8, frameon=False)
    return result


def main(argv: Sequence[str] | None = None) -> int:
    known = sweeps()
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--only", nargs="+", choices=known, default=list(known), help="curves to draw")
    options.add_argument("--docs", type=Path, default=DOCS, help="folder of the pictures")
    options.add_argument("--out", type=Path, default=RESULTS, help="folder of growth.json")
    options.add_argument("--tiny", action="store_true", help="two points of each curve, to try the code")
    arguments = options.parse_args(argv)
    torch.set_num_threads(1)
    points = dict[str, list[Found]]()
    for folder in (arguments.docs, arguments.out):
        folder.mkdir(parents=True, exist_ok=True)
    for name in arguments.only:
        sweep = ends(known[name]) if arguments.tiny else known[name]
        points[name] = []
        for point in sweep.points:
            points[name].append(measure(point))
            print(name, *points[name][-1], file=sys.stderr, flush=True)
        picture(sweep, points[name]).savefig(arguments.docs / f"growth-{name}.png")
        print(arguments.docs / f"growth-{name}.png")
    checked = claims(points)
    for holds, text in checked:
        print(f"{'yes' if holds else 'NO '}  {text}")
    values = {name: [point._asdict() for point in found] for name, found in points.items()}
    write_json(arguments.out / "growth.json", {"machine": bench.machine(), **values})
    return 0 if all(holds for holds, _ in checked) else 1


if __name__ == "__main__":
    raise SystemExit(main())
