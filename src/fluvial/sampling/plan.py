"""The plan of a set of samples: the settings that determine its images, and what two plans differ in."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Int
from torch import Tensor

from fluvial.sampling import WEIGHTS
from fluvial.sampling.labels import labels_for
from fluvial.utils.checks import at_least
from fluvial.utils.files import json_checksum

Form = Literal["npz", "png", "tar", "latents"]
FORMS: tuple[Form, ...] = get_args(Form)
NO_EFFECT = ("nfe", "nfe_null", "evaluations", "train_seconds", "batch")  # on the images: two plans may differ in them


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The settings that determine a set: sets of equal plans have the same images."""

    form: Form
    count: int
    shard: int
    """Images in a part."""
    shape: tuple[int, int, int]
    """Channels, height and width of an image, or of its latent."""
    indices: tuple[int, ...] = ()
    """The indices of the images; () for 0 to count - 1."""
    classes: tuple[int, ...] = ()
    """Image i is of class classes[i mod len(classes)]; () for a model without classes."""
    weights_sha256: str
    """Of the model."""
    about: dict[str, Any]
    """How the images are sampled, as samples.json says it."""

    def __post_init__(self) -> None:
        at_least(1, self, "count", "shard")

    @property
    def parts(self) -> int:
        """The number of parts."""
        return -(-self.count // self.shard)

    def part(self, number: int) -> Sequence[int]:
        """The indices of the images of a part."""
        every: Sequence[int] = self.indices or range(self.count)
        return every[number * self.shard : (number + 1) * self.shard]

    def labels(self, number: int) -> Int[Tensor, "n"] | None:
        """The class ids of the images of a part; None for a model without classes."""
        return labels_for(self.part(number), self.classes)

    def determining(self) -> dict[str, Any]:
        """The values that determine the images and files of the set."""
        values = json.loads(json.dumps(asdict(self)))
        about = values.pop("about")
        if self.form in ("npz", "png"):
            values.pop("shard")
        return {**values, **determining(about)}

    @property
    def mark(self) -> str:
        """The first digits of the SHA-256 of what determines the set and its parts."""
        return json_checksum({**self.determining(), "shard": self.shard})[:16]

    @property
    def bytes(self) -> int:
        """About as many bytes as the set needs on the disk while it is made: at most, as PNG compresses."""
        values = self.count * torch.Size(self.shape).numel()
        return values * {"png": 1, "tar": 1, "npz": 2 * (3 if self.shape[0] == 1 else 1), "latents": 4}[self.form]


def determining(about: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a record that determine images."""
    sampling = {k: v for k, v in about["sampling"].items() if k not in NO_EFFECT}
    settings = {k: v for k, v in sampling.get("settings", {}).items() if k not in NO_EFFECT}
    weights = {WEIGHTS: about[WEIGHTS]} if WEIGHTS in about else {}
    return {**sampling, **weights, "settings": settings, "labels": about["labels"]}


def differences(there: Mapping[str, Any], here: Mapping[str, Any], at: str = "") -> list[str]:
    """The values that two plans differ in, in words."""
    found = list[str]()
    for name in sorted(there.keys() | here.keys()):
        a, b = there.get(name), here.get(name)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += differences(a, b, f"{name}.")
        elif a != b:
            found.append(f"{at}{name} is {json.dumps(a):.60} there and {json.dumps(b):.60} here")
    return found


def evaluations_of(by_branch: Mapping[str, int]) -> dict[str, Any]:
    """Evaluations of the network for one image: conditional, unconditional, and by branch."""
    totals = {
        key: sum(n for name, n in by_branch.items() if name.startswith(branch))
        for key, branch in (("nfe", "conditional"), ("nfe_null", "null"))
    }
    return {**totals, "evaluations": dict(by_branch)}
