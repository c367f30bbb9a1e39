"""Recipes: functions that return a Run, with the expected results in their docstrings."""

from collections.abc import Callable
from dataclasses import replace

from fluvial.config import Run
from fluvial.methods import method_of
from fluvial.recipes import cifar10, digits, imagenet, mnist, photos

RECIPES: dict[str, Callable[[], Run]] = {
    recipe.__name__.replace("_", "-"): recipe
    for recipe in (
        digits.digits_arflow,
        digits.digits_flowar,
        digits.digits_sit,
        mnist.mnist_arflow,
        mnist.mnist_flowar,
        cifar10.cifar10_sit,
        cifar10.cifar10_arflow,
        cifar10.cifar10_flowar,
        photos.photos_256,
        imagenet.imagenet128_arflow_xl2,
        imagenet.imagenet256_arflow_xl2,
        imagenet.imagenet256_sit_xl2,
        imagenet.imagenet256_flowar_s,
        imagenet.imagenet256_flowar_b,
        imagenet.imagenet256_flowar_l,
        imagenet.imagenet256_flowar_h,
        imagenet.imagenet512_flowar_l,
    )
}


def get(name: str) -> Run:
    """The run of a recipe. Raises ValueError with the known names, the closest first."""
    if name not in RECIPES:
        from difflib import get_close_matches

        close = get_close_matches(name, RECIPES, n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise ValueError(f"{name!r} is no run folder and no recipe.{hint} There are: {', '.join(RECIPES)}")
    return RECIPES[name]()


def smoke(run: Run) -> Run:
    """The run with a small model and few steps, to test the whole of it in about a minute on a CPU."""
    steps, batch = 60, 4 if run.method.images_per_sequence else 16
    return replace(
        run,
        method=method_of(run.method).small(run.method),
        optim=replace(run.optim, warmup=min(run.optim.warmup, 10)),
        train=replace(
            run.train,
            steps=steps,
            batch=batch,
            accumulate=1,
            precision="fp32",
            compile=False,
            log_every=10,
            save_every=steps,
            eval_every=steps,
            sample_every=steps,
        ),
        sample=replace(run.sample, steps=min(run.sample.steps, 5), scale_steps=(), batch=16),
    )
