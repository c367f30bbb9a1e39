"""fluvial train --dry-run: what a run needs and what it would do, before anything is read or written."""

import json
from dataclasses import asdict
from pathlib import Path

from rich.table import Table

from fluvial import estimate
from fluvial.cli.output import console
from fluvial.config import Run, to_json
from fluvial.data import images, latents
from fluvial.experiment import images_per_step


def show(run: Run, device: estimate.Device) -> None:
    """Prints parameters, FLOPs, memory, the length of the run, and its configuration as JSON.

    Raises ValueError for guidance that training would refuse.
    """
    run.check_guidance()
    table = Table("what", "value", title="nothing is trained", title_justify="left")
    table.columns[1].justify = "right"
    for what, value in rows(run, device):
        table.add_row(what, value)
    console().print(table)
    print("memory: the most at any moment, on one device; data, autoencoder and what PyTorch takes are not counted")
    print(json.dumps(to_json(run), indent=2))


def rows(run: Run, device: estimate.Device) -> list[tuple[str, str]]:
    """The lines of the table, name and value."""
    parts, step, steps = estimate.parameters(run), images_per_step(run), run.train.steps
    flops, memory, count = estimate.flops(run), estimate.memory(run, device=device), known_images(run)
    lines = [("parameters", f"{sum(parts.values()):,}")]
    lines += [(f"  {part}", f"{number:,}") for part, number in parts.items()]
    lines += [
        ("model FLOPs a step", f"{scaled(flops.total)}FLOP"),
        ("model FLOPs an image", f"{scaled(flops.total / step)}FLOP"),
        (f"memory of a step on {device}", f"{scaled(memory.total)}B"),
    ]
    lines += [(f"  {part}", f"{scaled(size)}B") for part, size in asdict(memory).items() if size]
    lines += [
        ("tokens an image", f"{estimate.tokens_per_image(run):,}"),
        ("images a step", f"{step:,}"),
        ("steps", f"{steps:,}"),
    ]
    if count is None:
        return [*lines, ("images an epoch", "not known before the data is opened")]
    return [
        *lines,
        ("images an epoch", f"{count:,}"),
        ("steps an epoch", f"{count / step:,.1f}"),
        ("epochs", f"{steps * step / count:,.1f}"),
    ]


def known_images(run: Run) -> int | None:
    """Images to train on, if they are built in or a folder of images or latents on this machine; else None.

    Raises ValueError for a local folder that cannot be read.
    """
    place = run.data.path or run.data.name
    if latents.is_cache(place):
        return latents.read_manifest(Path(place).expanduser()).plan.images
    if place not in images.BUILT_IN and not Path(place).expanduser().is_dir():
        return None
    found = images.load(run.data, "train", scan=False)
    return None if found is None else len(found.pixels)


def scaled(value: float | int) -> str:
    """1.5e12 as "1.5 T", to be followed by a unit."""
    for prefix in ("", "k", "M", "G", "T"):
        if value < 1000:
            return f"{value:.4g} {prefix}"
        value /= 1000
    return f"{value:,.4g} P"
