"""A drawing with all that the page of steps shows of it."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from fluvial.studio.apart import Frame, Recorded, fork_time, forked, pictures_of, record, redrawn, strip_of, weights_of
from fluvial.studio.apart_lines import Change, Choice

if TYPE_CHECKING:
    from fluvial.run.load import Sampler

Pngs = tuple[bytes, bytes, bytes]


class Drawn(NamedTuple):
    """A drawing, and what is shown beside its steps."""

    sampler: "Sampler"
    recorded: Recorded
    strip: list[tuple[str, bytes]]
    """Pictures of the scales; [] for a method that draws at once."""
    weights: list[float | None]
    """Of guidance, at every frame; [] where nothing is guided."""


def drawn_of(sampler: "Sampler", choice: Choice, check: Callable[[], None]) -> Drawn:
    """The images of a choice. Raises ValueError for one that the run cannot follow."""
    recorded = record(sampler, count=choice.count, label=choice.label, seed=choice.seed, check=check)
    return _with_strip(sampler, recorded)


def changed(first: Drawn, choice: Choice, change: Change, check: Callable[[], None]) -> Drawn:
    """The images of a choice, drawn otherwise. Raises ValueError for a change that the run cannot follow."""
    sampler, drawn = first.sampler, first.recorded
    how: dict[str, Any] = {"check": check}
    if change.keep is not None:
        found = redrawn(sampler, drawn, keep=change.keep, seed=change.seed, label=change.label, **how)
    elif change.at is not None:
        found = forked(sampler, drawn, at=change.at, seed=choice.seed, index=change.index, **how)
    else:
        how |= {"count": choice.count, "label": choice.label, "seed": choice.seed}
        found = record(sampler, history=change.history, **how)
    return _with_strip(sampler, found)


def fork_of(drawn: Drawn, at: int) -> Change | None:
    """The change that forks the first image where frame number `at` begins; None where that cannot be."""
    time = fork_time(drawn.sampler, drawn.recorded.frames[at])
    names, labels = drawn.sampler.run.data.class_names, drawn.recorded.samples.labels
    label = "" if labels is None else names[int(labels[0])] if names else str(int(labels[0]))
    return None if time is None else Change(at=time, label=label)


def _with_strip(sampler: "Sampler", recorded: Recorded) -> Drawn:
    from fluvial.methods import method_of

    scales = method_of(sampler.run.method).scales(sampler.run.method)
    strip = strip_of(sampler, recorded) if scales else []
    return Drawn(sampler, recorded, strip, weights_of(sampler, recorded))


def pictures_at(first: Drawn, other: Drawn | None, at: int) -> list[tuple[int, Pngs]]:
    """The number and the pictures of a frame, and of the one beside it in another drawing."""
    frame = first.recorded.frames[at]
    found = [(at, pictures_of(first.sampler, frame))]
    if other is not None:
        there = beside(other.recorded, frame)
        found.append((there, pictures_of(other.sampler, other.recorded.frames[there])))
    return found


def beside(recorded: Recorded, frame: Frame) -> int:
    """The number of the frame that is nearest to one of another recording: of its scale, and at its time."""
    there = [i for i, other in enumerate(recorded.frames) if other.scale == frame.scale]
    if frame.velocity is None:
        return there[-1]
    return min(there, key=lambda i: abs(float(recorded.frames[i].t.min() - frame.t.min())))


def difference(one: Recorded, other: Recorded, index: int | None = None) -> float | None:
    """The mean absolute difference of the pixels; from image `index` of the first alone, if it is given.

    None if their numbers differ.
    """
    a, b = one.samples.images, other.samples.images
    a = a if index is None else a[index : index + 1].expand_as(b)
    return float((a.int() - b.int()).abs().float().mean()) if a.shape == b.shape else None
