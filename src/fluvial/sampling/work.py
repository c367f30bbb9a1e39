"""The work of an edit: latents and labels, and the solvers that stand in place of the one of the settings."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from fluvial.autoencoders import Autoencoder
from fluvial.data.pixels import to_signed
from fluvial.flow.interpolant import INTERPOLANTS, Interpolant
from fluvial.methods import method_of, name_of
from fluvial.sampling.generate import Edit, batches, decoded
from fluvial.sampling.samples import Samples
from fluvial.sampling.settings import SampleConfig
from fluvial.utils.checks import misfit
from fluvial.utils.randomness import normal


@dataclass(frozen=True, kw_only=True)
class Work:
    """Latents that are edited, with the model that edits them."""

    model: nn.Module
    draw: Callable[..., Tensor]
    """The sampler of the model's method."""
    autoencoder: Autoencoder
    settings: SampleConfig
    latents: Float[Tensor, "n c h w"]
    labels: Int[Tensor, "_"] | None
    seed: int
    count: int
    """Results, for each of which the latents have a row, if there are any."""
    record: Callable[[Counter[str]], dict[str, Any]]
    """How the run samples, given the evaluations of the network, for the record of the results."""
    given: Mapping[str, str]
    """Checksums of what is edited, for the record."""

    @property
    def config(self) -> Any:  # noqa: ANN401 - of any method
        return self.model.config

    @property
    def path(self) -> Interpolant:
        return INTERPOLANTS[self.config.interpolant]

    @property
    def method(self) -> str:
        return name_of(type(self.config))

    @property
    def scales(self) -> str:
        """The names of the scales, coarse to fine; "" for a method without."""
        return " ".join(method_of(self.config).scales(self.config))

    def ends(self, latents: Tensor) -> Sequence[Tensor]:
        """The values of latents in the shape of the solver, one tensor for each scale."""
        method: Any = method_of(self.config)
        return method.ends(self.config, latents)

    def noise(self, positions: slice, first: int, seed: int) -> list[Callable[[int], Tensor]]:
        """Of each scale, draw number i = 0, 1, ... of further noise for these images, at the addresses from `first`."""
        shape, rows = self.config.noise_shape, range(positions.start, positions.stop)
        count = max(1, len(self.scales.split()))

        def draw(i: int, scale: int) -> Tensor:
            return self.by_scale(normal(seed, rows, shape, step=first + i * count + scale))[scale]

        return [partial(draw, scale=scale) for scale in range(count)]

    def by_scale(self, noise: Float[Tensor, "b ..."]) -> Sequence[Float[Tensor, "b ..."]]:
        """The noise of each scale."""
        return noise.split(self.sizes, dim=1) if self.scales else [noise]

    @cached_property
    def sizes(self) -> list[int]:
        """The number of tokens of each scale, for a method that draws by scales."""
        return [part.shape[1] for part in self.ends(self.latents[:1])]

    def drawn(self, solvers: Edit, *, seed: int | None = None) -> tuple[Float[Tensor, "n c h w"], Counter[str]]:
        """The latents that these solvers end with, and the evaluations of the network for each."""
        parts, labels = [range(self.count)], [] if self.labels is None else [self.labels]
        seed, latents, nfe = self.seed if seed is None else seed, list[Tensor](), Counter[str]()
        for batch in batches(self.model, self.draw, self.settings, parts=parts, labels=labels, seed=seed, edit=solvers):
            latents.append(batch.latents.cpu())
            nfe |= batch.nfe  # the largest over batches: dopri5 may differ
        return torch.cat(latents), nfe

    def samples(self, solvers: Edit, **about: Any) -> Samples:  # noqa: ANN401
        """The images that these solvers end with; `about` is the entry of the edit in their record."""
        return self.result(*self.drawn(solvers), **about)

    def result(self, latents: Tensor, nfe: Counter[str], **about: Any) -> Samples:  # noqa: ANN401
        """The images of these latents, with their record."""
        device = next(self.model.parameters()).device
        images = torch.cat(
            [decoded(self.autoencoder.decode, part.to(device)) for part in latents.split(self.settings.batch)]
        )
        return Samples(
            images=images,
            labels=self.labels,
            nfe=dict(nfe),
            about={**self.record(nfe), "edit": {**about, **self.given}},
        )


def latents_of(
    coder: Autoencoder,
    images: Any,  # noqa: ANN401 - as it was given
    *,
    channels: int,
    sizes: Sequence[tuple[int, ...]],
    device: torch.device,
) -> Float[Tensor, "n c h w"]:
    """The latents of images, of one of these sizes (the mean of a posterior). Raises ValueError if they do not fit."""
    channels = coder.image_channels or channels
    wanted = [(channels, h * coder.stride, w * coder.stride) for h, w in sizes]
    if not isinstance(images, Tensor) or images.dtype != torch.uint8 or images.ndim != 4 or not len(images):
        got = _kind_of(images)
        raise ValueError(f"images must be a uint8 tensor (n, channels, height, width), at least one, got {got}")
    if tuple(images.shape[1:]) not in wanted:
        names, got = " or ".join(map(_dimensions, wanted)), _dimensions(images.shape[1:])
        raise ValueError(f"images must be {names} (channels, height, width) for this run, got {got}")
    with torch.no_grad():
        parts = [coder.latents(coder.moments(to_signed(part).to(device))).cpu() for part in images.split(64)]
    return torch.cat(parts)


def latent_mask(mask: Any, stride: int, latent: tuple[int, ...]) -> Bool[Tensor, "h w"]:  # noqa: ANN401
    """True for the latents with a masked pixel. Raises ValueError for a mask that does not fit the images."""
    size = tuple(side * stride for side in latent)
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.ndim != 2:
        raise ValueError(f"a mask must be a bool tensor (height, width), True where to draw, got {_kind_of(mask)}")
    if tuple(mask.shape) != size:
        raise ValueError(
            f"the mask must be of the size of the images, {_dimensions(size)}, got {_dimensions(mask.shape)}"
        )
    if not mask.any():
        raise ValueError("the mask is all black: nothing is to be drawn; make white what is to be drawn")
    blocks = mask.unflatten(0, (-1, stride)).unflatten(2, (-1, stride))
    free = blocks.any(dim=3).any(dim=1)
    if free.all():
        raise ValueError("the mask leaves no part of the images known; `fluvial sample` draws whole images")
    return free


def _kind_of(value: Any) -> str:  # noqa: ANN401
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def _dimensions(sizes: Sequence[int]) -> str:
    return " x ".join(map(str, sizes))


def check_between(at: Any) -> None:  # noqa: ANN401
    if (misfit(at, float) and misfit(at, int)) or not 0 < at < 1:
        raise ValueError(f"at must be a time between 0 (noise) and 1 (image), got {at!r:.100}")


def check_at_least(least: int, name: str, value: Any) -> None:  # noqa: ANN401
    if misfit(value, int) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r:.100}")
