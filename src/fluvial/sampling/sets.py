"""A set of samples in a folder: any number of images, made part by part, by any number of processes.

OUT/
  samples.json    how the images were sampled, with checksums of every part and every image; written last
  and, by form:
  png             000000.png ..., named by the index of the image
  tar             shard-00000.tar ..., with 000000.png and its class id 000000.cls, as webdataset reads them
  npz             samples.npz: arr_0 (n, h, w, 3) in uint8 and the class ids arr_1, as ADM's evaluator reads them
  latents         latents-00000.safetensors ...: latents (n, c, h, w), labels (n,), index (n,)

Until all is there, plan.json says what is to be made, and part-00000.json that a part is there. Files are written
atomically, and nothing in them depends on the time or on who wrote them: a set that was interrupted and continued has
the same bytes as one that was not. Processes share the work without communication: process k mod world makes part k,
and whichever finds all parts there writes samples.json.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import cattrs
from torch import Tensor

from fluvial.sampling import RECORD, SAMPLES, forms
from fluvial.sampling.labels import labels_for
from fluvial.sampling.plan import Plan, determining, differences, evaluations_of
from fluvial.utils.atomic import write_json
from fluvial.utils.files import (
    brief,
    check_folder,
    checksum,
    json_checksum,
    make_folder,
    read_bytes,
    read_checked,
    reading,
)
from fluvial.utils.progress import Bar

PLAN = "plan.json"
PICTURES = (
    SAMPLES,
    "grid.png",
    "trajectory.gif",
    "preview.gif",
    "scales.png",
)  # files beside samples.json, or without it
RESTORE = "remove it and sample again with the same command, which makes what is missing"
SUM = 8  # hexadecimal digits of a CRC-32
DAMAGE = (ValueError, KeyError, TypeError, AttributeError, RecursionError, cattrs.BaseValidationError)


@dataclass(frozen=True, kw_only=True)
class Part:
    """The record of a part that is there."""

    number: int
    plan: str
    """The first digits of the SHA-256 of what determines the set."""
    bytes: int
    """The length of its files together."""
    files_sha256: str
    """SHA-256 of its files, one after another."""
    crc32: str
    """The CRC-32 of the values of each image, eight hexadecimal digits each."""
    nfe: dict[str, int] = field(default_factory=dict)
    """Evaluations of the network for each image, by branch."""


def begin(folder: Path, plan: Plan) -> Plan:
    """Writes plan.json, or returns the equal plan that is there, whose parts may be of another length.

    A plan of which no part was made is replaced, and so is a damaged one, whose parts are made again unless they are of
    this plan. Raises ValueError if the folder holds anything else.
    """
    there, marks = plan_of(folder), _marks(folder)
    if there is None and marks - {plan.mark}:
        raise ValueError(f"{folder} holds parts of other samples; choose another folder, or remove that one")
    if there is None and not marks:
        try:
            _check_empty(folder)
        except ValueError:
            if (there := plan_of(folder)) is None:  # else another rank has begun meanwhile
                raise
    begun = there is not None and (_is_complete(folder) or any(_visible(folder) - {PLAN}))
    if there is None or not begun:
        make_folder(folder)
        _write(folder / PLAN, asdict(plan))
        return plan
    if different := differences(there.determining(), plan.determining()):
        raise ValueError(f"{folder} {_other(different)}")
    return there


def _check_empty(folder: Path, known: Sequence[str] = ()) -> None:
    """Raises ValueError if the folder holds others than hidden or known files."""
    check_folder(folder)
    if others := sorted(_visible(folder) - set(known)):
        raise ValueError(f"{folder} holds other files, such as {others[0]}; choose an empty folder, or a new one")


def _visible(folder: Path) -> set[str]:
    """The names in a folder, without hidden ones."""
    return {path.name for path in folder.iterdir() if not path.name.startswith(".")} if folder.exists() else set()


def check_same(folder: Path, about: Mapping[str, Any]) -> None:
    """Raises ValueError if the folder holds files, or samples that were not drawn as `about` says."""
    if not (folder / RECORD).exists():
        return _check_empty(folder, PICTURES)
    record = _read(folder / RECORD)
    if "set" in record:
        raise ValueError(f"{folder} holds samples that were made in parts; choose another folder, or remove that one")
    there, here = (determining(known) for known in (record, json.loads(json.dumps(about))))
    if different := differences(there, here):
        raise ValueError(f"{folder} {_other(different)}")


def _other(different: Sequence[str]) -> str:
    return f"holds other samples: {'; '.join(different[:3])}. Choose another folder, or remove that one"


def plan_of(folder: Path) -> Plan | None:
    """The plan of a set, finished or not; None if there is none. Raises ValueError if it is damaged."""
    if (folder / PLAN).exists():
        try:
            values = _read(folder / PLAN)
        except ValueError:  # it is written again
            return None
    elif (folder / RECORD).exists() and "set" in (record := _read(folder / RECORD)):
        values = {**record.pop("set"), "about": record}
        values.pop("parts")
    else:
        return None
    try:
        return cattrs.structure(values, Plan)
    except DAMAGE as error:
        raise ValueError(
            f"the plan of the samples in {folder} is damaged: {brief(error)}; sample again, to another folder"
        ) from error


def missing(folder: Path, plan: Plan) -> list[int]:
    """The numbers of the parts that are not there, or whose files are not of their length."""
    return [number for number, part in enumerate(_parts(folder, plan)) if part is None]


def _parts(folder: Path, plan: Plan) -> list[Part | None]:
    """The record of every part that is there with its files; None for others."""
    complete = _read(folder / RECORD) if _is_complete(folder) else {}
    known = parts_of(complete) if complete else []
    if complete and plan.form == "npz":
        if (folder / SAMPLES).is_file() and (folder / SAMPLES).stat().st_size == complete["set"]["file_bytes"]:
            return list(known)
        known = []
    mine = plan.mark
    parts = [_part(folder / f"part-{number:05d}.json", mine) for number in range(plan.parts)]
    finished = {part.number: part for part in known}
    records = [part or finished.get(number) for number, part in enumerate(parts)]
    return [part if part and not _faults(folder, plan, part) else None for part in records]


def _is_complete(folder: Path) -> bool:
    return (folder / RECORD).exists() and not (folder / PLAN).exists()


def _faults(folder: Path, plan: Plan, part: Part) -> list[str]:
    """The faults of the files of a part that their presence and lengths show."""
    files = [folder / name for name in forms.names(plan.form, part.number, plan.part(part.number))]
    if gone := [file.name for file in files if not file.is_file()]:
        return [f"{name} is missing" for name in gone]
    size = sum(file.stat().st_size for file in files)
    of = files[0].name if len(files) == 1 else f"{files[0].name} to {files[-1].name}"
    return [] if size == part.bytes else [f"{of}: {size:,} bytes, written were {part.bytes:,}"]


def write_part(folder: Path, plan: Plan, number: int, values: Tensor, nfe: Mapping[str, int]) -> None:
    """Writes the images (n, c, h, w) of a part in uint8, or its latents, and its record."""
    indices = plan.part(number)
    assert tuple(values.shape) == (len(indices), *plan.shape), (values.shape, plan.shape)
    forms.write(plan.form, folder, number, indices, values, plan.labels(number))
    files = [folder / name for name in forms.names(plan.form, number, indices)]
    part = Part(
        number=number,
        plan=plan.mark,
        bytes=sum(file.stat().st_size for file in files),
        files_sha256=_sha256(files),
        crc32="".join(map(forms.crc32, values)),
        nfe=dict(nfe),
    )
    _write(folder / f"part-{number:05d}.json", asdict(part))


def finish(folder: Path, plan: Plan) -> dict[str, Any] | None:
    """Writes samples.json, and for npz samples.npz; returns the record, or None while parts are missing."""
    if _is_complete(folder) and not any(folder.glob("part-*.json")):  # of a part that was made again
        return _read(folder / RECORD)
    parts = [part for part in _parts(folder, plan) if part is not None]
    if len(parts) < plan.parts:
        return None
    nfe = {name: max(part.nfe.get(name, 0) for part in parts) for part in parts for name in part.nfe}
    record: dict[str, Any] = {**plan.about, "grey": plan.shape[0] == 1}
    record["sampling"] = {**record["sampling"], **evaluations_of(nfe)}
    if plan.form == "npz":
        every = [folder / forms.names("npz", number, ())[0] for number in range(plan.parts)]
        try:
            forms.join(every, labels_for(plan.indices or range(plan.count), plan.classes), folder / SAMPLES)
        except FileNotFoundError:
            if not _is_complete(folder):
                raise
            _remove_parts(folder)  # another process has done it meanwhile
            return _read(folder / RECORD)
        record["file_sha256"] = checksum(folder / SAMPLES)
    about_set = {k: v for k, v in asdict(plan).items() if k != "about"}
    if plan.form == "npz":
        about_set["file_bytes"] = (folder / SAMPLES).stat().st_size
    record["set"] = {**about_set, "parts": list(map(asdict, parts))}
    _write(folder / RECORD, record)
    _remove_parts(folder)
    return record


def _remove_parts(folder: Path) -> None:
    """Removes what only an unfinished set needs."""
    for left_over in (*folder.glob("part-*.json"), *folder.glob("part-*.npy"), folder / PLAN):
        left_over.unlink(missing_ok=True)


def is_set(folder: Path) -> bool:
    """True for a folder with samples, or a part of a set of them."""
    if (folder / RECORD).exists() or any(folder.glob("part-*.json")):
        return True
    try:
        return "form" in json.loads(read_bytes(folder / PLAN))
    except (OSError, ValueError, TypeError):
        return False


def verify(folder: Path) -> list[str]:
    """The faults of samples in a folder, one line each: files that are missing, altered, or not part of them.

    Raises ValueError if the folder holds no samples, or not yet all.
    """
    record, plan = complete_record(folder), plan_of(folder)
    if plan is None or plan.form == "npz":
        file = folder / SAMPLES
        if not file.is_file():
            return [f"{SAMPLES} is missing"]
        return [] if checksum(file) == record["file_sha256"] else [f"{SAMPLES} was altered: its SHA-256 is another"]
    wrong, expected = list[str](), set[str]()
    with Bar(plan.parts, what="reading parts") as bar:
        for part in parts_of(record):
            expected |= set(forms.names(plan.form, part.number, plan.part(part.number)))
            wrong += faults(folder, plan, part)
            bar.show(part.number + 1)
    others = _visible(folder) - expected - {RECORD}
    return wrong + [f"{name} is not one of these samples" for name in sorted(others)]


def faults(folder: Path, plan: Plan, part: Part) -> list[str]:
    """The faults of the files of a part, one line each; none if they are what was written."""
    names = forms.names(plan.form, part.number, plan.part(part.number))
    found = _faults(folder, plan, part)
    if not found and _sha256([folder / name for name in names]) != part.files_sha256:
        of = names[0] if len(names) == 1 else f"one of {names[0]} to {names[-1]}"
        found = _altered(folder, plan, part) or [f"{of} was altered: the SHA-256 is another"]
    return found


def parts_of(record: Mapping[str, Any]) -> list[Part]:
    """The parts of a finished set, of whose samples.json this is the content."""
    return [cattrs.structure(part, Part) for part in record["set"]["parts"]]


def complete_record(folder: Path) -> dict[str, Any]:
    """The content of samples.json. Raises ValueError if it is damaged, or not all samples are there yet."""
    if not _is_complete(folder):
        begun = "; `fluvial sample` has not finished there: repeat its command" if is_set(folder) else ""
        raise ValueError(f"{folder} holds no samples: it has no {RECORD}{begun}")
    return _read(folder / RECORD)


def image(folder: Path, plan: Plan, part: Part, row: int) -> Tensor:
    """Image number `row` of a part, (c, h, w) in uint8. Raises ValueError if it is not the one that was written."""
    index = plan.part(part.number)[row]
    try:
        read = forms.read(plan.form, folder, part.number, index)
    except FileNotFoundError as error:
        raise ValueError(f"{index:06d}.png in {folder} is missing; sample again with the same command") from error
    if forms.crc32(read) != part.crc32[SUM * row : SUM * (row + 1)]:
        raise ValueError(
            f"{index:06d}.png in {folder} is not the image that was written: it was altered or replaced; {RESTORE}"
        )
    return read


def _altered(folder: Path, plan: Plan, part: Part) -> list[str]:
    """The images of a part that are not what was written; none of latents, which are checked as a whole."""
    found = list[str]()
    for row, index in enumerate(plan.part(part.number) if plan.form != "latents" else ()):
        try:
            image(folder, plan, part, row)
        except ValueError:
            found.append(f"{index:06d}.png was altered")
    return found


def _sha256(files: Sequence[Path]) -> str:
    """The SHA-256 of files, one after another."""
    digest = hashlib.sha256()
    for file in files:
        with reading(file) as opened:
            while content := opened.read(2**20):
                digest.update(content)
    return digest.hexdigest()


def _marks(folder: Path) -> set[str]:
    """The marks of the plans that the records of parts are of."""
    found = set[str]()
    for file in folder.glob("part-*.json"):
        with suppress(OSError, ValueError):  # a damaged record is made again
            found.add(str(_read(file).get("plan")))
    return found


def _part(file: Path, plan: str) -> Part | None:
    """The record of a part; None if it is missing, damaged, or of another plan."""
    try:
        part = cattrs.structure(_read(file), Part)
    except (FileNotFoundError, *DAMAGE):
        return None
    return part if file.stem == f"part-{part.number:05d}" and part.plan == plan else None


def _write(file: Path, values: Mapping[str, Any]) -> None:
    """Writes a JSON file with the SHA-256 of its content."""
    write_json(file, {**values, "sha256": json_checksum(values)})


def _read(file: Path) -> dict[str, Any]:
    """The content of a JSON file. Raises ValueError if it is not what was written."""
    try:
        return read_checked(file)
    except DAMAGE as error:
        raise ValueError(
            f"{file} cannot be read: {brief(error)}; remove the folder, or sample to another one"
        ) from error
