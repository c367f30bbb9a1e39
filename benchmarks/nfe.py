"""Quality against number of function evaluations (NFE), by solver, steps, and for FlowAR their schedule over scales.

    python benchmarks/nfe.py RUN [RUN ...] [--count 500] [--features pixels] [--out docs/nfe-digits]

For every setting the same images are drawn (the noise of image i is always the same) and scored against the run's
test images; the guidance is the run's own. An evaluation is one call with the class and, where guidance has an
effect, one without; FlowAR's are those of its head over all scales. Writes OUT.png, OUT.md and OUT.json.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from memory import markdown

import fluvial
from fluvial.evaluation.against import against, real_images
from fluvial.evaluation.scores import Scores, named
from fluvial.evaluation.statistics import statistics
from fluvial.metrics.features import extractor
from fluvial.sampling.settings import Dopri5, SampleConfig
from fluvial.tools import estimate
from fluvial.tools.curves import COLOURS
from fluvial.utils.atomic import write_json
from fluvial.utils.extras import require

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OUT = Path(__file__).parents[1] / "docs" / "nfe-digits"
EVALUATIONS = {
    False: (4, 8, 12, 20, 32, 50),
    True: (2, 4, 6, 10, 20),
}  # NFE of one ODE, of which FlowAR has one per scale
A_STEP = {"euler": 1, "ab2": 1, "heun": 2}  # NFE per step
TOLERANCES = (1e-1, 1e-2, 1e-3)  # of dopri5
FALLING = {"falling 2 to 1": 2.0, "falling 4 to 1": 4.0}  # steps at the coarsest scale over those at the finest


class Point(NamedTuple):
    """The score of one run with one setting of the solver."""

    run: str
    series: str
    """Solver, and schedule of the steps over the scales."""
    settings: str
    nfe: int
    """Evaluations of the conditional branch."""
    gflops: float
    """Model GFLOPs of one image, both branches."""
    distance: float
    error: float
    class_accuracy: float | None


def settings_of(own: SampleConfig, scales: int) -> Iterator[tuple[str, str, SampleConfig]]:
    """Yields (series, description, settings) of everything to draw; `scales` is 0 for methods without scales."""
    each = replace(own, steps=1, grid="uniform", shift=1.0)
    for solver, cost in A_STEP.items():
        for evaluations in EVALUATIONS[scales > 0]:
            steps = evaluations // cost
            yield solver, f"{steps} steps", replace(each, solver=solver, steps=steps)
    for tolerance in TOLERANCES:
        yield "dopri5", f"tolerance {tolerance:g}", replace(each, solver=Dopri5(atol=tolerance, rtol=tolerance))
    for name, ratio in FALLING.items() if scales > 1 else ():
        for evaluations in EVALUATIONS[True]:
            steps = annealed(evaluations * scales, scales, ratio)
            changed = replace(each, solver="ab2", steps=steps)
            yield f"ab2, {name}", f"{' '.join(map(str, steps))} steps", changed


def annealed(total: int, scales: int, ratio: float) -> tuple[int, ...]:
    """Steps of each scale, coarse to fine, falling linearly by a factor of `ratio`; about `total` in all."""
    weights = [ratio + (1 - ratio) * i / (scales - 1) for i in range(scales)]
    return tuple(max(1, round(total * weight / sum(weights))) for weight in weights)


def measure(folder: Path, count: int, features: str) -> Iterator[Point]:
    """Yields the run's scores with every setting."""
    trained = fluvial.load(folder, device="cpu")
    network = extractor(features)
    compare = against("test", real_images(trained.run.data), network).measure
    for series, words, settings in settings_of(trained.run.sample, len(getattr(trained.run.method, "maps", ()))):
        drawn = trained.draw(count, settings=settings)
        found: Scores = compare(statistics(drawn, network, batch=settings.batch))
        distance, accuracy = found.values[named("frechet_distance", network.name)], found.values.get("class_accuracy")
        took = drawn.about["sampling"]
        gflops = estimate.sampling_flops(trained.run, took["evaluations"]) / 1e9
        known = None if accuracy is None else accuracy.value
        yield Point(folder.name, series, words, took["nfe"], gflops, *distance, known)


def picture(points: Sequence[Point], features: str, count: int) -> "Figure":
    """The figure: Frechet distance against NFE and against GFLOPs, one column per run, one line per series."""
    figures, ticker = (require(f"matplotlib.{name}", extra="plot", why="a picture") for name in ("figure", "ticker"))
    runs = list(dict.fromkeys(point.run for point in points))
    figure = figures.Figure(figsize=(6 * len(runs), 8), layout="constrained")
    costs = {"nfe": "evaluations with the class, an image", "gflops": "GFLOP an image"}
    panels = zip(figure.subplots(2, len(runs), squeeze=False).flat, product(costs, runs), strict=True)
    for axes, (cost, run) in panels:
        for colour, series in zip(COLOURS, dict.fromkeys(p.series for p in points if p.run == run), strict=False):
            of = sorted((p for p in points if (p.run, p.series) == (run, series)), key=lambda p: getattr(p, cost))
            x, y, error = ([getattr(p, name) for p in of] for name in (cost, "distance", "error"))
            axes.errorbar(x, y, error, label=series, color=colour, marker="o", markersize=3, capsize=2, linewidth=1)
        axes.set(xscale="log", yscale="log", title=run, xlabel=costs[cost])
        axes.set_ylabel(f"Frechet distance ({features}), {count:,} samples")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
            axis.set_major_formatter("{x:g}")
            axis.set_minor_formatter(ticker.NullFormatter())
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    return figure


def table(points: Sequence[Point]) -> str:
    """The scores as a Markdown table."""
    lines = []
    for p in points:
        accuracy = "" if p.class_accuracy is None else f"{p.class_accuracy:.3f}"
        distance = f"{p.distance:.3f} ± {p.error:.3f}"
        lines.append([p.run, p.series, p.settings, str(p.nfe), f"{p.gflops:.3g}", distance, accuracy])
    return markdown(["run", "solver", "settings", "NFE", "GFLOP", "Fréchet distance", "class accuracy"], lines)


def main(argv: Sequence[str] | None = None) -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("runs", nargs="+", type=Path, help="run folders")
    options.add_argument("--count", type=int, default=500, help="samples of each setting")
    options.add_argument("--features", default="pixels", help="an extractor of fluvial score")
    options.add_argument("--out", type=Path, default=OUT, help="what the files are called, without ending")
    given = options.parse_args(argv)
    points: list[Point] = []
    for folder in given.runs:
        for point in measure(folder, given.count, given.features):
            points.append(point)
            print(*point[:4], f"{point.distance:.4f}", file=sys.stderr, flush=True)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    runs = " ".join(folder.name for folder in given.runs)
    command = f"python benchmarks/nfe.py {runs} --count {given.count} --features {given.features}"
    about = f"# Solvers and steps: {runs.replace(' ', ', ')}\n\n`{command}`, torch {torch.__version__}"
    given.out.with_suffix(".md").write_text(f"{about}\n\n{table(points)}\n")
    write_json(given.out.with_suffix(".json"), {"command": command, "points": [p._asdict() for p in points]})
    picture(points, given.features, given.count).savefig(given.out.with_suffix(".png"), dpi=80)
    print(given.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
