"""The weights of one run as the start of another, with other classes or another image size."""

from collections.abc import Mapping
from dataclasses import fields, replace

import torch
from torch import Tensor

from fluvial.config import Run
from fluvial.data.labels import numbers
from fluvial.methods import method_of, name_of
from fluvial.nn.layers import LabelEmbedding
from fluvial.utils.checks import other_weights

# settings of a method that leave the meaning of its weights as it is
FREE = ("classes", "size", "scales", "scale_columns", "position_size", "images_per_sequence", "sorted_times")
FREE += ("label_drop", "dropout", "loss_weight", "time_sampling", "contrast", "init", "own_path")


def fitted(run: Run, start: Run) -> Run:
    """The run, its fixed positions stretched over the frame that the weights of `start` know.

    Raises ValueError if the weights would mean something else in this run.
    """
    if type(run.method) is not type(start.method):
        kinds = [name_of(type(r.method)) for r in (start, run)]
        raise ValueError(f"weights of {kinds[0]} cannot start a run of {kinds[1]}")
    names = [field.name for field in fields(run.method) if field.name not in FREE]
    changed = {name: (getattr(start.method, name), getattr(run.method, name)) for name in names}
    if wrong := [f"{name} is {old} there and {new} here" for name, (old, new) in changed.items() if old != new]:
        raise ValueError(f"the weights do not fit the run: {', '.join(wrong)}; only {', '.join(FREE)} may differ")
    return replace(run, method=method_of(run.method).framed(run.method, start.method))


def adapted(
    weights: Mapping[str, Tensor], start: Run, run: Run, initial: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], list[str]]:
    """Weights of `start` for the model of `run`, and what was changed, in words. New rows are those of `initial`.

    Labels keep their row where both runs know the classes by name; the row of no class is always kept. Learned
    positions are resampled. Raises ValueError if the weights do not fit otherwise, or the classes are others and the
    model has no `LabelEmbedding`.
    """
    ours, changes = dict(weights), []
    tables = label_tables(run)
    for name in tables:
        if name in weights and name in initial:
            ours[name], changes = _fitted_rows(weights[name], initial[name], start, run)
    ours, told = method_of(run.method).resampled(ours, start.method, run.method)
    if told:
        changes.append(told)
    if wrong := other_weights(initial, ours):
        raise ValueError(f"the weights do not fit the run: {wrong}")
    names, known = run.data.class_names, start.data.class_names
    if not tables and names and known and names != known:
        raise ValueError(
            f"the classes are {', '.join(names[:5])} ... here and {', '.join(known[:5])} ... there, and this method "
            f"has no LabelEmbedding (of fluvial.nn.layers) whose rows could be moved; train on the same classes"
        )
    return ours, changes


def label_tables(run: Run) -> list[str]:
    """Names of the weights that have a row for each class: those of every `LabelEmbedding` in the run's model."""
    with torch.device("meta"):
        model = method_of(run.method).Model(run.method)
    return [f"{name}.table.weight" for name, module in model.named_modules() if isinstance(module, LabelEmbedding)]


def _fitted_rows(table: Tensor, new: Tensor, start: Run, run: Run) -> tuple[Tensor, list[str]]:
    """The label table of `start` for the classes of `run`, and what was changed, in words."""
    changes = []
    names, known = (r.data.class_names if len(r.data.class_names) == r.method.classes else () for r in (run, start))
    kept = _kept(len(table) - 1, len(new) - 1, known, names)
    if kept and bool(names) != bool(known) and not numbers(names or known):
        changes.append("labels: as many classes, and no names to tell them by: each keeps the row of its id")
    if len(table) == len(new) and kept == {i: i for i in range(len(new) - 1)}:
        return table, changes
    ours = new.to(table.dtype).clone()
    ours[-1] = table[-1]  # no class
    for row, old in kept.items():
        ours[row] = table[old]
    how = f"{len(kept)} found by name, {len(new) - 1 - len(kept)} initialised" if kept else "all initialised"
    changes.append(f"labels: {len(new) - 1} classes in place of {len(table) - 1}, {how}; the row of none is kept")
    return ours, changes


def _kept(known: int, wanted: int, known_names: tuple[str, ...], names: tuple[str, ...]) -> dict[int, int]:
    """By new class id, the old id of the same class: the one of that name, or if names are not known the same id."""
    if names and known_names:
        old = {name: i for i, name in enumerate(known_names)}
        return {i: old[name] for i, name in enumerate(names) if name in old}
    if values := numbers(names or known_names):  # class folders 0 ... 9 beside whole numbers without names
        pairs = values.items()
        return (
            {place: value for value, place in pairs if value < known}
            if names
            else {value: place for value, place in pairs if value < wanted}
        )
    return {i: i for i in range(known)} if known == wanted else {}
