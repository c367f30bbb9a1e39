"""The settings of a run as JSON, from the form of version 0.1.0 to the present one."""

from collections.abc import Mapping
from typing import Any

RENAMED = {
    "train.recompute": "activation_checkpointing",
    "train.eval_every": "validate_every",
    "method.enlarge": "upsample",
}
"""Settings of version 0.1.0 by their path, with their present names."""
OF_SOLVERS = {
    "dopri5": {"atol": "atol", "rtol": "rtol"},
    "euler-maruyama": {
        "diffusion": "diffusion",
        "diffusion_norm": "norm",
        "last_step": "last_step",
        "last_step_size": "last_step_size",
    },
}
"""Settings of version 0.1.0 that stood in `sample` and belong to one solver, with their present names."""
ADDED = {
    "own_path": 0.0,
    "contrast": 0.0,
    "backbone": "released",
}
"""Settings that the library's methods did not have in version 0.1.0, with the value that stands for what it did."""
REMOVED = {"prediction": "velocity", "time_shift": 1.0}
"""Settings of our methods that no longer exist, with the value that stands for what the library does."""
OURS = ("sit", "arflow", "flowar")


def upgraded(values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a run under their present names. Raises ValueError where old and present names stand together.

    A part that is no object, or a setting of an unknown name, is left for the reader to refuse.
    """
    parts = {name: dict(part) if isinstance(part, Mapping) else part for name, part in values.items()}
    for path, new in RENAMED.items():
        name, old = path.split(".")
        part = parts.get(name)
        if isinstance(part, dict) and old in part:
            if new in part:
                raise ValueError(f"{path} is now {name}.{new}, and both are given: leave out {path}")
            part[new] = part.pop(old)
    if isinstance(sample := parts.get("sample"), dict):
        parts["sample"] = _sampling(sample)
    if isinstance(method := parts.get("method"), dict) and method.get("name") in OURS:
        parts["method"] = {name: value for name, value in method.items() if REMOVED.get(name, ...) != value}
    return parts


def _sampling(sample: dict[str, Any]) -> dict[str, Any]:
    """The settings of sampling, with those of the solver inside it, and the steps of each scale as steps."""
    if old := sample.keys() & {name for names in OF_SOLVERS.values() for name in names}:
        solver = sample.get("solver", "euler")
        if isinstance(solver, dict):
            listed = ", ".join(f"sample.{name}" for name in sorted(old))
            raise ValueError(f"sample.solver has the settings of a solver now, and both are given: leave out {listed}")
        own = OF_SOLVERS.get(solver, {}) if isinstance(solver, str) else {}  # those of others had no effect
        solver = {"name": solver, **{new: sample[name] for name, new in own.items() if name in sample}}
        sample = {name: value for name, value in sample.items() if name not in old} | {"solver": solver}
    if "scale_steps" in sample:
        if isinstance(sample.get("steps"), (list, tuple)):
            raise ValueError("sample.scale_steps is now sample.steps, and both are given: leave out sample.scale_steps")
        each = sample.pop("scale_steps")
        sample |= {"steps": each} if each else {}
    return sample


def present_option(word: str) -> str:
    """An option of the command line under its present name: --train.validate-every for --train.eval-every.

    Any other word is returned as it is.
    """
    name, attached, value = word.partition("=")
    new = _OPTIONS.get(name.removeprefix("--").replace("-", "_")) if name.startswith("--") else None
    return word if new is None else f"--{new.replace('_', '-')}{attached}{value}"


_OPTIONS = {path: f"{path.partition('.')[0]}.{new}" for path, new in RENAMED.items()}
_OPTIONS |= {f"sample.{old}": f"sample.solver.{new}" for names in OF_SOLVERS.values() for old, new in names.items()}
_OPTIONS |= {"sample.scale_steps": "sample.steps", "extractor": "features"}


def as_first_written(method: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a method as version 0.1.0 wrote them, by which checkpoints know their run.

    Those it did not have are left out where they are what it did.
    """
    old = {new: path.removeprefix("method.") for path, new in RENAMED.items() if path.startswith("method.")}
    added = ADDED if method.get("name") in OURS else {}  # others may have settings of these names
    kept = {name: value for name, value in method.items() if name not in added or value != added[name]}
    return {old.get(name, name): value for name, value in kept.items()}
