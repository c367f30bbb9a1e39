"""Speed of reading random batches of 256 latents, from the latent cache and from one .npz per image.

    python benchmarks/data.py [--rows 16384] [--folder DIR]

The releases store latents as .npz files. Both are read from disk (the page cache is emptied first, and no row is read
twice, as with a cache larger than memory) and again from memory. The .npz files are read by one thread and by eight.
"""

import argparse
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch

from fluvial.data import latents
from fluvial.data.images import ImageSet
from fluvial.utils.randomness import numpy_generator

BATCH, SHAPE = 256, (8, 32, 32)  # mean and log variance of 4 x 32 x 32: a 256-pixel image in Stable Diffusion's latents


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument(
        "--rows", type=int, default=16_384, help="images; each takes 32 kB in the cache, 64 kB as .npz"
    )
    options.add_argument("--folder", type=Path, help="where to write; a temporary folder by default")
    arguments = options.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        compare(Path(folder), arguments.rows)


def compare(folder: Path, rows: int) -> None:
    """Writes both formats and prints their reading speeds."""
    write_cache(folder / "cache", rows)
    write_npz(folder / "npz", rows)
    size = {kind: sum(file.stat().st_size for file in (folder / kind).iterdir()) / 2**20 for kind in ("cache", "npz")}
    opened = latents.load(folder / "cache")
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, torch {torch.__version__}"
    )
    shards = len(opened.moments.shards)
    del opened  # while open, mapped pages stay in memory
    print(f"{rows} images; cache {size['cache']:.0f} MiB in {shards} files, .npz {size['npz']:.0f} MiB")

    with ThreadPoolExecutor(8) as threads:
        readers = {
            ".npz, one thread": ("npz", lambda: partial(read_npz, folder / "npz", map)),
            ".npz, eight threads": ("npz", lambda: partial(read_npz, folder / "npz", threads.map)),
            "cache, one thread": ("cache", lambda: latents.load(folder / "cache").rows),
        }
        print(f"{'':<20} {'from disk':>12} {'from memory':>12}   rows/s; times the first line's")
        first = None
        for name, (kind, make) in readers.items():
            evict(folder / kind)
            speeds = [measure(make(), rows, seed) for seed in (0, 0)]  # the second time, the same rows are in memory
            first = first or speeds
            ratios = ", ".join(f"{speed / base:.1f}" for speed, base in zip(speeds, first, strict=True))
            print(f"{name:<20} {speeds[0]:>12,.0f} {speeds[1]:>12,.0f}   {ratios}")


def measure(read: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], rows: int, seed: int) -> float:
    """Rows per second, over random batches that together hold a quarter of the images."""
    rng = numpy_generator(seed, "benchmark")
    order = torch.from_numpy(rng.permutation(rows)[: rows // 4 // BATCH * BATCH])
    flipped = torch.from_numpy(rng.random(len(order)) < 0.5)
    started = time.perf_counter()
    for chosen, mirror in zip(order.split(BATCH), flipped.split(BATCH), strict=True):
        assert read(chosen, mirror).shape == (BATCH, *SHAPE)
    return len(order) / (time.perf_counter() - started)


def write_cache(folder: Path, rows: int) -> None:
    plan = latents.Plan(
        source="noise",
        images=rows,
        autoencoder="noise",
        hash="",
        digest="",
        labels="",
        stride=8,
        channels=4,
        image_size=256,
        crop="centre",
        flip=True,
        dtype="bf16",
        shard=2048,
        class_names=(),
    )
    pixels = torch.zeros(rows, 1, 1, 1, dtype=torch.uint8)
    latents.write(ImageSet(pixels, None, ()), lambda x: torch.randn(len(x), *SHAPE), plan, folder, batch=256)


def write_npz(folder: Path, rows: int) -> None:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(rows):
        both = rng.standard_normal((2, *SHAPE), dtype=np.float32)
        np.savez(folder / f"{i}.npz", moments=both[0], moments_flip=both[1])


def read_npz(folder: Path, over: Callable[..., Iterable], chosen: torch.Tensor, flipped: torch.Tensor) -> torch.Tensor:
    def row(i: int, mirror: bool) -> np.ndarray:
        with np.load(folder / f"{i}.npz") as file:
            return file["moments_flip" if mirror else "moments"]

    return torch.from_numpy(np.stack(list(over(row, chosen.tolist(), flipped.tolist()))))


def evict(folder: Path) -> None:
    """Drops these files from the page cache."""
    for path in folder.iterdir():
        file = os.open(path, os.O_RDONLY)
        os.fsync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)


if __name__ == "__main__":
    if not hasattr(os, "posix_fadvise"):
        raise SystemExit("this benchmark empties the page cache, which needs Linux")
    if shutil.disk_usage(tempfile.gettempdir()).free < 4 * 2**30:
        print("less than 4 GiB are free in the temporary folder; name another with --folder")
    main()
