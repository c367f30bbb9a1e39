"""Settings in Python: a function run() that returns a Run.

fluvial train examples/digits_wide.py
"""

from dataclasses import replace

import fluvial


def run() -> fluvial.Run:
    """ARFlow on the digits, twice as wide, with a learning rate that falls with the width."""
    base = fluvial.recipes.get("digits-arflow")
    width = 2 * base.method.width
    return replace(
        base,
        method=replace(base.method, width=width, heads=width // 32),
        optim=replace(base.optim, lr=base.optim.lr * base.method.width / width),
    )
