"""Training and sampling speed on one GPU, with and without each optimisation, relative to the GPU's limits.

    python benchmarks/gpu.py [--budget SECONDS] [--out FOLDER] [--tiny]

ARFlow-B/2 and XL/2, SiT-XL/2, FlowAR-S and L on the latents of 256-pixel images. Writes
benchmarks/results/<machine>.md and .json in less than eight minutes; cases that do not fit in the budget are listed as
left out. `--tiny` runs everything with small models on the CPU, uncompiled, to test the code.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from ablation import RESULTS, Case, Optimisation, measured_limits, run, write

MODELS = {
    "ARFlow-B/2": ("imagenet256-arflow-xl2", *"--method.depth 12 --method.width 768 --method.heads 12".split()),
    "ARFlow-XL/2": ("imagenet256-arflow-xl2",),
    "SiT-XL/2": ("imagenet256-sit-xl2",),
    "FlowAR-S": ("imagenet256-flowar-s",),
    "FlowAR-L": ("imagenet256-flowar-l",),
}
# estimated to fit into 80 GB in bf16 and into 141 GB in tf32 (docs/memory.md); sequences of 5 images for ARFlow
BATCHES = {"ARFlow-B/2": 40, "ARFlow-XL/2": 12, "SiT-XL/2": 128, "FlowAR-S": 192, "FlowAR-L": 64}
SAMPLED = ("--batch", "64", "--sample.steps", "20")
OPTIMISATIONS = {
    "bf16": Optimisation(("--dtype", "bf16"), ("--dtype", "tf32")),
    "compile": Optimisation(("--compile", "True"), ("--compile", "False")),
}
TINY = {"--method.size": "8 8", "--method.depth": "2", "--method.width": "32", "--method.heads": "2"}
TINY |= {"--method.classes": "10", "--batch": "2", "--sample.steps": "2", "--warmup": "1", "--repeats": "2"}
TINY |= {"--compile": "False"}
TINY_FLOWAR = {"--method.scales": "1 8", "--method.head-width": "32", "--method.head-heads": "2"}
TINY_FLOWAR |= {"--method.head-depth": "1"}


def cases() -> list[Case]:
    """Training, without activation checkpointing, and sampling of every model."""
    training = ("--train.activation-checkpointing", "0", "--batch")
    found = []
    for name, arguments in MODELS.items():
        size = str(BATCHES[name])
        examples = "sequences of 5" if name.startswith("ARFlow") else "images"
        found.append(Case(f"Training {name}, {size} {examples}", "train", (*arguments, *training, size)))
    for name, arguments in MODELS.items():
        found.append(Case(f"Sampling {name}, 64 images, 20 steps", "sample", (*arguments, *SAMPLED)))
    return found


def tiny(case: Case) -> Case:
    """The case with a small model and few steps."""
    recipe, *given = case.arguments
    options = dict(zip(given[::2], given[1::2], strict=True)) | TINY | (TINY_FLOWAR if "FlowAR" in case.name else {})
    arguments = (word for option, values in options.items() for word in (option, *values.split()))
    return case._replace(name=f"{case.name} (tiny)", arguments=(recipe, *arguments))


def main(argv: Sequence[str] | None = None) -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--budget", type=float, default=450.0, help="seconds for all of it")
    options.add_argument("--out", type=Path, default=RESULTS, help="folder of the document")
    options.add_argument("--tiny", action="store_true", help="small models on the processor, to try the code")
    arguments = options.parse_args(argv)
    device, chosen, optimisations = "cuda", cases(), OPTIMISATIONS
    if not arguments.tiny and not torch.cuda.is_available():
        options.error(
            "there is no CUDA device here; --tiny tries the code on the processor, benchmarks/cpu.py times that"
        )
    if arguments.tiny:
        device, chosen = "cpu", [tiny(case) for case in chosen]
        optimisations = {"bf16": OPTIMISATIONS["bf16"]}
    limits = measured_limits(device)
    rows = run(chosen, optimisations, ("--device", device), budget=arguments.budget, apart=False)
    print(write(arguments.out, "Speed on one GPU", rows, limits, device))


if __name__ == "__main__":
    main()
