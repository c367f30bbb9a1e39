"""Recipes: Python functions that return a Run. The docstring says what to expect."""

from collections.abc import Callable

from fluvial.config import Run
from fluvial.recipes import digits, imagenet

RECIPES: dict[str, Callable[[], Run]] = {
    recipe.__name__.replace("_", "-"): recipe
    for recipe in (
        digits.digits_arflow,
        digits.digits_flowar,
        digits.digits_sit,
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
    """The run of that name. Raises ValueError with the names there are, the closest first."""
    if name not in RECIPES:
        from difflib import get_close_matches

        close = get_close_matches(name, RECIPES, n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise ValueError(f"unknown recipe {name!r}.{hint} There are: {', '.join(RECIPES)}")
    return RECIPES[name]()
