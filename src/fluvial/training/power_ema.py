"""Power-function averages of the weights, and averages of any length after the training.

Karras et al., "Analyzing and Improving the Training Dynamics of Diffusion Models" (EDM2, arXiv 2312.02696), section 3
and appendix C. At step t the average has seen the weights of the steps before with the profile

    p(tau) = (gamma + 1) tau^gamma / t^(gamma + 1)    for tau in [0, t]

whose standard deviation, relative to t, is called the length of the average. A few lengths are tracked in training and
stored every so often; what a combination of these snapshots best approximates is chosen afterwards.

RUN/ema/step-00001000-0.050.safetensors    a snapshot of the average of length 0.05 after 1000 steps

The metadata of a snapshot say the step, the length and the settings of the run, and are compared when it is read.
"""

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fluvial.training.home import written
from fluvial.utils.atomic import atomic_file
from fluvial.utils.checks import other_weights
from fluvial.utils.files import make_folder, reading
from fluvial.utils.tensors import DTYPES, Lazy, check_tensors, write_tensors

LONGEST = 1 / math.sqrt(12)
"""The length of the plain mean of all steps, gamma 0."""
LARGEST_RESIDUAL = 0.05
"""|profile wanted - profile fitted| / |profile wanted|, in L2, that `rebuild` accepts. Of 8 snapshots a track or more,
weights that walk at random are then off by at most 2% of the distance from their average to the last of them. Tracks
of 0.05 and 0.1 with 8 snapshots each are below it for lengths of 0.04 to 0.15, and of 0.02 to 0.25 with 32."""
TYPES = {DTYPES[dtype]: dtype for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64)}
NAME = re.compile(r"step-(\d{8,})-(0\.\d{3})\.safetensors")

Tracks = dict[float, list[Tensor]]


def exponent(length: float) -> float:
    """gamma of the profile with the relative standard deviation `length`, in (0, 1 / sqrt(12)).

    Equation 123: length^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)), which is a cubic in gamma. Its largest root, by
    Viete's formula, is the one above 0. Raises ValueError for a length out of range.
    """
    if not 0 < length < LONGEST:
        raise ValueError(
            f"the length of an average must be above 0 and below 1 / sqrt(12) = {LONGEST:.3f}, got {length}; "
            f"0.05 to 0.1 is usual"
        )
    t = length**-2
    p, q = -(t + 1 / 3), 2 / 27 + 4 * t / 3  # of x^3 + p x + q = 0 in x = gamma + 7/3; three real roots
    cosine = 3 * q / (2 * p) * math.sqrt(-3 / p)
    return 2 * math.sqrt(-p / 3) * math.cos(math.acos(cosine) / 3) - 7 / 3


def decay(step: int, gamma: float) -> float:
    """beta of the update that takes in the weights of `step`, counted from 1: (1 - 1 / step)^(gamma + 1).

    Equation 127. The first is 0: the weights before the first step are not in the average.
    """
    if step < 1 or gamma < 0:
        raise ValueError(f"step counts from 1 and gamma from 0, got step {step} and gamma {gamma}")
    return (1 - 1 / step) ** (gamma + 1)


def check_lengths(lengths: Sequence[float]) -> None:
    """Raises ValueError for lengths that are out of range, given twice, or of more than three decimals."""
    for length in lengths:
        exponent(length)
        _label(length)
    if len(set(lengths)) < len(lengths):
        raise ValueError(f"the lengths of the averages must differ, got {list(lengths)}")


def save(folder: Path, step: int, names: Sequence[str], tracks: Tracks, *, writes: bool = True) -> list[Path]:
    """Writes a snapshot of every track after `step`, each whole or not at all, and returns the files.

    Sharded tensors are gathered one after another, which takes a call on every rank, with `writes` on one of them only.
    Each says of which step, length and run it is, by the run.json beside `folder` if there is one.
    """
    if step < 1:
        raise ValueError(f"a snapshot is of step 1 or later, got {step}")
    if writes:
        make_folder(folder)
        for left_over in folder.glob(".step-*.tmp.safetensors"):  # of a run that was killed while saving
            left_over.unlink()
    files, run = [], json.dumps(_settings(folder.parent)) if writes else ""
    for length, averages in tracks.items():
        file = folder / f"step-{step:08d}-{_label(length)}.safetensors"
        lazy = {
            name: Lazy(tuple(average.shape), average.dtype, _gathering(average))
            for name, average in zip(names, averages, strict=True)
        }
        if writes:
            with atomic_file(file) as temporary:
                write_tensors(temporary, lazy, {"step": str(step), "length": _label(length), "run": run})
        else:
            for tensor in lazy.values():
                tensor.make()
        files.append(file)
    return files


def snapshots(folder: Path) -> list[tuple[Path, int, float]]:
    """File, step and length of the snapshots in `folder`, by step and length."""
    found = ((path, NAME.fullmatch(path.name)) for path in folder.glob("step-*.safetensors"))
    return sorted(
        ((path, int(match[1]), float(match[2])) for path, match in found if match), key=lambda entry: entry[1:]
    )


def weights(stored: Sequence[tuple[int, float]], step: int, gamma: float) -> np.ndarray:
    """Coefficients in float64, one for each stored (step, gamma): their combination is nearest to the profile in L2.

    Algorithm 3: the normal equations of least squares, where all inner products have a closed form. The release
    (edm2, training/phema.py, solve_posthoc_coefficients) then divides by the sum, which the paper does not; as here.
    """
    if not stored:
        raise ValueError("there are no stored averages to combine; give at least one (step, gamma)")
    if wrong := [pair for pair in (*stored, (step, gamma)) if pair[0] < 1 or pair[1] < 0]:
        raise ValueError(f"step counts from 1 and gamma from 0, got (step, gamma) {wrong}")
    steps, gammas = _columns(stored)
    norm = 1 / np.sqrt(_inner(steps, gammas, steps, gammas))  # unit profiles: else the late and short ones outweigh
    a = _inner(steps[:, None], gammas[:, None], steps, gammas) * norm[:, None] * norm
    b = _inner(steps, gammas, np.float64(step), np.float64(gamma)) * norm
    x = np.linalg.lstsq(a, b, rcond=None)[0] * norm
    total = x.sum()
    return x / total if total > 0 else x  # of profiles so far apart that nothing fits, `residual` is 1


def residual(stored: Sequence[tuple[int, float]], coefficients: np.ndarray, step: int, gamma: float) -> float:
    """|profile - sum of coefficients x stored profiles| / |profile|, in L2; below 1e-7 it is rounding."""
    steps, gammas = _columns((*stored, (step, gamma)))
    x = np.append(coefficients, -1.0)
    squares = _inner(steps[:, None], gammas[:, None], steps, gammas)
    return math.sqrt(max(0.0, float(x @ squares @ x) / float(squares[-1, -1])))


@dataclass(frozen=True, kw_only=True)
class Rebuilt:
    """An average that was not tracked."""

    tensors: dict[str, Lazy]
    """Each is read from all snapshots when its turn comes."""
    step: int
    residual: float
    """|profile wanted - profile fitted| / |profile wanted|, in L2."""
    snapshots: int
    """Snapshots that go into it."""


def rebuild(folder: Path, *, length: float, step: int | None = None) -> Rebuilt:
    """The average of `length` at `step`, by default the last one stored, from the snapshots in `folder`.

    Tensors are summed in float64, one in memory at a time, and have the type of the snapshots. A profile that was
    stored is given as it is. Raises ValueError if there are fewer than two snapshots, if they are of different models,
    of another run, step or length than their place says, or damaged, or if their best combination leaves a residual
    above 0.05 (`LARGEST_RESIDUAL`).
    """
    gamma = exponent(length)
    found = snapshots(folder)
    if len(found) < 2:
        raise ValueError(
            f"{folder} has {len(found)} snapshots of averages, and 2 are needed at least; they are "
            f"stored while training with --train.ema-lengths 0.05 0.1"
        )
    step = found[-1][1] if step is None else step
    if not 1 <= step <= found[-1][1]:
        raise ValueError(f"{folder} has averages of steps up to {found[-1][1]}, got step {step}; choose one of those")
    files = [path for path, _, _ in found]
    pairs = [(at, exponent(stored)) for _, at, stored in found]
    if (step, gamma) in pairs:
        files, pairs = [files[pairs.index((step, gamma))]], [(step, gamma)]
    coefficients = weights(pairs, step, gamma)
    error = residual(pairs, coefficients, step, gamma)
    if not error <= LARGEST_RESIDUAL:
        lengths = ", ".join(f"{value:.3f}" for value in sorted({value for _, _, value in found}))
        raise ValueError(
            f"the {len(found)} snapshots in {folder}, of lengths {lengths} at steps {found[0][1]} to {found[-1][1]}, "
            f"do not span an average of length {length:g} at step {step}: the best fit leaves {error:.1%} of it, more "
            f"than {LARGEST_RESIDUAL:.0%}. Choose a length nearer to those and a stored step, or store more snapshots"
        )
    settings = _settings(folder.parent)
    for file in files:
        _check(file, settings)
    parts = list(zip(files, coefficients.tolist(), strict=True))
    like = _contents(files[0])
    for file in files[1:]:
        if wrong := other_weights(like, _contents(file)):
            raise ValueError(f"{file} is of another model than {files[0].name}: {wrong}. Move those of one model away")
    tensors = {name: tensor._replace(make=_summing(parts, name, tensor)) for name, tensor in like.items()}
    return Rebuilt(tensors=tensors, step=step, residual=error, snapshots=len(files))


def _inner(t_a: np.ndarray, gamma_a: np.ndarray, t_b: np.ndarray | np.float64, gamma_b: np.ndarray | np.float64) -> Any:  # noqa: ANN401 - broadcast
    """Integral of the product of two profiles (equation 151): over [0, min t], where both are powers of tau."""
    first, last = np.minimum(t_a, t_b), np.maximum(t_a, t_b)
    gamma = np.where(t_a > t_b, gamma_a, gamma_b)  # of the later one; the earlier one's powers of t cancel
    return (gamma_a + 1) * (gamma_b + 1) / (gamma_a + gamma_b + 1) * (first / last) ** gamma / last


def _columns(pairs: Sequence[tuple[int, float]]) -> np.ndarray:
    return np.array(pairs, dtype=np.float64).T


def _label(length: float) -> str:
    """The length as it is in the name of a snapshot."""
    label = f"{length:.3f}"
    if float(label) != length:
        raise ValueError(f"the length of a tracked average has three decimals at most, got {length}; take {label}")
    return label


def _gathering(tensor: Any) -> Callable[[], Tensor]:  # noqa: ANN401 - a tensor, or a DTensor
    return lambda: tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def _contents(file: Path) -> dict[str, Lazy]:
    """Shapes and types of a snapshot's tensors, each to be read when asked for."""
    with _opened(file) as opened:
        slices = {name: opened.get_slice(name) for name in opened.keys()}
        return {
            name: Lazy(tuple(part.get_shape()), TYPES[part.get_dtype()], lambda name=name: _read(file, name))
            for name, part in slices.items()
        }


def _summing(parts: Sequence[tuple[Path, float]], name: str, like: Lazy) -> Callable[[], Tensor]:
    def make() -> Tensor:
        if len(parts) == 1:  # a stored profile: its very weights
            return _read(parts[0][0], name)
        total = torch.zeros(like.shape, dtype=torch.float64)
        term = torch.empty_like(total)  # one for all: a new one for every snapshot is not reliably given back
        for file, coefficient in parts:
            total.add_(term.copy_(_read(file, name)), alpha=coefficient)
        return total.to(like.dtype)

    return make


def _read(file: Path, name: str) -> Tensor:
    with _opened(file) as opened:
        return opened.get_tensor(name)


def _check(file: Path, settings: dict[str, Any]) -> None:
    """Raises ValueError for a snapshot that is not as it was written, or not of the step, length and run expected."""
    try:
        check_tensors(file)
        _check_origin(file, settings)
    except (OSError, ValueError) as error:
        raise ValueError(f"{error}. Move it away to do without") from error


def _check_origin(file: Path, settings: dict[str, Any]) -> None:
    """Compares what a snapshot says of itself with its name and the settings of the run.

    Settings that one of the two does not know, such as those of a later version, are not compared.
    """
    with _opened(file) as opened:
        about = opened.metadata() or {}
    if missing := {"step", "length", "run"} - about.keys():
        raise ValueError(
            f"{file} does not say its {', '.join(sorted(missing))}, which tells whether it is in its place: it was "
            f"written by an earlier version of fluvial"
        )
    name = NAME.fullmatch(file.name)
    expected = {"step": str(int(name[1])), "length": name[2]} if name else {}
    if any(about[key] != value for key, value in expected.items()):
        raise ValueError(
            f"{file} says that it is of step {about['step']} and length {about['length']}, expected step "
            f"{expected['step']} and length {expected['length']} by its name: it was renamed"
        )
    theirs = json.loads(about["run"])
    if wrong := [key for key in settings if key in theirs and theirs[key] != settings[key]]:
        listed = ", ".join(f"{key} {theirs[key]!r:.40}, expected {settings[key]!r:.40}" for key in wrong[:3])
        raise ValueError(f"{file} is of another run than the run.json beside its folder: it says {listed}")


def _settings(run: Path) -> dict[str, Any]:
    """Seed, data, method and optim of run.json, which tell a run from another; empty without one."""
    try:
        there = written(run)
        parts = {f"{part}.{key}": value for part in ("method", "optim") for key, value in there[part].items()}
        if digest := there["data"]["digest"]:
            parts["data.digest"] = digest
        return {"seed": there["seed"], **parts}
    except (OSError, KeyError, TypeError, AttributeError):  # while training goes on, no reason to end it
        return {}


def _opened(file: Path) -> Any:  # noqa: ANN401 - an open file
    """Raises ValueError if it is not a whole safetensors file."""
    try:
        with reading(file):  # never waits for a pipe
            return safe_open(file, framework="pt")
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{file} is missing, truncated or damaged ({error}). Move it away to do without") from error
