"""The files of a set of samples: one PNG an image, tar shards of them, one .npz, or shards of latents."""

import io
import tarfile
import zipfile
import zlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int, UInt8
from numpy.lib import format as npy
from PIL import Image
from torch import Tensor

from fluvial.sampling.plan import Form
from fluvial.utils.atomic import atomic_file, atomic_files
from fluvial.utils.files import named, reading
from fluvial.utils.tensors import write_tensors

OPEN_TARS = 8  # kept open, with the places of their members


def names(form: Form, number: int, indices: Sequence[int]) -> list[str]:
    """The names of the files of part `number`, which has the images of these indices."""
    match form:
        case "png":
            return [f"{i:06d}.png" for i in indices]
        case "tar":
            return [f"shard-{number:05d}.tar"]
        case "latents":
            return [f"latents-{number:05d}.safetensors"]
        case "npz":
            return [f"part-{number:05d}.npy"]


def write(
    form: Form, folder: Path, number: int, indices: Sequence[int], values: Tensor, labels: Int[Tensor, "n"] | None
) -> None:
    """Writes a part, whose images (n, c, h, w), or latents, are in the order of the indices."""
    files = names(form, number, indices)
    if form == "png":
        with atomic_files(folder) as temporary:
            for name, image in zip(files, values, strict=True):
                (temporary / name).write_bytes(_png(image))
        return
    with atomic_file(folder / files[0]) as temporary:
        match form:
            case "tar":
                temporary.write_bytes(_tar(indices, values, labels))
            case "npz":
                with temporary.open("wb") as file:
                    np.save(file, _rows(values))
            case "latents":
                tensors = {"latents": values.float().contiguous(), "index": torch.tensor(list(indices))}
                write_tensors(temporary, tensors if labels is None else {**tensors, "labels": labels})


def read(form: Form, folder: Path, number: int, index: int) -> UInt8[Tensor, "c h w"]:
    """One image of a set of PNG files or tar shards. Raises ValueError if it is damaged, OSError if it is missing."""
    name = f"{index:06d}.png"
    if form == "png":
        with reading(folder / name) as file:
            content = file.read()
    else:
        shard = folder / names("tar", number, ())[0]
        places = _places(shard, shard.stat().st_size)
        if name not in places:
            raise ValueError(f"{shard} has no {name}")
        start, size = places[name]
        with reading(shard) as file:
            file.seek(start)
            content = file.read(size)
    try:
        array = np.asarray(Image.open(io.BytesIO(content)))
    except Exception as error:  # whatever Pillow raises for a damaged file
        raise ValueError(f"{name} in {folder} is damaged: {error}") from error
    return torch.from_numpy(array[None].copy() if array.ndim == 2 else np.moveaxis(array, -1, 0).copy())


def join(parts: Sequence[Path], labels: Int[Tensor, "n"] | None, out: Path) -> None:
    """Writes the .npz of images in .npy files as `pictures.save_npz` would; only one of them is in memory at a time."""
    opened = []
    for part in parts:
        with named(part):
            opened.append(np.load(part, mmap_mode="r"))
    shape = (sum(len(part) for part in opened), *opened[0].shape[1:])
    with atomic_file(out) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        with archive.open("arr_0.npy", "w", force_zip64=True) as member:
            header = {"descr": npy.dtype_to_descr(np.dtype(np.uint8)), "fortran_order": False, "shape": shape}
            npy.write_array_header_1_0(member, header)
            for part in opened:
                member.write(np.ascontiguousarray(part).data)
        if labels is not None:
            with archive.open("arr_1.npy", "w", force_zip64=True) as member:
                npy.write_array(member, labels.numpy())


def crc32(image: Tensor) -> str:
    """The CRC-32 of the values of an image (c, h, w) or latent, in hexadecimal."""
    return f"{zlib.crc32(image.contiguous().numpy().data):08x}"


def _rows(images: UInt8[Tensor, "n c h w"]) -> np.ndarray:
    """The images as evaluation suites have them: (n, h, w, 3), grey ones repeated."""
    return (images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images).permute(0, 2, 3, 1).contiguous().numpy()


def _png(image: UInt8[Tensor, "c h w"]) -> bytes:
    array = image.permute(1, 2, 0).numpy()
    content = io.BytesIO()
    Image.fromarray(array[:, :, 0] if len(image) == 1 else array).save(content, "png")
    return content.getvalue()


def _tar(indices: Sequence[int], images: UInt8[Tensor, "n c h w"], labels: Int[Tensor, "n"] | None) -> bytes:
    """The content of a tar file with each image and its class id, without times and owners."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for row, index in enumerate(indices):
            members = {f"{index:06d}.png": _png(images[row])}
            if labels is not None:
                members[f"{index:06d}.cls"] = str(int(labels[row])).encode()
            for name, data in members.items():
                about = tarfile.TarInfo(name)
                about.size = len(data)
                tar.addfile(about, io.BytesIO(data))
    return content.getvalue()


@lru_cache(OPEN_TARS)
def _places(shard: Path, size: int) -> dict[str, tuple[int, int]]:
    """Start and length of each member of a tar file of this size."""
    try:
        with reading(shard) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            return {member.name: (member.offset_data, member.size) for member in tar}
    except tarfile.TarError as error:
        raise ValueError(f"{shard} is damaged: {error}") from error
