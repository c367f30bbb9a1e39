"""Reads images and labels from webdataset tar files, where files with the same name up to its first dot are a sample.

The builder of `datasets` is not used: it takes the suffixes from the first five samples, so that a .png after .jpg is
dropped, and it takes an archive damaged in the middle to end there, as `tarfile` does.
"""

import os
import tarfile
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from fluvial.data.left_out import LeftOut, image_endings, is_aside, printable, why_left_out

LABELS = ("label", "labels", "class", "cls", "target", "category")
LONGEST_LABEL = 1000  # bytes
END = 1024  # zero bytes at the end of a tar file
FORMAT = 1  # increase it whenever the rows change, since `datasets` caches copies of them
WHY, IMAGE, LABEL = "left_out", "image", "label"  # columns; WHY is the reason for leaving a file out


class TarError(ValueError):
    """A tar file that cannot be used; the message says why."""


def load(splits: dict[str, list[str]], image: str, label: str) -> Any:  # noqa: ANN401 - datasets.DatasetDict
    """The samples of the tar files of each split, with columns IMAGE, LABEL (None if there is none) and WHY.

    `image` and `label` are the suffixes of images and labels, found if empty; label "none" is for no labels. Samples
    are copied once into the cache of `datasets`.
    """
    import datasets

    columns = {IMAGE: datasets.Image(), LABEL: datasets.Value("string"), WHY: datasets.Value("string")}
    loaded = {}
    for split, names in splits.items():
        files = list(map(os.path.abspath, names))
        stamps = [(FORMAT, os.path.getsize(file), os.stat(file).st_mtime_ns) for file in files]
        options: dict[str, Any] = {"files": files, "stamps": stamps, "image": image, "label": label}
        options["endings"] = tuple(sorted(image_endings()))  # the cached copy is named by a hash of the options
        features = datasets.Features(columns)
        loaded[split] = datasets.Dataset.from_generator(_rows, features, gen_kwargs=options, writer_batch_size=100)
    return datasets.DatasetDict(loaded)


def taken(dataset: Any) -> tuple[Any, LeftOut]:  # noqa: ANN401 - datasets.Dataset
    """The samples with an image, labels as integers if all of them are, and the record of files left out."""
    import datasets

    left_out, reasons = LeftOut(), dataset[WHY][:]
    for reason, row in ((reason, i) for i, reason in enumerate(reasons) if reason):
        left_out.add(reason, dataset[row][LABEL])
    if left_out.total:
        dataset = dataset.select([i for i, reason in enumerate(reasons) if not reason])
    dataset = dataset.remove_columns(WHY)
    labels = dataset[LABEL][:]
    if all(label is None for label in labels):
        return dataset.remove_columns(LABEL), left_out
    if all(label is not None and _is_whole(label) for label in labels):
        dataset = dataset.cast_column(LABEL, datasets.Value("int64"))
    return dataset, left_out


def _is_whole(text: str) -> bool:
    """True if the text is an integer as Python writes it; 01 is not, since 01 and 1 may be two names."""
    return text.removeprefix("-").isdecimal() and text.isascii() and str(int(text)) == text and len(text) < 19


def _rows(
    files: list[str], stamps: list[tuple[int, ...]], image: str, label: str, endings: tuple[str, ...]
) -> Iterator[dict[str, Any]]:
    """The samples of all tar files; `stamps` (sizes and times) only make the cached copy depend on the files' state."""
    for file in files:
        with tarfile.open(file, "r:*") as tar:
            samples, left_out = _samples(_members(tar, file))
            fields = {field for members in samples.values() for field in members}
            wanted = image.lower() and _known(image.lower(), fields, file, "data.image_column")
            labelled = next((name for name in LABELS if name in fields), "")
            if label:
                labelled = "" if label == "none" else _known(label.lower(), fields, file, "data.label_column")
            labels = {
                key: _label(tar, members[labelled], file) for key, members in samples.items() if labelled in members
            }
            for key, members in samples.items():
                field, beside = _image(key, members, wanted, endings, file)
                left_out += beside
                if field:
                    content = _content(tar, members[field])
                    name = printable(members[field].name)
                    yield {IMAGE: {"bytes": content, "path": name}, LABEL: labels.get(key), WHY: None}
            for reason, name in left_out:
                yield {IMAGE: None, LABEL: printable(name), WHY: reason}


def _members(tar: tarfile.TarFile, file: str) -> list[tarfile.TarInfo]:
    """The members of a tar. Raises TarError if it is cut short or damaged, where `tarfile` would stop silently."""
    cut = TarError(f"{file} is cut short: it has no end-of-archive mark; copy or download it again")
    stream: Any = tar.fileobj
    try:
        members = tar.getmembers()
        stream.seek(tar.offset)
        rest = stream.read(END)
        if len(rest) < END:
            raise cut
        while rest:
            if rest.count(0) < len(rest):
                raise TarError(
                    f"{file} is damaged after byte {tar.offset:,}, or another archive was put behind its end"
                )
            rest = stream.read(2**20)
    except (tarfile.ReadError, EOFError) as error:
        raise cut from error
    return members


Samples = dict[str, dict[str, tarfile.TarInfo]]


def _samples(members: Sequence[tarfile.TarInfo]) -> tuple[Samples, list[tuple[str, str]]]:
    """Members by sample and suffix (after the first dot), and pairs (reason, name) of the files left out."""
    samples, left_out = Samples(), list[tuple[str, str]]()
    for member in members:
        *folders, base = [part for part in member.name.split("/") if part not in ("", ".", "..")] or [""]
        stem, _, field = base.partition(".")
        if member.isdir():
            continue
        if aside := next(filter(is_aside, folders), ""):
            left_out.append((f"in {printable(aside)}", member.name))
        elif is_aside(base):
            left_out.append(("hidden", member.name))
        elif not member.isreg() or member.issparse():
            left_out.append(("no plain files, but links or devices", member.name))
        elif not field:
            left_out.append((why_left_out(base), member.name))
        elif field.lower() in (sample := samples.setdefault("/".join((*folders, stem)), {})):
            left_out.append(("a second time in the archive", member.name))
        else:
            sample[field.lower()] = member
    return samples, left_out


def _image(
    key: str, members: dict[str, tarfile.TarInfo], wanted: str, endings: Collection[str], file: str
) -> tuple[str, list[tuple[str, str]]]:
    """The suffix of a sample's image ("" if it has none), and pairs (reason, name) of its other images, left out."""
    images = [field for field in members if f".{field.rpartition('.')[2]}" in endings]
    plain = [field for field in images if "." not in field] or images
    if wanted:
        plain = [wanted] if wanted in members else []
    if len(plain) > 1:
        several = ", ".join(f".{field}" for field in plain[:5])
        raise TarError(
            f"{file}: the sample {printable(key)} has several images, {several}: choose one with data.image_column. "
            f"(All files whose names are the same up to the first dot are one sample.)"
        )
    if not plain and not images:
        return "", [(why_left_out(member.name), member.name) for member in members.values()]
    chosen = plain[0] if plain else ""
    reason = f"not the .{wanted} that was chosen" if wanted else "beside the image of their sample"
    return chosen, [(f".{field}, {reason}", members[field].name) for field in images if field != chosen]


def _known(field: str, fields: set[str], file: str, option: str) -> str:
    """The suffix unchanged. Raises TarError if no file of the tar has it."""
    if field not in fields:
        raise TarError(f"{file} has no column {field!r}, only {', '.join(sorted(fields)[:20])}; set {option}")
    return field


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    opened = tar.extractfile(member)
    assert opened is not None
    return opened.read()


def _label(tar: tarfile.TarFile, member: tarfile.TarInfo, file: str) -> str:
    """The text of a label's file. Raises TarError if it is too long, or not text."""
    if member.size > LONGEST_LABEL:
        raise TarError(f"{file}: {printable(member.name)} has {member.size:,} bytes, too many for a label")
    try:
        return _content(tar, member).decode().strip()
    except UnicodeDecodeError as error:
        raise TarError(f"{file}: {printable(member.name)} is no label: it is not text") from error
