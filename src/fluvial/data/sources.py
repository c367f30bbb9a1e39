"""Finds image files and labels, without decoding them: in folders, and through the `datasets` library."""

import errno
import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from glob import glob, has_magic
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int
from torch import Tensor

from fluvial.data import tars
from fluvial.data.crop import Stored, regular
from fluvial.data.labels import named, ordered, own_classes
from fluvial.data.left_out import LeftOut, image_endings, is_aside, is_image, list_images, printable, size_of
from fluvial.data.numbers import holds_numbers, sha256_of_numbers, to_array
from fluvial.utils.places import HUB, closest, missing, repository

TRAIN, HELD_OUT = ("train", "training"), ("validation", "valid", "val", "test", "testing")
# suffix -> the builder of `datasets` that reads it
BUILDERS = {
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".tar": "webdataset",
    ".tar.gz": "webdataset",
    ".tgz": "webdataset",
}
SAVED = ("state.json", "dataset_dict.json")  # what Dataset.save_to_disk leaves
IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "webp", "picture", "photo")
LABEL_COLUMNS = ("label", "labels", "class", "cls", "target", "category")


@dataclass(frozen=True, kw_only=True)
class Source:
    """A list of undecoded images: read(indices) returns pairs (name, content as bytes, a path, or an array)."""

    name: str
    count: int
    read: Callable[[Sequence[int]], list[tuple[str, Stored]]]
    digest: Callable[[], str]
    """Hash of the names and sizes of files, or of the images and labels of rows; independent of the location."""
    labels: Sequence[Any] | None
    """One class id or class name per image; None for unlabelled images."""
    class_names: tuple[str, ...]
    left_out: LeftOut = field(default_factory=LeftOut)
    """Files that were not taken for images."""


def class_labels(source: Source, given: tuple[str, ...]) -> tuple[Int[Tensor, "n"] | None, tuple[str, ...]]:
    """Class ids and class names of a source: the names given, else those found; see `labels.named`.

    Raises ValueError if a label is missing, or has no name among those given.
    """
    ids, own = own_classes(source.labels, source.class_names, source.name)
    return (None, ()) if ids is None else named(ids, own, given, source.name)


def check_there(name: str) -> None:
    """Raises ValueError, with the closest name, for a path or wildcard that matches nothing; the hub is not asked."""
    path = Path(name).expanduser()
    if name.startswith(HUB):
        repository(name)
    elif not path.exists() and not (has_magic(name) and glob(str(path))):
        raise ValueError(missing(name))


def open_source(
    name: str,
    *,
    held_out: bool = False,
    split: str = "",
    trained_on: str = "",
    image_column: str = "",
    label_column: str = "",
) -> Source | None:
    """The images of a path, or of hub:OWNER/NAME; None if there is no such split.

    With `held_out` these are the validation images, which are never from the split `trained_on`.

    Raises ValueError if there is nothing of that name, it has no images, or it cannot be read.
    """
    if name.startswith(HUB):
        dataset = _dataset(str(repository(name)), held_out, split, trained_on, (image_column, label_column))
        return None if dataset is None else _columns(dataset, name, image_column, label_column)
    check_there(name)
    path = Path(name).expanduser()
    if path.is_dir() and not _dataset_files(path):
        folder = _split_folder(path, held_out, split, trained_on)
        return None if folder is None else _folder(folder)
    dataset = _dataset(path, held_out, split, trained_on, (image_column, label_column))
    if dataset is None:
        return None
    if tars.WHY not in dataset.column_names:
        return _columns(dataset, name, image_column, label_column)
    dataset, left_out = tars.taken(dataset)
    if dataset.num_rows == 0:
        raise ValueError(f"{name} has no images. {left_out}")
    found = _columns(dataset, name, tars.IMAGE, tars.LABEL if tars.LABEL in dataset.column_names else "none")
    return replace(found, left_out=left_out)


def _split_folder(path: Path, held_out: bool, split: str, trained_on: str) -> Path | None:
    """The subfolder of a split if there is a train/ folder; without one the whole folder is for training."""
    inside = {p.name.lower(): p for p in path.iterdir() if p.is_dir() and not is_aside(p.name)}
    if split:
        if split.lower() not in inside:
            raise ValueError(f"{path} has no folder {split!r}, only {', '.join(sorted(inside)) or 'no folders'}")
        return inside[split.lower()]
    if trained_on or not any(name in inside for name in TRAIN):
        if not held_out:
            return path
        rest = [name for name in HELD_OUT if name in inside and name != trained_on.lower()] if trained_on else []
        return inside[rest[0]] if rest else None
    beside = sorted(inside.keys() - {*TRAIN, *HELD_OUT})
    if beside or any(is_image(p.name) and not is_aside(p.name) for p in path.iterdir()):
        raise ValueError(
            f"{path} has a folder of training images beside {', '.join(beside[:5]) or 'other images'}: name the folder "
            f"to read with data.split, or, if it is a class, give it another name"
        )
    return next((inside[name] for name in (HELD_OUT if held_out else TRAIN) if name in inside), None)


def _folder(path: Path) -> Source:
    """The images of a folder: unlabelled if they are directly in it, else each subfolder is a class.

    The builder of `datasets` for folders is not used: it copies the list into a cache, guesses splits from words
    anywhere in a path, and takes minutes to list ImageNet at every start.
    """
    found, left_out = list_images(path)
    if not found:
        why = f"no file is one by its ending. {left_out}" if left_out.total else "it has no files"
        raise ValueError(
            f"{path} has no images: {why}. "
            f"Give a folder of images (.jpg, .png, .webp and others), or of a folder of images for each class"
        )
    if "" in found and len(found) > 1:
        raise ValueError(
            f"{path} has {len(found[''])} images beside {len(found) - 1} folders of images; put each image into the "
            f"folder of its class, or all of them into one"
        )
    names = () if "" in found else ordered(found)
    files = [file for name in sorted(found) for file in found[name]]  # in a fixed order, which `digest` depends on

    def read(indices: Sequence[int]) -> list[tuple[str, Stored]]:
        return [(files[i], Path(files[i])) for i in indices]

    def digest() -> str:
        return _sha256(f"{os.path.relpath(file, path)} {size_of(file)}" for file in files)

    labels = [printable(name) for name in sorted(found) for _ in found[name]] if names else None
    return Source(
        name=str(path),
        count=len(files),
        read=read,
        digest=digest,
        labels=labels,
        class_names=tuple(map(printable, names)),
        left_out=left_out,
    )


def _sha256(lines: Iterable[str]) -> str:
    """The first 16 digits of the SHA-256 of these lines."""
    digest = hashlib.sha256()
    for line in lines:
        digest.update(f"{line}\n".encode("utf-8", "surrogateescape"))  # keeps bytes that are not UTF-8
    return digest.hexdigest()[:16]


def _builder(file: Path) -> str | None:
    """The builder of `datasets` that reads a file, by its suffix; None if there is none."""
    return next((builder for ending, builder in BUILDERS.items() if file.name.endswith(ending)), None)


def _dataset_files(path: Path) -> bool:
    """True if a folder has data set files and no images, in itself or one level below."""
    if any((path / mark).exists() for mark in SAVED):
        return True
    found, endings = False, image_endings()
    for file in chain(path.glob("*"), path.glob("*/*")):
        if is_aside(file.name) or is_aside(file.parent.name):
            continue
        if is_image(file.name, endings):
            return False
        found = found or _builder(file) is not None
    return found


def _dataset(name: Path | str, held_out: bool, split: str, trained_on: str, columns: tuple[str, str]) -> Any:  # noqa: ANN401 - datasets.Dataset
    """One split of a data set, loaded by `datasets`; None if there are no validation images.

    `columns` are the suffixes of image and label in tar files; columns of other data sets are chosen later.
    """
    import datasets

    load = _loader(name, columns)
    try:
        loaded: Any = load()
    except Exception as error:  # datasets, pyarrow, tarfile and the hub's client share no base class
        reason = error.__cause__ or error
        if isinstance(reason, tars.TarError):
            raise ValueError(str(reason)) from error
        where = f"{name} cannot be read: it is damaged, or not what its name says"
        if isinstance(reason, OSError) and reason.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            where = f"there is no room for the copy of {name} that `datasets` makes (HF_DATASETS_CACHE says where)"
        elif isinstance(name, str):
            where = f"{name} is no folder or file here{closest(name)}, and cannot be loaded from the Hugging Face hub"
        raise ValueError(f"{where} ({type(reason).__name__}: {reason})") from error
    if isinstance(loaded, datasets.Dataset):
        loaded = datasets.DatasetDict({"train": loaded})
    if split and split not in loaded:
        raise ValueError(f"{name} has no split {split!r}, only {', '.join(loaded)}")
    names = [split] if split else [n for n in (HELD_OUT if held_out else TRAIN) if n in loaded and n != trained_on]
    if not names and not held_out and len(loaded) == 1:
        names = list(loaded)
    if not names and not held_out:
        raise ValueError(f"{name} has the splits {', '.join(loaded)}; choose one with data.split")
    return loaded[names[0]] if names else None


def _loader(name: Path | str, columns: tuple[str, str]) -> Callable[[], Any]:
    """A function that loads the data set. Raises ValueError for files that are missing or of an unknown kind."""
    import datasets

    if isinstance(name, str):
        return partial(datasets.load_dataset, name)
    if name.is_dir():
        if any((name / mark).exists() for mark in SAVED):
            return partial(datasets.load_from_disk, str(name))
        if _only_kind(name, sorted(name.rglob("*"))) != "webdataset":
            return partial(datasets.load_dataset, str(name))
        return lambda: tars.load(_split_files(name), *columns)
    files = [str(name)] if name.exists() else sorted(glob(str(name)))
    if not files:
        raise ValueError(missing(str(name)))
    if name.exists() and is_image(name.name):
        raise ValueError(f"{name} is one image; give the folder it is in")
    if any(Path(file).is_dir() or is_image(file) for file in files):
        raise ValueError(f"{name} is a pattern, which is for files of many images; give the folder that holds them all")
    if unknown := sorted({Path(file).name for file in files if _builder(Path(file)) is None}):
        raise ValueError(f"{name}: {unknown[0]} is none of the files that can be read, {', '.join(BUILDERS)}")
    kind = _only_kind(name, map(Path, files))
    if kind == "webdataset":
        return partial(tars.load, {"train": files}, *columns)
    return partial(datasets.load_dataset, kind, data_files=files)


def _split_files(folder: Path) -> dict[str, list[str]]:
    """The data set files of each split, which `datasets` derives from their names."""
    import datasets

    files: Any = datasets.load_dataset_builder(str(folder)).config.data_files
    return {str(split): list(map(str, names)) for split, names in files.items()}


def _only_kind(name: Path, files: Iterable[Path]) -> str:
    """The builder of `datasets` for all files. Raises ValueError for several kinds, of which it would read one only."""
    kinds = sorted({str(_builder(file)) for file in files if _builder(file) and (file.is_dir() or regular(file))})
    if len(kinds) > 1:
        raise ValueError(f"{name} are files of several kinds: {', '.join(kinds)}; name those of one with a wildcard")
    return kinds[0]


def _columns(dataset: Any, name: str, image_column: str, label_column: str) -> Source:  # noqa: ANN401
    """The images and labels in two columns of a data set. Raises ValueError if they are not there or of other kinds."""
    import datasets

    features = dataset.features
    image_column = image_column or _found(features, name, "image", IMAGE_COLUMNS, datasets.Image)
    if label_column == "none":
        labelled = ""
    else:
        labelled = label_column or _found(features, name, "label", LABEL_COLUMNS, datasets.ClassLabel)
    for option, column in (("data.image_column", image_column), ("data.label_column", labelled)):
        if column and column not in features:
            raise ValueError(f"{name} has no column {column!r}, only {', '.join(features)}; set {option}")
    images = dataset.select_columns([image_column])
    numbers = holds_numbers(features[image_column])
    if not numbers:
        try:
            images = images.cast_column(image_column, datasets.Image(decode=False))
        except Exception as error:  # pyarrow's errors of casts are of many kinds
            raise ValueError(
                f"{name}: column {image_column!r} holds {features[image_column]}, not images; set data.image_column"
            ) from error

    def digest() -> str:
        column = images.with_format("arrow")[:][image_column]
        content = sha256_of_numbers(column) if numbers else _sha256_of_files(column)
        return _sha256(chain((f"{dataset.num_rows}", content, repr(class_names)), map(repr, labels or ())))

    def read(indices: Sequence[int]) -> list[tuple[str, Stored]]:
        files = []
        for i, row in zip(indices, images[list(indices)][image_column], strict=True):
            if numbers:
                files.append((f"{name}, row {i}", to_array(row)))
                continue
            path, content = (row["path"], row["bytes"]) if row else (None, None)
            if content is None:  # empty content is reported as unreadable later
                content = _inside(roots, path, f"{name}, row {i}") if path else b""
            files.append((f"{name}, row {i} ({path})" if path else f"{name}, row {i}", content))
        return files

    roots = _roots(name)
    if dataset.num_rows == 0:
        raise ValueError(f"{name} has no rows")
    feature = features[labelled] if labelled else None
    labels = dataset[labelled][:] if labelled else None
    class_names = tuple(feature.names) if isinstance(feature, datasets.ClassLabel) else ()
    return Source(
        name=name,
        count=dataset.num_rows,
        read=read,
        digest=digest,
        labels=labels,
        class_names=class_names,
    )


def _sha256_of_files(column: Any) -> str:  # noqa: ANN401 - pyarrow.ChunkedArray
    """The SHA-256 of the lengths and of the content of encoded images in rows; independent of the chunks."""
    import pyarrow
    from pyarrow import compute

    lengths, content = hashlib.sha256(), hashlib.sha256()
    for files in compute.struct_field(column, "bytes").chunks:  # type: ignore[attr-defined]
        lengths.update("".join(f"{n}\n" for n in compute.binary_length(files).to_pylist()).encode())  # type: ignore[attr-defined]
        files = files.drop_null().cast(pyarrow.large_binary())  # copies only if some rows are empty
        if len(files):
            _, ends, data = files.buffers()
            bounds = np.frombuffer(ends, np.int64)[files.offset : files.offset + len(files) + 1]
            content.update(memoryview(data or b"")[bounds[0] : bounds[-1]])
    return f"{lengths.hexdigest()} {content.hexdigest()}"


def _roots(name: str) -> list[Path]:
    """The folders of a data set, in which the files that its rows point to must be."""
    if name.startswith(HUB):
        from datasets import config
        from huggingface_hub.constants import HF_HUB_CACHE

        return [Path(HF_HUB_CACHE), Path(config.HF_DATASETS_CACHE)]
    place = Path(name).expanduser()
    if place.exists():
        return [place if place.is_dir() else place.parent]
    return sorted({Path(file).parent for file in glob(str(place))})


def _inside(roots: Sequence[Path], path: str, row: str) -> Path:
    """The file that a row points to. Raises ValueError if it is outside these folders, with links resolved."""
    files = [(root / path).resolve() for root in roots if "\0" not in path]
    inside = [file for file, root in zip(files, roots, strict=False) if file.is_relative_to(root.resolve())]
    if not inside:
        raise ValueError(
            f"{row} points to the file {path!r}, outside the folder of the data set ({roots[0]}); such files are not "
            f"opened: put the image into the row, or beside it"
        )
    return next((file for file in inside if file.exists()), inside[0])


def _found(features: Any, name: str, what: str, usual: tuple[str, ...], kind: type) -> str:  # noqa: ANN401
    """The only column of this kind, else the first with a usual name; "" if there is no column of labels.

    Raises ValueError if there is no column of images, or several and none has a usual name.
    """
    typed = [column for column, feature in features.items() if isinstance(feature, kind)]
    if len(typed) == 1:
        return typed[0]
    named = [column for column in usual if column in (typed or features)]
    if named:
        return named[0]
    if typed or what == "image":
        which = (
            f"several {what} columns: {', '.join(typed)}" if typed else f"no {what} column among {', '.join(features)}"
        )
        raise ValueError(f"{name} has {which}; choose one with data.{what}_column")
    return ""
