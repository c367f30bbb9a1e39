"""A trained model, ready to sample, and what is to be said of its samples."""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from fluvial.autoencoders import Autoencoder
from fluvial.config import Run, to_json
from fluvial.evaluation.images import Images
from fluvial.generate import Generated, SampleConfig, generate
from fluvial.integrate import OnStep
from fluvial.interpolant import INTERPOLANTS
from fluvial.methods import method_of


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

    def sample(
        self,
        count: int,
        *,
        start: int = 0,
        classes: tuple[int, ...] | None = None,
        seed: int = 0,
        settings: SampleConfig | None = None,
        on_batch: Callable[[int], None] | None = None,
        on_step: OnStep | None = None,
    ) -> Generated:
        """`count` images from image `start` on; i is of class classes[i mod len(classes)], by default all in turn.

        Raises ValueError for a class id out of range, a count below 1, or settings that the method does not have.
        """
        known, settings = self.run.method.classes, replace(self.run, sample=settings or self.run.sample).sample
        if count < 1:
            raise ValueError(f"count must be at least 1, got {count}")
        if wrong := [c for c in classes or () if not 0 <= c < known]:
            raise ValueError(f"class ids {wrong} are out of range: the model knows {known} classes, 0 to {known - 1}")
        method = method_of(self.run.method)
        return generate(
            self.model,
            method.sample,
            self.autoencoder.decode,
            settings,
            images=range(start, start + count),
            classes=classes or tuple(range(known)),
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
            "solver": settings.solver,
            **_evaluations(evaluations or {}),
            "guidance": settings.guidance.weight if known else 1.0,
            "guidance_interval": list(settings.guidance.interval),
            "guidance_channels": settings.guidance.channels,
            "weights": self.average,
            "dtype": str(next(self.model.parameters()).dtype).removeprefix("torch."),
            "autoencoder": f"{self.run.autoencoder.name} {self.run.autoencoder.hash}".strip(),
            "train_step": self.step,
            "train_seconds": round(self.seconds, 1),
            "settings": to_json(replace(self.run, sample=settings))["sample"],
            "seconds": 0.0,
            "drawn": 0,
        }
        return {
            "cut": "as they are",
            "rounding": "to the nearest of 256 levels",
            "labels": f"{chosen} classes in turn" if known else "none",
            "sampling": sampling,
        }


def _evaluations(by_branch: Mapping[str, int]) -> dict[str, Any]:
    """Evaluations of the model an image took: with its class, without, and by branch."""
    totals = {
        key: sum(n for name, n in by_branch.items() if name.startswith(branch))
        for key, branch in (("nfe", "conditional"), ("nfe_null", "null"))
    }
    return {**totals, "evaluations": dict(by_branch)}
