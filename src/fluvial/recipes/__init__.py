"""Recipes: Python functions that return a Run. The docstring says what to expect."""

from collections.abc import Callable

from fluvial.config import Run
from fluvial.recipes.digits import digits_arflow, digits_sit
from fluvial.recipes.imagenet import imagenet128_arflow_xl2, imagenet256_arflow_xl2, imagenet256_sit_xl2

RECIPES: dict[str, Callable[[], Run]] = {
    recipe.__name__.replace("_", "-"): recipe
    for recipe in (digits_arflow, digits_sit, imagenet128_arflow_xl2, imagenet256_arflow_xl2, imagenet256_sit_xl2)
}


def get(name: str) -> Run:
    """The run of that name. Raises ValueError with the names there are, the closest first."""
    if name not in RECIPES:
        from difflib import get_close_matches

        close = get_close_matches(name, RECIPES, n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise ValueError(f"unknown recipe {name!r}.{hint} There are: {', '.join(RECIPES)}")
    return RECIPES[name]()
