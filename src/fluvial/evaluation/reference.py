"""Reference sets: statistics of a data set, of the ADM suite's .npz, or of a saved file."""

import hashlib
import os
import sys
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from fluvial.data.images import DataConfig
from fluvial.data.labels import Classes
from fluvial.evaluation import archive
from fluvial.evaluation.images import Images
from fluvial.evaluation.opening import open_images
from fluvial.evaluation.statistics import FORMAT, Statistics, gaussian, load, save, statistics
from fluvial.metrics.features import Extractor
from fluvial.metrics.frechet import Gaussian
from fluvial.training.distributed import ALONE, World
from fluvial.utils.files import checksum
from fluvial.utils.tensors import tensors_checksum

NEIGHBOURS = 10_000  # reference images used for nearest neighbours and kernels, as many as in the ADM suite
PAIRS = ("mu", "sigma"), ("mu_s", "sigma_s")  # mean and covariance of the pooled and of the spatial features


class Reference(NamedTuple):
    """A reference set: its feature statistics, with its name and content hash."""

    name: str
    hash: str
    """SHA-256 of the images, or of the file."""
    statistics: Statistics
    about: dict[str, Any]


def open_reference(
    name: str,
    extractor: Extractor,
    like: DataConfig | None = None,
    *,
    classes: Classes | None = None,
    world: World = ALONE,
) -> Reference:
    """The reference set of that name: a data set or folder (NAME:SPLIT for a split), an .npz, or saved statistics.

    `open_images` says which images are found. Raises ValueError if it cannot be read, or is of another extractor.
    """
    path = Path(name).expanduser()
    if path.suffix == ".safetensors":
        found, about = load(path)
        if missing := {"name", "hash", "cut", "extractor", "extractor_hash"} - about.keys():
            raise ValueError(f"{path} lacks {', '.join(sorted(missing))} in its metadata; write it with --keep")
        if about["extractor"] != extractor.name or about["extractor_hash"] != extractor.hash:
            raise ValueError(
                f"{path} holds statistics by {about['extractor']} ({about['extractor_hash'][:12]}), the extractor is "
                f"{extractor.name} ({extractor.hash[:12]}); choose the same with --features and --weights"
            )
        return Reference(about["name"], about["hash"], found, {"cut": about["cut"]})
    if path.suffix == ".npz":
        with archive.opened(path) as file:
            names = archive.names(file)
        if names & {"mu", "sigma"}:
            return _adm(path, names, extractor, world)
    return reference(open_images(name, like, classes), extractor, world=world)


def extractor_of(name: str) -> str:
    """The extractor that a reference's statistics are by; "" for images, which any extractor takes.

    A file that cannot be read is left for `open_reference` to refuse.
    """
    path = Path(name).expanduser()
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                return (file.metadata() or {}).get("extractor", "")
        if path.suffix == ".npz":
            with archive.opened(path) as file:
                return "inception" if archive.names(file) & {"mu", "sigma"} else ""
    except (OSError, SafetensorError, ValueError):
        pass
    return ""


def reference(
    images: Images,
    extractor: Extractor,
    *,
    kept: int = NEIGHBOURS,
    world: World = ALONE,
) -> Reference:
    """The reference set of these images; its statistics are cached for the user under a hash of the images' content.

    Nothing is cached for pixels, which are fast to read again, nor for Python functions, which have no hash.
    """
    digest: str = world.broadcast(images.digest(range(images.n)) if world.first else None)
    key = f"{FORMAT} {digest} {extractor.name} {extractor.hash} {extractor.resize} {extractor.dtype} {kept}"
    cached = _cache(key)
    found = world.broadcast(_read(cached, key) if world.first and extractor.hash else None)
    if found is not None:
        return Reference(images.name, digest, found, images.about)
    made = Reference(images.name, digest, statistics(images, extractor, kept=kept, world=world), images.about)
    if extractor.hash and world.first:
        try:
            save_reference(made, extractor, cached, key=key)
        except OSError as error:
            print(f"the statistics of {images.name} cannot be cached: {error}", file=sys.stderr)
    return made


def save_reference(made: Reference, extractor: Extractor, path: Path, **told: str) -> None:
    """Writes a file that `open_reference` reads. For images without a content hash the features are hashed."""
    digest = made.hash or tensors_checksum({"features": made.statistics.features})
    about = {"name": made.name, "hash": digest, "cut": str(made.about.get("cut", "unknown"))}
    save(made.statistics, path, {**about, "extractor": extractor.name, "extractor_hash": extractor.hash, **told})


def _cache(key: str) -> Path:
    """The path of the cached statistics with this key."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return root / "fluvial" / "statistics" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.safetensors"


def _read(cached: Path, key: str) -> Statistics | None:
    """The cached statistics; None, with a message, if they are damaged, so that they are computed again."""
    if not cached.exists():
        return None
    try:
        found, about = load(cached)
        if about.get("key") != key:
            raise ValueError(f"{cached} is of other images, or of another extractor")
        return found
    except ValueError as error:
        print(f"statistics are computed again, since the cached ones cannot be used: {error}", file=sys.stderr)
        return None


def _adm(path: Path, names: set[str], extractor: Extractor, world: World) -> Reference:
    """A reference file of the ADM suite: published statistics, and images for nearest neighbours if it has any."""
    if extractor.name != "inception":
        raise ValueError(f"{path} holds statistics of Inception's features, the extractor is {extractor.name}")
    with archive.opened(path) as file:
        if not names >= {"mu", "sigma"} or len(names & {"mu_s", "sigma_s"}) == 1:
            held = ", ".join(sorted(names))
            raise ValueError(f"{path} has {held}; expected mu and sigma, both or none of mu_s and sigma_s, and arr_0")
        pooled, spatial = (_pair(path, file, pair) if names >= {*pair} else None for pair in PAIRS)
    assert pooled is not None
    # the file does not tell the number of images
    found = Statistics(0, (), pooled, spatial, None, torch.zeros(0, len(pooled.mean)), None)
    if "arr_0" in names:
        beside = reference(open_images(str(path)), extractor, world=world)
        digest = beside.hash  # hash of the whole file
        found = found._replace(shape=beside.statistics.shape, features=beside.statistics.features)
    else:
        digest = world.broadcast(checksum(path) if world.first else None)
    return Reference(str(path), digest, found, {"cut": "unknown", "statistics": "as published"})


def _pair(path: Path, file: zipfile.ZipFile, names: tuple[str, str]) -> Gaussian:
    """The Gaussian with this mean and covariance in the file."""
    heads = [archive.array(file, name) for name in names]
    (d, *more), covariance = heads[0].shape or (0,), heads[1].shape
    if more or not d or covariance != (d, d):
        raise ValueError(
            f"{path}: {' and '.join(names)} must be (d,) and (d, d), got {heads[0].shape} and {covariance}"
        )
    if wrong := [f"{name} is {head.dtype}" for name, head in zip(names, heads, strict=True) if head.dtype.kind != "f"]:
        raise ValueError(f"{path}: {' and '.join(wrong)}; expected floats")
    mean, covariance = (torch.from_numpy(archive.read(file, name).astype(np.float64)) for name in names)
    return gaussian(mean, covariance, f"{path}: {' and '.join(names)}")
