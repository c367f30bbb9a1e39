"""Class ids and class names: orders classes, and matches the classes of one data set to those of another.

Labels are ids together with class names in the order of the ids, or whole numbers, if the classes have no names. Names
that are all digits are ordered by value and stand for these whole numbers. '1' and '01' are two names.
"""

import re
from collections.abc import Collection, Sequence
from difflib import get_close_matches
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

Labels = Int[Tensor, "n"]
Names = tuple[str, ...]
SHOWN = 20  # names listed in a message


class Classes(NamedTuple):
    """The classes of the training images."""

    own: Names
    """Their names in the data set; () for whole numbers."""
    names: Names
    """Their names in the run, in the order of the ids."""
    given: bool
    """True if the user gave the names of the run."""


def numbers(names: Collection[str]) -> dict[int, int]:
    """The position of each name by its number; {} unless all names are digits and all numbers differ."""
    found = {int(name): place for place, name in enumerate(names) if name.isascii() and name.isdigit()}
    return found if len(found) == len(names) else {}


def ordered(names: Collection[str]) -> Names:
    """Class names in the order of their ids: by value if all of them are digits, else as text."""
    if all(name.isascii() and name.isdigit() for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def class_ids(wanted: Sequence[Any], names: Names, known: int) -> tuple[int, ...]:
    """The ids of classes given by name or id, for a model with `known` classes.

    Raises ValueError for an unknown class, with the names or the range of the ids.
    """
    names = names if len(names) == known else ()
    ids = [names.index(one) if isinstance(one, str) and one in names else one for one in wanted]
    if all(type(one) is int and 0 <= one < known for one in ids):
        return tuple(int(one) for one in ids)
    close = [get_close_matches(one, names, n=1) for one in ids if isinstance(one, str)]
    hint = "".join(f"; did you mean {name}?" for name, *_ in filter(None, close[:1]))
    by_id = not names or names == tuple(map(str, range(known)))
    there = f"0 to {known - 1}" if by_id else f"{', '.join(names[:SHOWN])}{', ...' * (known > SHOWN)}"
    got = ", ".join(map(str, wanted))
    if not names and any(isinstance(one, str) and one.isdigit() for one in wanted):
        hint += " as names; these classes have none: give ids as whole numbers"
    raise ValueError(
        f"classes must be names or class ids of the model's {known} ({there}), got {got or repr(got)}{hint}"
    )


def ids_of_words(words: Sequence[str], names: Names, known: int) -> tuple[int, ...]:
    """The ids of classes given as words: by name, or by number: of the class called so, if all are called by numbers.

    Raises ValueError as `class_ids`.
    """
    values = numbers(names) if len(names) == known else {}

    def meant(word: str) -> int | str:
        if word in names or not re.fullmatch(r"-?\d+", word):
            return word
        return values.get(int(word), word) if values else int(word)

    return class_ids([meant(word) for word in words], names, known)


def own_classes(values: Sequence[Any] | None, names: Names, where: str) -> tuple[Labels | None, Names]:
    """Class ids and class names of a data set, from its labels: one id or one name per image.

    Without `names`, the labels' names are ordered to get ids, except that digits as `str(int)` writes them are whole
    numbers. Labels are None if there are none, which test splits on the hub write as -1. Raises ValueError for a
    label that is neither an id nor a name.
    """
    if values is None:
        return None, ()
    values = [v.decode(errors="surrogateescape").strip() if isinstance(v, bytes) else v for v in values]
    if missing := [i for i, v in enumerate(values) if v is None]:
        raise ValueError(f"{where}: {len(missing)} images have no label, the first is image {missing[0]}")
    if all(isinstance(v, str) for v in values):
        if not names and {str(number) for number in numbers(set(values))} == set(values):
            values = [int(v) for v in values]
        else:
            names = names or ordered(set(values))
            ids = {name: i for i, name in enumerate(names)}
            values = [ids[v] for v in values]
    for i, v in enumerate(values):
        if not isinstance(v, int | np.integer):
            raise ValueError(
                f"{where}: labels must be whole numbers or names, got {v!r} of image {i}; set data.label_column"
            )
        if not -(2**63) <= v < 2**63:
            raise ValueError(f"{where}: labels must fit into 64 bits, got {v} of image {i}; set data.label_column")
    labels = torch.tensor(values, dtype=torch.long)
    if bool((labels < 0).all()):
        return None, ()
    _check_range(labels, names, where)
    return labels, names


def named(labels: Labels, own: Names, given: Names, where: str) -> tuple[Labels, Names]:
    """Class ids in the order of the given names, and these names; unchanged if none are given.

    Given names that include the data set's own reorder them; as many different names rename them; digits are matched
    to whole numbers. Raises ValueError with both lists for other names.
    """
    _check_range(labels, own, where)
    if not given or own == given:
        return labels, given or own
    if own:
        if _used(labels, own) <= set(given):
            return _by_name(labels, own, given), given
        if len(own) == len(given) and not set(own) & set(given):
            return labels, given
    elif said := numbers(given):
        if set(labels[labels >= 0].unique().tolist()) <= said.keys():
            return _through(labels, said), given
    else:
        _check_range(labels, given, where)
        return labels, given
    unknown = sorted(_used(labels, own) - set(given))
    raise ValueError(
        f"{where}: labels {unknown[:5]} are not among the class names {_listed(given)} (data.class_names); the classes "
        f"there are {_listed(own)}"
    )


def aligned(labels: Labels, own: Names, training: Classes, what: str = "validation images") -> Labels:
    """The class ids of training for labels of another data set, whose class names are `own` (() for whole numbers).

    Two classes are the same if their names are equal, or the name of one is the number of the other. Names given by
    the user also rename as many others, in their order. Raises ValueError with both lists for other names.
    """
    known, names = training.own, training.names
    where = f"the {what}"
    _check_range(labels, own, where)
    used = _used(labels, own) if own else set()
    if known and not own and (said := numbers(known)):
        if set(labels[labels >= 0].unique().tolist()) <= said.keys():
            return named(_through(labels, said), known, names, where)[0]
    elif own and not known and (said := numbers(own)):
        return named(_through(labels, dict(enumerate(said))), (), names, where)[0]
    elif own and used <= set(known):
        return named(_by_name(labels, own, known), known, names, where)[0]
    elif own and used <= set(names):
        return _by_name(labels, own, names)
    elif own and training.given and len(own) == len(names) and not set(own) & {*known, *names}:
        return labels
    elif not own and (training.given or not known):
        return named(labels, (), names, where)[0]
    raise ValueError(
        f"the {what} have the classes {_listed(own)}, the training images {_listed(known or names)}: classes are "
        f"matched by name. Rename them, or give data.class_names: the names of both in the order of their ids"
    )


def _used(labels: Labels, names: Names) -> set[str]:
    """The names of the classes that have images."""
    return {names[i] if names else str(i) for i in labels.unique().tolist() if i >= 0}


def _by_name(labels: Labels, own: Names, others: Names) -> Labels:
    """Labels of the classes `own` as ids among `others`, matched by name."""
    places = {name: place for place, name in enumerate(others)}
    return _through(labels, {i: places[name] for i, name in enumerate(own) if name in places})


def _through(labels: Labels, table: dict[int, int]) -> Labels:
    """Labels replaced by their values in a table; negative ones are no class and stay."""
    return torch.tensor([table[v] if v >= 0 else v for v in labels.tolist()], dtype=torch.long)


def _check_range(labels: Labels, names: Names, where: str) -> None:
    """Raises ValueError if there are names, and fewer than the labels need."""
    if names and int(labels.max()) >= len(names):
        raise ValueError(f"{where}: labels run to {int(labels.max())}, but there are {len(names)} class names")


def _listed(names: Names) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{list(names[:SHOWN])}{more}" if names else "whole numbers without names"
