"""Cards: numbers with where they come from, as JSON, and whether two of them can be compared."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fluvial.metrics import Estimate
from fluvial.utils.files import json_checksum, read_bytes

KIND = "fluvial scores 2"
# what has to be the same in two cards: where it is not, the numbers differ whatever the models do
MATTERS = {
    "extractor.name": "the network that features are taken from",
    "extractor.hash": "its weights",
    "extractor.resize": "how images are resized for it",
    "extractor.dtype": "what it computes in",
    "reference.hash": "the images to compare with",
    "reference.neighbours": "how many of them neighbours are looked for among",
    "images.count": "the number of samples: fewer give a larger Frechet distance",
    "images.shape": "their size",
    "images.cut": "how they were cut",
    "images.rounding": "how their pixels were rounded",
    "images.labels": "how classes were chosen: taking all in turn gives a smaller Frechet distance than drawing them",
}
PARTS = {"of": str, "warnings": list}
PARTS |= dict.fromkeys(("scores", "images", "extractor", "reference", "training", "sampling", "made_by"), dict)
OF_TRAINING = ("class_accuracy", "closer_to_training")  # these depend on the training images besides


class Row(NamedTuple):
    """One score of two cards."""

    name: str
    a: Estimate
    b: Estimate

    @property
    def difference(self) -> float:
        return self.a.value - self.b.value

    @property
    def errors(self) -> float:
        """The difference in standard errors of it."""
        error = (self.a.error**2 + self.b.error**2) ** 0.5
        return self.difference / error if error else float("inf") if self.difference else 0.0


def sealed(card: Mapping[str, Any]) -> dict[str, Any]:
    """The card with its SHA-256."""
    return {**card, "sha256": json_checksum(card)}


def read(path: Path) -> dict[str, Any]:
    """The card in a file. Raises ValueError if it is none that this version reads, or not as it was written."""
    try:
        card = json.loads(read_bytes(path))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(card, dict) or card.get("kind") != KIND:
        raise ValueError(f"{path} is no card of scores that this version reads ({KIND}); make it with `fluvial score`")
    if card.pop("sha256", None) != json_checksum(card):
        raise ValueError(f"{path} is damaged, or was changed by hand: its SHA-256 is another; make it again")
    wrong = [f"{key} is {card.get(key)!r}" for key, kind in PARTS.items() if not isinstance(card.get(key), kind)]
    wrong += [f"{name} is {found!r}" for name, found in (card.get("scores") or {}).items() if not _is_score(found)]
    if wrong:
        raise ValueError(f"{path} is no whole card of scores: {'; '.join(wrong)}; make it again")
    return sealed(card)


def _is_score(found: Any) -> bool:  # noqa: ANN401
    return isinstance(found, dict) and all(isinstance(found.get(key), float | int) for key in ("value", "error"))


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """In what two cards differ that matters, each with both values and what it does to the numbers."""
    return [
        f"{path} is {short(here)} and {short(there)} ({MATTERS[path]})"
        for path, (here, there) in _matters(a, b).items()
        if here != there and None not in (here, there)
    ]


def unknown(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """What matters and is not known of one of two cards, or of both."""
    return [path for path, values in _matters(a, b).items() if None in values]


def _matters(*cards: Mapping[str, Any]) -> dict[str, list[Any]]:
    """The values of what matters in each of the cards."""
    return {path: [card[part].get(key) for card in cards] for path in MATTERS for part, key in [path.split(".")]}


def same_training(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Whether the training images behind two cards are the same."""
    return a["training"].get("hash") == b["training"].get("hash")


def compared(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[Row]:
    """The scores that both cards have. Raises ValueError naming what matters and differs."""
    if found := differences(a, b):
        raise ValueError(f"these scores cannot be compared: {'; '.join(found)}")
    both = [name for name in a["scores"] if name in b["scores"]]
    if not same_training(a, b):
        both = [name for name in both if name not in OF_TRAINING]
    return [
        Row(name, *(Estimate(c["scores"][name]["value"], c["scores"][name]["error"]) for c in (a, b))) for name in both
    ]


def short(value: Any) -> str:  # noqa: ANN401
    """For a sentence: of hashes the beginning."""
    return value[:12] if isinstance(value, str) and len(value) == 64 else str(value)
