"""What the CPU and the GPU set share: cases with and without each optimisation, inside a budget of time, as a document.

A case is a command, `fluvial bench WHAT ARGUMENTS`; an optimisation is an option of it, on or off.
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
LONGER = 1.2  # a case may take so many times as long as it has in another variant


class Case(NamedTuple):
    """`fluvial bench what *arguments`, under a name."""

    name: str
    what: bench.What
    arguments: tuple[str, ...]


class Optimisation(NamedTuple):
    """The options that switch it on and off."""

    on: tuple[str, ...]
    off: tuple[str, ...]


class Row(NamedTuple):
    """What came of one case in one variant: a measurement, or the reason why there is none."""

    case: str
    variant: str
    command: str
    result: dict[str, Any] | None
    reason: str = ""


def variants(optimisations: Mapping[str, Optimisation]) -> dict[str, tuple[str, ...]]:
    """Options by name: everything on, everything off, each one off."""
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
    """Measures every case in every variant, all cases with everything on first; what no longer fits is left out.

    `apart` gives each measurement a process of its own, whose peak of memory then is the measurement's.
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
    """What the command measures, or why it does not; with `seconds` in a process that has as many, and an environment
    with these variables."""
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
    """One measurement in a line, for who waits."""
    if row.result is None:
        return f"{row.case}, {row.variant}: {row.reason}"
    values = (row.result[key]["median"] for key in ("images_per_second", "utilisation"))
    return "{}, {}: {:.3g} images/s, utilisation {:.3f}".format(row.case, row.variant, *values)


def document(title: str, rows: Sequence[Row], limits: Mapping[str, str]) -> str:
    """The tables in Markdown: the machine and its limits, each case by variant, where its time goes."""
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
    """A line for each variant of one case."""
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
    median, low, high = (written(values[key]) for key in ("median", "low", "high"))
    return f"{median} ({low} to {high})"


def slug(machine: Mapping[str, Any]) -> str:
    """A name for files: the GPU, or the processor and its cores."""
    name = machine["gpu"] or f"{machine['cpu']} {machine['cores']} cores"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def write(folder: Path, title: str, rows: Iterable[Row], limits: Mapping[str, str], device: str) -> Path:
    """The document and, beside it, everything that was measured; as far as they are after every row."""
    folder.mkdir(parents=True, exist_ok=True)
    path, written = folder / f"{slug(bench.machine(device))}.md", list[Row]()
    for row in rows:
        written.append(row)
        path.write_text(document(title, written, limits))
        write_json(path.with_suffix(".json"), {"rows": [each._asdict() for each in written]})
    return path


def measured_limits(device: str) -> dict[str, str]:
    """What the machine can do at most."""
    limits = {f"matrix products, {dtype}": bench.matrix_peak(dtype, device) for dtype in ("fp32", "bf16")}
    if device == "cuda":
        limits["matrix products, tf32"] = bench.matrix_peak("tf32", device)
    found = {name: f"{rate / 1e12:.3g} TFLOP/s" for name, rate in limits.items()}
    return {**found, "memory, read and written": f"{bench.bandwidth(device) / 1e9:.3g} GB/s"}
