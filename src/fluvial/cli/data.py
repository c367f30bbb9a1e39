"""fluvial data inspect, data verify, encode."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from fluvial.autoencoders import AutoencoderConfig
from fluvial.cli.arguments import Device, device_of_rank, nothing_more, parse, positional
from fluvial.cli.output import console
from fluvial.data import latents
from fluvial.data.images import BUILT_IN, DataConfig
from fluvial.data.images import load as load_images
from fluvial.data.inspect import inspect as inspect_images
from fluvial.data.manifest import is_cache
from fluvial.run import inputs
from fluvial.sampling import sets
from fluvial.training import distributed
from fluvial.utils import pictures
from fluvial.utils.checks import at_least
from fluvial.utils.errors import UsageError

MOST = 20  # faults that are listed
DATA = "a folder of images, parquet, arrow or tar files, or hub:OWNER/NAME for a data set on the Hugging Face hub"


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """Which images of a folder or data set."""

    split: str = ""
    """Split to read; "train" by default, or the only one there is."""
    image_column: str = ""
    """Column of the images; found by default."""
    label_column: str = ""
    """Column of the labels; found by default."""
    class_names: tuple[str, ...] = ()
    """Names of the classes in order of their ids; found by default."""


@dataclass(frozen=True, kw_only=True)
class InspectOptions:
    source: Annotated[SourceOptions, tyro.conf.arg(name="")] = SourceOptions()
    sequence: int = 5
    """Images of an ARFlow sequence: classes with fewer are named."""
    most: int | None = None
    """Look at this many images, spread evenly; at all by default."""
    sheet: Path = Path("contact-sheet.png")
    """Where to put the contact sheet."""

    def __post_init__(self) -> None:
        at_least(1, self, "sequence")
        if self.sheet.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
            raise ValueError(f"--sheet must end in .png, .jpg or .webp, got {self.sheet}")
        if self.most is not None:
            at_least(1, self, "most")


@dataclass(frozen=True, kw_only=True)
class EncodeOptions:
    autoencoder: str
    """A diffusers autoencoder by its name on the Hugging Face hub or its folder, a file kl16.ckpt, or "pixels"."""
    out: Path
    """Folder for the latents; what is there already of the same data is kept."""
    image_size: int = 256
    """Side of the square that images are cropped to, in pixels."""
    crop: Literal["centre", "pad"] = "centre"
    """ADM's centre crop, or black around images that are smaller."""
    channels: Literal[1, 3] = 3
    """3 for RGB, 1 for grey."""
    flip: bool = True
    """Encode the mirror images too."""
    dtype: Literal["bf16", "fp32"] = "bf16"
    """Numbers are stored with 8 or with 24 bits of precision, in 2 or 4 bytes."""
    unreadable: Literal["error", "skip"] = "error"
    """Images that cannot be decoded: stop with their names, or leave them out and say so."""
    batch: int = 32
    """Images encoded at a time."""
    shard: int = 2048
    """Images in a file."""
    source: Annotated[SourceOptions, tyro.conf.arg(name="")] = SourceOptions()
    device: Device = "auto"
    """Where to compute: cpu, cuda, cuda:1 or mps; auto takes CUDA if it is there, of the local rank under torchrun."""

    def __post_init__(self) -> None:
        at_least(1, self, "image_size", "batch", "shard")


def _named(place: str) -> dict[str, Any]:
    """The setting that names this place."""
    return {"name": place} if place in BUILT_IN else {"path": place}


def data(arguments: list[str]) -> None:
    what, rest = positional(arguments, "data", "inspect|verify", "inspect DATA, or verify LATENTS", more=True)
    match what:
        case "inspect":
            _inspect(rest)
        case "verify":
            _verify(rest)
        case _:
            raise UsageError(f"fluvial data has inspect and verify, got {what!r}")


def _inspect(arguments: list[str]) -> None:
    place, rest = positional(arguments, "data inspect", "DATA", DATA, has_own_help=True)
    description = "Print what is in a folder or data set, and save a contact sheet."
    options = parse(InspectOptions, InspectOptions(), rest, "fluvial data inspect DATA", description)
    if Path(place).is_dir() and Path(place).resolve() in options.sheet.resolve().parents:
        raise UsageError(f"the contact sheet {options.sheet} would become one of the images of {place}; set --sheet")
    if is_cache(place):
        return _print_manifest(Path(place), latents.read_manifest(Path(place)))
    images = load_images(DataConfig(**_named(place), **vars(options.source)), "train", scan=False)
    assert images is not None
    found = inspect_images(images, most=options.most)
    table = _table(place)
    of_all = "" if found.looked_at == found.count else f" (looked at {found.looked_at:,})"
    table.add_row("images", f"{found.count:,}{of_all}")
    for what, sides in zip(("width", "height", "short side"), (*found.sizes.T, found.sizes.min(1)), strict=True):
        if not len(sides):  # no image can be read
            break
        low, middle, high = (int(np.quantile(sides, q)) for q in (0, 0.5, 1))
        table.add_row(what, f"{low:,} to {high:,}, median {middle:,}")
    for kind, count in found.kinds.items():
        if count:
            table.add_row(kind, f"{count:,}")
    table.add_row("unreadable", f"{len(found.unreadable):,}")
    empty = sum(n == 0 for n in found.class_sizes.values())
    classes = f"{len(found.class_sizes) - empty:,}" + (f", and {empty:,} without images" if empty else "")
    table.add_row("classes", classes if found.class_sizes else "no labels")
    if images.labels is not None and not images.class_names:
        low, high = int(images.labels.min()), int(images.labels.max())
        below = int((images.labels < 0).sum())
        told = f", {below:,} of them below 0, which training refuses" if below else ""
        table.add_row("labels", f"{low:,} to {high:,}{told}")
    if small := found.small_classes(options.sequence):
        table.add_row(
            f"fewer than {options.sequence} images", f"{len(small):,} classes, too small for ARFlow's sequence"
        )
    printer = console()
    printer.print(table)
    _print_classes(printer, found.class_sizes)
    if small:
        print(f"fewer than {options.sequence} images: {_some([f'{name} ({n})' for name, n in small.items()])}")
    for error in found.unreadable[:20]:
        print(f"unreadable: {error}")
    if len(found.unreadable) > 20:
        print(f"and {len(found.unreadable) - 20} more")
    if found.left_out:
        print(found.left_out)
    if len(found.sheet):
        print(pictures.save_grid(found.sheet, options.sheet))


def _print_classes(printer: Console, sizes: dict[str, int]) -> None:
    """A bar a class: the largest and the smallest if there are many."""
    if not sizes:
        return
    ordered = sorted(((name, n) for name, n in sizes.items() if n), key=lambda item: -item[1])
    shown = ordered if len(ordered) <= 20 else [*ordered[:10], ("...", 0), *ordered[-10:]]
    table = Table("class", "images", "", title="classes by size", title_justify="left")
    for name, count in shown:
        bar = "#" * round(20 * count / max(1, ordered[0][1]))
        table.add_row(name, "" if name == "..." else f"{count:,}", bar)
    printer.print(table)


def _print_manifest(folder: Path, manifest: latents.Manifest) -> None:
    table = _table(f"{folder}: latents")
    table.add_row("readable images", f"{manifest.images:,}")
    for key, value in vars(manifest.plan).items():
        table.add_row(key, _some(value) if isinstance(value, tuple) else str(value))
    for name, values in (("mean", manifest.mean), ("standard deviation", manifest.std)):
        table.add_row(f"{name} by channel", " ".join(f"{v:.3f}" for v in values))
    console().print(table)
    for line in manifest.skipped[:20]:
        print(f"left out: {line}")


def _table(title: str) -> Table:
    table = Table("what", title=title, title_justify="left")
    table.add_column("value", overflow="fold")
    return table


def _some(names: Sequence[str], most: int = 10) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _verify(arguments: list[str]) -> None:
    meaning = "a folder of latents that `fluvial encode` wrote, or of images that `fluvial sample` wrote"
    place, rest = positional(arguments, "data verify", "LATENTS|SAMPLES", meaning)
    about = "Check latents, or sampled images, against the checksums that were written with them."
    nothing_more(rest, "data verify LATENTS|SAMPLES", about, what="options")
    if sets.is_set(Path(place)):
        return _verify_samples(Path(place))
    if wrong := latents.verify(Path(place)):
        listed = "\n  ".join(wrong)
        raise ValueError(
            f"{len(wrong)} damaged shards in {place}:\n  {listed}\nRemove them and repeat the command that wrote them"
        )
    manifest = latents.read_manifest(Path(place))
    print(f"{place}: {manifest.images:,} images in {len(manifest.shards)} shards, all as they were written")


def _verify_samples(folder: Path) -> None:
    if wrong := sets.verify(folder):
        more = [f"and {len(wrong) - MOST:,} more"] if len(wrong) > MOST else []
        listed = "\n  ".join([*wrong[:MOST], *more])
        again = "Remove those that are there, and sample again with the same command"
        raise ValueError(f"{folder} is damaged:\n  {listed}\n{again}")
    print(f"{folder}: all images are as they were written")


def encode(arguments: list[str]) -> None:
    place, rest = positional(arguments, "encode", "DATA", DATA, has_own_help=True)
    description = "Write the latents of all images and their mirror images. Started again, or on many ranks with "
    description += "torchrun, it does what is not done yet."
    options = parse(EncodeOptions, None, rest, "fluvial encode DATA", description)
    config = DataConfig(
        **_named(place),
        size=options.image_size,
        crop=options.crop,
        channels=options.channels,
        unreadable=options.unreadable,
        **vars(options.source),
    )
    rank, world = distributed.ranks()
    device = device_of_rank(options.device)
    manifest = inputs.encode(
        config,
        inputs.open_autoencoder(AutoencoderConfig(name=options.autoencoder)).to(device),
        options.out,
        flip=options.flip,
        dtype=options.dtype,
        shard=options.shard,
        batch=options.batch,
        device=device,
        rank=rank,
        world=world,
        tell=print if rank == 0 else lambda text: None,
    )
    if manifest is None:
        print(f"rank {rank} of {world} is done with its part of {options.out}")
        return
    print(f"{options.out}: {manifest.images:,} images in {len(manifest.shards)} shards")
    if manifest.skipped:
        print(f"left out: {_some(manifest.skipped)}")
