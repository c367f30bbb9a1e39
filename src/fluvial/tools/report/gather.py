"""The contents of a report about one run, read from its folder. A missing or damaged part is the reason, as text."""

import re
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from shlex import join
from typing import TypeVar

from PIL import Image

from fluvial.config import Run
from fluvial.metrics import report as cards
from fluvial.run.folder import RunFolder
from fluvial.tools import estimate
from fluvial.tools.doctor.check import Check
from fluvial.tools.report.contents import Gathered, Picture
from fluvial.tools.runs import look
from fluvial.training import log
from fluvial.utils.files import read_bytes
from fluvial.utils.pictures import encoded

T = TypeVar("T")
Doctor = Callable[[Path], list[Check]]
Recipe = Callable[[str], Run | None]
GRID = re.compile(r"step-(\d{8,})\.png")
GRIDS = 8  # of the sample grids of a run that are shown
SMALL, WHOLE = 420, 1400  # pixels of the longer side, to which earlier grids and the newest are reduced
QUALITY = 88  # of JPEG, for what was reduced


def gather(folder: Path, name: str, doctor: Doctor | None, recipe: Recipe, *, whole: bool = True) -> Gathered:
    """The parts of a report about a run, with the checks of `doctor` if there is one.

    `whole` are parameters, curves and pictures too. Raises ValueError if its run.json cannot be read.
    """
    there = RunFolder(folder)
    run, named = there.run(), there.record().get("recipe")
    card = f"no score: `{join(['fluvial', 'score', str(folder)])}` makes one"
    return Gathered(
        name=name,
        folder=folder,
        listed=look(folder),
        run=run,
        recipe=named,
        original=recipe(named or ""),
        parameters=_parameters(run) if whole else None,
        rows=_or_reason(lambda: log.read(folder)) if whole else "",
        card=_or_reason(lambda: cards.read(there.card)) if there.card.exists() else card,
        checks="" if doctor is None else _or_reason(lambda: doctor(folder)),
        grids=_grids(there.samples) if whole else "",
    )


def _or_reason(read: Callable[[], T]) -> T | str:
    try:
        return read()
    except (ValueError, OSError) as error:
        return str(error)


def _parameters(run: Run) -> int | None:
    """The number of parameters, without memory for them; None for a model of elsewhere that cannot be built so."""
    try:
        return sum(estimate.parameters(run).values())
    except Exception:  # whatever a foreign model raises on tensors without content
        return None


def _grids(samples: Path) -> list[Picture] | str:
    """A few of the grids drawn in training, evenly over the steps, or else that of `fluvial sample`."""
    found = sorted((int(match[1]), path) for path in samples.glob("step-*.png") if (match := GRID.fullmatch(path.name)))
    captions = {path: f"step {step:,}" for step, path in evenly(found, GRIDS)}
    if not captions and (samples / "grid.png").exists():
        captions = {samples / "grid.png": "drawn by fluvial sample"}
    if not captions:
        return "no samples yet: training draws them every train.sample_every steps, and `fluvial sample` at any time"
    newest, drawn = list(captions)[-1], []
    for path, caption in captions.items():
        try:
            drawn.append(_reduced(path, WHOLE if path == newest else SMALL, caption))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            drawn.append(Picture(b"", "", f"{path.name} cannot be read ({type(error).__name__})"))
    return drawn


def evenly(items: list[T], count: int) -> list[T]:
    """At most `count` of the items, spread evenly, with the first and the last."""
    if len(items) <= count:
        return items
    return [items[round(i * (len(items) - 1) / (count - 1))] for i in range(count)]


def _reduced(file: Path, side: int, caption: str) -> Picture:
    """A picture whose longer side is at most so many pixels; small ones are embedded as they are."""
    content = read_bytes(file)
    with Image.open(BytesIO(content), formats=["PNG"]) as image:
        image.load()
        if max(image.size) <= side:
            return Picture(content, "png", caption)
        image = image.convert("L" if image.mode in ("1", "L") else "RGB")
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
        return Picture(encoded(image, "jpeg", quality=QUALITY), "jpeg", caption)
