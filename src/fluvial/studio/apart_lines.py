"""The images that the page of steps shows: as a link, as commands, and as Python. All of them draw the same."""

import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from fluvial.studio.places import MOST_SEED

COUNTS = (1, 2, 3, 4)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The images that are looked at."""

    run: str = ""
    """Path of the run below the folder of the studio."""
    label: str = ""
    """Name or id of the class; "" for all in turn."""
    seed: int = 0
    count: int = 1


@dataclass(frozen=True, kw_only=True)
class Change:
    """The way in which they are drawn otherwise: with less history, from a scale on, or from a time on."""

    history: int | None = None
    """Points that ARFlow's history holds."""
    keep: int | None = None
    """Scales that are kept, coarse to fine."""
    seed: int = 0
    """Seed of the scales that are drawn again."""
    label: str = ""
    """Class of what is drawn again; "" for that of each image, and for a model without classes."""
    at: float | None = None
    """Time of the fork."""
    index: int = 0
    """The image that is forked."""


def from_query(query: Mapping[str, str]) -> Choice:
    """The choice of a link. What is no setting, or not of its kind, is left out."""
    numbers = {name: int(query[name]) for name in ("seed", "count") if query.get(name, "").isdecimal()}
    seed, count = numbers.get("seed", 0), numbers.get("count", 1)
    return Choice(
        run=query.get("run", ""),
        label=query.get("label", ""),
        seed=seed if seed <= MOST_SEED else 0,
        count=count if count in COUNTS else 1,
    )


def to_query(choice: Choice) -> dict[str, str]:
    """The settings of a link, without those that are as they are by default."""
    usual = asdict(Choice())
    return {name: f"{value}" for name, value in asdict(choice).items() if value != usual[name]}


def as_command(choice: Choice, folder: Path, change: Change | None = None) -> str:
    """The command that draws the images: grid.png in the folder `picture` has their bytes.

    With a change, those that are drawn otherwise, in the folder `changed`; two lines if it starts from the images.
    """
    words = ["fluvial", "sample", str(folder), "--seed", f"{choice.seed}"]
    words += ["--count", f"{choice.count}", "--columns", f"{choice.count}"]
    words += ["--classes", choice.label] if choice.label else []
    if change is None:
        return shlex.join([*words, "--out", "picture"])
    if change.history is not None:
        return shlex.join([*words, "--sample.history", f"{change.history}", "--out", "changed"])
    if change.keep is not None:
        again = ["fluvial", "edit", "vary", str(folder), "--images", "picture/samples.npz", "--keep", f"{change.keep}"]
        again += ["--seed", f"{change.seed}", *(["--classes", change.label] if change.label else [])]
        return shlex.join([*words, "--out", "picture"]) + "\n" + shlex.join([*again, "--out", "changed"])
    fork = ["fluvial", "edit", "fork", str(folder), "--at", f"{change.at!r}", "--index", f"{change.index}"]
    fork += ["--count", "4", "--seed", f"{choice.seed}"]
    fork += ["--classes", change.label] if change.label else []
    return shlex.join([*fork, "--out", "changed"])


def as_python(choice: Choice, folder: Path, frame: int, change: Change | None = None) -> str:
    """The lines of Python that draw frame number `frame` of the images: point.png, estimate.png, velocity.png."""
    own = f"count={choice.count}, seed={choice.seed}" + (f", label={choice.label!r}" if choice.label else "")
    name, lines = "record", [f"drawn = record(sampler, {own})"]
    if change is not None and change.history is not None:
        lines = [f"drawn = record(sampler, {own}, history={change.history})"]
    elif change is not None and change.keep is not None:
        name, label = "record, redrawn", f", label={change.label!r}" if change.label else ""
        lines += [f"drawn = redrawn(sampler, drawn, keep={change.keep}, seed={change.seed}{label})"]
    elif change is not None:
        name, index = "forked, record", f", index={change.index}" if change.index else ""
        lines += [f"drawn = forked(sampler, drawn, at={change.at!r}, seed={choice.seed}{index})"]
    return "\n".join(
        [
            "from pathlib import Path",
            "",
            "import fluvial",
            f"from fluvial.studio.apart import pictures_of, {name}",
            "",
            f"sampler = fluvial.load({str(folder)!r})",
            *lines,
            f"pictures = pictures_of(sampler, drawn.frames[{frame}])",
            'for name, png in zip(("point", "estimate", "velocity"), pictures, strict=True):',
            '    Path(f"{name}.png").write_bytes(png)',
        ]
    )
