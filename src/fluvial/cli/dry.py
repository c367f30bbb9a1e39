"""fluvial train --dry-run: what a run needs and what it would do, and whether training would start."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from rich.table import Table

from fluvial.cli.output import console, scaled
from fluvial.config import Run, to_json
from fluvial.tools import estimate


def show(run: Run, device: estimate.Device, out: Path, check: Callable[..., int | None]) -> None:
    """Prints parameters, FLOPs, memory, the length of the run, the checks made by `check`, and its configuration.

    Raises ValueError afterwards if training would.
    """
    said, wrong, count = list[str](), None, None
    try:
        count = check(run, out, tell=said.append)
    except (ValueError, OSError, RuntimeError) as error:
        wrong = error
    table = Table("what", "value", title="nothing is trained", title_justify="left")
    table.columns[1].justify = "right"
    for what, value in rows(run, device, count):
        table.add_row(what, value)
    console().print(table)
    print("memory: the most at any moment, on one device; data, autoencoder and what PyTorch takes are not counted")
    for line in said:
        print(line)
    if wrong is None:
        print(f"checked: training would start in {out}")
    print(json.dumps(to_json(run), indent=2))
    if wrong is not None:
        raise ValueError(f"training would not start: {wrong}") from wrong


def rows(run: Run, device: estimate.Device, count: int | None) -> list[tuple[str, str]]:
    """The lines of the table, name and value; `count` is the number of training images, if it is known."""
    parts, step, steps = estimate.parameters(run), run.images_per_step, run.train.steps
    flops, memory = estimate.flops(run), estimate.memory(run, device=device)
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
