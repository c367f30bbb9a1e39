"""Our tensors from those of a release: what each is made of, and proof that nothing is lost, made up, or damaged.

A translation is drawn up from names and shapes, so it works on the meta device, and it is carried out one tensor at a
time, so that a large file never has to be in memory.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor

from fluvial.utils.tensors import Lazy

# raised on the way for shapes that no release has
WRONG_SHAPES = (ValueError, IndexError, TypeError, ArithmeticError, AttributeError, RuntimeError)
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)  # the last becomes float32


class Source(NamedTuple):
    """What one of our tensors is made of: tensors of the release, and how."""

    keys: tuple[str, ...]
    make: Callable[..., Tensor]


class Translation(NamedTuple):
    sources: Mapping[str, Source]
    """By our names, of which it has all."""
    fixed: Mapping[str, Callable[[], Tensor]]
    """Tables that our model makes itself. The file need not have them; if it does, they must be the same."""
    dropped: Mapping[str, str]
    """What our model has no use for, with the reason. Keys, or parts of them in words."""


def renamed(key: str) -> Source:
    return Source((key,), lambda value: value)


def stacked(keys: Iterable[str]) -> Source:
    """Tensors one after another along their first axis."""
    return Source(tuple(keys), lambda *values: torch.cat(values))


def count(state_dict: Mapping[str, Tensor], pattern: str) -> int:
    """How many numbers the pattern finds at the start of names."""
    return len({found[1] for key in state_dict if (found := re.match(pattern, key))})


def latent_size(image_size: int | tuple[int, int], tokens: int, *, patch: int, stride: int) -> tuple[int, int]:
    """Height and width of the latent with so many patches, from those of the image or of the latent itself.

    Raises ValueError if neither reading gives that many.
    """
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    for side in (stride * patch, patch):
        rows, columns = height // side, width // side
        if rows * columns == tokens and (height, width) == (rows * side, columns * side):
            return rows * patch, columns * patch
    raise ValueError(f"image_size {height} x {width} does not give {tokens} patches of {patch} x {patch}")


def translate(
    state_dict: Mapping[str, Tensor],
    translation: Translation,
    expected: Mapping[str, Tensor],
    dtype: torch.dtype | None = None,
) -> dict[str, Lazy]:
    """Our state dict, with the names and shapes of `expected`, each tensor made when it is asked for.

    Their type is `dtype`, or that of the file, of which float64 is rounded to float32.

    Raises ValueError naming the first few keys that are missing, too many, or of another shape, type or fixed value;
    and, when a tensor is made, the key that holds numbers that are not finite.
    """
    sources, fixed, dropped = translation
    assert sources.keys() == expected.keys()
    used = {key: None for source in sources.values() for key in source.keys}
    wrong = [f"{key} is missing" for key in used if key not in state_dict]
    wrong += [f"{key} is unknown" for key in state_dict if not (key in used or key in fixed or key in dropped)]
    wrong += [
        f"{key} has the type {str(value.dtype).removeprefix('torch.')}, not float32, bfloat16, float16 or float64"
        for key, value in state_dict.items()
        if key in used and value.dtype not in DTYPES
    ]
    if not wrong:
        wrong += [_other_shape(state_dict, source, expected[name]) for name, source in sources.items()]
        wrong += [_other_table(key, state_dict[key], table) for key, table in fixed.items() if key in state_dict]
        wrong = [text for text in wrong if text]
    if wrong:
        raise ValueError("; ".join(wrong[:3]) + (f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""))

    def lazy(name: str, source: Source) -> Lazy:
        to = dtype or reduce(torch.promote_types, (state_dict[key].dtype for key in source.keys))
        to = torch.float32 if to == torch.float64 else to
        return Lazy(tuple(expected[name].shape), to, lambda: _made(state_dict, source, to))

    return {name: lazy(name, source) for name, source in sources.items()}


def _made(state_dict: Mapping[str, Tensor], source: Source, dtype: torch.dtype) -> Tensor:
    values = [state_dict[key] for key in source.keys]
    for key, value in zip(source.keys, values, strict=True):
        if not value.is_meta and not bool(torch.isfinite(value).all()):
            raise ValueError(f"{key} holds numbers that are not finite: the file is damaged, or training had diverged")
    made = source.make(*values).to(dtype)
    if made.dtype != values[0].dtype and not made.is_meta and not bool(torch.isfinite(made).all()):
        raise ValueError(f"{', '.join(source.keys)} holds numbers that are too large for {dtype}")
    return made


def _other_shape(state_dict: Mapping[str, Tensor], source: Source, expected: Tensor) -> str:
    shapes = [state_dict[key].shape for key in source.keys]
    try:
        made = source.make(*(torch.empty(shape, device="meta") for shape in shapes)).shape
    except (RuntimeError, IndexError):
        made = None
    if made == expected.shape:
        return ""
    found = ", ".join(f"{key} {tuple(shape)}" for key, shape in zip(source.keys, shapes, strict=True))
    return f"{found} does not give the model's {tuple(expected.shape)}"


def _other_table(key: str, value: Tensor, table: Callable[[], Tensor]) -> str:
    """What is wrong with the file's fixed table, or nothing. Tables in half precision are rounded."""
    with torch.device("meta"):  # its size first: that of a hostile file may not fit into memory
        shape = table().shape
    if value.shape != shape:
        return f"{key} is {tuple(value.shape)} and not {tuple(shape)}"
    expected = table().to(value.device)
    tolerance = 1e-4 if value.dtype in (torch.float32, torch.float64) else 2e-2
    if not value.is_meta and not torch.allclose(value.to(expected.dtype), expected, atol=tolerance, rtol=tolerance):
        return f"{key} is not the fixed table of the release, and the model has no other"
    return ""


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Turns what is missing or wrong in a state dict into one ValueError."""
    try:
        yield
    except KeyError as error:
        raise ValueError(f"not the weights of {what}: {error.args[0]} is missing") from error
    except WRONG_SHAPES as error:
        raise ValueError(f"not the weights of {what}: {error}") from error
