"""How images are sampled: solver, steps, guidance, precision."""

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from fluvial.flow.guidance import Guidance
from fluvial.flow.interpolant import Interpolant
from fluvial.flow.solvers import DiffusionForm, LastStep, Solver, SolverName, solver
from fluvial.flow.timesteps import grid, grid_with_last_step, two_piece_grid
from fluvial.utils.checks import as_declared, at_most, probabilities
from fluvial.utils.precision import Precision

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
