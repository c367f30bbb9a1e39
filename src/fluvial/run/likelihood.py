"""The log density of images under a trained model, in bits per dimension where there are such."""

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

import fluvial
from fluvial.config import Run
from fluvial.data.dequantise import bits_per_dim, dequantised
from fluvial.data.pixels import to_signed, to_uint8
from fluvial.flow.guidance import Guidance
from fluvial.flow.interpolant import INTERPOLANTS
from fluvial.flow.likelihood import MOST, LogDensity, log_density, log_density_of_map
from fluvial.flow.solvers import ODE_SOLVERS, Solver, SolverName, solver
from fluvial.flow.timesteps import grid
from fluvial.methods import METHODS, method_of, name_of
from fluvial.methods.method import Flow, Reversible
from fluvial.metrics import Estimate, mean
from fluvial.metrics.report import sealed
from fluvial.run.load import Sampler
from fluvial.sampling.settings import AnySolver, SampleConfig
from fluvial.utils.atomic import write_json
from fluvial.utils.checks import as_declared, at_least, positive
from fluvial.utils.files import make_folder
from fluvial.utils.progress import Bar
from fluvial.utils.randomness import normal, numpy_generator

KIND = "fluvial likelihood 1"
TOLERANCE = 1e-4  # of dopri5: 0.01 bits from a tenth of it, at half the evaluations (docs/likelihood.md)
STEPS, SHIFT = 64, 0.1  # of the other solvers: heun is within 0.03 bits there, at twice the evaluations
PROBES = 2
WHOLE = "image"  # the name of the one part of a method without scales


@dataclass(frozen=True, kw_only=True)
class LikelihoodConfig:
    """The settings of a log density by the ODE: solver, estimate of the divergence, seed."""

    solver: SolverName = "dopri5"
    """A solver of the ODE: dopri5 chooses its own steps; the others, such as heun, take as many as are given."""
    tolerance: float | None = None
    """Absolute and relative tolerance of dopri5; 1e-4 by default."""
    steps: int | None = None
    """Steps of the other solvers from data to noise; 64 by default."""
    shift: float | None = None
    """Below 1 these steps are denser near the data, where the velocity changes fastest; 0.1 by default."""
    probes: int = PROBES
    """Probes of Hutchinson's estimate of the divergence, a backward pass each; 0 is the exact trace, of at most 1,024
    numbers."""
    history: bool = True
    """False leaves a model that reads a history of earlier points, as ARFlow, without it."""
    seed: int = 0
    """Seed of dequantisation and probes; those of image i depend on (seed, i)."""
    batch: int = 50
    """Images at a time; changes memory and speed only."""

    def __post_init__(self) -> None:
        as_declared(self)
        at_least(1, self, "batch", *(["steps"] if self.steps is not None else []))
        at_least(0, self, "probes", "seed")
        positive(self, *(name for name in ("tolerance", "shift") if getattr(self, name) is not None))
        if self.solver not in ODE_SOLVERS:
            raise ValueError(
                f"solver {self.solver} is of an SDE, along which a density does not follow; choose one of "
                f"{', '.join(ODE_SOLVERS)}"
            )
        foreign = ("steps", "shift") if self.solver == "dopri5" else ("tolerance",)
        if wrong := [name for name in foreign if getattr(self, name) is not None]:
            advice = "leave it out, or choose heun" if self.solver == "dopri5" else "leave it out"
            raise ValueError(f"{' and '.join(wrong)} has no effect with the solver {self.solver}: {advice}")

    def bound(self) -> tuple[Solver, Tensor]:
        """The solver with its settings, and the grid of times."""
        if self.solver == "dopri5":
            tolerance = TOLERANCE if self.tolerance is None else self.tolerance
            return solver(self.solver, atol=tolerance, rtol=tolerance), grid(1)
        return solver(self.solver), grid(self.steps or STEPS, shift_factor=SHIFT if self.shift is None else self.shift)

    @property
    def described(self) -> dict[str, Any]:
        """The solver and its settings, with the defaults in place of None."""
        if self.solver == "dopri5":
            return {"solver": self.solver, "tolerance": self.tolerance or TOLERANCE}
        return {"solver": self.solver, "steps": self.steps or STEPS, "shift": self.shift or SHIFT}


@dataclass(frozen=True, kw_only=True)
class Likelihood:
    """Log densities of images, in nats, and what they depend on."""

    nats: dict[str, Float[Tensor, "n"]]
    """By scale, coarse to fine, each given the coarser ones; under "image" for a method without scales."""
    probe_errors: dict[str, Float[Tensor, "n"]]
    """Their standard errors over the probes; 0 for the exact trace, NaN for one probe."""
    numbers: dict[str, int]
    """Numbers that make up a point."""
    indices: Sequence[int]
    labels: Int[Tensor, "n"] | None
    images: UInt8[Tensor, "n c h w"] | None
    """The pixels; None where the density is one of latents."""
    nfe: int
    about: dict[str, Any]
    """The settings, and where the weights are from."""

    @property
    def no_bits(self) -> str:
        """The reason why there are no bits per dimension; "" if there are."""
        if len(self.nats) > 1:
            return (
                "the coarse maps are functions of the fine one, and the model draws them all: the densities of the "
                "scales belong to a space of more numbers than the image, and their sum is not a density of the image"
            )
        if self.images is None:
            return (
                "the model has a density of latents, and that of the images behind them would need the decoder's, "
                "which has none: it maps few numbers to many"
            )
        return ""

    @property
    def bits(self) -> Float[Tensor, "n"]:
        """Bits per dimension of each image: see `data/dequantise.py`. Raises ValueError where there are none."""
        if self.no_bits:
            raise ValueError(f"no bits per dimension: {self.no_bits}")
        ((name, nats),) = self.nats.items()
        return bits_per_dim(nats, self.numbers[name])

    def per_number(self, name: str) -> Estimate:
        """The mean of the images' log densities of a part, in nats for each of its numbers, with its error."""
        return mean(self.nats[name] / self.numbers[name])

    def record(self, images: str = "") -> dict[str, Any]:
        """All of it as JSON, with the name of the images and a checksum."""
        per_number = {name: self.per_number(name)._asdict() for name in self.nats}
        each: dict[str, Any] = {"index": list(self.indices), "nats": {k: v.tolist() for k, v in self.nats.items()}}
        if self.labels is not None:
            each["label"] = self.labels.tolist()
        bits = {"no_bits_per_dim": self.no_bits} if self.no_bits else {"bits_per_dim": mean(self.bits)._asdict()}
        errors = {k: None if v.isnan().any() else float(v.mean()) for k, v in self.probe_errors.items()}
        made_by = {"fluvial": fluvial.__version__, "torch": torch.__version__, "python": platform.python_version()}
        return sealed(
            {
                "kind": KIND,
                "of": {"name": images, "count": len(self.indices)},
                **bits,
                "nats_per_number": per_number,
                "numbers": self.numbers,
                "nats_error_over_probes": errors,
                "nfe": self.nfe,
                "settings": self.about,
                "made_by": made_by,
                "images": each,
            }
        )

    def save(self, path: Path | str, images: str = "") -> Path:
        """Writes the record; returns the path."""
        path = Path(path)
        make_folder(path.parent)
        write_json(path, self.record(images))
        return path


def check_likelihood(run: Run, settings: LikelihoodConfig, *, labelled: bool) -> None:
    """Raises ValueError, with the reason, for a likelihood that the run's model does not have."""
    method, name = method_of(run.method), name_of(type(run.method))
    if not isinstance(method, Reversible):
        able = ", ".join(known for known, each in METHODS.items() if isinstance(each, Reversible))
        raise ValueError(
            f"the method {name} does not tell the ODE that it samples along, as {able} do; for a likelihood it needs "
            f"the function `flows` of Reversible in fluvial/methods/method.py"
        )
    run.check_ode()
    has_history = run.method.images_per_sequence is not None
    if has_history and settings.history:
        raise ValueError(
            f"a velocity of {name} depends on the points before, so that its trajectory solves no ODE in x, and has no "
            f"likelihood by one. History off (--history off) measures the ODE of velocities without history, which is "
            f"another model than the one that samples; the sampler's own density it has at its samples (--samples)"
        )
    if not has_history and not settings.history:
        raise ValueError(f"{name} has no history that could be off; leave it out")
    if not labelled and run.method.classes and not run.method.label_drop:
        raise ValueError("the model was trained with labels alone (label_drop 0): it has no density without a class")
    if not settings.probes and not method.scales(cast(Any, run.method)):
        _check_small(run, "the exact trace is computed", "estimate it with --probes")


def likelihood(
    sampler: Sampler,
    images: UInt8[Tensor, "n c H W"] | Float[Tensor, "n c h w"],
    labels: Int[Tensor, "n"] | None = None,
    *,
    settings: LikelihoodConfig = LikelihoodConfig(),
    indices: Sequence[int] | None = None,
) -> Likelihood:
    """The log density of images under the model without guidance, by the ODE of each of the method's flows.

    uint8 images of a model of pixels are dequantised, and have bits per dimension; of others the density is that of
    their latents, as it is for floats, which are latents themselves. Labels None are the unconditional model. The noise
    of image i depends on its index, by default its place.

    Raises ValueError for what has no likelihood, or images and labels that are not of the model; RuntimeError for a
    velocity that is not finite.
    """
    check_likelihood(sampler.run, settings, labelled=labels is not None)
    indices = range(len(images)) if indices is None else indices
    _check_given(sampler, images, labels, indices)
    method: Any = method_of(sampler.run.method)
    names = method.scales(sampler.run.method) or (WHOLE,)
    found, numbers = {name: list[LogDensity]() for name in names}, dict[str, int]()
    with Bar(len(images), what="likelihood") as bar:
        for rows in torch.arange(len(images)).split(settings.batch):
            chosen = [indices[int(i)] for i in rows]
            x1 = _values(sampler, images[rows], chosen, settings.seed)
            ids = None if labels is None else labels[rows].to(x1.device)
            for name, flow in zip(names, method.flows(sampler.model, x1, ids), strict=True):
                numbers[name] = flow.clean[0].numel()
                found[name].append(_density(flow, chosen, settings, name))
            bar.show(int(rows[-1]) + 1)
    return Likelihood(
        nats={name: torch.cat([part.value for part in parts]).cpu() for name, parts in found.items()},
        probe_errors={name: torch.cat([part.error for part in parts]).cpu() for name, parts in found.items()},
        numbers=numbers,
        indices=indices,
        labels=labels,
        images=images if _is_pixels(sampler, images) else None,
        nfe=max(sum(part.nfe for part in of_batch) for of_batch in zip(*found.values(), strict=True)),
        about={**_about(sampler, settings), "labels": "none" if labels is None else "those of the images"},
    )


def likelihood_of_samples(
    sampler: Sampler,
    count: int = 16,
    *,
    classes: Sequence[int | str] | None = None,
    steps: int | None = None,
    solver: AnySolver | None = None,
    seed: int = 0,
) -> Likelihood:
    """The log density of the sampler's own samples, by the Jacobian of the whole sampler: for at most 1,024 numbers.

    It holds for any sampler without noise of its own, ARFlow's with its history too, at these finite steps; they are
    the run's own by default. Samples, classes and seed are those of `Sampler.sample` with guidance of weight 1, before
    they are clamped and rounded.

    Raises ValueError for a stochastic solver, large samples, or a method whose noise has more numbers than its samples.
    """
    settings = sampler.settings(steps=steps, solver=solver, guidance=Guidance())
    _check_map(sampler.run, settings)
    asked = sampler.asked(count, classes=cast(Any, classes), seed=seed)
    ids = [asked.classes[i % len(asked.classes)] for i in asked.indices] if asked.classes else None
    drawn = []
    with Bar(count, what="likelihood of samples") as bar:
        for i in asked.indices:
            drawn.append(_density_of_sample(sampler, settings, None if ids is None else ids[i], seed, i))
            bar.show(i + 1)
    values = torch.stack([value for _, value in drawn]).cpu()
    pixels = to_uint8(torch.stack([x for x, _ in drawn]).clamp(-1, 1)).cpu()
    about = sampler.provenance(seed=seed, settings=settings, classes=asked.classes or None)["sampling"]
    return Likelihood(
        nats={WHOLE: values},
        probe_errors={WHOLE: torch.zeros_like(values)},
        numbers={WHOLE: prod(sampler.run.method.noise_shape)},
        indices=asked.indices,
        labels=None if ids is None else torch.tensor(ids),
        images=pixels if sampler.autoencoder.hash == "pixels" else None,
        nfe=0,
        about={"density": "of the sampler, by its Jacobian, at its samples", **about},
    )


def _check_map(run: Run, settings: SampleConfig) -> None:
    """Raises ValueError, with the reason, for a sampler whose map from noise to samples has no density."""
    if settings.solver_settings.is_stochastic:
        raise ValueError(f"{settings.solver_settings.name} adds noise of its own; choose a solver of the ODE")
    noise, numbers = prod(run.method.noise_shape), run.method.channels * prod(run.method.size)
    if noise != numbers:
        raise ValueError(
            f"{name_of(type(run.method))} makes {numbers} numbers from {noise} numbers of noise: such a map has no "
            f"Jacobian determinant"
        )
    _check_small(run, "the Jacobian of a sampler is computed", "measure images in place of samples")


def _density_of_sample(
    sampler: Sampler, settings: SampleConfig, label: int | None, seed: int, index: int
) -> tuple[Tensor, Tensor]:
    """Sample number `index`, and its log density in nats."""
    config, device = sampler.run.method, next(sampler.model.parameters()).device
    labels = None if label is None else torch.full((prod(config.noise_shape),), label, device=device)
    bound = settings.solver_settings.bound(INTERPOLANTS[config.interpolant])
    draw = partial(method_of(config).sample, sampler.model, labels, times=settings.times(), solver=bound)
    return log_density_of_map(lambda x: draw(noise=x), normal(seed, [index], config.noise_shape)[0].to(device))


def _is_pixels(sampler: Sampler, images: Tensor) -> bool:
    """True if the density is one of pixels."""
    return sampler.autoencoder.hash == "pixels" and images.dtype == torch.uint8


def _check_given(sampler: Sampler, images: Tensor, labels: Tensor | None, indices: Sequence[int]) -> None:
    """Raises ValueError for images, labels or indices that do not go together, or with the model."""
    method, stride = sampler.run.method, sampler.autoencoder.stride if images.dtype == torch.uint8 else 1
    size, expected = tuple(images.shape[2:]), tuple(side * stride for side in method.size)
    if not len(images) or size != expected:
        raise ValueError(f"the model is of {expected} pixels (height, width), got {len(images)} images of {size}")
    if {len(images)} != {len(indices), len(images if labels is None else labels)}:
        raise ValueError(
            f"{len(images)} images need as many labels and indices, got {None if labels is None else len(labels)} and "
            f"{len(indices)}"
        )
    if labels is not None and not 0 <= int(labels.min()) <= int(labels.max()) < max(1, method.classes):
        raise ValueError(f"labels are class ids from 0 to {method.classes - 1}, got {labels.unique().tolist()!r:.100}")


def _values(sampler: Sampler, images: Tensor, indices: Sequence[int], seed: int) -> Tensor:
    """The points whose density is measured: dequantised pixels, or latents."""
    device = next(sampler.model.parameters()).device
    if images.dtype != torch.uint8:
        return images.to(device)
    if _is_pixels(sampler, images):
        return dequantised(images, indices, seed=seed).to(device)
    with torch.no_grad():
        return sampler.autoencoder.latents(sampler.autoencoder.moments(to_signed(images.to(device))))


def _density(flow: Flow, indices: Sequence[int], settings: LikelihoodConfig, name: str) -> LogDensity:
    """The log density of one flow, with probes that are the same in any batch."""
    bound, times = settings.bound()
    shape, probes = tuple(flow.clean.shape[1:]), None
    if settings.probes:
        rows = [
            numpy_generator(settings.seed, "probes", i, name).integers(0, 2, (settings.probes, *shape)) for i in indices
        ]
        probes = torch.stack([torch.from_numpy(row) for row in rows], dim=1).to(flow.clean) * 2 - 1
    return log_density(flow.velocity, flow.clean, times, probes=probes, solver=bound)


def _check_small(run: Run, what: str, advice: str) -> None:
    size = run.method.channels * prod(run.method.size)
    if size > MOST:
        raise ValueError(f"{what} for at most {MOST:,} numbers, got {size:,}: it takes a pass for each; {advice}")


def _about(sampler: Sampler, settings: LikelihoodConfig) -> dict[str, Any]:
    return {
        "density": "of the ODE" + ("" if settings.history else " without history, another model than the sampled one"),
        **settings.described,
        "divergence": f"Hutchinson, {settings.probes} probes of signs" if settings.probes else "exact",
        "seed": settings.seed,
        "dequantisation": "uniform within a level; of image i by (seed, i)",
        "guidance": 1.0,
        "weights": sampler.described,
        "autoencoder": f"{sampler.run.autoencoder.name} {sampler.run.autoencoder.hash}".strip(),
    }
