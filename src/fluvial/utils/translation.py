"""Translates the state dict of a release into ours, and checks that every tensor is accounted for and finite.

A translation needs names and shapes only, so it works on the meta device. Tensors are made one at a time, so that a
large file never has to be in memory.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor

from fluvial.utils.tensors import Lazy

# raised while a configuration is read from shapes that no release has
WRONG_SHAPES = (ValueError, IndexError, TypeError, ArithmeticError, AttributeError, RuntimeError)
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)  # the last becomes float32


class Source(NamedTuple):
    """The release's tensors that one of our tensors is made from, and the function that makes it."""

    keys: tuple[str, ...]
    make: Callable[..., Tensor]


class Translation(NamedTuple):
    """The mapping from a release's tensors to ours."""

    sources: Mapping[str, Source]
    """The source of each of our tensors, by its name in our model; all names are there."""
    fixed: Mapping[str, Callable[[], Tensor]]
    """Constant tables that our model computes itself. The file need not have them; if it does, they must be equal."""
    dropped: Mapping[str, str]
    """Keys of the release (or a description of them) that our model does not use, with the reason."""


def renamed(key: str) -> Source:
    """A tensor that is taken unchanged, under another name."""
    return Source((key,), lambda value: value)


def stacked(keys: Iterable[str]) -> Source:
    """Several tensors concatenated along their first axis."""
    return Source(tuple(keys), lambda *values: torch.cat(values))


def count(state_dict: Mapping[str, Tensor], pattern: str) -> int:
    """The number of distinct values of the pattern's first group at the start of keys, such as block numbers."""
    return len({found[1] for key in state_dict if (found := re.match(pattern, key))})


def latent_size(image_size: int | tuple[int, int], tokens: int, *, patch: int, stride: int) -> tuple[int, int]:
    """Height and width of the latent that has `tokens` patches; `image_size` is that of the image or of the latent.

    Raises ValueError if neither interpretation gives that many patches.
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
    """Our state dict, with the names and shapes of `expected`; each tensor is made lazily.

    Tensors have the type `dtype`, by default the file's, except that float64 becomes float32.

    Raises ValueError naming the first few keys that are missing, unexpected, or of another shape, type or fixed value;
    and, when a tensor is made, the key with numbers that are not finite.
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
    """Our tensor made from its source. Raises ValueError if it has numbers that are not finite."""
    values = [state_dict[key] for key in source.keys]
    for key, value in zip(source.keys, values, strict=True):
        if not value.is_meta and not bool(torch.isfinite(value).all()):
            raise ValueError(f"{key} holds numbers that are not finite: the file is damaged, or training had diverged")
    made = source.make(*values).to(dtype)
    if made.dtype != values[0].dtype and not made.is_meta and not bool(torch.isfinite(made).all()):
        raise ValueError(f"{', '.join(source.keys)} holds numbers that are too large for {dtype}")
    return made


def _other_shape(state_dict: Mapping[str, Tensor], source: Source, expected: Tensor) -> str:
    """The mismatch in words if the source does not give a tensor of the expected shape; "" if it does."""
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
    """The difference between the file's constant table and ours in words; "" if they agree up to its precision."""
    with torch.device("meta"):  # the shape first: a table sized by a hostile file may not fit into memory
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
    """Raises errors from missing keys and wrong shapes in a state dict as ValueError "not the weights of ..."."""
    try:
        yield
    except KeyError as error:
        raise ValueError(f"not the weights of {what}: {error.args[0]} is missing") from error
    except WRONG_SHAPES as error:
        raise ValueError(f"not the weights of {what}: {error}") from error
