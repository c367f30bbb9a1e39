"""Edits of images in the studio: what is given, what is drawn from it, and the lines that draw it again."""

import shlex
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fluvial.studio.places import MOST_SEED
from fluvial.studio.work import Job

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from fluvial.run.load import Sampler
    from fluvial.sampling.samples import Samples

KINDS = {
    "inpaint": "Inpaint",
    "redraw": "Redraw",
    "vary": "Vary",
    "grow": "Upscale",
    "invert": "Invert",
    "context": "From examples",
}
"""Kinds of edit as `fluvial edit` names them, with what the page calls them."""
MOST_COPIES = 16
COLUMNS = 10  # of grid.png, as `fluvial edit` writes it
NONE = "none"  # no class
IMAGE, EXAMPLES, MASK = "image.png", "examples.npz", "mask.png"
"""Names of the files that the command and the lines of Python read."""


@dataclass(frozen=True, kw_only=True)
class Editing:
    """The settings of an edit, as a link has them. "" and None stand for those of the run."""

    run: str = ""
    """Path of the run below the folder of the studio."""
    kind: str = "inpaint"
    label: str = ""
    """Name or id of the class to draw; "none" draws without one."""
    seed: int = 0
    copies: int = 4
    keep: int = 1
    """vary: coarse scales that are kept."""
    at: float = 0.5
    """redraw: the time from which is drawn."""
    side: int = 0
    """grow: side of the small image, in pixels."""
    agree: bool = False
    """grow: the result, pooled, is the small image again."""
    steps: int | None = None
    solver: str = ""
    weight: float | None = None
    """Weight of guidance."""
    of: str = ""
    """Class of the sample that is edited where no file is given."""
    sample: int = 0
    """Its seed."""


def from_query(query: Mapping[str, str]) -> Editing:
    """The settings of a link. What is no setting, or out of its range, is left out."""
    found: dict[str, Any] = {}
    kinds = {"steps": int, "weight": float, "agree": lambda text: text == "True"}
    for field in fields(Editing):
        try:
            found[field.name] = kinds.get(field.name, type(field.default))(query[field.name])
        except (KeyError, ValueError):
            continue
    ranges = {"seed": (0, MOST_SEED), "sample": (0, MOST_SEED), "copies": (1, MOST_COPIES), "at": (0.01, 0.99)}
    ranges |= {"steps": (1, 10**6), "weight": (0, 100), "keep": (0, 100), "side": (0, 10**4)}
    for name, (low, high) in ranges.items():
        if name in found and not low <= found[name] <= high:
            del found[name]
    if found.get("kind") not in KINDS:
        found.pop("kind", None)
    return Editing(**found)


def to_query(editing: Editing) -> dict[str, str]:
    """The settings of a link, without those that are as they are by default."""
    usual = asdict(Editing())
    return {name: f"{value}" for name, value in asdict(editing).items() if value != usual[name]}


class Abilities(NamedTuple):
    """Facts of a run that its edits depend on."""

    refused: dict[str, str]
    """Kinds of edit that it cannot do, with the reason."""
    labels: tuple[str, ...]
    """Names or ids of its classes, with "none" first if it can draw without a class."""
    scales: int
    """Number of its scales; 0 for a method without."""
    sides: tuple[int, ...]
    """Sides of images that can be upscaled, in pixels."""
    side: int
    """Side of its images, in pixels."""
    steps: int
    weight: float
    fixed: bool
    """True for a model that was distilled, whose steps and guidance are in its weights."""


def abilities(sampler: "Sampler") -> Abilities:
    """The facts of a run that its edits depend on."""
    import torch

    from fluvial.methods import method_of

    run, config = sampler.run, sampler.run.method
    method, names = method_of(config), run.data.class_names or tuple(map(str, range(config.classes)))
    maps = method.targets(config, torch.zeros(1, config.channels, *config.size)) if method.scales(config) else []
    free = not config.classes or config.label_drop > 0
    return Abilities(
        refused=_refused(sampler),
        labels=((NONE,) if free else ()) + (names if config.classes else ()),
        scales=len(method.scales(config)),
        sides=tuple(int(clean.shape[-1]) * sampler.autoencoder.stride for _, clean in maps)[:-1],
        side=sampler.side,
        steps=max(run.sample.each_steps),
        weight=run.sample.guidance.weight,
        fixed=bool(run.train.distillation.steps),
    )


def _refused(sampler: "Sampler") -> dict[str, str]:
    """The kinds of edit that a run cannot do, with the reason."""
    from fluvial.methods import method_of, name_of
    from fluvial.methods.method import Editable

    config, steps = sampler.run.method, sampler.run.train.distillation.steps
    name = name_of(type(config))
    if not isinstance(method_of(config), Editable):
        return dict.fromkeys(KINDS, f"the method {name} has no edits")
    found = {}
    if not method_of(config).scales(config):
        found |= dict.fromkeys(("vary", "grow"), f"only for runs with scales (FlowAR), and this one is of {name}")
    else:
        found["invert"] = f"only for runs with one path from noise to image, and {name} has one for every scale"
    if steps:
        found["invert"] = "not for runs that were distilled, which have no path back to noise"
    if steps == 1:
        found["redraw"] = "not for runs that were distilled to a single step, which begins at noise"
    if config.images_per_sequence is None:
        found["context"] = f"only for runs with a history (ARFlow), and this one is of {name}"
    return found


def fitted(editing: Editing, able: Abilities) -> Editing:
    """The settings, where they are none of the run's, replaced by such."""
    labels = [label for label in able.labels if label != NONE]
    first = labels[0] if labels else NONE
    sides = able.sides or (0,)
    return replace(
        editing,
        label=editing.label or (NONE if editing.kind == "context" and NONE in able.labels else first),
        of=editing.of or first,
        keep=min(editing.keep, max(0, able.scales - 1)),
        side=editing.side if editing.side in sides else sides[-1],
    )


class Edited(NamedTuple):
    """The result of an edit."""

    editing: Editing
    png: bytes
    told: str
    """A line about it."""
    samples: "Samples"
    given: "Tensor"
    mask: "np.ndarray | None"


def arguments(editing: Editing) -> dict[str, Any]:
    """The arguments of the edit's function in `fluvial.edit`, but for images, mask and class."""
    found: dict[str, Any] = {"count" if editing.kind == "context" else "copies": editing.copies, "seed": editing.seed}
    own = {"vary": ("keep",), "redraw": ("at",), "grow": ("agree",)}.get(editing.kind, ())
    found |= {name: getattr(editing, name) for name in own if getattr(editing, name) is not False}
    chosen = {"steps": editing.steps, "guidance": editing.weight, "solver": editing.solver or None}
    return found | {name: value for name, value in chosen.items() if value is not None}


def draw(sampler: "Sampler", editing: Editing, images: "Tensor", mask: "np.ndarray | None", job: Job) -> Edited:
    """The result of an edit; it ends early if the job is stopped. Raises ValueError for settings that do not fit."""
    import torch

    from fluvial.run import edit
    from fluvial.utils import pictures

    how: dict[str, Any] = {**arguments(editing), "classes": chosen_class(sampler, editing.label)}
    started = time.perf_counter()
    free = None if mask is None else torch.from_numpy(mask)
    told = ""
    with _stoppable(sampler, job):
        if editing.kind == "inpaint":
            if free is None:
                raise ValueError("paint over what is to be drawn anew")
            samples = edit.inpaint(sampler, images, free, **how)
            change = int((samples.images.int() - images.int()).abs()[..., ~free].max())
            told = f"known pixels change by at most {change} of 255" if change else "known pixels are equal"
        elif editing.kind == "invert":
            _, samples, error = edit.invert(sampler, images, **how)
            told = f"drawn again from its noise, off by {float(error.mean()):.2g} in latents"
        else:
            functions = {"vary": edit.vary, "redraw": edit.redraw, "grow": edit.grow, "context": edit.in_context}
            samples = functions[editing.kind](sampler, images, **how)
    seconds = f"{sum(samples.nfe.values())} evaluations, {time.perf_counter() - started:.2f} s"
    kept = mask if editing.kind == "inpaint" else None
    png = pictures.encoded(samples.grid(COLUMNS), "png")
    return Edited(editing, png, ", ".join(filter(None, (told, seconds))), samples, images, kept)


@contextmanager
def _stoppable(sampler: "Sampler", job: Job) -> Iterator[None]:
    """Lets a job that is stopped end at the next evaluation of the model."""

    def check(*_: Any) -> None:  # noqa: ANN401 - of a hook
        job.check()

    parts = [sampler.model, *sampler.model.children()]
    hooks = [part.register_forward_pre_hook(check) for part in parts]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def as_command(editing: Editing, folder: Path, out: str = "edit") -> str:
    """The command that draws the result: grid.png in the folder `out` has its bytes. It reads the files of the page."""
    words = ["fluvial", "edit", editing.kind, str(folder)]
    words += ["--images", EXAMPLES if editing.kind == "context" else IMAGE]
    words += ["--mask", MASK] if editing.kind == "inpaint" else []
    words += ["--classes", editing.label] if editing.label not in ("", NONE) else []
    for name, value in arguments(editing).items():
        words += [f"--{name}"] if value is True else [f"--{name}", f"{value}"]
    return shlex.join([*words, "--out", out])


def as_python(editing: Editing, folder: Path, channels: int, out: str = "edit") -> str:
    """The lines of Python that draw the result of images of so many channels: grid.png in `out` has its bytes."""
    masked, several = editing.kind == "inpaint", editing.kind == "context"
    lines = ["import fluvial", "import numpy as np", "import torch"]
    lines += [] if several else ["from PIL import Image"]
    lines += ["", f"sampler = fluvial.load({str(folder)!r})"]
    if several:
        lines += [f'pixels = np.load("{EXAMPLES}")["arr_0"]{"[..., :1]" if channels == 1 else ""}']
    else:
        lines += [f'pixels = np.array(Image.open("{IMAGE}"))[None{", ..., None" if channels == 1 else ""}]']
    lines += ["images = torch.from_numpy(pixels).movedim(-1, 1)"]
    lines += [f'mask = torch.from_numpy(np.array(Image.open("{MASK}")) >= 128)'] if masked else []
    how = {} if editing.label in ("", NONE) else {"classes": class_of(editing.label)}
    told = "".join(f", {name}={value!r}" for name, value in (how | arguments(editing)).items())
    function = "in_context" if several else editing.kind
    back = ".back" if editing.kind == "invert" else ""
    lines += [f"samples = fluvial.edit.{function}(sampler, images{', mask' if masked else ''}{told}){back}"]
    return "\n".join([*lines, f"samples.save({out!r})"])


def chosen_class(sampler: "Sampler", label: str) -> int | None:
    """The id of a class that was given by name or id; None for none. Raises ValueError if the run has no such class."""
    from fluvial.run.walk import class_id

    return None if label in ("", NONE) else class_id(sampler.run, label)


def class_of(label: str) -> int | str:
    """An id as a number, a name as a text."""
    return int(label) if label.isdecimal() else label
