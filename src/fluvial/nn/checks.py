"""What every configuration of a model has to satisfy, each with an error that names the setting."""

from typing import Any


def at_least(minimum: int, config: Any, *names: str) -> None:  # noqa: ANN401 - any configuration
    """Raises ValueError naming the settings below the minimum."""
    if wrong := {name: getattr(config, name) for name in names if getattr(config, name) < minimum}:
        raise ValueError(f"must be at least {minimum}: {wrong}")


def probabilities(config: Any, *names: str) -> None:  # noqa: ANN401
    """Raises ValueError naming the settings outside [0, 1]."""
    if wrong := {name: getattr(config, name) for name in names if not 0 <= getattr(config, name) <= 1}:
        raise ValueError(f"must be in [0, 1]: {wrong}")


def positive(config: Any, *names: str) -> None:  # noqa: ANN401
    """Raises ValueError naming the settings that are not above 0."""
    if wrong := {name: getattr(config, name) for name in names if not getattr(config, name) > 0}:
        raise ValueError(f"must be above 0: {wrong}")


def whole_patches(size: tuple[int, int], patch: int) -> None:
    """Raises ValueError unless patches tile the latent."""
    if any(side < 1 or side % patch for side in size):
        raise ValueError(f"size must be a multiple of patch, got size {size} and patch {patch}")
