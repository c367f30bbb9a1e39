"""The work of an edit: latents, their labels and settings, and the solvers that stand in place of the run's own."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypedDict

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fluvial.data.pixels import to_signed
from fluvial.flow.guidance import Guidance
from fluvial.flow.interpolant import INTERPOLANTS, Interpolant
from fluvial.methods import method_of, name_of
from fluvial.methods.method import Editable
from fluvial.nn.layers import Labels
from fluvial.run.load import ADDRESSES, Sampler
from fluvial.sampling.generate import Edit, batches, decoded
from fluvial.sampling.samples import Samples
from fluvial.sampling.settings import AnySolver, SampleConfig
from fluvial.utils.checks import misfit
from fluvial.utils.randomness import normal

CLASSES = int | str | Sequence[int | str] | np.ndarray | Tensor | None


class How(TypedDict, total=False):
    """The arguments that every edit takes."""

    classes: CLASSES
    """Class of all images, or of each; by name or id. None draws without a class."""
    copies: int
    """Results for each image."""
    seed: int
    settings: SampleConfig | None
    """Sampling settings; the run's own by default, of which steps, guidance and solver replace some."""
    steps: int | Sequence[int] | None
    guidance: float | Guidance | None
    solver: AnySolver | None


@dataclass(frozen=True, kw_only=True)
class Work:
    """Latents that are edited, and how."""

    sampler: Sampler
    settings: SampleConfig
    latents: Float[Tensor, "n c h w"]
    labels: Labels | None
    seed: int
    count: int
    chosen: tuple[int, ...] | None
    """The classes that were asked for."""

    @property
    def path(self) -> Interpolant:
        return INTERPOLANTS[self.sampler.run.method.interpolant]

    @property
    def method(self) -> str:
        return name_of(type(self.sampler.run.method))

    @property
    def scales(self) -> str:
        """The names of the scales, coarse to fine; "" for a method without."""
        config: Any = self.sampler.run.method
        return " ".join(method_of(config).scales(config))

    def ends(self, latents: Tensor) -> Sequence[Tensor]:
        """The values of latents in the shape of the solver, one tensor for each scale."""
        config: Any = self.sampler.run.method
        method: Any = method_of(config)
        return method.ends(config, latents)

    def noise(self, positions: slice, first: int, seed: int) -> list[Callable[[int], Tensor]]:
        """Of each scale, draw number i = 0, 1, ... of further noise for these images, at the addresses from `first`."""
        shape, rows = self.sampler.run.method.noise_shape, range(positions.start, positions.stop)
        count = max(1, len(self.scales.split()))

        def draw(i: int, scale: int) -> Tensor:
            return self.by_scale(normal(seed, rows, shape, step=first + i * count + scale))[scale]

        return [partial(draw, scale=scale) for scale in range(count)]

    def by_scale(self, noise: Float[Tensor, "b ..."]) -> Sequence[Float[Tensor, "b ..."]]:
        """The noise of each scale."""
        if not self.scales:
            return [noise]
        return noise.split([part.shape[1] for part in self.ends(self.latents[:1])], dim=1)

    def drawn(self, solvers: Edit, *, seed: int | None = None) -> tuple[Float[Tensor, "n c h w"], Counter[str]]:
        """The latents that these solvers end with, and the evaluations of the network for each."""
        model, draw = self.sampler.computing(self.settings)
        parts, labels = [range(self.count)], [] if self.labels is None else [self.labels]
        seed, latents, nfe = self.seed if seed is None else seed, list[Tensor](), Counter[str]()
        for batch in batches(model, draw, self.settings, parts=parts, labels=labels, seed=seed, edit=solvers):
            latents.append(batch.latents.cpu())
            nfe |= batch.nfe  # the largest over batches: dopri5 may differ
        return torch.cat(latents), nfe

    def samples(self, solvers: Edit, **about: Any) -> Samples:  # noqa: ANN401
        """The images that these solvers end with; `about` is the entry of the edit in their record."""
        return self.result(*self.drawn(solvers), **about)

    def result(self, latents: Tensor, nfe: Counter[str], **about: Any) -> Samples:  # noqa: ANN401
        """The images of these latents, with their record."""
        device = next(self.sampler.model.parameters()).device
        images = torch.cat(
            [decoded(self.sampler.autoencoder.decode, part.to(device)) for part in latents.split(self.settings.batch)]
        )
        record = self.sampler.provenance(seed=self.seed, settings=self.settings, classes=self.chosen, evaluations=nfe)
        ids = None if self.labels is None or self.labels.is_floating_point() else self.labels
        return Samples(images=images, labels=ids, nfe=dict(nfe), about={**record, "edit": about})


def begin(
    sampler: Sampler, images: Tensor | None, how: How | dict[str, Any], sizes: Sequence[tuple[int, ...]] | None = None
) -> Work:
    """The work of an edit. Raises ValueError for images or classes that do not fit the run, or a stochastic solver."""
    given: dict[str, Any] = dict(how)
    classes, copies, seed = given.pop("classes", None), given.pop("copies", 1), given.pop("seed", 0)
    settings = sampler.settings(given.pop("settings", None), **given)
    config: Any = sampler.run.method
    if settings.solver_settings.is_stochastic:
        raise ValueError(
            f"edits need the solver of an ODE, got {settings.solver_settings.name}; take euler, ab2 or heun"
        )
    if not isinstance(method_of(config), Editable):
        raise ValueError(f"the method {name_of(type(config))} has no function `ends`, which edits need")
    check_at_least(1, "copies", copies)
    if misfit(seed, int) or not 0 <= seed < ADDRESSES:
        raise ValueError(f"seed must be a whole number from 0, below 2^63, got {seed!r:.100}")
    latents = torch.zeros(0, config.channels, *config.size)
    if images is not None:
        latents = _latents(sampler, images, sizes or [config.size]).repeat_interleave(copies, dim=0)
    ids = None if classes is None else sampler.asked(1, classes=classes).classes
    if ids is None and config.classes and not config.label_drop:
        raise ValueError("the run was trained without label drop and draws nothing without a class: give classes")
    count = len(images) if images is not None else 1
    if ids is not None and images is not None and len(ids) not in (1, count):
        raise ValueError(f"classes must be one, or one for each of {count} images, got {len(ids)}")
    labels = None if ids is None else torch.tensor(ids if len(ids) > 1 else ids * count).repeat_interleave(copies)
    return Work(
        sampler=sampler,
        settings=settings,
        latents=latents,
        labels=labels,
        seed=seed,
        count=len(latents),
        chosen=ids,
    )


def _latents(sampler: Sampler, images: Any, sizes: Sequence[tuple[int, ...]]) -> Tensor:  # noqa: ANN401
    """The latents of images (the mean of a posterior). Raises ValueError for images that do not fit the model."""
    config, coder = sampler.run.method, sampler.autoencoder
    channels = coder.image_channels or config.channels
    wanted = [(channels, h * coder.stride, w * coder.stride) for h, w in sizes]
    if not isinstance(images, Tensor) or images.dtype != torch.uint8 or images.ndim != 4 or not len(images):
        got = f"{images.dtype} {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        raise ValueError(f"images must be a uint8 tensor (n, channels, height, width), at least one, got {got}")
    if tuple(images.shape[1:]) not in wanted:
        names, got = " or ".join(map(dimensions, wanted)), dimensions(images.shape[1:])
        raise ValueError(f"images must be {names} (channels, height, width) for this run, got {got}")
    device = next(sampler.model.parameters()).device
    with torch.no_grad():
        parts = [coder.latents(coder.moments(to_signed(part).to(device))).cpu() for part in images.split(64)]
    return torch.cat(parts)


def dimensions(sizes: Sequence[int]) -> str:
    return " x ".join(map(str, sizes))


def between(at: Any) -> None:  # noqa: ANN401
    if (misfit(at, float) and misfit(at, int)) or not 0 < at < 1:
        raise ValueError(f"at must be a time between 0 (noise) and 1 (image), got {at!r:.100}")


def check_at_least(least: int, name: str, value: Any) -> None:  # noqa: ANN401
    if misfit(value, int) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r:.100}")
