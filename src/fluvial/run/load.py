"""Loads a trained run and samples from it."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fluvial.autoencoders import Autoencoder
from fluvial.config import Run, to_json
from fluvial.data.labels import class_ids
from fluvial.evaluation.images import Images
from fluvial.flow.guidance import Guidance
from fluvial.flow.interpolant import INTERPOLANTS, Interpolant
from fluvial.flow.solvers import OnStep, Step
from fluvial.methods import empty_model, method_of, name_of
from fluvial.run.folder import RunFolder
from fluvial.run.inputs import open_autoencoder
from fluvial.sampling.budget import with_evaluations
from fluvial.sampling.generate import generate
from fluvial.sampling.given import ADDRESSES, guidance_of, in_python, indices_of
from fluvial.sampling.labels import labels_for
from fluvial.sampling.plan import evaluations_of
from fluvial.sampling.precision import computed_in, dtype_of, ready
from fluvial.sampling.progress import Progress, followed
from fluvial.sampling.samples import Frames, Samples
from fluvial.sampling.settings import AnySolver, SampleConfig
from fluvial.training import checkpoint, power_ema
from fluvial.training.health import check_finite_weights
from fluvial.utils import pictures
from fluvial.utils.checks import misfit
from fluvial.utils.devices import device_of
from fluvial.utils.precision import Precision
from fluvial.utils.tensors import tensors_checksum

FRAMES = 100  # images in a trajectory at most,
FRAMES_LARGE = 10  # of those with a side above LARGE, which take long to decode
POWER = "power-"  # before the length, in names of averages


class Asked(NamedTuple):
    """The images that are to be sampled."""

    indices: Sequence[int]
    classes: tuple[int, ...]
    """Image i is of class classes[i mod len(classes)]; () for a model without classes."""


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """A model with its autoencoder, ready to sample."""

    model: nn.Module = field(repr=False)
    run: Run = field(repr=False)
    autoencoder: Autoencoder
    step: int = 0
    """Training steps behind the weights."""
    seconds: float = 0.0
    """Wall-clock seconds of training behind them."""
    average: str = ""
    """Kind of average that the weights are, such as "average of decay 0.999"."""
    folder: RunFolder | None = None
    """The run folder that it was loaded from."""
    guide: "Sampler | None" = None
    """A smaller or less trained model in the place of the null branch of guidance: see `guided_by`."""
    _ready: dict[tuple[str, bool], nn.Module] = field(default_factory=dict, init=False, repr=False, compare=False)

    def sample(
        self,
        count: int | None = None,
        *,
        indices: Sequence[int] | None = None,
        classes: int | str | Sequence[int | str] | np.ndarray | Tensor | None = None,
        seed: int = 0,
        steps: int | Sequence[int] | None = None,
        guidance: float | Guidance | None = None,
        solver: AnySolver | None = None,
        nfe: int | None = None,
        settings: SampleConfig | None = None,
        trajectory: bool = False,
        preview: bool = False,
        on_step: OnStep | None = None,
    ) -> Samples:
        """`count` images, 16 by default, or those of `indices`; image i depends on (seed, i), its class and settings.

        Image i is of class classes[i mod len(classes)], all classes in turn by default; a class is a name (str) or an
        id (int), and may be given alone; ids may be an array or a tensor. steps (one number, or for FlowAR one for each
        scale), guidance (a weight) and solver replace those of `settings`, which are the run's own by default. `nfe`
        stands in place of steps: the evaluations of the network for an image that they may take.
        `trajectory` keeps the first images after every step, and `preview` the estimate of them at every step, for
        `Samples.gif`; `on_step` is called after every step of the solver.

        Raises ValueError for a class that the model does not know, an index below 0, a count below 1, or settings that
        the method does not have; RuntimeError for images that are not finite.
        """
        settings = self.settings(settings, steps=steps, guidance=guidance, solver=solver, nfe=nfe)
        asked = self.asked(count, indices=indices, classes=classes, seed=seed)
        wanted, ids = asked.indices, asked.classes
        kept = FRAMES_LARGE if self.side > pictures.LARGE else FRAMES
        decode, kept = self.autoencoder.decode, min(len(wanted), kept)
        frames = Frames(decode, kept) if trajectory else None
        estimates = Frames(decode, kept, interpolant=self.path) if preview else None
        found = generate(
            *self.computing(settings),
            decode,
            settings,
            indices=wanted,
            labels=labels_for(wanted, ids),
            seed=seed,
            on_step=_each(frames, estimates, on_step),
        )
        about = self.provenance(
            seed=seed, settings=settings, classes=None if classes is None else ids, evaluations=found.nfe
        )
        found = replace(found, about=about)
        if frames is not None:
            found = replace(found, trajectory=tuple(frames.images), stages=tuple(frames.ends))
        return found if estimates is None else replace(found, preview=(*estimates.images, found.images[:kept]))

    def steps(
        self,
        count: int | None = None,
        *,
        indices: Sequence[int] | None = None,
        classes: int | str | Sequence[int | str] | np.ndarray | Tensor | None = None,
        seed: int = 0,
        steps: int | Sequence[int] | None = None,
        guidance: float | Guidance | None = None,
        solver: AnySolver | None = None,
        nfe: int | None = None,
        settings: SampleConfig | None = None,
    ) -> Iterator[Progress]:
        """The estimate of the clean images at every step, then the images that `sample` draws with these arguments.

        They are computed as they are asked for: what is left early, by `break` or `close()`, is not sampled to its
        end. Raises ValueError at once, and RuntimeError on the way, as `sample`.
        """
        settings = self.settings(settings, steps=steps, guidance=guidance, solver=solver, nfe=nfe)
        asked = self.asked(count, indices=indices, classes=classes, seed=seed)
        chosen = {"classes": classes, "seed": seed, "settings": settings}
        draw = partial(self.sample, indices=asked.indices, **chosen)
        return followed(draw, self.autoencoder.decode, self.path)

    def asked(
        self,
        count: int | None,
        *,
        indices: Sequence[int] | None = None,
        classes: int | str | Sequence[int | str] | np.ndarray | Tensor | None = None,
        seed: int = 0,
    ) -> "Asked":
        """The indices and classes of the images that these arguments of `sample` stand for. Raises ValueError as it."""
        wanted = indices_of(count, indices)
        if type(seed) is not int or not 0 <= seed < ADDRESSES:
            raise ValueError(f"seed must be a whole number from 0, below 2^63, got {seed!r:.100}")
        return Asked(wanted, self._class_ids(classes))

    def computing(self, settings: SampleConfig) -> tuple[nn.Module, Callable[..., Tensor]]:
        """The model, and its method's sampler, in the precision of these settings; compiled if they say so."""
        key = (settings.precision, settings.compile)
        if key not in self._ready:
            self._ready[key] = ready(self.model, settings)
        draw = computed_in(settings.precision, method_of(self.run.method).sample)
        return self._ready[key], draw if self.guide is None else partial(draw, guide=self.guide.computing(settings)[0])

    def guided_by(self, guide: "Sampler") -> "Sampler":
        """This sampler with a smaller or less trained model in the place of its null branch (autoguidance).

        Guidance then leads away from what that model does worse (arXiv 2406.02507), with classes or without. Raises
        ValueError for a model of another method, latents, classes or path from noise to data.
        """
        if (distilled := guide.run.train.distillation).steps:
            raise ValueError(f"a guide has velocities at points, and {guide.folder} was distilled ({distilled.told})")
        ours, theirs = (_space(of) for of in (self, guide))
        if ours != theirs:
            wrong = ", ".join(f"{k} is {theirs[k]} there and {ours[k]} here" for k in ours if ours[k] != theirs[k])
            raise ValueError(f"the guide {guide.folder or ''} does not go with this model: {wrong}")
        return replace(self, guide=guide)

    def settings(
        self,
        settings: SampleConfig | None = None,
        *,
        steps: int | Sequence[int] | None = None,
        guidance: float | Guidance | None = None,
        solver: AnySolver | None = None,
        nfe: int | None = None,
    ) -> SampleConfig:
        """The run's sampling settings, or those given, with some replaced. Raises ValueError if they do not fit it."""
        settings = settings or self.run.sample
        if steps is not None:
            settings = replace(settings, steps=in_python(steps))
        if guidance is not None:
            settings = replace(settings, guidance=guidance_of(guidance, settings.guidance))
        if solver is not None:
            settings = replace(settings, solver=solver)
        if nfe is not None:
            if steps is not None:
                raise ValueError(f"give steps or nfe, got {steps!r:.100} and {nfe!r:.100}")
            settings = within(self.run, settings, nfe)
        if self.guide is not None:  # which needs no null branch
            run = replace(self.run, sample=settings)
            run.check_learned()
            return run.sample
        return self.run.sampled_with(settings).sample

    def _class_ids(self, classes: Any) -> tuple[int, ...]:  # noqa: ANN401 - as it was given
        """The ids of these classes; of all classes for None, of which a model without classes has none."""
        known = self.run.method.classes
        if classes is None:
            return tuple(range(known))
        given = in_python(classes)
        classes = given if isinstance(given, tuple) else (given,)
        if not known:
            raise ValueError(f"classes {classes!r:.100} were given for a model without classes; leave them out")
        if not classes:
            raise ValueError("classes are empty: give at least one, or leave them out for all classes in turn")
        return class_ids(classes, self.run.data.class_names, known)

    @property
    def path(self) -> Interpolant:
        """The path from noise to data."""
        return INTERPOLANTS[self.run.method.interpolant]

    @property
    def described(self) -> str:
        """Folder, step and average of the weights, and the first digits of their SHA-256."""
        content = tensors_checksum(self.model.state_dict())[:12]
        return f"{self.folder or 'a model'} at step {self.step}, {self.average}, {content}"

    @property
    def side(self) -> int:
        """Height of the images in pixels."""
        return self.run.method.size[0] * self.autoencoder.stride

    def draw(self, count: int, *, seed: int = 0, settings: SampleConfig | None = None) -> Images:
        """`count` images that are sampled when they are read; settings and seconds so far are in `about`."""
        about = self.provenance(seed=seed, settings=settings)
        sampling = about["sampling"]
        sampling |= {"seconds": 0.0, "drawn": 0, "seconds_network": 0.0, "seconds_decoding": 0.0}

        def read(wanted: Sequence[int]) -> tuple[Tensor, Tensor | None]:
            started = time.perf_counter()
            part = self.sample(indices=wanted, seed=seed, settings=settings)
            sampling["seconds"] += time.perf_counter() - started
            sampling["drawn"] += len(wanted)
            for part_of, seconds in part.seconds.items():
                sampling[f"seconds_{part_of}"] += seconds
            sampling.update(evaluations_of(Counter(sampling["evaluations"]) | Counter(part.nfe)))
            return part.images, part.labels

        return Images("samples", count, read, lambda wanted: "", about)

    def provenance(
        self,
        *,
        seed: int = 0,
        settings: SampleConfig | None = None,
        classes: tuple[int, ...] | None = None,
        evaluations: Mapping[str, int] | None = None,
    ) -> dict[str, Any]:
        """The entries of a card for images sampled so."""
        settings, known = settings or self.run.sample, self.run.method.classes
        guided, learned = bool(known) or self.guide is not None, self.run.train.guidance
        distilled = self.run.train.distillation
        chosen = "all" if classes is None else " ".join(map(str, classes))
        sampling = {
            "seed": seed,
            "seed_rule": "the noise of image i is a function of (seed, i)",
            "solver": settings.solver_settings.name,
            **evaluations_of(evaluations or {}),
            "guidance": settings.guidance.weight if guided else 1.0,
            "guidance_interval": list(settings.guidance.interval),
            "guidance_channels": settings.guidance.channels,
            **({} if self.guide is None else {"guide": self.guide.described}),
            **({} if learned.is_off else {"guidance_learned": learned.told}),
            **({"distilled": distilled.told} if distilled.steps else {}),
            "weights": self.average,
            "dtype": dtype_of(self.model, settings),
            "autoencoder": f"{self.run.autoencoder.name} {self.run.autoencoder.hash}".strip(),
            "train_step": self.step,
            "train_seconds": round(self.seconds, 1),
            "settings": to_json(replace(self.run, sample=settings))["sample"],
        }
        return {
            "cut": "as they are",
            "rounding": "to the nearest of 256 levels",
            "labels": f"{chosen} classes in turn" if known else "none",
            "sampling": sampling,
        }


def load(
    folder: Path | str,
    *,
    device: torch.device | str | None = None,
    precision: Precision | None = None,
    average: str | float = "ema",
    step: int | None = None,
    autoencoder: Autoencoder | Path | str = "",
) -> Sampler:
    """The sampler of a run folder's newest checkpoint, or that of `step`, verified against its checksums.

    `precision` computes in fp32, tf32 or bf16 in place of the run's sample.precision. `average` chooses the weights:
    "ema", the moving average; "raw", the trained weights themselves; a number such as 0.1, the power-function average
    of this length, of a run that stored snapshots (train.ema_lengths), by default at the last of them; or any other
    average that the checkpoint holds, such as "ema-0.99". `autoencoder` is the run's own, if it is not where it was, or
    the object that it was trained with.

    Raises ValueError if the folder is not a run, or its checkpoint is missing, damaged or another model's; RuntimeError
    if its weights are not finite.
    """
    device, there = device_of(device), RunFolder(folder)
    run = there.run()
    given = None if isinstance(autoencoder, str | Path) else autoencoder
    if given is None and str(autoencoder):
        run = replace(run, autoencoder=replace(run.autoencoder, name=str(autoencoder)))
    if precision is not None:
        run = replace(run, sample=replace(run.sample, precision=precision))
    decoder = open_autoencoder(run.autoencoder, given)
    model = empty_model(run.method)

    def fill(place: Path) -> Sampler:
        checkpoint.verify(place)
        parts = sorted({name.partition("/")[0] for name in checkpoint.shapes(place)} - {"optimizer"})
        part = _part_of(average)
        if part in parts:
            wanted = {f"{part}/{name}": value for name, value in model.state_dict().items()}
            checkpoint.fill(wanted, place, verified=True)
            rebuilt = None
        elif part.startswith(POWER) and power_ema.snapshots(there.averages):
            rebuilt = power_ema.rebuild(there.averages, length=float(average), step=step)
            model.load_state_dict({name: value.make() for name, value in rebuilt.tensors.items()})
        else:
            raise ValueError(f"{place} has no average {average!r}; it has {_averages(parts)}")
        check_finite_weights(model.state_dict(), f"the weights in {place}")
        sampler = sampler_of(there, place, model, run, decoder.to(device), average=part)
        if rebuilt is None:
            return sampler
        seconds = sampler.seconds * rebuilt.step / max(1, sampler.step)  # all steps take about as long
        return replace(sampler, step=rebuilt.step, seconds=seconds)

    sampler = checkpoint.read(there.path, fill, step=step)
    model.requires_grad_(False).eval().to(device)
    return sampler


def sampler_of(
    folder: RunFolder, place: Path, model: nn.Module, run: Run, autoencoder: Autoencoder, *, average: str = "ema"
) -> Sampler:
    """The sampler of weights that a checkpoint at `place` holds, with how far they are trained."""
    meta, record = checkpoint.load_meta(place), folder.record()
    kind = f"average of decay {run.train.ema_decay:g}"
    if average.startswith(POWER):
        kind = f"power-function average of length {float(average.removeprefix(POWER)):g}"
    elif average != "ema":
        kind = "not averaged" if average == "model" else average
    elif "ema" in record:
        kind = f"power-function average of length {record['ema']['length']:g}"
    elif meta.get("weights_only"):
        kind = "as imported"
    far = {"step": meta["step"], "seconds": meta["seconds"]}
    return Sampler(model=model, run=run, autoencoder=autoencoder, average=kind, folder=folder, **far)


def draw_preview(run: Run, autoencoder: Autoencoder, model: nn.Module, file: Path) -> None:
    """A PNG of a few samples, unless images have neither 1 nor 3 channels."""
    if (autoencoder.image_channels or run.method.channels) not in (1, 3):
        return
    sampler = Sampler(model=model, run=run, autoencoder=autoencoder)
    images = sampler.sample(pictures.preview(sampler.side)).images
    pictures.save_grid(images, file, columns=round(len(images) ** 0.5))


def _part_of(average: str | float) -> str:
    """The name in checkpoints of an average. Raises ValueError for a length out of range."""
    try:
        length = float(average)
    except ValueError:
        return "model" if average == "raw" else str(average)
    power_ema.exponent(length)
    return f"{POWER}{length:.3f}" if round(length, 3) == length else f"{POWER}{length:g}"


def _averages(parts: Sequence[str]) -> str:
    """The averages that a checkpoint of these parts holds, as they are asked for, and how to get others."""
    names = [
        "raw" if part == "model" else f"{float(part.removeprefix(POWER)):g}" if part.startswith(POWER) else part
        for part in parts
    ]
    return f"{', '.join(names)}; for any length train with --train.ema-lengths 0.05 0.1"


def within(run: Run, settings: SampleConfig, nfe: int) -> SampleConfig:
    """The settings with as many steps as `nfe` evaluations of the network allow. Raises ValueError if that is none."""
    if wrong := misfit(nfe, int):
        raise ValueError(f"nfe {wrong}")
    method: Any = run.method
    scales = len(method_of(method).scales(method))
    history = method.images_per_sequence is not None and settings.history != 0
    return with_evaluations(settings, nfe, INTERPOLANTS[method.interpolant], scales=scales, history=history)


def _space(sampler: Sampler) -> dict[str, Any]:
    """The facts in which two models agree whose velocities are combined."""
    method: Any = sampler.run.method
    names = ("size", "channels", "classes", "noise_shape", "interpolant")
    return {
        "the method": name_of(type(method)),
        **{name: getattr(method, name) for name in names},
        "the scales": method_of(method).scales(method),
        "the autoencoder": sampler.run.autoencoder.hash or sampler.run.autoencoder.name,
    }


def _each(*callbacks: OnStep | None) -> OnStep | None:
    """One callback for those that there are; None if there are none."""
    given = [callback for callback in callbacks if callback is not None]

    def call(step: Step) -> None:
        for callback in given:
            callback(step)

    return call if given else None
