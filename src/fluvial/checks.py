"""What configurations and weights have to satisfy, each with a text that names what is wrong."""

from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin, get_type_hints


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


def choices(config: Any) -> None:  # noqa: ANN401
    """Raises ValueError naming the settings declared as Literal whose value is none of the choices."""
    for name, kind in get_type_hints(type(config)).items():
        if get_origin(kind) is Literal and getattr(config, name) not in get_args(kind):
            known = ", ".join(map(str, get_args(kind)))
            raise ValueError(f"{name} must be one of {known}, got {getattr(config, name)!r}")


def whole_patches(size: tuple[int, int], patch: int) -> None:
    """Raises ValueError unless patches tile the latent."""
    if any(side < 1 or side % patch for side in size):
        raise ValueError(f"size must be a multiple of patch, got size {size} and patch {patch}")


def other_weights(expected: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    """The first few names and shapes in which tensors are not those expected, or nothing."""
    wrong = [f"{name} is missing" for name in expected if name not in given]
    wrong += [f"{name} is not in the model" for name in given if name not in expected]
    wrong += [
        f"{name} is {tuple(given[name].shape)} there and {tuple(expected[name].shape)} in the model"
        for name in expected
        if name in given and given[name].shape != expected[name].shape
    ]
    more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
    return "; ".join(wrong[:3]) + more
