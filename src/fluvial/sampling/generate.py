"""(seed, index) -> image: sampling runs in batches, where no image depends on the batch it was drawn in."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import torch
from jaxtyping import Int, UInt8
from torch import Tensor, nn

from fluvial.data.pixels import to_uint8
from fluvial.flow.interpolant import INTERPOLANTS
from fluvial.flow.solvers import OnStep, is_finite
from fluvial.sampling.samples import Samples
from fluvial.sampling.settings import SampleConfig
from fluvial.utils.randomness import normal

DIVERGED = 1e4  # latents and images are of about unit size; under strong guidance ten times that
CONTEXT_STEP = 2**40  # the address of FlowAR's context noise, beyond any solver step


def labels_for(indices: Sequence[int], classes: Sequence[int]) -> Int[Tensor, "b"] | None:
    """Class ids of these images: image i is of class classes[i mod len(classes)]. None if there are no classes."""
    return torch.tensor([classes[i % len(classes)] for i in indices]) if classes else None


@torch.no_grad()
def generate(
    model: nn.Module,
    sample: Callable[..., Tensor],
    decode: Callable[[Tensor], Tensor],
    settings: SampleConfig,
    *,
    indices: Sequence[int],
    labels: Int[Tensor, "n"] | None,
    seed: int = 0,
    on_step: OnStep | None = None,
) -> Samples:
    """The images of these indices; image i depends on (seed, i), its label, and the settings.

    `sample` is a method's sampler; `decode` turns latents into images in [-1, 1]. `on_step` follows the solver within
    each batch. Raises RuntimeError for images that are not finite.
    """
    device, config = next(model.parameters()).device, cast(Any, model.config)
    parts, nfe = [], Counter[str]()
    for start in range(0, len(indices), settings.batch):
        part = slice(start, start + settings.batch)

        def noise(step: int, part: slice = part) -> Tensor:
            drawn = normal(seed, list(indices[part]), config.noise_shape, step=step)
            return (drawn.pin_memory() if device.type == "cuda" else drawn).to(device, non_blocking=True)

        extra: dict[str, Any] = {}
        if settings.solver_settings.is_stochastic:
            extra["step_noise"] = lambda step, noise=noise: noise(step + 1)
        if settings.context_noise > 0:
            extra |= {"context_noise": settings.context_noise, "level_noise": noise(CONTEXT_STEP)}

        evaluations: Counter[str] = Counter()
        draw = partial(
            sample,
            model,
            None if labels is None else labels[part].to(device),
            noise=noise(0),
            times=settings.times(),
            guidance=settings.guidance,
            solver=settings.solver_settings.bound(INTERPOLANTS[config.interpolant]),
            **extra,
        )
        parts.append(_drawn(draw, decode, on_step=on_step, evaluations=evaluations))
        nfe |= evaluations  # the largest over batches: dopri5 may differ
    return Samples(images=torch.cat(parts), labels=labels, nfe=dict(nfe))


def _drawn(
    draw: Callable[..., Tensor],
    decode: Callable[[Tensor], Tensor],
    **told: Any,  # noqa: ANN401
) -> UInt8[Tensor, "b c h w"]:
    """The images of a batch, on the CPU. Raises RuntimeError for what is not finite: no such image is rounded."""
    latents = draw(**told)
    if not is_finite(latents):  # on a GPU nothing has looked before: once more, to say where it begins
        draw(on_step=None, careful=True)
    check_drawn(latents, "latents")
    decoded = decode(latents)
    check_drawn(decoded, "images")
    return to_uint8(decoded).cpu()


def check_drawn(values: Tensor, what: str) -> None:
    """Raises RuntimeError for latents or images (about 1 in size) that are not finite, or beyond all sense.

    Rounded to pixels, they would be black or white.
    """
    largest = float(values.abs().amax())
    if not largest <= DIVERGED:
        size = f"as large as {largest:.2g}" if math.isfinite(largest) else "not finite"
        raise RuntimeError(
            f"the {what} that were drawn are {size}, where about 1 is usual: the model has diverged in training, or "
            f"the settings are out of its range (such as sample.guidance.weight)"
        )
