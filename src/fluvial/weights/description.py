"""Description of a run's settings as text, for imports and model cards."""

from typing import Literal

import torch

from fluvial.config import Run
from fluvial.methods import method_of
from fluvial.sampling.settings import EulerMaruyama

Precision = Literal["fp32", "bf16"]
DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}
EXPORT = "fluvial"  # metadata key of files by `fluvial export`: holds the run, as in run.json
QUIRKS = (
    "qkv_norm",
    "history_decay",
    "image_decay",
    "floor_time",
    "upsample",
)  # network settings that weights depend on
NAMES = {"sit": "SiT", "arflow": "ARFlow", "flowar": "FlowAR", "kl16": "KL-16"}


def described(run: Run) -> dict[str, str]:
    """Latents, classes, solver, guidance and network quirks of a run, as text for tables."""
    method, sample, guidance = run.method, run.sample, run.sample.guidance
    solver = sample.solver_settings
    latent = f"{method.channels} x {method.size[0]} x {method.size[1]}"
    words = {"latents": f"{latent} of {run.autoencoder.name}", "classes": f"{method.classes:,}"}
    known = vars(method)
    quirks = [f"{name} {known[name]}" for name in QUIRKS if name in known]
    if run.autoencoder.scale:
        words["latent scale"] = " ".join(f"{scale:g}" for scale in run.autoencoder.scale)
    if scales := method_of(method).scales(method):
        words["scales"] = " ".join(scales)
    words["solver"] = f"{solver.name}, {' '.join(map(str, sample.each_steps))} steps"
    if isinstance(solver, EulerMaruyama):
        words["last step"] = f"{solver.last_step}, {solver.last_step_size:g}"
    else:
        words["grid"] = sample.grid
    words["guidance"] = f"{guidance.weight:g}"
    if method.classes and not method.label_drop and not run.train.distillation.steps:
        words["guidance"] += ", no other: the model was trained without label drop, and has no null branch"
    if run.train.distillation.steps:
        words["guidance"] += "; that of the teacher is in the weights"
        words["distilled"] = run.train.distillation.told
    if not run.train.guidance.is_off:
        words["guidance"] += f"; learned, and in the weights: {run.train.guidance.told}"
    if guidance.ramp != "constant":
        words["guidance"] += f", {guidance.ramp} over the scales"
    words["guided"] = "all channels" if guidance.channels is None else f"the first {guidance.channels} channels"
    if guidance.interval != (0.0, 1.0):
        words["guided"] += f", t from {guidance.interval[0]:g} to {guidance.interval[1]:g}"
    if quirks:
        words["network"] = ", ".join(quirks)
    return words
