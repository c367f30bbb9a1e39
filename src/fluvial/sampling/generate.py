"""(seed, index) -> image: sampling runs in batches, where no image depends on the batch it was drawn in."""

import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from fluvial.data.pixels import to_uint8
from fluvial.flow.interpolant import INTERPOLANTS
from fluvial.flow.solvers import OnStep, Solver, is_finite
from fluvial.nn.layers import Labels
from fluvial.sampling.samples import Samples
from fluvial.sampling.settings import SampleConfig
from fluvial.utils.randomness import normal

DIVERGED = 1e4  # latents and images are of about unit size; under strong guidance ten times that
CONTEXT_STEP = 2**40  # the address of FlowAR's context noise, beyond any solver step

Noise = Callable[[Sequence[int], int], Tensor]  # noise(indices, step) -> (b, *noise_shape), on the CPU
"""Standard normal draws for images: of step 0, where they start, and of step k of a stochastic solver."""
Edit = Callable[..., Solver | Sequence[Solver]]  # edit(solver, positions=slice)
"""From the solver of the settings to that of an edit, for the images at these positions; see `sampling/edit.py`."""


def generate(
    model: nn.Module,
    sample: Callable[..., Tensor],
    decode: Callable[[Tensor], Tensor],
    settings: SampleConfig,
    *,
    indices: Sequence[int],
    labels: Labels | None,
    seed: int = 0,
    on_step: OnStep | None = None,
    edit: Edit | None = None,
    noise: Noise | None = None,
) -> Samples:
    """The images of these indices; image i depends on (seed, i), or on its `noise`, its label, and the settings.

    `sample` is a method's sampler; `decode` turns latents into images in [-1, 1]. `on_step` follows the solver within
    each batch; `edit` replaces the solver by its own. Raises RuntimeError for images that are not finite.
    """
    images, nfe, seconds = list[Tensor](), Counter[str](), {"network": 0.0, "decoding": 0.0}
    whole = [] if labels is None else [labels]
    given = {"labels": whole, "seed": seed, "noise": noise, "on_step": on_step, "edit": edit}
    for batch in batches(model, sample, settings, parts=[indices], **given):
        started = time.perf_counter()
        images.append(decoded(decode, batch.latents))
        seconds["decoding"] += time.perf_counter() - started
        seconds["network"] += batch.seconds
        nfe |= batch.nfe  # the largest over batches: dopri5 may differ
    ids = None if labels is None or labels.is_floating_point() else labels
    return Samples(images=torch.cat(images), labels=ids, nfe=dict(nfe), seconds=seconds)


@dataclass(frozen=True)
class Batch:
    """Latents that were sampled together: those at these positions of a part."""

    part: int
    positions: slice
    latents: Float[Tensor, "b c h w"]
    nfe: Counter[str]
    seconds: float
    """Wall-clock seconds of sampling."""


@torch.no_grad()
def batches(
    model: nn.Module,
    sample: Callable[..., Tensor],
    settings: SampleConfig,
    *,
    parts: Sequence[Sequence[int]],
    labels: Sequence[Int[Tensor, "_"] | Float[Tensor, "_ _"]] = (),
    seed: int = 0,
    on_step: OnStep | None = None,
    edit: Edit | None = None,
    noise: Noise | None = None,
) -> Iterator[Batch]:
    """The latents of the indices of each part, batch by batch; `labels` are those of each part, or none.

    `noise` gives other draws than those of (seed, index).

    Where the memory does not suffice, the batch is halved from there on, with a line on stderr, and the images are the
    same. Raises RuntimeError for latents that are not finite.
    """
    size, shape = settings.batch, cast(Any, model.config).noise_shape
    noise = noise or (lambda indices, step: normal(seed, list(indices), shape, step=step))
    for number, indices in enumerate(parts):
        start = 0
        while start < len(indices):
            positions = slice(start, min(start + size, len(indices)))
            ids = labels[number][positions] if labels else None
            own = None if edit is None else partial(edit, positions=positions)
            try:
                drawn = _drawn(model, sample, settings, indices[positions], ids, noise, on_step, own)
            except RuntimeError as error:
                if not _lacks_memory(error) or size == 1:
                    raise
                size = -(-min(size, len(indices)) // 2)
                print(f"out of memory: going on in batches of {size}; the images are the same", file=sys.stderr)
                continue
            latents, nfe, seconds = drawn
            yield Batch(number, positions, latents, nfe, seconds)
            start = positions.stop


def _drawn(
    model: nn.Module,
    sample: Callable[..., Tensor],
    settings: SampleConfig,
    indices: Sequence[int],
    labels: Labels | None,
    noise: Noise,
    on_step: OnStep | None,
    edit: Callable[[Solver], Solver | Sequence[Solver]] | None,
) -> tuple[Tensor, Counter[str], float]:
    """The latents of one batch, the evaluations of the network for each, and the seconds it took."""
    device, config = next(model.parameters()).device, cast(Any, model.config)
    started = time.perf_counter()

    def draws(step: int) -> Tensor:
        drawn = noise(indices, step)
        return (drawn.pin_memory() if device.type == "cuda" else drawn).to(device, non_blocking=True)

    extra: dict[str, Any] = {}
    if settings.solver_settings.is_stochastic:
        extra["step_noise"] = lambda step: draws(step + 1)
    if settings.history is not None:
        extra["history"] = settings.history
    if settings.context_noise > 0:
        extra |= {"context_noise": settings.context_noise, "level_noise": draws(CONTEXT_STEP)}
    solver = settings.solver_settings.bound(INTERPOLANTS[config.interpolant])
    draw = partial(
        sample,
        model,
        None if labels is None else labels.to(device),
        noise=draws(0),
        times=settings.times(),
        guidance=settings.guidance,
        solver=solver if edit is None else edit(solver),
        **extra,
    )
    evaluations: Counter[str] = Counter()
    latents = draw(on_step=on_step, evaluations=evaluations)
    if not is_finite(latents):  # on a GPU nothing has looked before: once more, to say where it begins
        draw(on_step=None, careful=True)
    check_drawn(latents, "latents")
    return latents, evaluations, time.perf_counter() - started


@torch.no_grad()
def decoded(
    decode: Callable[[Tensor], Tensor], latents: Float[Tensor, "b c h w"], *, checked: bool = True
) -> UInt8[Tensor, "b _ H W"]:
    """The images of latents, on the CPU. Raises RuntimeError for what is not finite: no such image is rounded.

    With checked=False, for estimates on the way, it is rounded all the same. Where the memory does not suffice, the
    batch is decoded in halves.
    """
    try:
        images = decode(latents)
    except RuntimeError as error:
        if not _lacks_memory(error) or len(latents) == 1:
            raise
        return torch.cat([decoded(decode, half, checked=checked) for half in latents.tensor_split(2)])
    if checked:
        check_drawn(images, "images")
    return to_uint8(images).cpu()


def _lacks_memory(error: RuntimeError) -> bool:
    """True for the errors of PyTorch's allocators on a GPU and on a CPU."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


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
