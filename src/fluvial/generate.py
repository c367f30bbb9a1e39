"""(seed, index) -> image: sampling runs in batches, where no image depends on the batch it was drawn in."""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Int, UInt8
from torch import Tensor, nn

from fluvial.checks import as_declared, at_most, probabilities
from fluvial.data.images import to_uint8
from fluvial.guidance import Guidance
from fluvial.integrate import DiffusionForm, LastStep, OnStep, Solver, SolverName, Step, is_finite, solver
from fluvial.interpolant import Interpolant
from fluvial.precision import Precision
from fluvial.randomness import normal
from fluvial.timesteps import grid, grid_with_last_step, two_piece_grid

MOST_STEPS = 1_000_000  # of a solver: a grid of more takes memory before anything else is looked at


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    solver: SolverName = "euler"
    """euler and ab2 evaluate the model once a step, heun and midpoint twice, dopri5 chooses its own steps;
    euler-maruyama is the SDE sampler of the releases, once a step. heun and dopri5 also evaluate it at t = 1, where
    models are least sure."""
    steps: int = 50
    """Solver steps from noise to data, in FlowAR at each scale; dopri5 ignores it."""
    scale_steps: tuple[int, ...] = ()
    """FlowAR: solver steps of each scale, coarse to fine, in place of steps. On the command line, --sample.steps alone
    takes as many at every scale."""
    grid: Literal["uniform", "two-piece"] = "uniform"
    """Equal steps, or half of them below t = 0.7 and half above 0.75 (FlowAR's release)."""
    shift: float = 1.0
    """Above 1 moves the steps of a uniform grid towards the noise end."""
    guidance: Guidance = Guidance()
    """Classifier-free guidance."""
    diffusion: DiffusionForm = "sigma"
    """euler-maruyama: the noise rate w(t)."""
    diffusion_norm: float = 1.0
    """euler-maruyama: factor on the noise rate."""
    last_step: LastStep = "mean"
    """euler-maruyama: the last step, taken without noise (unless none)."""
    last_step_size: float = 0.04
    """euler-maruyama: length of the last step in t."""
    atol: float = 1e-5
    """dopri5: absolute tolerance a step."""
    rtol: float = 1e-5
    """dopri5: relative tolerance a step."""
    context_noise: float = 0.0
    """FlowAR trained with method.context_noise: noise level of the maps that a scale is drawn from."""
    batch: int = 250
    """Images drawn at a time; changes memory and speed, not the images."""
    precision: Precision = "fp32"
    """How the velocity is computed, as train.precision; the integral and ARFlow's history stay float32."""
    compile: bool = False
    """Compile each block: takes a minute at the start, and is faster after it."""

    def __post_init__(self) -> None:
        as_declared(self)
        if self.batch < 1 or self.diffusion_norm < 0 or self.atol <= 0 or self.rtol <= 0:
            raise ValueError(
                f"batch must be at least 1, diffusion_norm at least 0, atol and rtol above 0, "
                f"got {self.batch}, {self.diffusion_norm}, {self.atol}, {self.rtol}"
            )
        at_most(MOST_STEPS, self, "steps")
        if any(steps > MOST_STEPS for steps in self.scale_steps):
            raise ValueError(f"scale_steps must be at most {MOST_STEPS:,} each, got {self.scale_steps}")
        if self.grid == "two-piece" and self.shift != 1:
            raise ValueError(f"only a uniform grid can be shifted, got grid two-piece and shift {self.shift}")
        probabilities(self, "context_noise")
        if self._has_last_step and (self.shift != 1 or self.grid != "uniform"):
            raise ValueError(
                f"euler-maruyama with a last step has its own grid: got shift {self.shift} and grid {self.grid!r}, "
                f"which need last_step none or another solver"
            )
        self.times()

    @property
    def _has_last_step(self) -> bool:
        return self.solver == "euler-maruyama" and self.last_step != "none"

    def times(self) -> Tensor | list[Tensor]:
        """The time grid that these settings stand for, or one for each scale."""
        if self.scale_steps:
            return [self._grid(steps) for steps in self.scale_steps]
        return self._grid(self.steps)

    def _grid(self, steps: int) -> Tensor:
        if self._has_last_step:
            return grid_with_last_step(steps, self.last_step_size)
        return two_piece_grid(steps) if self.grid == "two-piece" else grid(steps, shift_factor=self.shift)

    def bound_solver(self, interpolant: Interpolant) -> Solver:
        """The solver with its settings."""
        settings: dict[str, Any] = {}
        if self.solver == "dopri5":
            settings = {"atol": self.atol, "rtol": self.rtol}
        elif self.solver == "euler-maruyama":
            settings = {"interpolant": interpolant, "last_step": self.last_step}
            settings |= {"form": self.diffusion, "norm": self.diffusion_norm}
        return solver(self.solver, **settings)


DIVERGED = 1e4  # latents and images are of about unit size; under strong guidance ten times that
CONTEXT_STEP = 2**40  # the address of FlowAR's context noise, beyond any solver step


class Generated(NamedTuple):
    """Images in order of their index, their labels, and evaluations of the model an image took, by guidance branch."""

    images: UInt8[Tensor, "n c h w"]
    labels: Int[Tensor, "n"] | None
    nfe: dict[str, int]


def labels_for(images: range, classes: tuple[int, ...] | None) -> Int[Tensor, "b"] | None:
    """Image i is of class classes[i mod len(classes)]; None for no labels."""
    return torch.tensor([classes[i % len(classes)] for i in images]) if classes else None


@torch.no_grad()
def generate(
    model: nn.Module,
    sample: Callable[..., Tensor],
    decode: Callable[[Tensor], Tensor],
    settings: SampleConfig,
    *,
    images: range,
    classes: tuple[int, ...] | None,
    shape: tuple[int, ...],
    interpolant: Interpolant,
    seed: int = 0,
    on_batch: Callable[[int], None] | None = None,
    on_step: OnStep | None = None,
) -> Generated:
    """These images of a sampling run; image i depends on (seed, i), its class, and the settings.

    `sample` is a method's sampler, `shape` that of one image's noise; `decode` turns latents into images in [-1, 1].
    `on_batch` is told how many images are done; `on_step` follows the solver within each batch.
    """
    device = next(model.parameters()).device
    parts, nfe = [], Counter[str]()
    for start in range(0, len(images), settings.batch):
        part = images[start : start + settings.batch]

        def noise(step: int, part: range = part) -> Tensor:
            drawn = normal(seed, part, shape, step=step)
            return (drawn.pin_memory() if device.type == "cuda" else drawn).to(device, non_blocking=True)

        extra: dict[str, Any] = {}
        if settings.solver == "euler-maruyama":
            extra["step_noise"] = lambda step, noise=noise: noise(step + 1)
        if settings.context_noise > 0:
            extra |= {"context_noise": settings.context_noise, "level_noise": noise(CONTEXT_STEP)}

        labels = labels_for(part, classes)
        evaluations: Counter[str] = Counter()
        draw = partial(
            sample,
            model,
            None if labels is None else labels.to(device),
            noise=noise(0),
            times=settings.times(),
            guidance=settings.guidance,
            solver=settings.bound_solver(interpolant),
            **extra,
        )
        parts.append(_drawn(draw, decode, on_step=on_step, evaluations=evaluations))
        nfe |= evaluations  # the largest over batches: dopri5 may differ
        if on_batch is not None:
            on_batch(start + len(part))
    return Generated(torch.cat(parts), labels_for(images, classes), dict(nfe))


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


class Frames:
    """An `on_step` that keeps the first `count` images of a run at every step, for a GIF of the trajectory.

    With `ends_only` it decodes and keeps no more than what each integral ended with.
    """

    def __init__(self, decode: Callable[[Tensor], Tensor], count: int, *, ends_only: bool = False) -> None:
        self.decode, self.count, self.ends_only = decode, count, ends_only
        self.images: list[UInt8[Tensor, "n c h w"]] = []
        self.ends: list[UInt8[Tensor, "n c h w"]] = []
        """What each integral ended with: the image, or in FlowAR the map of each scale."""
        self._last = 0

    def __call__(self, step: Step) -> None:
        if step.number <= self._last:
            self.count = 0  # a second batch begins
        self._last = step.number
        ended = step.t > 1 - 1e-9
        if self.count and (ended or not self.ends_only):
            self.images.append(to_uint8(self.decode(step.x[: self.count])).cpu())
            if ended:
                self.ends.append(self.images[-1])
