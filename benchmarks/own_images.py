"""What `fluvial train IMAGES` reaches in so many minutes, beside a recipe of the same method on the same images.

    python benchmarks/own_images.py IMAGES --minutes 10 [--recipe cifar10-arflow] [--forms plan recipe smoke]
        [--test IMAGES] [--features FILE] [--count 1000] [--out runs/own-images]

plan is what the command chooses, recipe the named one, smoke its form for a first try: each trains on one thread for
the same seconds of training steps, as many steps as are measured to fit, and is scored against the test images, the
smoke form with the recipe's sampling. Runs that are there are only measured, interrupted ones go on. To compare fairly,
start two forms at the same time.
"""

import argparse
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch

import fluvial
from fluvial import recipes
from fluvial.config import Run
from fluvial.methods import method_of, name_of
from fluvial.run.folder import RunFolder
from fluvial.tools import estimate
from fluvial.tools.plan import pace
from fluvial.tools.plan.result import Plan
from fluvial.tools.timing import seconds_a_step
from fluvial.training.log import rows_of, validated

FORMS = ("plan", "recipe", "smoke")
SCORES = ("frechet_distance", "class_accuracy", "recall")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("images", help="a folder or file of images, or digits")
    options.add_argument("--minutes", type=float, default=10.0)
    options.add_argument("--recipe", default="cifar10-arflow")
    options.add_argument("--forms", nargs="+", choices=FORMS, default=FORMS)
    options.add_argument("--test", default="", help="test images, if the data has none")
    options.add_argument("--features", default="", help="a TorchScript file; pixels without one")
    options.add_argument("--count", type=int, default=1000, help="samples that are scored")
    options.add_argument("--out", type=Path, default=Path("runs/own-images"))
    asked = options.parse_args()
    torch.set_num_threads(1)
    print(f"| form | parameters | tokens | steps x images | validation loss | {' | '.join(SCORES)} |")
    print("| --- " * (5 + len(SCORES)) + "|")
    for form in asked.forms:
        folder = asked.out / f"{form}-{asked.recipe.partition('-')[2]}-{Path(asked.images).stem}-{asked.minutes:g}"
        run = RunFolder(folder).run() if RunFolder(folder).exists() else made(form, asked)
        sampler = fluvial.train(run, folder, device="cpu")
        card = fluvial.score(sampler, count=asked.count, features=asked.features, device="cpu")["scores"]
        numbers = (f"{card[name]['value']:.3g} ± {card[name]['error']:.1g}" for name in SCORES)
        parameters, tokens = sum(estimate.parameters(run).values()), method_of(run.method).tokens(run.method)
        loss = min(validated(rows_of(folder)).values())
        sizes = f"{parameters / 1e6:.2f}M | {tokens} | {run.train.steps:,} x {run.images_per_step}"
        print(f"| {form} | {sizes} | {loss:.4f} | {' | '.join(numbers)} |", flush=True)


@cache  # every form needs it: the plan is measured once
def planned(images: str, method: str, minutes: float, test: str) -> Plan:
    """The plan for these images, of the method of the recipe."""
    settings = {"data.test_path": test} if test else {}
    return fluvial.plan(images, method=method, minutes=minutes, settings=settings, device="cpu")


def made(form: str, asked: argparse.Namespace) -> Run:
    """The run of a form, for the minutes that were asked for."""
    recipe = recipes.get(asked.recipe)
    plan = planned(asked.images, name_of(type(recipe.method)), asked.minutes, asked.test)
    if form == "plan":
        return plan.run
    run = recipe if form == "recipe" else replace(recipes.smoke(recipe), sample=recipe.sample)
    if asked.images != "digits":
        data = replace(run.data, path=asked.images, test_path=asked.test, flip=plan.run.data.flip)
        run = replace(run, data=data, method=replace(run.method, classes=plan.run.method.classes))
    steps = max(1, int(pace.TRAINING * 60 * asked.minutes / seconds_a_step(run, torch.device("cpu"))))
    every = -(-steps // pace.SAVES)
    train = replace(run.train, steps=steps, validate_every=every, save_every=every, sample_every=0, first_sample=0)
    return replace(run, train=train, optim=replace(run.optim, warmup=min(run.optim.warmup, max(1, steps // 20))))


if __name__ == "__main__":
    main()
