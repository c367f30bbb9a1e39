"""The cache of latents: what an autoencoder makes of every image and its mirror image, computed once.

latents/
  manifest.json            autoencoder, image size, crop, statistics, class names, and the checksum of every shard
  shard-00000.safetensors  moments (n, m, h, w), moments_flip, labels (n,), index (n,): their place in the data set

The moments of the posterior are stored, not a draw from it, so that training draws anew each time it sees an image.
Shards are written whole or not at all, each with its record beside it (shard-00000.json) until the manifest, which is
written last, takes the records in. So a crash costs the shards it interrupted, and any number of processes may share
the work without talking to each other: shard k is for process k mod world, and whoever ends last writes the manifest.
"""

import json
import mmap
import os
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import cattrs
import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from fluvial.data.images import ImageSet, refuse, to_signed
from fluvial.files import checksum, write_json
from fluvial.progress import Bar

T = TypeVar("T")
FORMAT = 1
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
READ = {"BF16": (np.int16, torch.bfloat16), "F32": (np.float32, torch.float32)}  # by safetensors' names


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What defines a cache. Two caches of the same plan and the same images hold the same."""

    source: str
    images: int
    autoencoder: str
    hash: str
    """Of the autoencoder's weights."""
    digest: str
    """Of the names and sizes of the image files."""
    labels: str
    """The SHA-256 of the labels."""
    stride: int
    channels: int
    image_size: int
    crop: str
    flip: bool
    """Whether the mirror images are there too."""
    dtype: Literal["bf16", "fp32"]
    shard: int
    """Images a shard, before unreadable ones are left out."""
    class_names: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Record:
    """What is known of a shard that is there."""

    file: str
    images: int
    bytes: int
    sha256: str
    sums: tuple[tuple[float, ...], tuple[float, ...]]
    """Of z and of z^2 over images, height and width, for each channel."""
    skipped: tuple[str, ...]
    """The unreadable images, and why."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """manifest.json: the plan, the mean and standard deviation of each channel of z, and the shards."""

    format: int
    images: int
    plan: Plan
    mean: tuple[float, ...]
    std: tuple[float, ...]
    shards: tuple[Record, ...]

    @property
    def skipped(self) -> list[str]:
        return [name for shard in self.shards for name in shard.skipped]


@dataclass(frozen=True, kw_only=True)
class Begun:
    """plan.json: there until the manifest is."""

    format: int
    plan: Plan


_converter = cattrs.Converter(forbid_extra_keys=True)


class LatentSet(NamedTuple):
    """Moments (n, m, h, w) on disk, labels (n,) or None where there are none, and the names of the classes."""

    moments: "Moments"
    labels: Int[Tensor, "n"] | None
    class_names: tuple[str, ...]
    digest: str = ""

    def rows(
        self, chosen: Int[Tensor, "b"], flipped: Bool[Tensor, "b"] | None = None, corners: np.ndarray | None = None
    ) -> Float[Tensor, "b m h w"]:
        """The moments of these images in float32, of their mirror images where `flipped`."""
        return self.moments.read(chosen.tolist(), [] if flipped is None else flipped.tolist())


def write(
    images: ImageSet,
    moments: Callable[[Float[Tensor, "b c H W"]], Float[Tensor, "b m h w"]],
    plan: Plan,
    folder: Path,
    *,
    batch: int = 32,
    skip_unreadable: bool = False,
    device: torch.device | str = "cpu",
    rank: int = 0,
    world: int = 1,
) -> Manifest | None:
    """Writes the cache, or what is missing of it, and returns its manifest; None while other processes are at work.

    `moments` turns images in [-1, 1], on `device`, into (mean | log variance) or the mean alone. Raises ValueError if
    the folder holds another cache, an image is unreadable, or the disk is full; finished shards stay valid.
    """
    _claim(folder, plan)
    records = _records(folder, plan)
    missing = [number for number in range(rank, len(records), world) if records[number] is None]
    total = sum(len(_indices(plan, number)) for number in missing)
    with Bar(total, what="encoding") as bar:
        done = 0
        for number in missing:
            indices = _indices(plan, number)
            parts = []
            for start in range(0, len(indices), batch):
                parts.append(_encoded(images, indices[start : start + batch], moments, plan, skip_unreadable, device))
                done += len(indices[start : start + batch])
                bar.show(done)
            _write_shard(folder, number, parts, plan)
    return _finish(folder, plan)


def _indices(plan: Plan, number: int) -> range:
    return range(number * plan.shard, min((number + 1) * plan.shard, plan.images))


def _encoded(
    images: ImageSet, indices: range, moments: Callable, plan: Plan, skip: bool, device: torch.device | str
) -> dict[str, Any]:
    """The shard's tensors for these images, and the names of those left out."""
    if isinstance(images.pixels, Tensor):
        pixels, bad = images.pixels[indices.start : indices.stop], {}
    else:
        pixels, bad = images.pixels.try_read(indices)
    if not skip:
        refuse(bad.values())
    index = torch.tensor([i for k, i in enumerate(indices) if k not in bad], dtype=torch.long)
    x = to_signed(pixels.to(device))
    if len(index) == 0:
        x = torch.zeros(1, *x.shape[1:], device=device)  # for the shape: few networks take no image at all
    tensors = {"moments": moments(x)} | ({"moments_flip": moments(x.flip(-1))} if plan.flip else {})
    tensors = {name: value[: len(index)] for name, value in tensors.items()}
    mean, logvar = (
        tensors["moments"].double().cpu().split([plan.channels, tensors["moments"].shape[1] - plan.channels], 1)
    )
    variance = logvar.clamp(-30, 20).exp() if logvar.shape[1] else torch.zeros_like(mean)
    stored = {name: value.to(DTYPES[plan.dtype]).cpu() for name, value in tensors.items()}
    labels = torch.full_like(index, -1) if images.labels is None else images.labels[index]
    return {
        "tensors": {**stored, "labels": labels, "index": index},
        "sums": torch.stack([mean.sum((0, 2, 3)), (mean**2 + variance).sum((0, 2, 3))]),
        "skipped": [str(error) for error in bad.values()],
    }


def _write_shard(folder: Path, number: int, parts: list[dict[str, Any]], plan: Plan) -> None:
    tensors = {k: torch.cat([part["tensors"][k] for part in parts]).contiguous() for k in parts[0]["tensors"]}
    file = folder / f"shard-{number:05d}.safetensors"
    for left_over in folder.glob(f".{file.name}.*.partial"):  # of a process that was killed
        left_over.unlink(missing_ok=True)
    partial = file.with_name(f".{file.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        save_file(tensors, partial)
        partial.chmod(folder.stat().st_mode & 0o666)  # safetensors keeps others out, who may share the folder
        with partial.open("rb+") as written:
            os.fsync(written.fileno())
        first, second = torch.stack([part["sums"] for part in parts]).sum(0).tolist()
        record = Record(
            file=file.name,
            images=len(tensors["index"]),
            bytes=partial.stat().st_size,
            sha256=checksum(partial),
            sums=(tuple(first), tuple(second)),
            skipped=tuple(name for part in parts for name in part["skipped"]),
        )
        os.replace(partial, file)
        write_json(file.with_suffix(".json"), asdict(record))
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"cannot write {file}: {error}. Finished shards are kept: make room, and the same command goes on from them"
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def _claim(folder: Path, plan: Plan) -> None:
    """Writes plan.json, or checks that the cache begun or finished there is of the same plan."""
    # in this order: another process may write the plan, or turn it into the manifest, at any moment
    entries = [p for p in folder.iterdir() if not p.name.startswith(".")] if folder.exists() else []
    there = _read_plan(folder)
    if there is None and (folder / "manifest.json").exists():
        there = read_manifest(folder).plan
    if there is None and entries:
        raise ValueError(f"{folder} is not empty and holds no latents; choose another folder")
    if there is None:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "plan.json", asdict(Begun(format=FORMAT, plan=plan)))
    elif changed := differences(there, plan):
        raise ValueError(f"{folder} holds other latents: {changed}. Choose another folder, or remove it")


def differences(there: Plan, here: Plan) -> str:
    """The settings in which two plans differ, or nothing. Images and autoencoder may have been moved."""
    moved = ("source", "autoencoder")
    names = (k for k in asdict(there) if k not in moved and getattr(there, k) != getattr(here, k))
    return ", ".join(f"{k} is {getattr(there, k)} there and {getattr(here, k)} here" for k in names)


def _records(folder: Path, plan: Plan) -> list[Record | None]:
    """The record of every shard; None for one that is not there in full length."""
    files = [f"shard-{number:05d}.safetensors" for number in range(-(-plan.images // plan.shard))]
    beside = [_read_record((folder / file).with_suffix(".json")) for file in files]
    # after the records, which whoever writes the manifest removes
    finished = {s.file: s for s in read_manifest(folder).shards} if (folder / "manifest.json").exists() else {}
    records = [record or finished.get(file) for file, record in zip(files, beside, strict=True)]
    return [None if record is None or _fault(folder, record) else record for record in records]


def _read_record(file: Path) -> Record | None:
    try:
        return _converter.structure(json.loads(file.read_text()), Record)
    except (OSError, ValueError, cattrs.BaseValidationError):
        return None


def _fault(folder: Path, record: Record) -> str:
    """What is wrong with a shard's length, or nothing."""
    file = folder / record.file
    if not file.exists():
        return "is missing"
    size = file.stat().st_size
    return "" if size == record.bytes else f"is {size} bytes long, it was written with {record.bytes}"


def _finish(folder: Path, plan: Plan) -> Manifest | None:
    """Writes the manifest if no shard is missing."""
    records = _records(folder, plan)
    shards = tuple(record for record in records if record is not None)
    if len(shards) < len(records):
        return None
    count = sum(shard.images for shard in shards)
    if count == 0:
        raise ValueError(f"none of the {plan.images} images of {plan.source} can be read")
    _, height, width = _Shard(folder / shards[0].file).shape
    sums = torch.tensor([shard.sums for shard in shards], dtype=torch.float64).sum(0) / (count * height * width)
    std = (sums[1] - sums[0] ** 2).clamp(min=0).sqrt()
    manifest = Manifest(
        format=FORMAT, images=count, plan=plan, mean=tuple(sums[0].tolist()), std=tuple(std.tolist()), shards=shards
    )
    write_json(folder / "manifest.json", asdict(manifest))
    for left_over in (folder / "plan.json", *folder.glob("shard-*.json")):
        left_over.unlink(missing_ok=True)
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """manifest.json. Raises ValueError if there is none, it is of a newer version, or it is damaged."""
    if not (folder / "manifest.json").exists():
        begun = "; `fluvial encode` has not finished there" if (folder / "plan.json").exists() else ""
        raise ValueError(f"{folder} holds no latents: it has no manifest.json{begun}")
    return _read(folder / "manifest.json", Manifest)


def _read_plan(folder: Path) -> Plan | None:
    try:
        return _read(folder / "plan.json", Begun).plan
    except FileNotFoundError:
        return None


def _read(file: Path, kind: type[T]) -> T:
    """Raises ValueError if the file is of another version of the format, or damaged."""
    try:
        values = json.loads(file.read_text())
        if values["format"] == FORMAT:
            return _converter.structure(values, kind)
    except (ValueError, KeyError, TypeError, cattrs.BaseValidationError) as error:
        reason = "; ".join(cattrs.transform_error(error)) if isinstance(error, ExceptionGroup) else repr(error)
        raise ValueError(f"{file} is damaged ({reason}); remove it and encode again") from error
    raise ValueError(f"{file} has format {values['format']}, this version of fluvial reads {FORMAT}; update fluvial")


def verify(folder: Path) -> list[str]:
    """What is wrong with the shards of a cache: a line for each that is missing, cut short, or altered."""
    wrong = []
    manifest = read_manifest(folder)
    with Bar(len(manifest.shards), what="reading shards") as bar:
        for number, shard in enumerate(manifest.shards):
            file = folder / shard.file
            if fault := _fault(folder, shard):
                wrong.append(f"{file.name} {fault}")
            elif (found := checksum(file)) != shard.sha256:
                wrong.append(f"{file.name} was altered: its SHA-256 is {found[:12]}..., it was {shard.sha256[:12]}...")
            bar.show(number + 1)
    return wrong


def load(folder: Path) -> LatentSet:
    """The cache in a folder. Raises ValueError if it is not complete."""
    manifest = read_manifest(folder)
    moments = Moments(folder, manifest)
    labels = torch.cat([shard.whole("labels") for shard in moments.shards])
    labelled = bool((labels >= 0).all())
    plan = manifest.plan
    return LatentSet(moments, labels if labelled else None, plan.class_names if labelled else (), plan.digest)


def is_cache(place: str) -> bool:
    """Whether `fluvial encode` wrote this folder, or began to."""
    folder = Path(place).expanduser()
    if not place or not folder.is_dir():
        return False
    if any(folder.glob("shard-*.safetensors")):
        return True
    for name in ("manifest.json", "plan.json"):
        try:
            if "plan" in json.loads((folder / name).read_text()):
                return True
        except (OSError, ValueError, TypeError):
            continue
    return False


class Moments:
    """The moments of a cache, memory-mapped: rows are read from disk when they are asked for."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder, self.manifest = folder, manifest
        for shard in manifest.shards:
            if fault := _fault(folder, shard):
                raise ValueError(f"{folder / shard.file} {fault}; encode again with the same command to restore it")
        self.shards = [_Shard(folder / shard.file) for shard in manifest.shards]
        self.ends = np.cumsum([shard.images for shard in manifest.shards])

    def __len__(self) -> int:
        return int(self.ends[-1])

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return (len(self), *self.shards[0].shape)

    def read(self, indices: Sequence[int], flipped: Sequence[bool] = ()) -> Float[Tensor, "b m h w"]:
        """These rows in float32; of the mirror image where `flipped`."""
        numbers = np.searchsorted(self.ends, indices, side="right")
        starts = self.ends - [shard.images for shard in self.manifest.shards]
        wanted = [
            (self.shards[n], "moments_flip" if flipped and flipped[k] else "moments", int(i - starts[n]))
            for k, (n, i) in enumerate(zip(numbers, indices, strict=True))
        ]
        for shard, name, row in wanted:
            shard.will_need(name, row)  # the kernel reads all rows at once, rather than one after the other
        out = np.empty((len(wanted), *self.shape[1:]), self.shards[0].stored_as)
        for k, (shard, name, row) in enumerate(wanted):
            out[k] = shard.arrays[name][row]
        return torch.from_numpy(out).view(self.shards[0].dtype).float()


class _Shard:
    """One safetensors file, mapped into memory."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            self.map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.advises = hasattr(self.map, "madvise")  # not on Windows
        if self.advises:
            self.map.madvise(mmap.MADV_RANDOM)  # no reading ahead: the next row wanted lies elsewhere
        # the format: the header's length in 8 bytes, the header as JSON, the tensors
        length = int.from_bytes(self.map[:8], "little")
        self.header, self.start = json.loads(self.map[8 : 8 + length]), 8 + length
        self.shape = tuple(self.header["moments"]["shape"][1:])
        self.stored_as, self.dtype = READ[self.header["moments"]["dtype"]]
        self.arrays = {name: self._array(name) for name in ("moments", "moments_flip") if name in self.header}

    def _array(self, name: str) -> np.ndarray:
        """The bits of a tensor, since numpy knows no bfloat16."""
        (begin, _), shape = self.header[name]["data_offsets"], self.header[name]["shape"]
        return np.ndarray(shape, self.stored_as, self.map, self.start + begin)

    def whole(self, name: str) -> Int[Tensor, "n"]:
        """labels or index."""
        begin, end = self.header[name]["data_offsets"]
        return torch.from_numpy(np.frombuffer(self.map[self.start + begin : self.start + end], np.int64).copy())

    def will_need(self, name: str, row: int) -> None:
        """Tells the kernel that this row will be read soon."""
        if not self.advises:
            return
        size = self.arrays[name][0].nbytes
        begin = self.start + self.header[name]["data_offsets"][0] + row * size
        page = begin // mmap.PAGESIZE * mmap.PAGESIZE
        self.map.madvise(mmap.MADV_WILLNEED, page, begin + size - page)
