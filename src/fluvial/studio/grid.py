"""A picture of one image under all pairs of values of two settings."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fluvial.studio.draw import Samplers, sampled
from fluvial.studio.places import run_named
from fluvial.studio.scene import Scene

if TYPE_CHECKING:
    from PIL.Image import Image

SETTINGS: dict[str, str] = {
    "weight": "guidance",
    "steps": "steps",
    "x": "seed across",
    "label": "class",
    "solver": "solver",
    "low": "guidance from",
    "high": "guidance to",
    "average": "weights",
    "run": "run",
}
"""Settings of a scene that a grid can have along a side, with what they are called."""
MOST = 100  # images in a grid


def values_of(name: str, text: str) -> list[Any]:
    """The values of a setting in a text, apart by spaces or commas. Raises ValueError for none, and for no numbers."""
    kind = {"steps": int, "label": str, "solver": str, "average": str, "run": str}.get(name, float)
    words = text.replace(",", " ").split()
    if name == "label" and "," in text:  # names of classes may have spaces
        words = [word.strip() for word in text.split(",") if word.strip()]
    try:
        found = [kind(word) for word in words]
        if any(isinstance(value, float) and not math.isfinite(value) for value in found):
            raise ValueError("not finite")
    except ValueError:
        usual = "whole numbers, such as 4 8 16" if kind is int else "numbers, such as 1 1.5 2"
        raise ValueError(f"{SETTINGS[name]} takes {usual}, got {text[:100]!r}") from None
    if not found:
        raise ValueError(f"give values of {SETTINGS[name]}, such as 1 1.5 2")
    return found


def grid(
    root: Path,
    scene: Scene,
    across: tuple[str, Sequence[Any]],
    down: tuple[str, Sequence[Any]],
    *,
    samplers: Samplers | None = None,
    check: Callable[[int], None] = lambda done: None,
) -> "Image":
    """The first image of a scene, for all pairs of values of two settings: a picture with the values beside it.

    `check` is called before each image with the number of those that are done; what it raises ends the drawing. Raises
    ValueError for settings that a run cannot follow, the same setting twice, and more than 100 images.
    """
    import torch

    from fluvial.utils.pictures import labelled_rows

    if across[0] == down[0]:
        raise ValueError(f"choose two different settings, got {SETTINGS[across[0]]} twice")
    if len(across[1]) * len(down[1]) > MOST:
        raise ValueError(f"a grid has at most {MOST} images, got {len(across[1])} x {len(down[1])}")
    samplers, done, rows = samplers or Samplers(), 0, {}
    besides, belows = dict.fromkeys(across[1]), dict.fromkeys(down[1])
    for below in belows:
        images = []
        for beside in besides:
            check(done)
            one = replace(scene, count=1, **{across[0]: beside, down[0]: below})
            sampler = samplers.get(run_named(root, one.run), one.average)
            images.append(sampled(sampler, one, lambda step: check(done)).images)  # noqa: B023 - called before it goes on
            done += 1
        rows[told(down[0], below, scene)] = torch.cat(images)
    return labelled_rows(rows, [told(across[0], value, scene) for value in besides])


def told(name: str, value: Any, scene: Scene) -> str:  # noqa: ANN401
    """A setting and its value as a label; a place between seeds is none."""
    if name == "x":
        seed = replace(scene, x=value).seed
        return f"x {value:.10g}" if seed is None else f"seed {seed}"
    return f"{SETTINGS[name]} {value:.10g}" if isinstance(value, int | float) else f"{value}"


def as_python(root: Path, scene: Scene, across: tuple[str, Sequence[Any]], down: tuple[str, Sequence[Any]]) -> str:
    """The lines of Python that draw the grid: grid.png has its bytes."""
    usual = Scene()
    settings = {name: value for name, value in vars(scene).items() if value != getattr(usual, name)}
    of = ", ".join(f"{name}={value!r}" for name, value in settings.items())
    return "\n".join(
        [
            "from pathlib import Path",
            "from fluvial.studio.grid import grid",
            "from fluvial.studio.scene import Scene",
            "",
            f"picture = grid(Path({str(root)!r}), Scene({of}), {across!r}, {down!r})",
            'picture.save("grid.png")',
        ]
    )
