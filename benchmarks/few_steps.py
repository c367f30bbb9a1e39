"""Runs that sample in few evaluations, beside the run that they come from: quality on the same noise, and speed.

    python benchmarks/few_steps.py BASE [RUN[:STEPS[,STEPS ...]] ...] [--count 2000] [--seeds 0 1] [--features pixels]
        [--picture FILE.png]

BASE is sampled as its settings say, RUN in its own steps or those given (32+20+8 for scales). The gap is the Frechet
distance less that of BASE on the same noise, with its paired standard error; all are means over the seeds. Speed is
that of sampling 250 images, the fastest of three, in this process and after one another. Prints a table. The picture
has ten images of each, from the same noise, a row each; --count 0 draws nothing else.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from memory import markdown
from torch import Tensor

import fluvial
from fluvial.evaluation.against import Against, against, real_images
from fluvial.evaluation.scores import named
from fluvial.evaluation.statistics import statistics
from fluvial.metrics.features import Extractor, extractor
from fluvial.metrics.frechet import moves
from fluvial.run.load import Sampler
from fluvial.sampling.samples import Samples
from fluvial.utils.pictures import save_labelled_rows

TIMED, REPEATS, SHOWN = 250, 3, 10


class Measured(NamedTuple):
    """Scores of one seed."""

    distance: float
    moves: Tensor
    """By how much each image moves the distance."""
    accuracy: float | None
    recall: float


def measured(sampler: Sampler, there: Against, look: Extractor, count: int, seed: int) -> Measured:
    found = statistics(sampler.draw(count, seed=seed), look, batch=sampler.run.sample.batch)
    scores, accuracy = there.measure(found).values, None
    if "class_accuracy" in scores:
        accuracy = scores["class_accuracy"].value
    moved = moves(found.pooled, there.reference.statistics.pooled, found.features)
    return Measured(scores[named("frechet_distance", look.name)].value, moved, accuracy, scores["recall"].value)


def speed(sampler: Sampler) -> tuple[float, int]:
    """Images/s, and evaluations of the network for an image."""
    drawn = [sampler.sample(TIMED) for _ in range(REPEATS)]
    return TIMED / min(sum(samples.seconds.values()) for samples in drawn), calls(drawn[0])


def calls(samples: Samples) -> int:
    """Evaluations of the network for an image; of FlowAR, of its head."""
    return sum(n for name, n in samples.nfe.items() if not name.startswith("transformer"))


def samplers(words: Sequence[str]) -> Iterator[tuple[str, Sampler]]:
    """Each run, with each number of steps."""
    for word in words:
        name, _, each = word.partition(":")
        sampler = fluvial.load(name, device="cpu")
        for steps in each.split(",") if each else [""]:
            several = [*map(int, steps.split("+"))] if steps else [*sampler.run.sample.each_steps]
            sample = replace(sampler.run.sample, steps=tuple(several) if len(several) > 1 else several[0])
            yield Path(name).name, replace(sampler, run=replace(sampler.run, sample=sample))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base")
    parser.add_argument("runs", nargs="*")
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--features", default="pixels")
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    if options.picture:
        drawn = [(name, sampler.sample(SHOWN)) for name, sampler in samplers([options.base, *options.runs])]
        save_labelled_rows({f"{name}, NFE {calls(of)}": of.images for name, of in drawn}, options.picture)
        if not options.count:
            return
    look = extractor(options.features)
    there: Against | None = None
    base: list[Measured] = []
    fastest, lines = 0.0, []
    for name, sampler in samplers([options.base, *options.runs]):
        there = there or against("test", real_images(sampler.run.data), look)
        rate, evaluations = speed(sampler)
        found = [measured(sampler, there, look, options.count, seed) for seed in options.seeds]
        base, fastest = base or found, fastest or rate
        gaps = [one.distance - of.distance for one, of in zip(found, base, strict=True)]
        apart = torch.cat([one.moves - of.moves for one, of in zip(found, base, strict=True)])
        error = float(apart.std() / len(apart) ** 0.5)
        known = [one.accuracy for one in found if one.accuracy is not None]
        lines.append(
            [
                name,
                " ".join(map(str, sampler.run.sample.each_steps)),
                str(evaluations),
                f"{mean([one.distance for one in found]):.3f}",
                f"{mean(gaps):+.3f} ± {error:.3f}",
                f"{mean(known):.4f}" if known else "",
                f"{mean([one.recall for one in found]):.3f}",
                f"{rate / fastest:.2f}",
            ]
        )
        print(*lines[-1], flush=True)
    heads = ["run", "steps", "evaluations", "Frechet distance", "gap", "class accuracy", "recall", "speed"]
    print(f"\n{markdown(heads, lines)}")


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


if __name__ == "__main__":
    main()
