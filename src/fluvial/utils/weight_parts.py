"""Finds the weights among the entries of a checkpoint: the moving average if there is one, names without wrappers."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

# names that DDP, torch.compile, activation checkpointing and FSDP insert into paths, anywhere and any number of times
WRAPPERS = frozenset({"module", "_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"})
AVERAGE = re.compile(r"(?:^|[._])(?:ema|swa|averaged?|shadow)(?=[._\d]|$)", re.IGNORECASE)  # in the path of an average
OPTIMIZER = re.compile(r"(?:^|\.)(?:opt|optim\w*|exp_avg\w*|grads?)\.")  # may hold entries named like weights
USUAL = ("ema", "model_ema", "model", "state_dict")  # the usual keys of weights, averages first
COUNTERS = frozenset({"n_averaged", "num_updates", "initted", "step", "decay"})  # that averages store beside weights
DEPTH, MOST = 16, 1_000_000  # limits: nesting of dictionaries, and entries in all; no checkpoint has more


class Part(NamedTuple):
    """The weights found in a checkpoint, and where."""

    weights: dict[str, Tensor]
    name: str
    """The path of the weights in the file, such as "ema" or "state_dict.model"; "" if they are the whole file."""
    dropped: dict[str, str]
    """Entries that were left out, with the reason for each."""


class _Entry(NamedTuple):
    """A leaf of nested dictionaries."""

    holder: str
    """Path of the dictionary that holds it."""
    path: str
    """The keys on the way to it, joined with dots."""
    name: str
    """The path without `WRAPPERS`."""
    value: Any


def find(content: Mapping[Any, Any], telltales: Sequence[str] = ()) -> Part:
    """The weights in nested dictionaries: the part in which a name matches one of the patterns `telltales`.

    The first pattern that matches any name decides. If several parts match, the moving average is taken. If no name
    matches, the weights are the first of `USUAL` that has tensors, or the whole dictionary.

    Raises ValueError if there are no tensors, two names are equal without wrappers, or several parts are left.
    """
    entries = _entries(content)
    if not any(isinstance(entry.value, Tensor) for entry in entries):
        odd = next((e for e in entries if not isinstance(e.value, Mapping)), None)
        key = "" if odd is None else odd.path.rpartition(".")[2]
        found = "it is empty" if odd is None else f"{key!r} is {_what(odd.value)}, not a tensor"
        raise ValueError(f"holds no weights: {found}")
    roots = _roots(entries, telltales) or _usual(content, entries)
    root = _chosen(list(roots))
    weights, paths, dropped, others = {}, {}, {}, []
    for entry in entries:
        _, path, name, value = entry
        if not (name.startswith(root) and entry.holder in roots[root]):
            others.append(entry)
            continue
        short = name.removeprefix(root)
        if not isinstance(value, Tensor):
            dropped[path] = f"{_what(value)}, not a tensor"
        elif short in COUNTERS and value.numel() == 1:
            dropped[path] = "a counter of the averaging"
        elif short in paths:
            pair = f"{paths[short]} and {path}"
            raise ValueError(f"has two tensors that are called {short} without their wrappers: {pair}")
        else:
            weights[short], paths[short] = value, path
    part = root.removesuffix(".")
    if not AVERAGE.search(part) and (listed := _listed(entries, weights)):
        return Part(*listed, dropped | {part or "the weights beside it": "no average"})
    return Part(weights, part, dropped | _others(others, root))


def _entries(content: Mapping[Any, Any]) -> list[_Entry]:
    """The leaves of nested dictionaries, in order.

    Entries whose key is not a string, such as an optimizer's state of parameter 0, are left out.
    """
    found: list[_Entry] = []

    def walk(values: Mapping[Any, Any], prefix: str, depth: int) -> None:
        if depth > DEPTH or len(found) > MOST:
            raise ValueError(f"holds dictionaries {DEPTH} deep, or over {MOST:,} entries, as no checkpoint does")
        for key, value in values.items():
            if not isinstance(key, str):
                continue
            path = prefix + key
            if isinstance(value, Mapping) and value:
                walk(value, f"{path}.", depth + 1)
            else:
                name = ".".join(part for part in path.split(".") if part not in WRAPPERS)
                found.append(_Entry(prefix, path, name, value))

    walk(content, "", 1)
    return found


def _roots(entries: Sequence[_Entry], telltales: Sequence[str]) -> dict[str, set[str]]:
    """The prefixes, such as "ema." or "", after which names match a pattern, each with the dictionaries they are in.

    Optimizer state is skipped.
    """
    roots: defaultdict[str, set[str]] = defaultdict(set)
    for telltale in telltales:
        pattern = re.compile(rf"((?:.*?\.)??)(?:{telltale})(?:.*\.)?(?:weight|bias)$")
        for entry in entries:
            found = pattern.match(entry.name) if isinstance(entry.value, Tensor) else None
            if found and not OPTIMIZER.search(found[1]):
                roots[found[1]].add(entry.holder)
        if roots:
            break
    return roots


def _usual(content: Mapping[Any, Any], entries: Sequence[_Entry]) -> dict[str, set[str]]:
    """The first prefix of `USUAL` that has tensors, or "" if they are at the top, with the dictionaries they are in."""
    there = [entry for entry in entries if isinstance(entry.value, Tensor)]
    if place := next((place for place in USUAL if any(e.name.startswith(f"{place}.") for e in there)), ""):
        return {f"{place}.": {entry.holder for entry in entries}}
    if below := [key for key, value in content.items() if isinstance(value, Mapping) and key not in WRAPPERS]:
        raise ValueError(
            f"holds no weights: {below[0]!r} is a dict, not a tensor. Expected are names and tensors, or a checkpoint "
            f"with them under {', '.join(USUAL)}"
        )
    return {"": {entry.holder for entry in entries}}


def _chosen(roots: Sequence[str]) -> str:
    """The prefix with the most words for an average in it: ema.ema_model. rather than ema.online_model."""
    by_score: defaultdict[int, list[str]] = defaultdict(list)
    for root in roots:
        by_score[len(AVERAGE.findall(root))].append(root)
    best = by_score[max(by_score)]
    if len(best) > 1:
        names = ", ".join(root.removesuffix(".") or "the top" for root in best)
        raise ValueError(f"holds weights in {names}: save the ones to import alone, torch.save(weights, 'weights.pt')")
    return best[0]


def _others(entries: Sequence[_Entry], root: str) -> dict[str, str]:
    """The paths of other entries with tensors, and of averages that could not be used, with the reason for each."""
    others = {}
    for _, _, name, value in entries:
        mine, its = root.split("."), name.split(".")
        shared = next((i for i, part in enumerate(its) if i >= len(mine) or part != mine[i]), len(its))
        place = ".".join(its[: shared + 1])
        if not AVERAGE.search(root) and AVERAGE.search(place):
            if place == name and isinstance(value, int | float):  # such as the decay
                continue
            empty = place == name and (value is None or isinstance(value, Mapping))
            reason = "it is empty" if empty else "an average that does not name its weights as the model does"
            others[place] = f"{reason}, so {root.removesuffix('.') or 'the rest'} was taken"
        elif isinstance(value, Tensor):
            others.setdefault(place, "another part of the file")
    return others


def _listed(entries: Sequence[_Entry], weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str] | None:
    """An average stored as a list without names, such as `shadow_params`, if its shapes are those of the weights."""
    shapes = [value.shape for value in weights.values()]
    for _, path, name, value in entries:
        if AVERAGE.search(name) and isinstance(value, list | tuple) and all(isinstance(v, Tensor) for v in value):
            if [v.shape for v in value] == shapes:
                return dict(zip(weights, value, strict=True)), path
    return None


def _what(value: Any) -> str:  # noqa: ANN401
    return "an empty dictionary" if isinstance(value, Mapping) else f"a {type(value).__name__}"
