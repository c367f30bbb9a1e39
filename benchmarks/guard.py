"""Regression test of performance: compares utilisation with recorded values.

    python benchmarks/guard.py [--record] [--tolerance SHARE] [--file FILE]

Small models of each method are trained and sampled on one thread, one of them compiled, in two minutes. Utilisation is
relative to matrix products in the same process, so it hardly depends on the speed or load of the machine. Values are
recorded by instruction set, dtype and case; --record adds those of this machine. Exits with 1 if a utilisation fell by
more than the tolerance, twice in a row.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ablation import RESULTS

from fluvial.config import Run
from fluvial.flow.guidance import Guidance
from fluvial.methods import arflow, flowar, sit
from fluvial.sampling.settings import SampleConfig
from fluvial.tools import bench
from fluvial.training.config import TrainConfig
from fluvial.utils.atomic import write_json

FILE = RESULTS / "guard.json"
TOLERANCE = 0.4
SHAPE = {"size": (16, 16), "channels": 4, "classes": 10, "depth": 2, "width": 256, "heads": 4}
SAMPLE = SampleConfig(solver="euler", steps=4, guidance=Guidance(weight=1.5), batch=8)
METHODS = {
    "SiT": (sit.Config(**SHAPE, patch=2), 8),
    "ARFlow": (arflow.Config(**SHAPE, patch=2, images_per_sequence=4), 2),
    "FlowAR": (flowar.Config(**SHAPE, scales=(1, 2, 4, 8), patch=2, head_width=256, head_heads=4), 8),
}
CASES: tuple[tuple[bench.What, str, bool], ...] = (
    *((what, method, False) for method in METHODS for what in ("train", "sample")),
    ("train", "FlowAR", True),  # with dropout, and attention over few keys
)


def measured(repeats: int = 5) -> dict[str, float]:
    """The median utilisation of each case."""
    found = {}
    for what, name, compile in CASES:
        method, batch = METHODS[name]
        run = bench.settings(what, Run(method=method, train=TrainConfig(batch=batch), sample=SAMPLE), compile=compile)
        result = bench.measure(what, run, repeats=repeats)
        found[key(what, name, result)] = result["utilisation"]["median"]
    return found


def key(what: str, method: str, result: Mapping[str, Any]) -> str:
    """The key of a recorded value: case, dtype and instruction set."""
    how = f"{result['dtype']}, compiled" if result["compile"] else result["dtype"]
    return f"{what} {method}, {how}, {torch.backends.cpu.get_cpu_capability()}"


def verdicts(
    found: Mapping[str, float], recorded: Mapping[str, float], tolerance: float
) -> tuple[list[str], list[str], list[str]]:
    """Lines about values that fell, that did not fall, and that have no recorded value."""
    fell, held, unknown = list[str](), list[str](), list[str]()
    for name, value in found.items():
        if name not in recorded:
            unknown.append(f"{name}: {value:.3f}, nothing recorded")
        elif value < (1 - tolerance) * recorded[name]:
            wanted = (1 - tolerance) * recorded[name]
            fell.append(f"{name}: {value:.3f}, recorded {recorded[name]:.3f}, expected at least {wanted:.3f}")
        else:
            held.append(f"{name}: {value:.3f}, recorded {recorded[name]:.3f}")
    return fell, held, unknown


def main(argv: Sequence[str] | None = None) -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--record", action="store_true", help="write what is measured, on a quiet machine")
    options.add_argument("--tolerance", type=float, default=TOLERANCE, help="share by which a utilisation may fall")
    options.add_argument("--file", type=Path, default=FILE, help="the recorded values")
    arguments = options.parse_args(argv)
    if not 0 < arguments.tolerance < 1:
        options.error(f"--tolerance must be between 0 and 1, got {arguments.tolerance}")
    torch.set_num_threads(1)
    recorded = json.loads(arguments.file.read_text()) if arguments.file.exists() else {}
    found = measured()
    if arguments.record:
        arguments.file.parent.mkdir(parents=True, exist_ok=True)
        write_json(arguments.file, recorded | {name: round(value, 4) for name, value in found.items()})
        print(f"recorded in {arguments.file}: " + ", ".join(f"{name} {value:.3f}" for name, value in found.items()))
        return 0
    fell, held, unknown = verdicts(found, recorded, arguments.tolerance)
    if fell:  # once may be chance
        again = measured()
        fell, held, unknown = verdicts({k: max(v, again[k]) for k, v in found.items()}, recorded, arguments.tolerance)
    print("\n".join([*(f"fell  {text}" for text in fell), *(f"ok    {text}" for text in held), *unknown]))
    if fell:
        print("performance fell: find the change that did it, or --record what is now right, and say why")
        return 1
    if not held:
        print(f"{arguments.file} has nothing for this instruction set; run with --record on a quiet machine")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
