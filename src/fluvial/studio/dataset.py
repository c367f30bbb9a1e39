"""The images that a run learns from: facts, a contact sheet, and some as the model sees them."""

import math
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fluvial.studio.work import Job

if TYPE_CHECKING:
    from fluvial.data.images import ImageSet

LOOKED_AT = 500  # images that are decoded for the facts, spread evenly
SHOWN = 8  # images before and after the autoencoder
LISTED, CLASSES = 50, 20  # unreadable images, and largest classes, that are listed
COLUMNS = 20  # of the contact sheet


@dataclass(frozen=True)
class Look:
    """The result of `look_at`, ready to be shown."""

    place: str
    facts: dict[str, str]
    classes: dict[str, int]
    """Images by class, of the largest classes."""
    unreadable: tuple[str, ...]
    """Names of images that cannot be decoded, each with the reason."""
    sheet: bytes
    """A PNG of thumbnails; empty without any."""
    seen: bytes
    """A PNG with a row of images as the model sees them, and if there is an autoencoder a row of what it returns."""
    psnr: tuple[float, ...]
    """Peak signal-to-noise ratio in dB of these images after the autoencoder; empty for a model of pixels."""


def look_at(folder: Path, job: Job) -> Look:
    """The images of a run. Raises ValueError if they are not there, or cannot be read."""
    from fluvial.data.inspect import inspect
    from fluvial.run.folder import RunFolder
    from fluvial.run.inputs import open_autoencoder
    from fluvial.utils import pictures

    run = RunFolder(folder).run()
    images = load_images(run)
    job.check()
    found = inspect(images, most=LOOKED_AT)
    job.check()
    seen, after = as_seen(images, open_autoencoder(run.autoencoder))
    rows = [seen] if after is None else [seen, after]
    sheet = b"" if not len(found.sheet) else pictures.encoded(pictures.grid(found.sheet, COLUMNS), "png")
    bad = [f"{each.name}: {each.reason}" for each in (*found.unreadable, *images.skipped)]
    return Look(
        place=run.data.place,
        facts=facts_of(found, run),
        classes=dict(sorted(found.class_sizes.items(), key=lambda item: -item[1])[:CLASSES]),
        unreadable=tuple(bad[:LISTED]),
        sheet=sheet,
        seen=_rows(rows) if len(seen) else b"",
        psnr=() if after is None else tuple(psnr(a, b) for a, b in zip(seen, after, strict=True)),
    )


def load_images(run: Any) -> "ImageSet":  # noqa: ANN401 - a Run
    """The training images of a run; of latents there are none. Raises ValueError if they are not there."""
    from fluvial.data import images as data_images
    from fluvial.data.manifest import is_cache

    if is_cache(run.data.place):
        raise ValueError(f"{run.data.place} has latents: the images that they are of are not in it")
    found = data_images.load(replace(run.data, unreadable="skip"), "train", scan=False)
    if found is None:
        raise ValueError(f"{run.data.place} has no training images")
    return found


def facts_of(found: Any, run: Any) -> dict[str, str]:  # noqa: ANN401
    """The facts of an inspection in words."""
    sizes = found.sizes
    facts = {"images": f"{found.count:,}"}
    if found.looked_at < found.count:
        facts["looked at"] = f"{found.looked_at:,}, spread evenly"
    if len(sizes):
        low, high = sizes.min(0), sizes.max(0)
        same = tuple(low) == tuple(high)
        facts["size in pixels"] = f"{low[0]} x {low[1]}" if same else f"{low[0]} x {low[1]} to {high[0]} x {high[1]}"
        if run.data.size:
            smaller = int((sizes.min(1) < run.data.size).sum())
            facts["cropped to"] = f"{run.data.size} x {run.data.size} ({run.data.crop})"
            if smaller:
                facts["smaller than that"] = f"{smaller:,} of {len(sizes):,}, which are enlarged or padded"
    facts["kinds"] = ", ".join(f"{name} {count:,}" for name, count in found.kinds.items())
    if found.class_sizes:
        there = sum(count > 0 for count in found.class_sizes.values())
        empty = len(found.class_sizes) - there
        facts["classes"] = f"{there:,}" + (f", and {empty:,} without images" if empty else "")
        if run.method.images_per_sequence and (small := found.small_classes(run.method.images_per_sequence)):
            facts["classes too small for a sequence"] = ", ".join(f"{k} ({n})" for k, n in list(small.items())[:10])
    if found.left_out:
        facts["left out"] = found.left_out
    return facts


def as_seen(images: "ImageSet", autoencoder: Any) -> tuple[Any, Any]:  # noqa: ANN401 - tensors
    """Some images as the model sees them, and what its autoencoder makes of them; None for a model of pixels."""
    import torch

    from fluvial.data.pixels import to_signed, to_uint8

    count, found = len(images.pixels), []
    for index in torch.linspace(0, count - 1, min(2 * SHOWN, count)).round().long().unique():
        with suppress(ValueError):  # of an unreadable one
            found.append(images.rows(index[None]))
    seen = torch.cat(found[:: max(1, len(found) // SHOWN)][:SHOWN]) if found else torch.zeros(0, 1, 1, 1)
    if autoencoder.stride == 1 or not found:
        return seen, None
    with torch.no_grad():
        moments = autoencoder.moments(to_signed(seen))
        return seen, to_uint8(autoencoder.decode(autoencoder.latents(moments, None)))


def psnr(one: Any, other: Any) -> float:  # noqa: ANN401 - tensors
    """Peak signal-to-noise ratio of two uint8 images in dB: 10 log10(255^2 / mean square error); inf if equal."""
    error = float((one.double() - other.double()).square().mean())
    return 10 * math.log10(255**2 / error) if error else math.inf


def _rows(rows: list[Any]) -> bytes:
    """The rows of images as a PNG."""
    import torch

    from fluvial.utils import pictures

    return pictures.encoded(pictures.grid(torch.cat(rows), len(rows[0])), "png")
