"""Sampled images with their labels and how they were sampled: shown, and saved as PNG, GIF and .npz."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

from jaxtyping import Int, UInt8
from PIL import Image
from torch import Tensor

from fluvial.data.pixels import to_uint8
from fluvial.flow.interpolant import Interpolant
from fluvial.flow.solvers import Step
from fluvial.sampling import RECORD, SAMPLES
from fluvial.utils import pictures
from fluvial.utils.atomic import atomic_files, write_json
from fluvial.utils.files import checksum, json_checksum

BESIDE = {"trajectory.gif", "preview.gif", "scales.png", "edit.png", "noise.safetensors", "walk.gif"}
"""The files beside samples that only some have: of a trajectory, of scales, of an edit, of a walk."""
GRID = 1000  # images in a saved grid at most; the .npz has all


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Sampled images in order of their index. A notebook shows them as a grid."""

    images: UInt8[Tensor, "n c h w"] = field(repr=False)
    labels: Int[Tensor, "n"] | None = None
    """Class ids; None for a model without classes."""
    nfe: Mapping[str, int] = field(default_factory=dict)
    """Evaluations of the network for one image, by branch of guidance."""
    seconds: Mapping[str, float] = field(default_factory=dict, repr=False, compare=False)
    """Wall-clock seconds of sampling ("network") and "decoding", of all images together."""
    about: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """Solver, guidance, seed, weights, autoencoder and all other settings behind the images."""
    trajectory: tuple[UInt8[Tensor, "m c h w"], ...] = field(default=(), repr=False)
    """The first images after every solver step, if asked for."""
    preview: tuple[UInt8[Tensor, "m c h w"], ...] = field(default=(), repr=False)
    """The estimate of the first images at every solver step, then the images; if asked for."""
    stages: tuple[UInt8[Tensor, "m c h w"], ...] = field(default=(), repr=False)
    """The first images at the end of every integral: for FlowAR, one for each scale."""

    def __len__(self) -> int:
        return len(self.images)

    def grid(self, columns: int = 10) -> Image.Image:
        """The images row by row, small ones upsampled. Raises ValueError unless they have 1 or 3 channels."""
        return pictures.grid(self.images, columns)

    def gif(self, columns: int = 10, *, preview: bool = False) -> Image.Image:
        """An animation of the trajectory, or of the preview. Raises ValueError if it was not kept."""
        name, frames = ("preview", self.preview) if preview else ("trajectory", self.trajectory)
        if not frames:
            raise ValueError(f"these samples have no {name}: sample them with {name}=True")
        return Image.open(BytesIO(pictures.gif(frames, columns)))

    def save(self, folder: Path | str, *, columns: int = 10, npz: bool = True, gif: bool = True) -> list[Path]:
        """Writes the images and how they were sampled; returns the files, all written or none.

        samples.npz and samples.json (with `npz`), grid.png, trajectory.gif and preview.gif (with `gif`, if they were
        kept) and for FlowAR scales.png; no picture of images that have neither 1 nor 3 channels. Beside the record of
        other samples, the files that only some samples have (BESIDE) are removed.
        """
        ours = (Path(folder) / RECORD).exists()
        with atomic_files(Path(folder)) as partial:
            saved = self._save_npz(partial) if npz else []
            if self.images.shape[1] in (1, 3):
                saved.append(pictures.save_grid(self.images[:GRID], partial / "grid.png", columns))
                for name, frames in (("trajectory", self.trajectory), ("preview", self.preview)) if gif else ():
                    if frames:
                        saved.append(pictures.save_gif(frames, partial / f"{name}.gif", columns))
                if len(self.stages) > 1:
                    saved.append(pictures.save_strip(self.stages, partial / "scales.png"))
        names = {path.name for path in saved}
        for stale in BESIDE - names if ours else ():  # of other samples
            (Path(folder) / stale).unlink(missing_ok=True)
        return [Path(folder) / path.name for path in saved]

    def _save_npz(self, folder: Path) -> list[Path]:
        """The images as the ADM suite has them, and beside them a record with the checksums of both."""
        file = pictures.save_npz(self.images, self.labels, folder / SAMPLES)
        record = {**self.about, "grey": self.images.shape[1] == 1, "file_sha256": checksum(file)}
        write_json(folder / RECORD, {**record, "sha256": json_checksum(record)})
        return [file]

    def _repr_png_(self) -> bytes | None:
        """The grid for a notebook; None if the images have neither 1 nor 3 channels."""
        if self.images.shape[1] not in (1, 3):
            return None
        return pictures.encoded(pictures.grid(self.images[:GRID]), "png")


class Frames:
    """An `on_step` that keeps the first `count` images of a run at every step, for a GIF of the trajectory.

    With `ends_only` it decodes and keeps only the images that each integral ended with. With the method's
    `interpolant` it keeps the estimates of the clean images in place of the points of the trajectory.
    """

    def __init__(
        self,
        decode: Callable[[Tensor], Tensor],
        count: int,
        *,
        ends_only: bool = False,
        interpolant: Interpolant | None = None,
    ) -> None:
        self.decode, self.count, self.ends_only, self.interpolant = decode, count, ends_only, interpolant
        self.images: list[UInt8[Tensor, "n c h w"]] = []
        self.ends: list[UInt8[Tensor, "n c h w"]] = []
        """The images that each integral ended with; in FlowAR the map of each scale."""
        self._last = 0

    def __call__(self, step: Step) -> None:
        if step.number <= self._last:
            self.count = 0  # a second batch begins
        self._last = step.number
        ended = step.t > 1 - 1e-9
        if self.count and (ended or not self.ends_only):
            latents = step.x if self.interpolant is None else step.seen.data(self.interpolant).to(step.x.dtype)
            self.images.append(to_uint8(self.decode(latents[: self.count])).cpu())
            if ended:
                self.ends.append(self.images[-1])
