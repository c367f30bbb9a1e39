"""fluvial likelihood."""

import time
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from rich.table import Table

from fluvial.cli.arguments import Device, check_output, device_of, parse, plain_errors, positional
from fluvial.cli.output import console
from fluvial.flow.solvers import SolverName
from fluvial.metrics import Estimate, mean
from fluvial.run.folder import RunFolder
from fluvial.run.likelihood import (
    PROBES,
    Likelihood,
    LikelihoodConfig,
    check_likelihood,
    likelihood_of_samples,
)
from fluvial.run.likelihood import likelihood as measured
from fluvial.run.likelihood_images import Labels, images_of
from fluvial.run.load import load
from fluvial.utils import pictures
from fluvial.utils.checks import at_least
from fluvial.utils.errors import UsageError

MEANING = "a folder that `fluvial train` or `fluvial import` wrote, such as runs/digits-sit"
DESCRIPTION = """Measure how likely images are under a model: bits per dimension, the fewer the better.

RUN [IMAGES]: a run folder, and test (its validation images, the default), train (its training images), a folder, an
.npz or a data set (NAME:SPLIT). The density is that of the model without guidance, by the ODE that it samples along;
pixels are dequantised. ARFlow needs --history off, or --samples; FlowAR has a density for each scale, and no bits."""
SHOWN = 8  # images in a row of the picture


@dataclass(frozen=True, kw_only=True)
class LikelihoodOptions:
    count: int = 100
    """Number of images; a fixed random choice."""
    solver: SolverName | None = None
    """dopri5, which chooses its own steps, is the default; or heun, midpoint, ab2, euler."""
    tolerance: float | None = None
    """Absolute and relative tolerance of dopri5; 1e-4 by default."""
    steps: int | None = None
    """Steps of the other solvers; 64 by default."""
    shift: float | None = None
    """Below 1 their steps are denser near the data, where the velocity changes fastest; 0.1 by default."""
    probes: int | None = None
    """Probes of the estimate of the divergence (Hutchinson), a backward pass each; 2 by default."""
    exact: bool = False
    """The exact divergence, a backward pass for each number of an image: of at most 1,024 numbers."""
    history: Literal["on", "off"] = "on"
    """off measures ARFlow without its history, which is another model than the one that samples."""
    samples: bool = False
    """In place of images: the run's own samples, by the Jacobian of the whole sampler, with ARFlow's history too; of at
    most 1,024 numbers, by the run's own solver and steps."""
    labels: Labels = "own"
    """none measures the model without classes."""
    seed: int = 0
    """Seed of dequantisation and probes; those of image i depend on (seed, i)."""
    batch: int = 50
    """Images at a time; changes memory and speed only."""
    step: int | None = None
    """Training step of the checkpoint; the newest by default."""
    average: str = "ema"
    """The weights: ema, the moving average; raw, as trained; or the length of a power-function average, such as 0.1."""
    autoencoder: str = ""
    """Where the run's autoencoder is, if no longer where it was in training."""
    out: Path | None = None
    """Where to write all numbers and settings, with a picture beside it; RUN/likelihood.json by default."""
    device: Device = "auto"
    """Where to compute: cpu, cuda, cuda:1 or mps; auto takes CUDA if it is there."""

    def __post_init__(self) -> None:
        at_least(2, self, "count")
        at_least(0, self, "seed")
        check_output("--out", self.out, ".json")
        if self.probes is not None:
            at_least(1, self, "probes")
            if self.exact:
                raise ValueError("give --probes or --exact, got both")
        default = {field.name: field.default for field in fields(self)}
        others = ("tolerance", "shift", "probes", "exact", "history", "labels", "batch")
        if self.samples and (wrong := [name for name in others if getattr(self, name) != default[name]]):
            raise ValueError(f"--samples has no {', '.join(f'--{name}' for name in wrong)}: leave it out")
        if not self.samples:
            self.settings()  # which refuses what does not go together

    def settings(self) -> LikelihoodConfig:
        """The settings of the density by an ODE."""
        same = ("tolerance", "steps", "shift", "seed", "batch")
        chosen = 0 if self.exact else PROBES if self.probes is None else self.probes
        given: dict[str, Any] = {name: getattr(self, name) for name in same}
        return LikelihoodConfig(solver=self.solver or "dopri5", probes=chosen, history=self.history == "on", **given)


def likelihood(arguments: list[str]) -> None:
    name, rest = positional(arguments, "likelihood", "RUN", MEANING, has_own_help=True, more=True)
    which, rest = (rest[0], rest[1:]) if rest and not rest[0].startswith("-") else ("", rest)
    options = parse(LikelihoodOptions, LikelihoodOptions(), rest, "fluvial likelihood RUN", DESCRIPTION)
    if which and options.samples:
        raise UsageError(f"--samples are measured in place of images, got {which} too")
    folder = RunFolder(name)
    run, device = folder.run(), device_of(options.device)
    if not options.samples:
        with plain_errors({}):
            check_likelihood(run, options.settings(), labelled=options.labels == "own")
    chosen: dict[str, Any] = {"step": options.step, "average": options.average}
    sampler = load(folder.path, device=device, autoencoder=options.autoencoder, **chosen)
    started = time.perf_counter()
    if options.samples:
        given: dict[str, Any] = {"steps": options.steps, "solver": options.solver, "seed": options.seed}
        found, of = likelihood_of_samples(sampler, options.count, **given), "samples of the run"
    else:
        of, indices, images, labels = images_of(sampler, which or "test", options.count, labels=options.labels)
        found = measured(sampler, images, labels, settings=options.settings(), indices=indices)
    out = options.out or folder.path / "likelihood.json"
    _show(found, f"{name}: {len(found.indices)} {'' if options.samples else 'images of '}{of}")
    print(f"{time.perf_counter() - started:.1f} s" + (f"; NFE {found.nfe}" if found.nfe else ""))
    print(found.save(out, images=of))
    if found.images is not None and not found.no_bits and found.images.shape[1] in (1, 3):
        print(_draw(found, out.with_suffix(".png")))


def _show(found: Likelihood, title: str) -> None:
    """The table of all parts, and what there is to say about it."""
    table = Table("", "numbers", "nats per number", "bits per dimension", title=title, title_justify="left")
    for column in table.columns:
        column.no_wrap = True
    for name, numbers in found.numbers.items():
        bits = "-" if found.no_bits else _told(mean(found.bits))
        table.add_row(name, f"{numbers:,}", _told(found.per_number(name)), bits)
    printer = console()
    printer.print(table)
    lines = [f"the density is {found.about['density']}; errors are one standard error over images"]
    errors = [float(found.probe_errors[name].mean()) / found.numbers[name] for name in found.nats]
    if any(error > 0 for error in errors):
        lines += [f"the probes leave an error of {max(errors):.2g} nats per number in an image"]
    lines += [f"no bits per dimension: {found.no_bits}"] if found.no_bits else []
    printer.print("\n".join(lines), soft_wrap=True)


def _told(estimate: Estimate) -> str:
    return f"{estimate.value:.3f} ±{estimate.error:.2g}"


def _draw(found: Likelihood, path: Path) -> Path:
    """The most and the least likely images, with their bits per dimension."""
    assert found.images is not None
    order, half = found.bits.argsort(), min(SHOWN, len(found.indices) // 2)
    shown = [*order[:half].tolist(), *order[-half:].tolist()]
    captions = [f"{float(found.bits[i]):.2f}" for i in shown]
    return pictures.save_captioned(found.images[shown], captions, path, half)
