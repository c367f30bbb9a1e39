"""Runs that go on to twice the steps against runs of that length from the start, by learning rate schedule.

    python benchmarks/longer.py [--recipe digits-sit] [--steps 1200] [--seeds 3] [--out runs/longer]

A small form of the recipe (width 64, depth 2, batch 32) is trained on one thread. Printed are the validation loss of
the averaged weights at the end and the Frechet distance of 1,000 samples in pixels, of each seed. Runs that are there
are only measured.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import torch

import fluvial
from fluvial import recipes
from fluvial.training.log import rows_of, validated

SCHEDULES = ("constant", "cosine", "wsd")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--recipe", default="digits-sit")
    options.add_argument("--steps", type=int, default=1200, help="steps in all, an even number")
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--schedules", nargs="+", choices=SCHEDULES, default=["cosine", "wsd"])
    options.add_argument("--count", type=int, default=1000, help="samples of the Frechet distance")
    options.add_argument("--out", type=Path, default=Path("runs/longer"))
    asked = options.parse_args()
    torch.set_num_threads(1)
    print("| seed | schedule | steps | validation loss | Frechet distance |\n| --- | --- | --- | --- | --- |")
    for seed in range(asked.seeds):
        for schedule in asked.schedules:
            for totals in ([asked.steps], [asked.steps // 2, asked.steps]):
                way = " -> ".join(map(str, totals))
                folder = asked.out / f"{schedule}-{'-'.join(map(str, totals))}-{seed}"
                loss, distance = measured(asked.recipe, schedule, seed, totals, folder, asked.count)
                print(f"| {seed} | {schedule} | {way} | {loss:.4f} | {distance:.3f} |", flush=True)


def measured(recipe: str, schedule: str, seed: int, totals: list[int], folder: Path, count: int) -> tuple[float, float]:
    """Validation loss and Frechet distance of a run that is trained to each of these totals in turn."""
    run = recipes.get(recipe)
    run = replace(
        run,
        seed=seed,
        method=replace(run.method, width=64, depth=2),
        optim=replace(run.optim, schedule=schedule),
        train=replace(run.train, batch=32, save_every=totals[0], validate_every=totals[0], sample_every=0),
    )
    for steps in totals if not folder.exists() else totals[-1:]:
        fluvial.train(replace(run, train=replace(run.train, steps=steps)), folder, device="cpu")
    card = fluvial.score(folder, count=count, device="cpu")
    return validated(rows_of(folder))[totals[-1]], card["scores"]["frechet_distance"]["value"]


if __name__ == "__main__":
    main()
