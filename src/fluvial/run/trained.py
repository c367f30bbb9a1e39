"""A trained model, ready to sample, and what is to be said of its samples."""

import copy
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from fluvial.autoencoders import Autoencoder
from fluvial.config import Run, to_json
from fluvial.data.labels import class_ids
from fluvial.evaluation.images import Images
from fluvial.flow.interpolant import INTERPOLANTS
from fluvial.flow.solvers import OnStep, Step
from fluvial.methods import method_of
from fluvial.sampling.generate import Generated, generate
from fluvial.sampling.settings import SampleConfig
from fluvial.training.distributed import blocks
from fluvial.utils.precision import Precision, products


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A trained run: its moving-average model, ready to sample."""

    model: nn.Module
    run: Run
    autoencoder: Autoencoder
    step: int
    """Training steps behind these weights."""
    seconds: float
    """Wall-clock seconds of training behind them."""
    average: str = ""
    """Which average of the weights they are."""
    _ready: dict[tuple[str, bool], nn.Module] = field(default_factory=dict, init=False, repr=False, compare=False)

    def sample(
        self,
        count: int,
        *,
        start: int = 0,
        classes: Sequence[int | str] | None = None,
        seed: int = 0,
        settings: SampleConfig | None = None,
        on_batch: Callable[[int], None] | None = None,
        on_step: OnStep | None = None,
    ) -> Generated:
        """`count` images from image `start` on; i is of class classes[i mod len(classes)], by default all in turn.

        A class is a name (str) or an id (int). Raises ValueError for one that the model does not know, a count below 1,
        or settings that the method does not have.
        """
        known, settings = self.run.method.classes, self.run.sampled_with(settings or self.run.sample).sample
        if count < 1:
            raise ValueError(f"count must be at least 1, got {count}")
        ids = class_ids(classes or range(known), self.run.data.class_names, known)
        key, sample = (settings.precision, settings.compile), method_of(self.run.method).sample
        if key not in self._ready:
            self._ready[key] = ready(self.model, settings)
        return generate(
            self._ready[key],
            _computed_in(settings.precision, sample),
            self.autoencoder.decode,
            settings,
            images=range(start, start + count),
            classes=ids,
            shape=self.run.method.noise_shape,
            interpolant=INTERPOLANTS[self.run.method.interpolant],
            seed=seed,
            on_batch=on_batch,
            on_step=on_step,
        )

    def draw(self, count: int, *, seed: int = 0, settings: SampleConfig | None = None) -> Images:
        """The same images, drawn when they are read, in runs; how, and how long it took so far, is in `about`."""
        about = self.provenance(seed=seed, settings=settings)
        sampling = about["sampling"]
        sampling |= {"seconds": 0.0, "drawn": 0}

        def read(wanted: Sequence[int]) -> tuple[Tensor, Tensor | None]:
            assert list(wanted) == list(range(wanted[0], wanted[0] + len(wanted))), "images are drawn in a row"
            started = time.perf_counter()
            part = self.sample(len(wanted), start=wanted[0], seed=seed, settings=settings)
            sampling["seconds"] += time.perf_counter() - started
            sampling["drawn"] += len(wanted)
            sampling.update(_evaluations(Counter(sampling["evaluations"]) | Counter(part.nfe)))
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
        """What a card says of images that were sampled so."""
        settings, known = settings or self.run.sample, self.run.method.classes
        chosen = "all" if classes is None else " ".join(map(str, classes))
        sampling = {
            "seed": seed,
            "seed_rule": "the noise of image i is a function of (seed, i)",
            "solver": settings.solver_settings.name,
            **_evaluations(evaluations or {}),
            "guidance": settings.guidance.weight if known else 1.0,
            "guidance_interval": list(settings.guidance.interval),
            "guidance_channels": settings.guidance.channels,
            "weights": self.average,
            "dtype": _dtype(self.model, settings),
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


def ready(model: nn.Module, settings: SampleConfig) -> nn.Module:
    """The model as these settings compute it: itself, or a copy that shares the weights it need not change.

    In bf16 the weights are rounded once, just as autocast would at every evaluation: those of linear layers, but for
    what a module computes in float32 whatever autocast says (its `float32`).
    """
    if settings.precision != "bf16" and not settings.compile:
        return model
    model = copy.deepcopy(model, {id(p): p for p in model.parameters()})
    if settings.precision == "bf16":
        kept = {getattr(module, name) for module in model.modules() for name in getattr(module, "float32", ())}
        for layer in model.modules():
            if isinstance(layer, nn.Linear) and layer not in kept:
                for name, p in list(layer.named_parameters(recurse=False)):  # layer.bfloat16() would round the shared
                    setattr(layer, name, nn.Parameter(p.detach().bfloat16(), requires_grad=False))
    for block in blocks(model).values() if settings.compile else ():
        block.compile()
    return model


def _computed_in(precision: Precision, sample: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The sampler in this precision; autocast holds for it alone, and not for what `on_step` does, such as decoding."""

    def drawn(model: nn.Module, labels: Tensor | None, *, noise: Tensor, on_step: OnStep | None, **rest: Any) -> Tensor:  # noqa: ANN401
        device = noise.device.type

        def show(step: Step) -> None:
            assert on_step is not None
            with torch.autocast(device, enabled=False):
                on_step(step)

        bf16 = torch.autocast(device, torch.bfloat16) if precision == "bf16" else nullcontext()
        with products(precision), bf16:
            return sample(model, labels, noise=noise, on_step=on_step and show, **rest)

    return drawn


def _dtype(model: nn.Module, settings: SampleConfig) -> str:
    weights = str(next(model.parameters()).dtype).removeprefix("torch.")
    return {"fp32": weights, "tf32": "tf32", "bf16": "bfloat16"}[settings.precision]


def _evaluations(by_branch: Mapping[str, int]) -> dict[str, Any]:
    """Evaluations of the model an image took: with its class, without, and by branch."""
    totals = {
        key: sum(n for name, n in by_branch.items() if name.startswith(branch))
        for key, branch in (("nfe", "conditional"), ("nfe_null", "null"))
    }
    return {**totals, "evaluations": dict(by_branch)}
