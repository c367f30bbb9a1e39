"""fluvial edit."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from fluvial.cli.arguments import Device, class_ids_of, device_of_rank, of_a_run
from fluvial.cli.output import check_unused
from fluvial.cli.short import HELP, lengthened, short_help
from fluvial.data import crop
from fluvial.data.images import DataConfig
from fluvial.data.labels import Classes
from fluvial.data.left_out import is_image
from fluvial.evaluation.opening import open_images
from fluvial.run import edit as edits
from fluvial.run.load import Sampler, load
from fluvial.sampling.edit import pooled
from fluvial.sampling.samples import Samples
from fluvial.sampling.settings import SampleConfig
from fluvial.utils import pictures
from fluvial.utils.checks import at_least
from fluvial.utils.errors import UsageError
from fluvial.utils.files import check_folder
from fluvial.utils.tensors import write_tensors

NOISE = "noise.safetensors"
MOST = 16  # images that are edited, if no indices are given
SHOWN = 10  # of them in edit.png
WHITE = 128  # level from which a mask is drawn anew
DESCRIPTION = """Draw parts of known images, or images like them: inpaint, vary, grow, redraw, invert, context, fork.

inpaint draws the white part of a mask anew, and keeps the rest; vary keeps the coarse scales of images and draws the
finer ones (FlowAR); grow makes large images from small ones (FlowAR); redraw adds noise and draws from there (SDEdit);
invert finds the noise of images, and draws them again; context draws images with others as examples in the history
(ARFlow); fork draws images that begin as one (SiT, ARFlow)."""
OWN = {  # by kind, the options of its own, and whether it needs them
    "inpaint": {"mask": True, "repeats": False, "jump": False, "passes": False, "copies": False, "fit": False},
    "vary": {"keep": True, "copies": False, "fit": False},
    "grow": {"agree": False, "copies": False},
    "redraw": {"at": True, "copies": False, "fit": False},
    "invert": {"copies": False, "fit": False},
    "context": {"count": False, "alone": False, "fit": False},
    "fork": {"at": True, "count": False, "index": False},
}


@dataclass(frozen=True, kw_only=True)
class EditOptions:
    images: str = ""
    """Images to edit: a file, a folder, a data set (NAME:SPLIT) or an .npz; for context, the examples."""
    indices: tuple[int, ...] = ()
    """Which of these images; the first 16 by default."""
    fit: bool | None = None
    """inpaint, vary, redraw, invert, context: crop and scale images, and the mask, to the size of the run; else they
    have to be of that size."""
    mask: Path | None = None
    """inpaint: an image of the same size, white where to draw and black where to keep."""
    repeats: int | None = None
    """inpaint: how often steps are taken again, so that what is drawn fits what is known; 4 by default."""
    jump: int | None = None
    """inpaint: steps that are taken again at a time; 2 by default."""
    passes: int | None = None
    """inpaint: how often all scales are drawn, by methods that draw by scales (FlowAR); 5 by default."""
    keep: int | None = None
    """vary: number of scales that are kept, from the coarsest."""
    agree: bool | None = None
    """grow: change the result as little as needed for it to be the small image again when it is pooled."""
    at: float | None = None
    """redraw, fork: the time, between 0 (noise) and 1 (image), from which is drawn."""
    count: int | None = None
    """context, fork: number of images; 16 by default."""
    alone: bool | None = None
    """context: the examples stand in place of the trajectory in the history; --no-alone puts them beside it."""
    index: int | None = None
    """fork: index of the image whose trajectory is shared; 0 by default."""
    classes: tuple[str, ...] = ()
    """Class to draw, or one for each image: names or ids; none draws without a class. By default those of the images;
    for context none."""
    copies: int | None = None
    """inpaint, vary, grow, redraw, invert: results for each image; 1 by default."""
    seed: int = 0
    """Seed; the noise of result i depends on (seed, i) alone."""
    out: Path | None = None
    """Folder for the results; RUN/edit-KIND by default."""
    step: int | None = None
    """Training step of the checkpoint; the newest by default."""
    average: str = "ema"
    """The weights: ema, the moving average; raw, as trained; or the length of a power-function average."""
    autoencoder: str = ""
    """Where the run's autoencoder is, if no longer where it was in training."""
    device: Device = "auto"
    """Where to compute: cpu, cuda, cuda:1 or mps; auto takes CUDA if it is there."""
    sample: SampleConfig
    """Settings of sampling; the run's own by default."""

    def __post_init__(self) -> None:
        at_least(1, self, *(name for name in ("copies", "count", "jump", "passes") if getattr(self, name) is not None))
        at_least(0, self, "seed", *(name for name in ("repeats", "keep", "index") if getattr(self, name) is not None))


def edit(arguments: list[str]) -> None:
    kind = arguments[0] if arguments else ""
    asked = next((word for word in arguments[:2] if word in HELP), "")
    if asked == "--help-all":
        of_a_run(EditOptions, [asked], "edit", DESCRIPTION, what="KIND RUN")  # which ends with the help
    if asked:
        print(short_help("edit"))
        return
    if kind not in OWN:
        raise UsageError(f"fluvial edit takes a kind, one of {', '.join(OWN)}, and then RUN; got {kind or 'nothing'}")
    folder, run, options = of_a_run(EditOptions, arguments[1:], "edit", DESCRIPTION, what=f"{kind} RUN")
    own = _own_options(kind, options)
    out = options.out or folder / f"edit-{kind}"
    check_folder(out)
    if options.out:
        check_unused(out)
    device = device_of_rank(options.device)
    mask = None if options.mask is None else _read(options.mask, 1, behind="black")[0] >= WHITE
    if mask is not None and not mask.any():
        raise UsageError(
            f"--mask {options.mask}: no pixel is white (at least {WHITE} of 255), so nothing is to be drawn"
        )
    sampler = load(folder, autoencoder=options.autoencoder, device=device, step=options.step, average=options.average)
    images, labels = _images(sampler, options)
    if images is not None and kind != "grow":
        _check_size(options.images, tuple(images.shape[-2:]), sampler)
    if mask is not None:
        own["mask"] = _squared(mask[None].to(torch.uint8) * 255, sampler.side)[0] >= WHITE if options.fit else mask
        _check_size(f"--mask {options.mask}", tuple(own["mask"].shape), sampler)
    how: dict[str, Any] = {"seed": options.seed, "settings": options.sample}
    asked_for = any(name.startswith("--sample.guidance") for name in lengthened("edit", arguments)[1])
    if kind == "invert" and not asked_for:
        how["guidance"] = 1.0  # the ODE of the model itself
    if options.classes and options.classes != ("none",):
        how["classes"] = class_ids_of(options.classes, run)
    elif not options.classes and kind != "context" and labels is not None and run.method.classes:
        how["classes"] = labels
    _write(kind, sampler, images, own, how, out)


def _own_options(kind: str, options: EditOptions) -> dict[str, Any]:
    """The options of this kind that were given. Raises UsageError for those of others, and for those that lack."""
    every = {name for names in OWN.values() for name in names}
    given = {name: getattr(options, name) for name in sorted(every) if getattr(options, name) is not None}
    for name in given:
        if name not in OWN[kind]:
            of = " and ".join(other for other, names in OWN.items() if name in names)
            raise UsageError(f"--{name} is an option of {of}, not of {kind}")
    if lacking := [f"--{name}" for name, needed in OWN[kind].items() if needed and name not in given]:
        raise UsageError(f"fluvial edit {kind} needs {' and '.join(lacking)}; --help says what it is")
    if kind != "fork" and not options.images:
        raise UsageError(f"fluvial edit {kind} needs --images: a file, a folder, or a data set such as digits:test")
    if kind == "fork" and (options.images or options.indices):
        raise UsageError("fluvial edit fork draws from noise: it takes no --images")
    if options.repeats == 0 and options.jump is not None:
        raise UsageError("--jump is how many steps are taken again at a time, and --repeats 0 takes none again")
    return {name: value for name, value in given.items() if name != "fit"}


def _check_size(what: str, size: tuple[int, ...], sampler: Sampler) -> None:
    """Raises UsageError for images or a mask of another size than the run's."""
    stride, latent = sampler.autoencoder.stride, sampler.run.method.size
    wanted = [side * stride for side in latent]
    if list(size) != wanted:
        here, there = (" x ".join(map(str, sides)) for sides in (size, wanted))
        raise UsageError(f"{what} is {here} (height, width), and the run draws {there}: --fit crops and scales to that")


def _images(sampler: Sampler, options: EditOptions) -> tuple[Tensor | None, list[int] | None]:
    """The images to edit, and their class ids if they have some."""
    if not options.images:
        return None, None
    run = sampler.run
    channels = 1 if 1 in (sampler.autoencoder.image_channels, run.method.channels) else 3
    side = sampler.side if options.fit else 0
    if Path(options.images).is_file() and is_image(options.images):
        return _read(Path(options.images), channels, side)[None], None
    names = run.data.class_names
    known = Classes(names, names, False) if run.method.classes and names else None
    there = open_images(options.images, DataConfig(size=side, crop="centre", channels=channels), known)
    rows = list(options.indices or range(min(there.n, MOST)))
    if not all(0 <= row < there.n for row in rows):
        raise UsageError(f"--indices must be from 0 to {there.n - 1} in {options.images}, got {rows}")
    images, labels = there.read(rows)
    if side and tuple(images.shape[-2:]) != (side, side):  # an .npz is as it is
        images = torch.stack([_squared(image, side) for image in images])
    if labels is None or options.classes or not run.method.classes:
        return images, None
    if int(labels.max()) >= run.method.classes:
        raise UsageError(
            f"{options.images} has class ids up to {int(labels.max())}, and the run {run.method.classes} classes: "
            f"give the classes to draw with --classes, or --classes none"
        )
    return images, labels.tolist()


def _read(path: Path, channels: Literal[1, 3], side: int = 0, *, behind: str = "white") -> UInt8[Tensor, "c h w"]:
    """An image as data sets read it: upright, and with a side cropped to a square of it."""

    def use(image: Image.Image) -> np.ndarray:
        image = crop.upright(image, channels, behind=behind)
        return crop.to_array(crop.square(image, side, "centre") if side else image)

    try:
        return torch.from_numpy(crop.decode(path, str(path), use))
    except crop.UnreadableImage as error:
        raise ValueError(f"{path} cannot be read as an image: {error.reason}") from error


def _squared(image: UInt8[Tensor, "c h w"], side: int) -> UInt8[Tensor, "c side side"]:
    """The image, cropped and scaled as data sets are."""
    picture = Image.fromarray(image.permute(1, 2, 0).numpy() if len(image) > 1 else image[0].numpy())
    return torch.from_numpy(crop.to_array(crop.square(picture, side, "centre")))


def _write(
    kind: str, sampler: Sampler, images: Tensor | None, own: dict[str, Any], how: dict[str, Any], out: Path
) -> None:
    """Draws, writes the results, and prints what they are and how near to what was given."""
    rows: dict[str, Tensor] = {} if images is None else {"given": images}
    noise, told = None, ""
    if images is None:
        drawn = edits.fork(sampler, **own, **how)
    elif kind == "invert":
        noise, drawn, error = edits.invert(sampler, images, **own, **how)
        told = f"root mean square error of the latents drawn again: {error.mean():.2g}"
    elif kind == "context":
        drawn = edits.in_context(sampler, images, **own, **how)
    else:
        drawn = DRAW[kind](sampler, images, **own, **how)
        told = TOLD[kind](drawn, images, own)
    saved = drawn.save(out, gif=False)
    if noise is not None:
        write_tensors(out / NOISE, {"noise": noise})
        saved.append(out / NOISE)
    if images is not None and kind == "inpaint":
        rows["masked"] = torch.where(own["mask"], torch.full_like(images, 128), images)
    if drawn.images.shape[1] in (1, 3):
        saved.append(_picture(rows, drawn, own.get("copies", 1), out / "edit.png"))
    print(f"{len(drawn):,} images" + (f"; {told}" if told else ""))
    for path in saved:
        print(path)


def _picture(rows: dict[str, Tensor], drawn: Samples, copies: int, path: Path) -> Path:
    """A picture with what was given in one row, and the results below."""
    large = drawn.images.shape[-2:]
    shown = {name: F.interpolate(value[:SHOWN].float(), size=large).to(torch.uint8) for name, value in rows.items()}
    for copy in range(min(copies, SHOWN)):
        shown["drawn" if copies == 1 else f"drawn {copy + 1}"] = drawn.images[copy::copies][:SHOWN]
    return pictures.save_labelled_rows(shown, path)


def _kept(drawn: Samples, images: Tensor, own: Mapping[str, Any]) -> str:
    """The largest change of a known pixel."""
    known = ~own["mask"]
    before = images.repeat_interleave(len(drawn) // len(images), dim=0).int()
    change = (drawn.images.int() - before).abs()[..., known]
    return f"known pixels change by {change.float().mean():.3g} levels of 256, at most {int(change.max())}"


def _distance(drawn: Samples, images: Tensor, own: Mapping[str, Any]) -> str:
    """The mean distance from the images given."""
    before = images.repeat_interleave(len(drawn) // len(images), dim=0).float()
    away = (drawn.images.float() - before).square().flatten(1).mean(1).sqrt()
    return f"root mean square distance from the images given: {away.mean():.3g} levels of 256"


def _smaller(drawn: Samples, images: Tensor, own: Mapping[str, Any]) -> str:
    """The distance of the pooled results from the small images."""
    before = images.repeat_interleave(len(drawn) // len(images), dim=0).float()
    height, width = images.shape[-2:]
    away = (pooled(drawn.images.float(), (height, width)) - before).abs()
    return f"pooled to {height} x {width}, they differ from the images given by {away.mean():.2g} levels of 256"


DRAW: dict[str, Callable[..., Samples]] = {
    "inpaint": edits.inpaint,
    "vary": edits.vary,
    "grow": edits.grow,
    "redraw": edits.redraw,
}
TOLD: dict[str, Callable[..., str]] = {"inpaint": _kept, "vary": _distance, "redraw": _distance, "grow": _smaller}
