"""The rows and parts of sweeps in RUN/guide, by all that they depend on: what is there is not made again.

RUN/guide/rows/KEY.json                  the score card of a row, which `fluvial score --against` reads as any other
RUN/guide/parts/KEY-START-STOP.safetensors   images of a row that is not measured yet; gone when all are
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import UInt8
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fluvial.evaluation.images import Images
from fluvial.metrics import report
from fluvial.sampling.labels import labels_for
from fluvial.utils.atomic import atomic_file, remove, write_json
from fluvial.utils.files import json_checksum, make_folder
from fluvial.utils.tensors import check_tensors, write_tensors

NO_EFFECT = ("batch", "compile")  # on what is measured, but for rounding


class Part(NamedTuple):
    """Images of a row that were drawn together."""

    images: UInt8[Tensor, "b c h w"]
    nfe: Mapping[str, int]
    """Evaluations of the network for each image, by branch."""
    asked: int
    """Evaluations that the sampler asked for, and those of them that had to be made."""
    made: int


@dataclass(frozen=True, kw_only=True)
class Row:
    """The place of a row: its files, named by all that it depends on."""

    folder: Path
    sampled: Mapping[str, Any]
    """All that its images depend on."""
    measured: Mapping[str, Any]
    """All that its scores depend on besides."""

    @property
    def card(self) -> Path:
        return self.folder / "rows" / f"{_key({**self.sampled, **self.measured})}.json"

    def read(self) -> dict[str, Any] | None:
        """The card, if the row has been measured; None otherwise, or if the card is damaged."""
        try:
            return report.read(self.card) if self.card.exists() else None
        except ValueError:
            return None

    def write(self, card: Mapping[str, Any]) -> dict[str, Any]:
        """Writes the card and returns it with its checksum."""
        make_folder(self.card.parent)
        sealed = report.sealed(card)
        write_json(self.card, sealed)
        return sealed

    def _part(self, indices: range) -> Path:
        return self.folder / "parts" / f"{_key(self.sampled)}-{indices.start}-{indices.stop}.safetensors"

    def write_part(self, indices: range, part: Part) -> None:
        """Writes the images of these indices."""
        file = self._part(indices)
        make_folder(file.parent)
        about = {"nfe": json.dumps(dict(part.nfe)), "asked": str(part.asked), "made": str(part.made)}
        with atomic_file(file) as temporary:
            write_tensors(temporary, {"images": part.images}, about)

    def read_part(self, indices: range) -> Part | None:
        """The images of these indices; None if they are not there, or damaged."""
        file = self._part(indices)
        try:
            check_tensors(file)
            with safe_open(file, "pt") as opened:
                about = opened.metadata()
                images = opened.get_tensor("images")
            return Part(images, json.loads(about["nfe"]), int(about["asked"]), int(about["made"]))
        except (OSError, ValueError, KeyError, SafetensorError):
            return None


def clear(folder: Path) -> None:
    """Removes the parts, once all rows are measured."""
    remove(folder / "parts")


def images_of(parts: Sequence[Part], classes: Sequence[int], about: Mapping[str, Any]) -> Images:
    """The images of a row, read from its parts."""
    images = torch.cat([part.images for part in parts])

    def read(wanted: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        return images[list(wanted)], labels_for(wanted, classes)

    return Images("samples", len(images), read, lambda wanted: "", dict(about))


def sampled_as(sampling: Mapping[str, Any], weights: str, count: int, seed: int) -> dict[str, Any]:
    """All that the images of a row depend on: sampling settings, the SHA-256 of the weights, count and seed."""
    settings = {key: value for key, value in sampling.items() if key not in NO_EFFECT}
    return {"sampling": settings, "weights": weights, "count": count, "seed": seed}


def _key(values: Mapping[str, Any]) -> str:
    return json_checksum(values)[:20]
