"""The cache of latents: the autoencoder's output for every image and its mirror image, computed once.

latents/
  manifest.json            autoencoder, image size, crop, statistics, class names, checksums of the shards and of itself
  shard-00000.safetensors  labels (n,), index (n,): positions in the data set; the CRC-32 of each image's moments (n,);
                           moments (n, m, h, w), moments_flip

The moments of the posterior are stored, not a draw from it, so that training draws anew each time it uses an image.
Shards are written atomically. Each has a record beside it (shard-00000.json) until the manifest, which is written last
and contains all records. So a crash loses only unfinished shards, and any number of processes can share the work
without communication: process k mod world writes shard k, and the last process to finish writes the manifest.

Data are verified when they are read. Opening a cache compares the SHA-256 of everything before the moments in each
shard, so that altered, exchanged or renamed shards are found. Each image's moments are compared with their CRC-32
whenever they are read, which for 16 KB (ImageNet at 256 x 256) takes 9 microseconds on one core. The SHA-256 of all its
42 GB would take 40 s at every start, at 1.1 GB/s; `fluvial data verify` computes it.
"""

import hashlib
import math
import mmap
import zlib
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fluvial.data.images import Files, ImageSet, refuse
from fluvial.data.manifest import FORMAT, Manifest, Plan, Record, read_manifest, read_plan, read_record, shard_name
from fluvial.data.manifest import write as write_record
from fluvial.data.pixels import to_signed
from fluvial.utils.atomic import atomic_file
from fluvial.utils.files import checksum, make_folder, plain, reading
from fluvial.utils.progress import Bar
from fluvial.utils.tensors import write_tensors

MOMENTS = ("moments", "moments_flip")
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
RESTORE = "move what is damaged away, and encode again with the same command to restore it"
READ = {"BF16": (np.int16, torch.bfloat16), "F32": (np.float32, torch.float32)}  # safetensors' name -> numpy, torch


class LatentSet(NamedTuple):
    """An opened cache: moments (n, m, h, w) on disk, labels (n,) or None for unlabelled images, and class names."""

    moments: "Moments"
    labels: Int[Tensor, "n"] | None
    class_names: tuple[str, ...]
    digest: str = ""

    def rows(
        self, chosen: Int[Tensor, "b"], flipped: Bool[Tensor, "b"] | None = None, corners: np.ndarray | None = None
    ) -> Float[Tensor, "b m h w"]:
        """The moments of these images in float32, of the mirror image where `flipped`; corners are not used."""
        return self.moments.read(chosen.tolist(), [] if flipped is None else flipped.tolist())

    def subset(self, kept: Int[Tensor, "m"]) -> "LatentSet":
        """The latents of these images."""
        labels = None if self.labels is None else self.labels[kept]
        return self._replace(moments=self.moments.subset(kept.tolist()), labels=labels)


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
    """Writes the missing shards of a cache and returns its manifest, or None if other processes have not finished.

    `moments` maps images in [-1, 1], on `device`, to (mean | log variance) or the mean alone. Raises ValueError if the
    folder holds another cache, an image is unreadable, or the disk is full; finished shards stay valid.
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
    """The images of shard `number`."""
    return range(number * plan.shard, min((number + 1) * plan.shard, plan.images))


def _encoded(
    images: ImageSet, indices: range, moments: Callable, plan: Plan, skip: bool, device: torch.device | str
) -> dict[str, Any]:
    """The shard's tensors for these images, the sums for their statistics, and the unreadable images."""
    if isinstance(images.pixels, Tensor):
        pixels, bad = images.pixels[indices.start : indices.stop], {}
    else:
        assert isinstance(images.pixels, Files)
        pixels, bad = images.pixels.try_read(indices)
    if not skip:
        refuse(bad.values())
    index = torch.tensor([i for k, i in enumerate(indices) if k not in bad], dtype=torch.long)
    x = to_signed(pixels.to(device))
    if len(index) == 0:
        x = torch.zeros(1, *x.shape[1:], device=device)  # for the shape: few networks accept an empty batch
    tensors = {"moments": moments(x)} | ({"moments_flip": moments(x.flip(-1))} if plan.flip else {})
    tensors = {name: value[: len(index)] for name, value in tensors.items()}
    for part in tensors.values():
        if len(wrong := (~torch.isfinite(part)).flatten(1).any(1).nonzero()):
            raise ValueError(f"the autoencoder gives moments that are not finite for image {int(index[wrong[0, 0]])}")
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
    """Writes a shard and its record, each atomically. Raises ValueError if it cannot be written."""
    tensors = {k: torch.cat([part["tensors"][k] for part in parts]).contiguous() for k in parts[0]["tensors"]}
    moments = {name: tensors.pop(name) for name in MOMENTS if name in tensors}
    sums = {f"{name}_crc32": _crc32(value) for name, value in moments.items()}
    file = folder / shard_name(number)
    try:
        with atomic_file(file) as temporary:
            write_tensors(temporary, {**tensors, **sums, **moments})
            size = temporary.stat().st_size
            head = size - sum(value.nbytes for value in moments.values())
            first, second = torch.stack([part["sums"] for part in parts]).sum(0).tolist()
            record = Record(
                file=file.name,
                images=len(tensors["index"]),
                bytes=size,
                sha256=checksum(temporary),
                head=head,
                head_sha256=_begins_with(temporary, head),
                sums=(tuple(first), tuple(second)),
                skipped=tuple(name for part in parts for name in part["skipped"]),
            )
        write_record(file.with_suffix(".json"), record)
    except OSError as error:
        raise ValueError(
            f"cannot write {file}: {error}. Finished shards are kept: make room, and the same command goes on from them"
        ) from error


def _crc32(moments: Float[Tensor, "n m h w"]) -> Int[Tensor, "n"]:
    """The CRC-32 of each image's moments."""
    rows = moments.view(torch.uint8).flatten(1).numpy()
    return torch.tensor([zlib.crc32(row.data) for row in rows], dtype=torch.long)


def _begins_with(file: Path, count: int) -> str:
    """The SHA-256 of the first bytes of a file."""
    with reading(file) as opened:
        return hashlib.sha256(opened.read(count)).hexdigest()


def _claim(folder: Path, plan: Plan) -> None:
    """Writes plan.json. Raises ValueError if the folder holds something else, or a cache of another plan."""
    # in this order: another process may write the plan, or replace it by the manifest, at any moment
    entries = [p for p in folder.iterdir() if not p.name.startswith(".")] if folder.exists() else []
    there = read_plan(folder)
    if there is None and (folder / "manifest.json").exists():
        there = read_manifest(folder).plan
    if there is None and entries:
        raise ValueError(f"{folder} is not empty and holds no latents; choose another folder")
    if there is None:
        make_folder(folder)
        write_record(folder / "plan.json", plan)
    elif changed := differences(there, plan):
        raise ValueError(f"{folder} holds other latents: {changed}. Choose another folder, or remove it")


def differences(there: Plan, here: Plan) -> str:
    """The differences between two plans in words, or ""; the paths of images and autoencoder may differ."""
    moved = ("source", "autoencoder")
    names = (k for k in asdict(there) if k not in moved and getattr(there, k) != getattr(here, k))
    return ", ".join(f"{k} is {getattr(there, k)} there and {getattr(here, k)} here" for k in names)


def _records(folder: Path, plan: Plan) -> list[Record | None]:
    """The record of every shard; None for a shard that is missing or not of its full length."""
    files = [shard_name(number) for number in range(plan.shards)]
    beside = [read_record((folder / file).with_suffix(".json")) for file in files]
    # read after the records, which are removed once the manifest is written
    finished = {s.file: s for s in read_manifest(folder).shards} if (folder / "manifest.json").exists() else {}
    records = [record or finished.get(file) for file, record in zip(files, beside, strict=True)]
    return [None if record is None or _fault(folder, record) else record for record in records]


def _fault(folder: Path, record: Record) -> str:
    """The fault of a shard that is missing or of another length; "" if it has none."""
    file = folder / record.file
    if not file.exists():
        return "is missing"
    size = file.stat().st_size
    return "" if size == record.bytes else f"is {size} bytes long, it was written with {record.bytes}"


def _finish(folder: Path, plan: Plan) -> Manifest | None:
    """Writes and returns the manifest if all shards are there, else None. Raises ValueError if no image is readable."""
    records = _records(folder, plan)
    shards = tuple(record for record in records if record is not None)
    if len(shards) < len(records):
        return None
    count = sum(shard.images for shard in shards)
    if count == 0:
        raise ValueError(f"none of the {plan.images} images of {plan.source} can be read")
    _, height, width = _Shard(folder / shards[0].file, shards[0]).shape
    sums = torch.tensor([shard.sums for shard in shards], dtype=torch.float64).sum(0) / (count * height * width)
    std = (sums[1] - sums[0] ** 2).clamp(min=0).sqrt()
    manifest = Manifest(
        format=FORMAT, images=count, plan=plan, mean=tuple(sums[0].tolist()), std=tuple(std.tolist()), shards=shards
    )
    write_record(folder / "manifest.json", manifest)
    for left_over in (folder / "plan.json", *folder.glob("shard-*.json")):
        left_over.unlink(missing_ok=True)
    return manifest


def verify(folder: Path) -> list[str]:
    """The faults of a cache, one line per shard that is missing, cut short, altered, or not part of the cache."""
    manifest = read_manifest(folder)
    wrong = _faults(folder, manifest)
    with Bar(len(manifest.shards), what="reading shards") as bar:
        for number, shard in enumerate(manifest.shards):
            file = folder / shard.file
            if not _fault(folder, shard) and (found := checksum(file)) != shard.sha256:
                wrong.append(f"{file.name} was altered: its SHA-256 is {found[:12]}..., it was {shard.sha256[:12]}...")
            bar.show(number + 1)
    return sorted(wrong)


def _faults(folder: Path, manifest: Manifest) -> list[str]:
    """The faults that show without reading the shards: missing files, lengths, files that are not of the cache."""
    known = {shard.file for shard in manifest.shards}
    wrong = [f"{shard.file} {fault}" for shard in manifest.shards if (fault := _fault(folder, shard))]
    extra = sorted(file.name for file in folder.glob("shard-*.safetensors") if file.name not in known)
    return wrong + [f"{name} is not of this cache" for name in extra]


def load(folder: Path) -> LatentSet:
    """The cache in a folder. Raises ValueError if it is incomplete or damaged."""
    manifest = read_manifest(folder)
    moments = Moments(folder, manifest)
    labels = torch.cat([shard.labels for shard in moments.shards])
    labelled = bool((labels >= 0).all())
    plan = manifest.plan
    return LatentSet(moments, labels if labelled else None, plan.class_names if labelled else (), plan.digest)


class Moments:
    """The memory-mapped moments of a cache; rows are read from disk on demand."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder, self.manifest = folder, manifest
        if wrong := _faults(folder, manifest):
            more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
            raise ValueError(f"{folder}: {'; '.join(wrong[:5])}{more}; {RESTORE}")
        self.shards = [_Shard(folder / shard.file, shard) for shard in manifest.shards]
        self.ends = np.cumsum([shard.images for shard in manifest.shards])
        self.chosen = np.arange(self.ends[-1])

    def __len__(self) -> int:
        return len(self.chosen)

    def subset(self, kept: Sequence[int]) -> "Moments":
        """The moments of these rows alone."""
        part = copy(self)
        part.chosen = self.chosen[list(kept)]
        return part

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """The shape (n, m, h, w) of all moments."""
        return (len(self), *self.shards[0].shape)

    def read(self, indices: Sequence[int], flipped: Sequence[bool] = ()) -> Float[Tensor, "b m h w"]:
        """The moments of these rows in float32, mirrored where `flipped`. Raises ValueError if one was altered."""
        indices = self.chosen[list(indices)]
        numbers = np.searchsorted(self.ends, indices, side="right")
        starts = self.ends - [shard.images for shard in self.manifest.shards]
        wanted = [
            (self.shards[n], "moments_flip" if flipped and flipped[k] else "moments", int(i - starts[n]))
            for k, (n, i) in enumerate(zip(numbers, indices, strict=True))
        ]
        for shard, name, row in wanted:
            shard.will_need(name, row)  # lets the kernel read all rows in parallel
        out = np.empty((len(wanted), *self.shape[1:]), self.shards[0].stored_as)
        for k, (shard, name, row) in enumerate(wanted):
            out[k] = shard.arrays[name][row]
            shard.check(out[k], name, row)
        return torch.from_numpy(out).view(self.shards[0].dtype).float()


class _Shard:
    """One safetensors file, of which the moments are mapped into memory."""

    def __init__(self, path: Path, record: Record) -> None:
        """Opens a shard. Raises ValueError if the bytes before the moments do not have the SHA-256 of the record."""
        self.path = path
        with reading(path) as file:
            if hashlib.sha256(file.read(record.head)).hexdigest() != record.head_sha256:
                raise ValueError(
                    f"{path} is another shard, or was altered: its labels are not those written; {RESTORE}"
                )
            # get_slice of safetensors takes 20 times as long a row, and its get_tensor maps the file as private memory
            # of this process, which systems that do not overcommit refuse for a large cache; neither reads ahead
            self.map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.advises = hasattr(self.map, "madvise")  # not on Windows
        if self.advises:
            self.map.madvise(mmap.MADV_RANDOM)  # no reading ahead: the next row wanted lies elsewhere
        try:
            with safe_open(path, framework="pt") as file:
                names = [name for name in MOMENTS if name in file.keys()]
                shapes = [file.get_slice(name).get_shape() for name in names]
                self.stored_as, self.dtype = READ[file.get_slice("moments").get_dtype()]
                self.labels: Int[Tensor, "n"] = file.get_tensor("labels").clone()
                self.crc32 = {name: file.get_tensor(f"{name}_crc32").tolist() for name in names}
        except (OSError, SafetensorError, RuntimeError) as error:
            raise ValueError(f"{path} cannot be read ({plain(error)})") from error
        self.shape, size = tuple(shapes[0][1:]), math.prod(shapes[0]) * self.dtype.itemsize
        self.starts = {name: record.head + k * size for k, name in enumerate(names)}  # both are as long
        self.arrays = {
            name: np.ndarray(shape, self.stored_as, self.map, self.starts[name])  # numpy knows no bfloat16
            for name, shape in zip(names, shapes, strict=True)
        }

    def check(self, moments: np.ndarray, name: str, row: int) -> None:
        """Raises ValueError if these moments, read from this row, do not have the CRC-32 that was written."""
        if zlib.crc32(moments.data) != self.crc32[name][row]:
            raise ValueError(
                f"{self.path} was altered: {name} of its image {row} are not those written, their CRC-32 differs; "
                f"{RESTORE}"
            )

    def will_need(self, name: str, row: int) -> None:
        """Advises the kernel that this row will be read soon."""
        if not self.advises:
            return
        size = self.arrays[name][0].nbytes
        begin = self.starts[name] + row * size
        page = begin // mmap.PAGESIZE * mmap.PAGESIZE
        self.map.madvise(mmap.MADV_WILLNEED, page, begin + size - page)
