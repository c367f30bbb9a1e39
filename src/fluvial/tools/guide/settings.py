"""The settings of a sweep: every combination of weight, interval, average and steps."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

from fluvial.sampling.settings import SampleConfig
from fluvial.utils.checks import misfit

Interval = tuple[float, float]
Steps = int | tuple[int, ...]
WHOLE: Interval = (0.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One point of a sweep."""

    average: str
    """The weights, as `load` takes them."""
    steps: Steps
    weight: float
    interval: Interval
    """Times between which guidance acts; without guidance (weight 1) the whole."""

    def __str__(self) -> str:
        low, high = self.interval
        inside = "" if self.interval == WHOLE or self.weight == 1 else f" from t = {low:g} to {high:g}"
        return f"weight {self.weight:g}{inside}"

    def of(self, base: SampleConfig) -> SampleConfig:
        """The sampling settings of this point; all that is not swept stays as it is in `base`."""
        own = {"weight": self.weight, "interval": self.interval, "log_snr": None, "scale_weights": ()}
        return replace(base, steps=self.steps, guidance=replace(base.guidance, **own))


@dataclass(frozen=True, kw_only=True)
class Axes:
    """The values that a sweep combines."""

    weights: tuple[float, ...]
    intervals: tuple[Interval, ...]
    averages: tuple[str, ...]
    steps: tuple[Steps, ...]

    def __post_init__(self) -> None:
        for name in ("weights", "intervals", "averages", "steps"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{name} must be one or several different values, got {values}")
        for weight in self.weights:
            if (wrong := misfit(weight, float)) or weight < 0:
                raise ValueError(f"weights {wrong or f'of guidance are at least 0 (1 is none), got {weight:g}'}")
        for interval in self.intervals:
            if misfit(interval, tuple[float, float]) or not 0 <= interval[0] <= interval[1] <= 1:
                raise ValueError(f"intervals must be pairs of ascending times inside [0, 1], got {interval}")

    def at(self, average: str, steps: Steps, weight: float, interval: Interval) -> Setting:
        """The point with these values: without guidance the interval has no effect."""
        return Setting(average=average, steps=steps, weight=weight, interval=WHOLE if weight == 1 else interval)

    def groups(self) -> list[list[Setting]]:
        """The points by average and steps, each once: those of a group share the beginnings of trajectories."""
        return [
            list(dict.fromkeys(self.at(*group, *point) for point in product(self.weights, self.intervals)))
            for group in product(self.averages, self.steps)
        ]


def axes_of(
    weights: Sequence[float],
    intervals: Sequence[Sequence[float]],
    averages: Sequence[str | float],
    steps: Sequence[Steps],
    base: SampleConfig,
) -> Axes:
    """The axes, with the steps of `base` where none are given. Raises ValueError for values that cannot be swept."""
    for interval in intervals:
        if len(interval) != 2:
            raise ValueError(f"intervals must be pairs of ascending times inside [0, 1], got {tuple(interval)}")
    return Axes(
        weights=tuple(float(weight) for weight in weights),
        intervals=tuple((float(interval[0]), float(interval[1])) for interval in intervals),
        averages=tuple(average if isinstance(average, str) else f"{average:g}" for average in averages),
        steps=tuple(steps) or (base.steps,),
    )
