"""Ablation of optimisations, shared by cpu.py and gpu.py: measures cases with and without each, as a Markdown table.

A case is a command `fluvial bench WHAT ARGUMENTS`; an optimisation is an option of it, on or off.
"""

import gc
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import torch
from memory import markdown

from fluvial.cli import main
from fluvial.tools import bench
from fluvial.utils.atomic import write_json

RESULTS = Path(__file__).parent / "results"
LONGER = 1.2  # a case is expected to take at most this multiple of its time in another variant


class Case(NamedTuple):
    """A named command `fluvial bench what *arguments`."""

    name: str
    what: bench.What
    arguments: tuple[str, ...]


class Optimisation(NamedTuple):
    """The options that switch an optimisation on and off."""

    on: tuple[str, ...]
    off: tuple[str, ...]


class Row(NamedTuple):
    """The result of one case in one variant: a measurement, or the reason why there is none."""

    case: str
    variant: str
    command: str
    result: dict[str, Any] | None
    reason: str = ""


def variants(optimisations: Mapping[str, Optimisation]) -> dict[str, tuple[str, ...]]:
    """The options of each variant, by name: all on, all off, each one off."""
    on = {name: each.on for name, each in optimisations.items()}
    found = {"all": on}
    if len(optimisations) > 1:
        found["none"] = {name: each.off for name, each in optimisations.items()}
    for name, each in optimisations.items():
        found[f"without {name}"] = {**on, name: each.off}
    return {name: tuple(word for words in options.values() for word in words) for name, options in found.items()}


def run(
    cases: Sequence[Case],
    optimisations: Mapping[str, Optimisation],
    common: Sequence[str],
    *,
    budget: float,
    apart: bool,
) -> Iterator[Row]:
    """Measures every case in every variant, first with everything on; what no longer fits in the budget is left out.

    `apart` runs each measurement in its own process, so that peak memory is that of the measurement.
    """
    started, longest = time.monotonic(), dict[str, float]()
    for variant, options in variants(optimisations).items():
        for case in cases:
            arguments = ["bench", case.what, *case.arguments, *options, *common]
            command = " ".join(["fluvial", *arguments])
            profile = ["--profile", "True"] if variant == "all" else []
            left = budget - (time.monotonic() - started)
            likely = LONGER * longest.get(case.name, 0.0) if variant != "all" else max(longest.values(), default=0.0)
            if left <= likely:
                reason = f"left out: {left:.0f} s of {budget:.0f} s were left, and it may take {likely:.0f} s"
                row = Row(case.name, variant, command, None, reason)
            else:
                begun = time.monotonic()
                result, reason = measured([*arguments, *profile], left if apart else None)
                longest[case.name] = max(longest.get(case.name, 0.0), time.monotonic() - begun)
                row = Row(case.name, variant, command, result, reason)
            print(line(row), file=sys.stderr, flush=True)
            yield row


def measured(
    arguments: Sequence[str], seconds: float | None, environment: Mapping[str, str] | None = None
) -> tuple[dict[str, Any] | None, str]:
    """The measurement of a command, or the reason for its failure.

    With `seconds` it runs in its own process, with this time limit and these environment variables.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "result.json"
        arguments = [*arguments, "--out", str(out)]
        if seconds is None:
            said = io.StringIO()
            try:
                with redirect_stdout(io.StringIO()), redirect_stderr(said):
                    main(arguments)
            except Exception as error:  # the other cases go on
                said.write(f"{type(error).__name__}: {error}")
            errors = said.getvalue()
            torch.compiler.reset()
            gc.collect()
            torch.cuda.empty_cache()
        else:
            command = [sys.executable, "-m", "fluvial", *arguments]
            try:
                variables = {**os.environ, **(environment or {})}
                done = subprocess.run(command, timeout=seconds, env=variables, capture_output=True, text=True)
                errors = done.stderr
            except subprocess.TimeoutExpired:
                return None, f"stopped after the {seconds:.0f} s that were left"
        if out.exists():
            return json.loads(out.read_text()), ""
        return None, f"failed: {(errors.strip().splitlines() or ['it was killed'])[-1]}"


def line(row: Row) -> str:
    """One line about a measurement, for the progress output."""
    if row.result is None:
        return f"{row.case}, {row.variant}: {row.reason}"
    values = (row.result[key]["median"] for key in ("images_per_second", "utilisation"))
    return "{}, {}: {:.3g} images/s, utilisation {:.3f}".format(row.case, row.variant, *values)


def document(title: str, rows: Sequence[Row], limits: Mapping[str, str]) -> str:
    """The report in Markdown: the machine and its limits, each case by variant, its most expensive operations."""
    first = next((row.result for row in rows if row.result is not None), None)
    machine = {} if first is None else {k: v for k, v in first["machine"].items() if v is not None}
    about = {**machine, "date": f"{datetime.now(UTC):%Y-%m-%d}", **limits}
    parts = [
        f"# {title}",
        markdown(["machine", ""], [[key, str(value)] for key, value in about.items()]),
        "Medians, with quartiles in brackets. Utilisation is model FLOP/s over the rate of matrix products in the same "
        "process and dtype, memory the peak above what there was before the model was made. "
        '"All" has every optimisation that can be switched, "none" none, "without" lacks one; what cannot be switched '
        'is in benchmarks/twins.py. The last column compares images/s with those of "none".',
    ]
    for case in dict.fromkeys(row.case for row in rows):
        of_case = [row for row in rows if row.case == case]
        head = ["", "images/s", "utilisation", "memory", "times none"]
        parts += [f"## {case}", f"`{of_case[0].command}`", markdown(head, table(of_case))]
        for row in of_case:
            if row.result is not None and row.result["profile"]:
                lines = [[p["operation"], f"{p['share']:.1%}", f"{p['calls']:,}"] for p in row.result["profile"][:8]]
                parts += [f"Where the time goes, {row.variant}:", markdown(["operation", "share", "calls"], lines)]
    return "\n\n".join(parts) + "\n"


def table(rows: Sequence[Row]) -> list[list[str]]:
    """The table rows of one case, one for each variant."""
    none = next((row.result for row in rows if row.variant == "none"), None)
    base = none and none["images_per_second"]["median"]
    lines = []
    for row in rows:
        if row.result is None:
            lines.append([row.variant, row.reason, "", "", ""])
            continue
        speed, memory = row.result["images_per_second"], row.result["memory"]
        lines.append(
            [
                row.variant,
                quartiles(speed, lambda v: f"{v:,.0f}" if v >= 100 else f"{v:.3g}"),
                quartiles(row.result["utilisation"], "{:.3f}".format),
                "" if memory["peak"] is None else f"{(memory['peak'] - memory['before']) / 1e9:.2f} GB",
                f"{speed['median'] / base:.2f}" if base else "",
            ]
        )
    return lines


def quartiles(values: Mapping[str, float], written: Callable[[float], str]) -> str:
    """Median and quartiles as text."""
    median, low, high = (written(values[key]) for key in ("median", "low", "high"))
    return f"{median} ({low} to {high})"


def slug(machine: Mapping[str, Any]) -> str:
    """A file name for the machine: the GPU, or the processor and its cores."""
    name = machine["gpu"] or f"{machine['cpu']} {machine['cores']} cores"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def write(folder: Path, title: str, rows: Iterable[Row], limits: Mapping[str, str], device: str) -> Path:
    """Writes the report and all measurements as JSON; updated after every row."""
    folder.mkdir(parents=True, exist_ok=True)
    path, written = folder / f"{slug(bench.machine(device))}.md", list[Row]()
    for row in rows:
        written.append(row)
        path.write_text(document(title, written, limits))
        write_json(path.with_suffix(".json"), {"rows": [each._asdict() for each in written]})
    return path


def measured_limits(device: str) -> dict[str, str]:
    """The machine's limits: matrix product rates by dtype, and memory bandwidth."""
    limits = {f"matrix products, {dtype}": bench.matrix_peak(dtype, device) for dtype in ("fp32", "bf16")}
    if device == "cuda":
        limits["matrix products, tf32"] = bench.matrix_peak("tf32", device)
    found = {name: f"{rate / 1e12:.3g} TFLOP/s" for name, rate in limits.items()}
    return {**found, "memory, read and written": f"{bench.bandwidth(device) / 1e9:.3g} GB/s"}
