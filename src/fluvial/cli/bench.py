"""fluvial bench."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, cast

import tyro
from rich.table import Table

from fluvial import recipes
from fluvial.cli.arguments import Device, device_of, parse, positional
from fluvial.cli.output import console, scaled
from fluvial.config import Run
from fluvial.tools import bench as benchmark
from fluvial.utils.atomic import write_json
from fluvial.utils.checks import at_least
from fluvial.utils.errors import UsageError
from fluvial.utils.files import make_folder
from fluvial.utils.precision import Precision

WHAT = "train, for a training step, or sample, for the drawing of a batch"
ABOUT = "{} is timed on random latents, against large matrix products in between; no data or autoencoder is needed."


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    run: Annotated[Run, tyro.conf.arg(name="")]
    device: Device = "auto"
    """Where to compute: cpu, cuda, cuda:1 or mps; auto takes CUDA if it is there."""
    batch: int | None = None
    """Examples of a training step, or images drawn at a time; those of the recipe by default."""
    dtype: Precision | None = None
    """Precision, as train.precision and sample.precision, by default those of the recipe."""
    compile: bool | None = None
    """Compile each block, as train.compile and sample.compile, by default as the recipe says."""
    warmup: int = 2
    """Steps or batches before the timed ones."""
    repeats: int = 5
    """Measurements; what is quicker than a fifth of a second is done several times in each."""
    side: int | None = None
    """Side of the matrices whose products it is compared with; 2048 on a CPU and 8192 on a GPU by default."""
    profile: bool = False
    """Also tell where the time goes, by operation."""
    out: Path | None = None
    """Where to write all of it as JSON; runs/bench/<recipe>-<train or sample>.json by default."""

    def __post_init__(self) -> None:
        at_least(1, self, "warmup", "repeats")
        at_least(1, self, *(name for name in ("batch", "side") if getattr(self, name) is not None))


def bench(arguments: list[str]) -> None:
    what, rest = positional(arguments, "bench", "train|sample", WHAT, more=True)
    if what not in ("train", "sample"):
        raise UsageError(f"fluvial bench has train and sample, got {what!r}")
    what = cast(benchmark.What, what)
    name, rest = positional(rest, f"bench {what}", "RECIPE", f"one of: {', '.join(recipes.RECIPES)}")
    try:
        run = recipes.get(name)
    except ValueError as error:
        raise UsageError(str(error)) from error
    doc = f"{ABOUT.format('Training' if what == 'train' else 'Sampling')}\n\n{inspect.getdoc(recipes.RECIPES[name])}"
    options = parse(BenchOptions, BenchOptions(run=run), rest, f"fluvial bench {what} {name}", doc)
    run = benchmark.settings(what, options.run, batch=options.batch, dtype=options.dtype, compile=options.compile)
    result = benchmark.measure(
        what,
        run,
        device=device_of(options.device),
        warmup=options.warmup,
        repeats=options.repeats,
        profiled=options.profile,
        side=options.side,
    )
    out = options.out or Path("runs") / "bench" / f"{name}-{what}.json"
    make_folder(out.parent)
    write_json(out, {"recipe": name, **result})
    show(f"{what} {name}", result)
    print(out)


def show(title: str, result: Mapping[str, Any]) -> None:
    """Prints the table of one measurement, and its profile if there is one."""
    table = Table("what", "median", "quartiles", title=title, title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    for what, values in rows(result):
        table.add_row(what, *values)
    printer = console()
    printer.print(table)
    if result["profile"]:
        table = Table("operation", "share of the time", "calls", title="where the time goes", title_justify="left")
        for row in result["profile"]:
            table.add_row(row["operation"], f"{row['share']:.1%}", f"{row['calls']:,}")
        printer.print(table)


def rows(result: Mapping[str, Any]) -> list[tuple[str, tuple[str, ...]]]:
    """The lines of the table."""
    machine, memory = result["machine"], result["memory"]["peak"]
    of = "step" if result["what"] == "train" else "batch"
    measured = {
        "images/s": "images_per_second",
        f"seconds a {of}": "seconds",
        "model FLOP/s": "flops_per_second",
        "FLOP/s of matrix products": "matrix_peak",
        "utilisation": "utilisation",
    }
    lines = [(name, _quartiles(result[key])) for name, key in measured.items()]
    return [
        *lines,
        (f"model FLOPs a {of}", (f"{scaled(result['flops'])}FLOP",)),
        (f"images a {of}", (f"{result['images']:,}",)),
        *((f"evaluations: {name}", (f"{number:,}",)) for name, number in result["evaluations"].items()),
        ("peak memory", ("not known here" if memory is None else f"{scaled(memory)}B",)),
        ("dtype", (result["dtype"] + (", compiled" if result["compile"] else ""),)),
        ("machine", (machine["gpu"] or f"{machine['cpu']}, {machine['threads']} of {machine['cores']} cores",)),
    ]


def _quartiles(values: Mapping[str, float]) -> tuple[str, str]:
    median, low, high = (scaled(values[key]).strip() for key in ("median", "low", "high"))
    return median, f"{low} to {high}"
