"""(seed, index) -> image: sampling runs in batches, where no image depends on the batch it was drawn in."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Int, UInt8
from torch import Tensor, nn

from fluvial.data.images import to_uint8
from fluvial.guidance import Guidance
from fluvial.integrate import DiffusionForm, LastStep, OnStep, Solver, SolverName, Step, solver
from fluvial.interpolant import Interpolant
from fluvial.randomness import normal
from fluvial.timesteps import grid, grid_with_last_step


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    solver: SolverName = "euler"
    """euler and ab2 evaluate the model once a step, heun and midpoint twice, dopri5 chooses its own steps;
    euler-maruyama is the SDE sampler of the releases, once a step."""
    steps: int = 50
    """Solver steps from noise to data; dopri5 ignores it."""
    shift: float = 1.0
    """Above 1 moves steps towards the noise end, 1 spaces them equally; not for euler-maruyama."""
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
    batch: int = 250
    """Images drawn at a time; changes memory and speed, not the images."""

    def __post_init__(self) -> None:
        if self.batch < 1 or self.diffusion_norm < 0 or self.atol <= 0 or self.rtol <= 0:
            raise ValueError(
                f"batch must be at least 1, diffusion_norm at least 0, atol and rtol above 0, "
                f"got {self.batch}, {self.diffusion_norm}, {self.atol}, {self.rtol}"
            )
        self.times()

    def times(self) -> Tensor:
        """The time grid that these settings stand for."""
        if self.solver == "euler-maruyama" and self.last_step != "none":
            return grid_with_last_step(self.steps, self.last_step_size)
        return grid(self.steps, shift_factor=self.shift)

    def bound_solver(self, interpolant: Interpolant, noise: Callable[[int], Tensor]) -> Solver:
        """The solver with its settings; `noise` gives the normal draws of step 0, 1, ... of an SDE."""
        settings: dict[str, Any] = {}
        if self.solver == "dopri5":
            settings = {"atol": self.atol, "rtol": self.rtol}
        elif self.solver == "euler-maruyama":
            settings = {"interpolant": interpolant, "noise": noise, "last_step": self.last_step}
            settings |= {"form": self.diffusion, "norm": self.diffusion_norm}
        return solver(self.solver, **settings)


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
    count: int,
    classes: tuple[int, ...] | None,
    shape: tuple[int, int, int],
    interpolant: Interpolant,
    seed: int = 0,
    on_batch: Callable[[int], None] | None = None,
    on_step: OnStep | None = None,
) -> Generated:
    """Images 0 ... count - 1 of a sampling run; image i depends on (seed, i), its class, and the settings.

    `sample` is a method's sampler, `decode` turns latents of `shape` (c, h, w) into images in [-1, 1]. `on_batch` is
    told how many images are done; `on_step` follows the solver within a batch.
    """
    device = next(model.parameters()).device
    parts, nfe = [], Counter[str]()
    for start in range(0, count, settings.batch):
        images = range(start, min(start + settings.batch, count))

        def noise(step: int, images: range = images) -> Tensor:
            return normal(seed, images, shape, step=step + 1).to(device)

        labels = labels_for(images, classes)
        evaluations: Counter[str] = Counter()
        latents = sample(
            model,
            None if labels is None else labels.to(device),
            noise=normal(seed, images, shape).to(device),
            times=settings.times(),
            guidance=settings.guidance,
            solver=settings.bound_solver(interpolant, noise),
            on_step=on_step,
            evaluations=evaluations,
        )
        parts.append(to_uint8(decode(latents)).cpu())
        nfe |= evaluations  # the largest over batches: dopri5 may differ
        if on_batch is not None:
            on_batch(images.stop)
    return Generated(torch.cat(parts), labels_for(range(count), classes), dict(nfe))


class Frames:
    """An `on_step` that keeps the first `count` images of a batch at every step, for a GIF of the trajectory."""

    def __init__(self, decode: Callable[[Tensor], Tensor], count: int) -> None:
        self.decode, self.count = decode, count
        self.images: list[UInt8[Tensor, "n c h w"]] = []

    def __call__(self, step: Step) -> None:
        self.images.append(to_uint8(self.decode(step.x[: self.count])).cpu())
