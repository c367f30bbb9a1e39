"""Recipes: functions that return a Run, with the expected results in their docstrings."""

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

from fluvial.config import Run
from fluvial.methods import find_installed, method_of
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


def register(name: str, recipe: Any) -> None:  # noqa: ANN401 - checked to be a function
    """Registers a function that returns a Run as a recipe; registering it again changes nothing.

    The first line of its docstring is what `fluvial recipes` lists. Raises ValueError if the name is taken or
    not valid as the name of a folder, or the recipe has no docstring.
    """
    wrong = f"cannot register the recipe {name!r}: "
    if not isinstance(name, str) or not re.fullmatch(r"[a-z0-9][a-z0-9_.-]*", name):
        raise ValueError(f"{wrong}a name is of small letters, digits, and - _ . inside, such as digits-sit")
    if RECIPES.get(name, recipe) is not recipe:
        raise ValueError(f"{wrong}there is another recipe of that name; choose another")
    if not callable(recipe) or not (recipe.__doc__ or "").strip():
        raise ValueError(f"{wrong}it must be a function that returns a Run, with a docstring that says what to expect")
    RECIPES[name] = cast(Callable[[], Run], recipe)


def get(name: str) -> Run:
    """The run of a recipe, of an installed package too. Raises ValueError with the known names, the closest first.

    Packages with an entry point in `fluvial.methods` are imported for the recipes they register.
    """
    if name not in RECIPES:
        find_installed()
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
        optim=replace(run.optim, warmup=min(run.optim.warmup, steps // 10)),
        train=replace(
            run.train,
            steps=steps,
            batch=batch,
            accumulate=1,
            precision="fp32",
            compile=False,
            ema_warmup=True,  # a decay for many steps would leave the average at the first weights
            log_every=10,
            save_every=steps,
            validate_every=steps,
            sample_every=steps,
        ),
        sample=replace(run.sample, steps=5, batch=16),
    )
