"""Settings of sampling: solver, steps, guidance, precision."""

from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, cast

from torch import Tensor

from fluvial.flow.guidance import Guidance
from fluvial.flow.interpolant import Interpolant
from fluvial.flow.solvers import DiffusionForm, LastStep, Solver, SolverName, solver
from fluvial.flow.timesteps import grid, grid_with_last_step, two_piece_grid
from fluvial.utils.checks import as_declared, at_least, positive, probabilities, setting
from fluvial.utils.precision import Precision

MOST_STEPS = 1_000_000  # of a solver: a grid of more takes memory before anything else is looked at


@dataclass(frozen=True, kw_only=True)
class _SolverConfig:
    """Base of the solvers: each has a name, and as fields the settings that only it has."""

    name: ClassVar[SolverName]
    is_stochastic: ClassVar[bool] = False
    """The sampler gives it noise for every step."""
    is_adaptive: ClassVar[bool] = False
    """It chooses its own steps: steps, grid and shift have no effect."""

    def __post_init__(self) -> None:
        as_declared(self)

    def bound(self, interpolant: Interpolant) -> Solver:
        """The solver with its settings."""
        return solver(self.name, **asdict(self))


@dataclass(frozen=True, kw_only=True)
class Euler(_SolverConfig):
    """First order, one evaluation of the model a step."""

    name: ClassVar[SolverName] = "euler"


@dataclass(frozen=True, kw_only=True)
class AB2(_SolverConfig):
    """Adams-Bashforth 2: second order, one evaluation of the model a step."""

    name: ClassVar[SolverName] = "ab2"


@dataclass(frozen=True, kw_only=True)
class Heun(_SolverConfig):
    """Second order, two evaluations of the model a step, the last one at t = 1."""

    name: ClassVar[SolverName] = "heun"


@dataclass(frozen=True, kw_only=True)
class Midpoint(_SolverConfig):
    """Second order, two evaluations of the model a step."""

    name: ClassVar[SolverName] = "midpoint"


@dataclass(frozen=True, kw_only=True)
class Dopri5(_SolverConfig):
    """Dormand-Prince 5(4) with adaptive steps, six evaluations of the model each."""

    name: ClassVar[SolverName] = "dopri5"
    is_adaptive: ClassVar[bool] = True

    atol: float = 1e-5
    """Absolute tolerance a step."""
    rtol: float = 1e-5
    """Relative tolerance a step."""

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "atol", "rtol")


@dataclass(frozen=True, kw_only=True)
class EulerMaruyama(_SolverConfig):
    """The SDE sampler of the releases, one evaluation of the model a step."""

    name: ClassVar[SolverName] = "euler-maruyama"
    is_stochastic: ClassVar[bool] = True

    diffusion: DiffusionForm = "sigma"
    """The noise rate w(t)."""
    norm: float = 1.0
    """Factor on the noise rate."""
    last_step: LastStep = "mean"
    """The last step, taken without noise (unless none)."""
    last_step_size: float = 0.04
    """Length of the last step in t."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(0, self, "norm")

    def bound(self, interpolant: Interpolant) -> Solver:
        """The solver with its settings."""
        return solver(self.name, interpolant=interpolant, form=self.diffusion, norm=self.norm, last_step=self.last_step)


SolverConfig = Euler | AB2 | Heun | Midpoint | Dopri5 | EulerMaruyama
AnySolver = SolverConfig | SolverName
SOLVERS: dict[str, type[SolverConfig]] = {
    kind.name: kind for kind in (Euler, AB2, Heun, Midpoint, Dopri5, EulerMaruyama)
}


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    solver: AnySolver = Euler()
    """euler and ab2 evaluate the model once a step, heun and midpoint twice, dopri5 chooses its own steps;
    euler-maruyama is the SDE sampler of the releases, once a step. heun and dopri5 also evaluate it at t = 1, where
    models are least sure. Named alone, a solver has its default settings."""
    steps: int | tuple[int, ...] = setting(50, needs="steps")
    """Solver steps from noise to data: one number, or for FlowAR also one for each scale, coarse to fine."""
    grid: Literal["uniform", "two-piece"] = setting("uniform", needs="steps")
    """Equal steps, or half of them below t = 0.7 and half above 0.75 (FlowAR's release)."""
    shift: float = setting(1.0, needs="steps")
    """Above 1 moves the steps of a uniform grid towards the noise end."""
    guidance: Guidance = Guidance()
    """Classifier-free guidance."""
    context_noise: float = setting(0.0, needs="context_noise")
    """Noise level of the maps that a scale is drawn from, for models trained with method.context_noise."""
    history: int | None = setting(None, needs="history")
    """Points of the trajectory, the last ones, that ARFlow's history holds; all by default, 0 for no history."""
    batch: int = 250
    """Images drawn at a time; changes memory and speed, not the images."""
    precision: Precision = "fp32"
    """Precision of the velocity, as train.precision; the integral and ARFlow's history stay float32."""
    compile: bool = False
    """Compile each block: takes a minute at the start, and is faster after it."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "solver", chosen_solver(self.solver))
        as_declared(self)
        object.__setattr__(self, "steps", tuple(self.steps) if isinstance(self.steps, list) else self.steps)
        at_least(1, self, "batch")
        if not self.each_steps:
            raise ValueError("steps must be one number, or one for each scale, got none")
        if max(self.each_steps) > MOST_STEPS:
            raise ValueError(f"steps must be at most {MOST_STEPS:,}, got {self.steps}")
        if self.grid == "two-piece" and self.shift != 1:
            raise ValueError(f"only a uniform grid can be shifted, got grid two-piece and shift {self.shift}")
        probabilities(self, "context_noise")
        if self.history is not None:
            at_least(0, self, "history")
            if self.history > MOST_STEPS:
                raise ValueError(f"history must be at most {MOST_STEPS:,} points, got {self.history}")
        if self._last_step_size and (self.shift != 1 or self.grid != "uniform"):
            raise ValueError(
                f"euler-maruyama with a last step has its own grid: got shift {self.shift} and grid {self.grid!r}, "
                f"which need its last_step none or another solver"
            )
        self.times()

    @property
    def solver_settings(self) -> SolverConfig:
        """The solver, however it was given."""
        return cast(SolverConfig, self.solver)

    @property
    def each_steps(self) -> tuple[int, ...]:
        """The numbers of steps: of each scale, or the one number of all."""
        return self.steps if isinstance(self.steps, tuple) else (self.steps,)

    @property
    def _last_step_size(self) -> float | None:
        """Length of a last step that the grid makes room for."""
        of = self.solver_settings
        return of.last_step_size if isinstance(of, EulerMaruyama) and of.last_step != "none" else None

    def times(self) -> Tensor | list[Tensor]:
        """The time grid that these settings stand for, or one for each scale."""
        grids = [self._grid(steps) for steps in self.each_steps]
        return grids if isinstance(self.steps, tuple) else grids[0]

    def _grid(self, steps: int) -> Tensor:
        if self._last_step_size is not None:
            return grid_with_last_step(steps, self._last_step_size)
        return two_piece_grid(steps) if self.grid == "two-piece" else grid(steps, shift_factor=self.shift)


def chosen_solver(given: Any) -> SolverConfig:  # noqa: ANN401 - as it was given
    """A solver given by its settings or its name. Raises ValueError for anything else."""
    if isinstance(given, str) and given in SOLVERS:
        return SOLVERS[given]()
    if not isinstance(given, SolverConfig):
        raise ValueError(f"solver must be one of {', '.join(SOLVERS)}, or its settings, got {given!r:.100}")
    return given
