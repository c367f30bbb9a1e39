"""Image files and their labels, undecoded: from folders, and through the `datasets` library."""

import errno
import hashlib
import os
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from glob import glob, has_magic
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from fluvial.data import tars
from fluvial.data.crop import Stored, regular
from fluvial.data.left_out import LeftOut, image_endings, is_aside, is_image, list_images, printable, size_of
from fluvial.data.numbers import holds_numbers, sha256_of_numbers, to_array
from fluvial.files import HUB, missing

TRAIN, HELD_OUT = ("train", "training"), ("validation", "valid", "val", "test", "testing")
# how `datasets` names the kinds of file it reads
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
    """`count` images: read(indices) gives name and content of each, as bytes, a path, or numbers."""

    name: str
    count: int
    read: Callable[[Sequence[int]], list[tuple[str, Stored]]]
    digest: Callable[[], str]
    """Of the names and sizes of the files, wherever they lie."""
    labels: Sequence[Any] | None
    """Class ids or class names, one an image."""
    class_names: tuple[str, ...]
    left_out: LeftOut = field(default_factory=LeftOut)
    """Files beside the images that are not taken for images."""


def class_labels(source: Source, given: tuple[str, ...]) -> tuple[Int[Tensor, "n"] | None, tuple[str, ...]]:
    """Class ids, and the names of the classes: those given, else those found.

    Labels that are names become ids in the order of the class names. Names that are given reorder those found if they
    contain them, as for held-out images that are to have the ids of the training images; else they rename the ids.

    Raises ValueError if a label is missing, or has no name among those given.
    """
    if source.labels is None:
        return None, ()
    values: list[Any] = [v.decode(errors="surrogateescape") if isinstance(v, bytes) else v for v in source.labels]
    missing = [i for i, v in enumerate(values) if v is None]
    if missing:
        raise ValueError(f"{source.name}: {len(missing)} images have no label, the first is image {missing[0]}")
    names: Sequence[str] = given or source.class_names
    renamed = len(given) == len(source.class_names) and not set(given) & set(source.class_names)
    if given and renamed:
        ids = {name: i for i, name in enumerate(source.class_names)}
        values = [ids[v] if isinstance(v, str) else v for v in values]
    if source.class_names and set(source.class_names) <= set(given) and all(type(v) is int and v >= 0 for v in values):
        found = list(source.class_names)
        values = [found[v] for v in values]  # the same names in another order, or some of them
    if all(isinstance(v, str) for v in values):
        if not names and numbers(set(values)):
            values = [int(v) for v in values]
        else:
            names = names or ordered(set(values))
            if unknown := sorted(set(values) - set(names)):
                raise ValueError(
                    f"{source.name}: labels {unknown[:5]} are not among the class names {list(names[:10])}"
                )
            ids = {name: i for i, name in enumerate(names)}
            values = [ids[v] for v in values]
    if not all(isinstance(v, int | np.integer) for v in values):
        odd = next(v for v in values if not isinstance(v, int | np.integer))
        raise ValueError(f"{source.name}: labels must be whole numbers or names, got {odd!r}; set data.label_column")
    if not all(-(2**63) <= v < 2**63 for v in values):
        raise ValueError(f"{source.name}: labels must fit into 64 bits, got {max(values, key=abs)}")
    if names and not source.class_names and (known := numbers(names)):  # whole numbers meet the names that say them
        if unknown := sorted({v for v in values if v >= 0 and v not in known}):
            raise ValueError(f"{source.name}: labels {unknown[:5]} are not among the class names {list(names[:10])}")
        values = [known.get(v, v) for v in values]
    labels = torch.tensor(values, dtype=torch.long)
    if bool((labels < 0).all()):  # how test splits on the hub say that they have none
        return None, ()
    if names and int(labels.max()) >= len(names):
        raise ValueError(f"{source.name}: labels run to {int(labels.max())}, but there are {len(names)} class names")
    return labels, tuple(names)


def numbers(names: Collection[str]) -> dict[int, int]:
    """By number, the place of the name that says it; empty unless all names are digits and none say the same number."""
    found = {int(name): place for place, name in enumerate(names) if name.isascii() and name.isdigit()}
    return found if len(found) == len(names) else {}


def ordered(names: Collection[str]) -> tuple[str, ...]:
    """Class names in the order of their ids: by value if all of them are digits, else as text."""
    if all(name.isascii() and name.isdigit() for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def aligned(
    labels: Int[Tensor, "n"], names: tuple[str, ...], known: tuple[str, ...], what: str = "held-out images"
) -> Int[Tensor, "n"]:
    """Class ids in the order of the `known` names, of labels whose classes have these names.

    Whole numbers without names are those of known names that are digits, and the other way round. Raises ValueError
    with both lists if the names are others.
    """
    if names == known:
        return labels
    if names and not known and (values := numbers(names)):
        table = torch.tensor(list(values))
    elif names and set(names) <= set(known):
        table = torch.tensor([known.index(name) for name in names])
    elif known and not names and (values := numbers(known)) and set(labels.unique().tolist()) <= set(values):
        return torch.tensor([values[int(label)] for label in labels], dtype=torch.long)
    else:
        here, there = (f"{list(part[:20])}" if part else "numbers without names" for part in (names, known))
        raise ValueError(
            f"the {what} have the classes {here}, the training images {there}; rename the folders, or name the classes "
            f"of both in the order of their ids with data.class_names"
        )
    return table[labels]


def open_source(
    name: str,
    *,
    held_out: bool = False,
    split: str = "",
    trained_on: str = "",
    image_column: str = "",
    label_column: str = "",
) -> Source | None:
    """The images behind a path, or behind hub:OWNER/NAME; None if there is no split of that kind.

    Held-out images are never the split that is trained on.

    Raises ValueError if there is nothing of that name, nothing in it, or it cannot be read.
    """
    if name.startswith(HUB):
        dataset = _dataset(name.removeprefix(HUB), held_out, split, trained_on)
        return None if dataset is None else _columns(dataset, name, image_column, label_column)
    path = Path(name).expanduser()
    if not path.exists() and not has_magic(name):
        raise ValueError(missing(name))
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
    """The subfolder of that split, if there is a train/ folder; else all is for training."""
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
    """Images straight in the folder have no labels; images in subfolders are of the class of that name.

    `datasets` has a builder for this too. It copies the list into a cache, guesses splits from words anywhere in a
    path, and lists ImageNet anew for minutes at every start.
    """
    found, left_out = list_images(path)
    if not found:
        raise ValueError(
            f"{path} has no images: {left_out.total} files, none ending in {', '.join(sorted(image_endings()))}. Give "
            f"a folder of images, or of a folder of images for each class. {left_out}"
        )
    if "" in found and len(found) > 1:
        raise ValueError(
            f"{path} has {len(found[''])} images beside {len(found) - 1} folders of images; put each image into the "
            f"folder of its class, or all of them into one"
        )
    names = () if "" in found else ordered(found)
    files = [file for name in names or [""] for file in found[name]]

    def read(indices: Sequence[int]) -> list[tuple[str, Stored]]:
        return [(files[i], Path(files[i])) for i in indices]

    def digest() -> str:
        return _sha256(f"{os.path.relpath(file, path)} {size_of(file)}" for file in files)

    labels = [printable(name) for name in names for _ in found[name]] if names else None
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
        digest.update(f"{line}\n".encode("utf-8", "surrogateescape"))  # names that are not UTF-8 as they are
    return digest.hexdigest()[:16]


def _builder(file: Path) -> str | None:
    """What `datasets` reads the file with, told from its ending."""
    return next((builder for ending, builder in BUILDERS.items() if file.name.endswith(ending)), None)


def _dataset_files(path: Path) -> bool:
    """Whether a folder holds data set files, and no images, itself or one level below."""
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


def _dataset(name: Path | str, held_out: bool, split: str, trained_on: str, columns: tuple[str, str] = ("", "")) -> Any:  # noqa: ANN401 - datasets.Dataset
    """One split of a data set, loaded by `datasets`; None if there is no held-out one.

    `columns` are the image's and the label's of tar files; others are chosen later.
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
            where = f"{name} cannot be had from the Hugging Face hub"
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
    """How to load it. Raises ValueError for files that are not there or that `datasets` does not read."""
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
    if is_image(name.name) and files:
        raise ValueError(f"{name} is one image; give the folder it is in")
    if not files:
        raise ValueError(f"{name} does not exist")
    if unknown := sorted({Path(file).name for file in files if _builder(Path(file)) is None}):
        raise ValueError(f"{name}: {unknown[0]} is none of the files that can be read, {', '.join(BUILDERS)}")
    kind = _only_kind(name, map(Path, files))
    if kind == "webdataset":
        return partial(tars.load, {"train": files}, *columns)
    return partial(datasets.load_dataset, kind, data_files=files)


def _split_files(folder: Path) -> dict[str, list[str]]:
    """The data set files of each split, which `datasets` tells from their names."""
    import datasets

    files: Any = datasets.load_dataset_builder(str(folder)).config.data_files
    return {str(split): list(map(str, names)) for split, names in files.items()}


def _only_kind(name: Path, files: Iterable[Path]) -> str:
    """What `datasets` reads the files with. Raises ValueError for several kinds, of which it would take one."""
    kinds = sorted({str(_builder(file)) for file in files if _builder(file) and (file.is_dir() or regular(file))})
    if len(kinds) > 1:
        raise ValueError(f"{name} are files of several kinds: {', '.join(kinds)}; name those of one with a wildcard")
    return kinds[0]


def _columns(dataset: Any, name: str, image_column: str, label_column: str) -> Source:  # noqa: ANN401
    import datasets
    from datasets import config
    from pyarrow import compute

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
        if numbers:
            return _sha256((f"{dataset.num_rows}", sha256_of_numbers(column)))
        lengths = compute.binary_length(compute.struct_field(column, "bytes"))  # type: ignore[attr-defined]
        return _sha256(map(str, lengths.to_pylist()))

    def read(indices: Sequence[int]) -> list[tuple[str, Stored]]:
        files = []
        for i, row in zip(indices, images[list(indices)][image_column], strict=True):
            if numbers:
                files.append((f"{name}, row {i}", to_array(row)))
                continue
            path, content = (row["path"], row["bytes"]) if row else (None, None)
            if content is None:  # a row without an image is unreadable
                content = _inside(roots, path, f"{name}, row {i}") if path else b""
            files.append((f"{name}, row {i} ({path})" if path else f"{name}, row {i}", content))
        return files

    place = Path(name).expanduser()
    roots = [place if place.is_dir() else Path((has_magic(name) and name[: len(name.split("*")[0])]) or place).parent]
    if name.startswith(HUB):
        roots = [Path(config.HF_CACHE_HOME), Path(config.HF_DATASETS_CACHE)]
    if dataset.num_rows == 0:
        raise ValueError(f"{name} has no rows")
    feature = features[labelled] if labelled else None
    return Source(
        name=name,
        count=dataset.num_rows,
        read=read,
        digest=digest,
        labels=dataset[labelled][:] if labelled else None,
        class_names=tuple(feature.names) if isinstance(feature, datasets.ClassLabel) else (),
    )


def _inside(roots: Sequence[Path], path: str, row: str) -> Path:
    """The file that a row points to. Raises ValueError unless it is in one of these folders, links followed."""
    for root in roots:
        file = (root / path).resolve()
        if file.is_relative_to(root.resolve()):
            return file
    raise ValueError(
        f"{row} points to the file {path}, outside the folder of the data set ({roots[0]}); such files are not opened"
    )


def _found(features: Any, name: str, what: str, usual: tuple[str, ...], kind: type) -> str:  # noqa: ANN401
    """The only column of that kind, else the first with a usual name; for images there must be one, for labels not."""
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
