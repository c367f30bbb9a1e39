"""Opens images for evaluation: a folder, a data set, an .npz of the ADM suite, or the output of `fluvial sample`."""

import hashlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from fluvial.data import crop
from fluvial.data import images as data_images
from fluvial.data.images import DataConfig, Files, ImageSet
from fluvial.data.labels import Classes, aligned
from fluvial.data.manifest import is_cache
from fluvial.data.sources import check_there
from fluvial.evaluation.images import Images
from fluvial.evaluation.npz import open_npz
from fluvial.sampling import SAMPLES, sets
from fluvial.sampling.labels import labels_for
from fluvial.sampling.plan import Plan
from fluvial.utils.files import json_checksum
from fluvial.utils.places import HUB


def open_images(name: str, like: DataConfig | None = None, classes: Classes | None = None) -> Images:
    """The images of a folder, .npz or data set; NAME:SPLIT is one split of it.

    Images of a folder or data set are cropped as in `like`, or not at all, and their labels become ids of `classes`. If
    their classes have other names, a message is printed and labels are ignored. Raises ValueError if there is nothing
    of that name, or it holds no images.
    """
    path, like = Path(name).expanduser(), like or DataConfig()
    plan = _sampled(name, path)
    if path.is_dir() and sets.is_set(path):
        record = sets.complete_record(path)
        if plan is not None and plan.form != "npz":
            return _of_sampled(path, plan, record, grey=like.channels == 1)
        path = path / SAMPLES if plan is not None else path
    if path.is_dir() and (path / SAMPLES).exists():
        path = path / SAMPLES
    if path.suffix == ".npz":
        return open_npz(path, grey=like.channels == 1)
    place, split = _place(name)
    config = DataConfig(size=like.size, crop=like.crop, channels=like.channels)
    part: data_images.Split = "train"  # for a folder, `split` decides
    if place not in data_images.BUILT_IN:
        config = replace(config, path=place, split=split)
    elif split in ("train", "test"):
        config, part = replace(config, name=place), cast(data_images.Split, split)
    else:
        raise ValueError(f"{place} has two splits: choose {place}:train or {place}:test")
    images = data_images.load(config, part, scan=False)  # decoded when needed
    assert images is not None
    if images.left_out:
        print(f"{name}: {images.left_out}", file=sys.stderr, flush=True)
    return of_set(images if classes is None else _labelled_as(images, classes, name), name, config)


def _of_sampled(folder: Path, plan: Plan, record: Mapping[str, Any], *, grey: bool) -> Images:
    """The images of a set that `fluvial sample` wrote, each compared with its checksum when it is read."""
    if grey and plan.shape[0] == 3:
        raise ValueError(f"{folder}: the images are coloured and cannot be read as grey")
    parts = sets.parts_of(record)
    every = plan.indices or range(plan.count)

    def read(wanted: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        places = [divmod(i, plan.shard) for i in wanted]
        images = torch.stack([sets.image(folder, plan, parts[number], row) for number, row in places])
        return images, labels_for([every[i] for i in wanted], plan.classes)

    about = {key: record[key] for key in ("cut", "rounding", "labels", "sampling")}
    content = json_checksum(record["set"])

    def digest(wanted: Sequence[int]) -> str:
        rows = "" if len(wanted) == plan.count else f"{list(wanted)}"
        return hashlib.sha256(f"{content} {rows}".encode()).hexdigest()

    return Images(str(folder), plan.count, read, digest, about, Classes((), (), False) if plan.classes else None)


def check_images(name: str) -> None:
    """Raises ValueError if there is no such path or data set, or it holds latents; the hub is not asked."""
    place, _ = _place(name)
    if place not in data_images.BUILT_IN:
        check_there(place)
        _sampled(name, Path(name).expanduser())


def _sampled(name: str, path: Path) -> Plan | None:
    """The plan of images that `fluvial sample` wrote in parts, if there is one. Raises ValueError for latents."""
    if is_cache(name):
        raise ValueError(f"{name} holds latents, and a score needs images: give the images that were encoded")
    plan = sets.plan_of(path) if path.is_dir() and sets.is_set(path) else None
    if plan is not None and plan.form == "latents":
        raise ValueError(f"{name} holds latents, and a score needs images: sample again with another --form")
    return plan


def _place(name: str) -> tuple[str, str]:
    """Place and split of NAME:SPLIT; the split is "" for a path that is there, and where none is named."""
    on_hub = HUB if name.startswith(HUB) else ""
    place, _, split = (name, "", "") if Path(name).expanduser().exists() else name.removeprefix(on_hub).partition(":")
    return on_hub + place, split


def _labelled_as(images: ImageSet, classes: Classes, name: str) -> ImageSet:
    """The images with labels as ids of `classes`, or without labels if the names differ."""
    if images.labels is None:
        return images
    try:
        labels = aligned(images.labels, images.class_names, classes, f"images of {name}")
    except ValueError as error:
        print(f"the labels of {name} are ignored: {error}", file=sys.stderr, flush=True)
        return images._replace(labels=None, class_names=())
    return images._replace(labels=labels, class_names=classes.names)


def of_set(images: ImageSet, name: str, config: DataConfig) -> Images:
    """The images of a data set, with the facts for its score card."""

    def read(wanted: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        chosen = torch.tensor(wanted)
        return images.rows(chosen), None if images.labels is None else images.labels[chosen]

    cut = f"{config.crop} crop to {config.size} x {config.size}" if config.size else "as they are"
    about = {"cut": cut, "rounding": None, "labels": None}  # unknown for a folder

    def digest(wanted: Sequence[int]) -> str:
        whole = len(wanted) == len(images.pixels)
        return _digest(images if whole else images.subset(torch.tensor(wanted)), config)

    classes = None if images.labels is None else Classes(images.class_names, images.class_names, False)
    return Images(name, len(images.pixels), read, digest, about, classes)


def _digest(images: ImageSet, config: DataConfig) -> str:
    """SHA-256 of the pixels (or of the undecoded files and their crop) and of the labels."""
    if isinstance(images.pixels, Tensor):
        return images.checksum()
    content = hashlib.sha256()
    if isinstance(images.pixels, Files):
        content.update(f"{config.size} {config.crop if config.size else ''} {config.channels}".encode())
        files = images.pixels
        for start in range(0, len(files), 1024):
            for _, source in files.source.read(list(files.chosen[start : start + 1024])):
                content.update(hashlib.sha256(crop.content(source)).digest())
    else:
        content.update(str(tuple(images.pixels.shape)).encode())
        for start in range(0, len(images.pixels), 1024):
            rows = range(start, min(start + 1024, len(images.pixels)))
            content.update(images.pixels.read(rows).contiguous().numpy().data)
    if images.labels is not None:
        content.update(images.labels.numpy().data)
    return content.hexdigest()
