"""What is written beside the shards of a cache of latents: JSON files, each with the SHA-256 of itself."""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import cattrs
from cattrs.v import format_exception

from fluvial.utils.atomic import write_json
from fluvial.utils.checks import at_least
from fluvial.utils.files import brief, json_checksum, read_bytes

T = TypeVar("T")
FORMAT = 2
DAMAGE = (ValueError, KeyError, TypeError, AttributeError, RecursionError, cattrs.BaseValidationError)


def shard_name(number: int) -> str:
    return f"shard-{number:05d}.safetensors"


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

    def __post_init__(self) -> None:
        at_least(1, self, "images", "stride", "channels", "image_size", "shard")

    @property
    def shards(self) -> int:
        return -(-self.images // self.shard)


@dataclass(frozen=True, kw_only=True)
class Record:
    """What is known of a shard that is there."""

    file: str
    images: int
    bytes: int
    sha256: str
    head: int
    """Bytes before the moments."""
    head_sha256: str
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

    def __post_init__(self) -> None:
        files = [shard.file for shard in self.shards]
        if len(files) != self.plan.shards or files != [shard_name(number) for number in range(len(files))]:
            last = shard_name(self.plan.shards - 1)
            raise ValueError(f"shards must be {shard_name(0)} to {last}, got {', '.join(files[:3])}")
        if not 1 <= self.images == (count := sum(shard.images for shard in self.shards)):
            raise ValueError(f"images is {self.images}, and the shards have {count}")
        for name in ("mean", "std"):
            values = getattr(self, name)
            if len(values) != self.plan.channels or not all(math.isfinite(value) for value in values):
                raise ValueError(f"{name} must be {self.plan.channels} finite numbers, got {list(values)}")

    @property
    def skipped(self) -> list[str]:
        return [name for shard in self.shards for name in shard.skipped]


@dataclass(frozen=True, kw_only=True)
class Begun:
    """plan.json: there until the manifest is."""

    format: int
    plan: Plan


_converter = cattrs.Converter(forbid_extra_keys=True)


def write(file: Path, values: Plan | Record | Manifest) -> None:
    """Writes plan.json, the record of a shard, or manifest.json."""
    plain = asdict(Begun(format=FORMAT, plan=values) if isinstance(values, Plan) else values)
    write_json(file, {**plain, "checksum": json_checksum(plain)})


def read_manifest(folder: Path) -> Manifest:
    """manifest.json. Raises ValueError if there is none, it is of a newer version, or it is damaged."""
    if not (folder / "manifest.json").exists():
        begun = "; `fluvial encode` has not finished there" if (folder / "plan.json").exists() else ""
        raise ValueError(f"{folder} holds no latents: it has no manifest.json{begun}")
    return _read(folder / "manifest.json", Manifest)


def read_plan(folder: Path) -> Plan | None:
    try:
        return _read(folder / "plan.json", Begun).plan
    except FileNotFoundError:
        return None


def read_record(file: Path) -> Record | None:
    """The record of a shard; None if it is not there, damaged, or of another shard. OSError if it is unreadable."""
    try:
        record = _structured(json.loads(read_bytes(file)), Record)
    except (FileNotFoundError, *DAMAGE):
        return None
    return record if record.file == file.with_suffix(".safetensors").name else None


def _read(file: Path, kind: type[T]) -> T:
    """Raises ValueError if the file is of another version of the format, or damaged."""
    try:
        values = json.loads(read_bytes(file))
        written = values["format"]
        if written == FORMAT:
            return _structured(values, kind)
    except DAMAGE as error:
        grouped = isinstance(error, ExceptionGroup)
        reason = "; ".join(cattrs.transform_error(error, format_exception=_reason)) if grouped else brief(error)
        raise ValueError(f"{file} is damaged ({reason}); move it away and encode again") from error
    advice = "update fluvial" if isinstance(written, int) and written > FORMAT else "encode again, to another folder"
    raise ValueError(f"{file} has format {written!r}, this version of fluvial reads {FORMAT}; {advice}")


def _structured(values: dict[str, Any], kind: type[T]) -> T:
    """What `write` wrote. Raises ValueError if the SHA-256 is of other values, and what cattrs raises."""
    if values.pop("checksum", None) != json_checksum(values):
        raise ValueError("its content is not what was written, the SHA-256 is another")
    return _converter.structure(values, kind)


def _reason(error: BaseException, expected: Any) -> str:  # noqa: ANN401 - a type
    return str(error) if isinstance(error, ValueError) else format_exception(error, expected)


def is_cache(place: str) -> bool:
    """Whether `fluvial encode` wrote this folder, or began to."""
    folder = Path(place).expanduser()
    if not place or not folder.is_dir():
        return False
    if any(folder.glob("shard-*.safetensors")):
        return True
    for name in ("manifest.json", "plan.json"):
        try:
            if "plan" in json.loads(read_bytes(folder / name)):
                return True
        except (OSError, ValueError, TypeError):
            continue
    return False
