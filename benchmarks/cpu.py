"""Training and sampling on this machine's processor, with and without each optimisation.

    make bench            (or: OMP_WAIT_POLICY=PASSIVE python benchmarks/cpu.py [--budget SECONDS] [--out FOLDER])

ARFlow-S/2 at 128 pixels in sequences of 5 images, and FlowAR with width 256, depth 3 + 3, head 2 x 256, trained and
sampled in batches of 16. Writes benchmarks/results/<machine>.md and .json in less than ten minutes; cases that do not
fit in the budget are listed as left out. Every measurement runs in its own process.
"""

import argparse
from pathlib import Path

from ablation import RESULTS, Case, Optimisation, measured_limits, run, write

ARFLOW = ("imagenet128-arflow-xl2", *"--method.depth 12 --method.width 384 --method.heads 6".split())
FLOWAR = (
    "imagenet256-flowar-s",
    *"--method.depth 6 --method.width 256 --method.heads 4 --method.head-width 256 --method.head-heads 4".split(),
)
CASES = (
    Case("Training ARFlow-S/2, 16 sequences of 5", "train", (*ARFLOW, "--batch", "16")),
    Case("Training FlowAR, 32 images", "train", (*FLOWAR, "--batch", "32")),
    Case("Sampling ARFlow-S/2, 16 images, 5 steps", "sample", (*ARFLOW, "--batch", "16", "--sample.steps", "5")),
    Case("Sampling FlowAR, 16 images, 5 steps a scale", "sample", (*FLOWAR, "--batch", "16", "--sample.steps", "5")),
)
OPTIMISATIONS = {
    "bf16": Optimisation(("--dtype", "bf16"), ("--dtype", "fp32")),
    "compile": Optimisation(("--compile", "True"), ("--compile", "False")),
}
COMMON = ("--device", "cpu", "--warmup", "1", "--repeats", "3")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--budget", type=float, default=560.0, help="seconds for all of it")
    options.add_argument("--out", type=Path, default=RESULTS, help="folder of the document")
    arguments = options.parse_args()
    limits = measured_limits("cpu")
    rows = run(CASES, OPTIMISATIONS, COMMON, budget=arguments.budget, apart=True)
    print(write(arguments.out, "Speed on a processor", rows, limits, "cpu"))


if __name__ == "__main__":
    main()
