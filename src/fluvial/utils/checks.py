"""Checks of configurations and weights, with messages that name what is wrong."""

import math
from collections.abc import Mapping
from dataclasses import field as dataclass_field
from dataclasses import fields
from numbers import Integral, Real
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

LARGEST = 2**63  # integers must be below it to fit into a tensor
FLOAT32 = (2 - 2**-23) * 2.0**127  # the largest finite float32
MANY = 10_000_000  # classes at most: more than any data set has
MOST = 100_000  # blocks, channels or pixels along a side: far above any model, yet not enough to hang a machine


def setting(default: Any, *, changeable: bool = False, needs: str = "", found: bool = False) -> Any:  # noqa: ANN401
    """A dataclass field, with what the rest of the library asks of it in its metadata.

    `changeable`: a run may go on with another value, as the steps already taken stay valid. `needs`: the name in
    `fluvial.config.NEEDS` of what a run must have for the setting to do something. `found`: training finds the value.
    """
    return dataclass_field(default=default, metadata={"changeable": changeable, "needs": needs, "found": found})


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


def below_one(config: Any, *names: str) -> None:  # noqa: ANN401
    """Raises ValueError naming the settings that are below 0, or 1 and above."""
    if wrong := {name: getattr(config, name) for name in names if not 0 <= getattr(config, name) < 1}:
        raise ValueError(f"must be at least 0 and below 1: {wrong}")


def at_most(maximum: int, config: Any, *names: str) -> None:  # noqa: ANN401
    """Raises ValueError naming the settings above the maximum."""
    if wrong := {name: getattr(config, name) for name in names if getattr(config, name) > maximum}:
        raise ValueError(f"must be at most {maximum:,}: {wrong}")


def as_declared(config: Any) -> None:  # noqa: ANN401
    """Raises ValueError naming the first setting whose value does not fit its declared type; see `misfit`."""
    kinds = get_type_hints(type(config))
    for field in fields(config):
        if wrong := misfit(getattr(config, field.name), kinds[field.name]):
            raise ValueError(f"{field.name} {wrong}")


def misfit(value: Any, kind: Any) -> str:  # noqa: ANN401
    """The reason why a value does not fit a type, such as "must be finite, got nan"; "" if it fits.

    Floats must be finite and within float32, integers within 64 bits; a bool or str is never a number; a Literal must
    be one of its choices; the items of a tuple are checked each. Other types, such as configurations, are not checked.
    """
    parts, origin = get_args(kind), get_origin(kind)
    if origin is Literal:
        fits = any(value == choice and type(value) is type(choice) for choice in parts)
        return "" if fits else f"must be one of {', '.join(map(str, parts))}, got {value!r:.100}"
    if origin in (Union, UnionType):
        reasons = [misfit(value, part) for part in parts]
        wanted = [reason.removeprefix("must be ").rpartition(", got ")[0] for reason in reasons]
        return "" if "" in reasons else f"must be {' or '.join(wanted)}, got {reasons[0].rpartition(', got ')[2]}"
    if origin is tuple:
        if not isinstance(value, (tuple, list)):
            return f"must be several values, got {value!r:.100}"
        each = [parts[0]] * len(value) if parts[-1] is Ellipsis else list(parts)
        if len(each) != len(value):
            return f"must be {len(each)} values, got {value!r:.100}"
        return next(filter(None, map(misfit, value, each)), "")
    if kind in (int, float):
        return _not_a_number(value, kind)
    names = {bool: "True or False", str: "a text", type(None): "None"}
    return f"must be {names[kind]}, got {value!r:.100}" if kind in names and not isinstance(value, kind) else ""


def _not_a_number(value: Any, kind: type) -> str:  # noqa: ANN401
    """`misfit` for int and float."""
    numbers: Any = Integral if kind is int else Real
    if isinstance(value, bool) or not isinstance(value, numbers):
        return f"must be a {'whole ' if kind is int else ''}number, got {value!r:.100}"
    if kind is int:
        return "" if abs(value) < LARGEST else f"must be below 2^63, got a number of {int(value).bit_length()} bits"
    try:
        finite = math.isfinite(value)
    except OverflowError:  # an integer larger than any float
        finite = False
    if finite and abs(value) > FLOAT32:
        return f"must be within {FLOAT32:.2g}, the largest of float32, got {value!r:.40}"
    return "" if finite else f"must be finite, got {value!r:.40}"


def whole_patches(size: tuple[int, int], patch: int) -> None:
    """Raises ValueError unless both sides of the latent are multiples of the patch, and not too large."""
    if any(side < 1 or side % patch for side in size):
        raise ValueError(f"size must be a multiple of patch, got size {size} and patch {patch}")
    if max(size) > MOST:
        raise ValueError(f"size must be at most {MOST:,} latent pixels along a side, got {size}")


def other_weights(expected: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    """The first few differences in names and shapes between two state dicts in words; "" if there are none."""
    wrong = [f"{name} is missing" for name in expected if name not in given]
    wrong += [f"{name} is not in the model" for name in given if name not in expected]
    wrong += [
        f"{name} is {tuple(given[name].shape)} there and {tuple(expected[name].shape)} in the model"
        for name in expected
        if name in given and given[name].shape != expected[name].shape
    ]
    more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
    return "; ".join(wrong[:3]) + more
