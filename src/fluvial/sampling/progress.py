"""Sampling step by step: the estimate of the clean images at every step."""

from collections.abc import Callable, Generator
from contextlib import ExitStack
from dataclasses import dataclass, field

import torch
from jaxtyping import UInt8
from torch import Tensor

from fluvial.flow.interpolant import Interpolant
from fluvial.flow.solvers import Step
from fluvial.sampling.generate import decoded
from fluvial.sampling.samples import Samples
from fluvial.utils.iteration import iterated


@dataclass(frozen=True, kw_only=True)
class Progress:
    """The estimate of the clean images at a step of the solver; at the end, the images."""

    images: UInt8[Tensor, "n c h w"] = field(repr=False)
    """The images of one batch (sample.batch); at the end those of all batches."""
    number: int
    """Steps so far; in FlowAR they run on over the scales."""
    t: float
    """Time at the end of the step, from 0 (noise) to 1 (image)."""
    nfe: int
    """Evaluations of the velocity field so far."""
    scale: str = ""
    """Name of the scale, such as 4x4, in FlowAR."""
    samples: Samples | None = field(default=None, repr=False)
    """The result of sampling, at the end; None before."""


def followed(
    draw: Callable[..., Samples], decode: Callable[[Tensor], Tensor], interpolant: Interpolant
) -> Generator[Progress, None, None]:
    """The progress of `draw(on_step=...)`, which goes on as items are asked for; see `Sampler.steps`."""
    here = _autocast()

    def work(emit: Callable[[Progress], None]) -> None:
        at = {"number": 0, "t": 1.0, "nfe": 0, "scale": ""}

        def tell(step: Step) -> None:
            estimate = step.seen.data(interpolant).to(step.x.dtype)
            at.update(number=step.number, t=step.t, nfe=step.nfe, scale=step.scale)
            emit(Progress(images=decoded(decode, estimate, checked=False), **at))

        with ExitStack() as stack:
            for device, dtype in here.items():
                stack.enter_context(torch.autocast(device, dtype))
            samples = draw(on_step=tell)
        emit(Progress(images=samples.images, samples=samples, **at))

    return iterated(work)


def _autocast() -> dict[str, torch.dtype]:
    """The dtype by kind of device where autocast is on, which PyTorch keeps for each thread."""
    return {
        device: torch.get_autocast_dtype(device)
        for device in ("cpu", "cuda", "mps")
        if torch.is_autocast_enabled(device)
    }
