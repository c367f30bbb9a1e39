"""The JSON files of a cache of latents (plan, records, manifest), each with a SHA-256 of its own content."""

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
    """The file name of shard `number`."""
    return f"shard-{number:05d}.safetensors"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The settings that determine a cache: two caches with equal plans and the same images have the same content."""

    source: str
    images: int
    autoencoder: str
    hash: str
    """Hash of the autoencoder's weights."""
    digest: str
    """Hash of the names and sizes of the image files, see `sources.Source.digest`."""
    labels: str
    """The SHA-256 of the labels."""
    stride: int
    channels: int
    image_size: int
    crop: str
    flip: bool
    """True if the mirror images are encoded too."""
    dtype: Literal["bf16", "fp32"]
    shard: int
    """Images per shard, before unreadable ones are left out."""
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        at_least(1, self, "images", "stride", "channels", "image_size", "shard")

    @property
    def shards(self) -> int:
        """The number of shards."""
        return -(-self.images // self.shard)


@dataclass(frozen=True, kw_only=True)
class Record:
    """The record of a finished shard: its size, checksums and statistics."""

    file: str
    images: int
    bytes: int
    sha256: str
    head: int
    """The number of bytes before the moments."""
    head_sha256: str
    sums: tuple[tuple[float, ...], tuple[float, ...]]
    """Sums of z and of z^2 over images, height and width, per channel."""
    skipped: tuple[str, ...]
    """The unreadable images, with the reasons."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The content of manifest.json: the plan, mean and standard deviation of z per channel, and the shards' records."""

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
        """The unreadable images of all shards, with the reasons."""
        return [name for shard in self.shards for name in shard.skipped]


@dataclass(frozen=True, kw_only=True)
class Begun:
    """The content of plan.json, which is removed once the manifest is written."""

    format: int
    plan: Plan


_converter = cattrs.Converter(forbid_extra_keys=True)


def write(file: Path, values: Plan | Record | Manifest) -> None:
    """Writes plan.json, the record of a shard, or manifest.json."""
    plain = asdict(Begun(format=FORMAT, plan=values) if isinstance(values, Plan) else values)
    write_json(file, {**plain, "checksum": json_checksum(plain)})


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a cache. Raises ValueError if there is none, or it is of another format or damaged."""
    if not (folder / "manifest.json").exists():
        begun = "; `fluvial encode` has not finished there" if (folder / "plan.json").exists() else ""
        raise ValueError(f"{folder} holds no latents: it has no manifest.json{begun}")
    return _read(folder / "manifest.json", Manifest)


def read_plan(folder: Path) -> Plan | None:
    """The plan of an unfinished cache; None if there is no plan.json. Raises ValueError if it is damaged."""
    try:
        return _read(folder / "plan.json", Begun).plan
    except FileNotFoundError:
        return None


def read_record(file: Path) -> Record | None:
    """The record of a shard; None if missing, damaged, or of another shard. Raises OSError if it cannot be read."""
    try:
        record = _structured(json.loads(read_bytes(file)), Record)
    except (FileNotFoundError, *DAMAGE):
        return None
    return record if record.file == file.with_suffix(".safetensors").name else None


def _read(file: Path, kind: type[T]) -> T:
    """The content of a JSON file. Raises ValueError if it is of another format, or damaged."""
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
    """The values as an instance of `kind`. Raises ValueError if their SHA-256 does not match, and cattrs' errors."""
    if values.pop("checksum", None) != json_checksum(values):
        raise ValueError("its content is not what was written, its SHA-256 differs")
    return _converter.structure(values, kind)


def _reason(error: BaseException, expected: Any) -> str:  # noqa: ANN401 - a type
    return str(error) if isinstance(error, ValueError) else format_exception(error, expected)


def is_cache(place: str) -> bool:
    """True if the folder is a cache written by `fluvial encode`, finished or not."""
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
