"""Score cards: scores with how they were computed, as JSON, and the comparison of two cards."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fluvial.metrics import Estimate
from fluvial.utils.files import json_checksum, read_bytes

KIND = "fluvial scores 2"
# entries that must be equal in two cards for their scores to be comparable, with the reason
MUST_AGREE = {
    "extractor.name": "the feature extractor",
    "extractor.hash": "its weights",
    "extractor.resize": "how images are resized for it",
    "extractor.dtype": "the precision it computes in",
    "reference.hash": "the reference images",
    "reference.neighbours": "how many of them are used for nearest neighbours",
    "images.count": "the number of samples: fewer give a larger Frechet distance",
    "images.shape": "their size",
    "images.cut": "how they were cropped",
    "images.rounding": "how their pixels were rounded",
    "images.labels": "how classes were chosen: all classes in turn give a smaller Frechet distance than random ones",
}
PARTS = {"of": str, "warnings": list}
PARTS |= dict.fromkeys(("scores", "images", "extractor", "reference", "training", "sampling", "made_by"), dict)
OF_TRAINING = ("class_accuracy", "closer_to_training")  # these also depend on the training images


class Row(NamedTuple):
    """One score as it is in two cards."""

    name: str
    a: Estimate
    b: Estimate

    @property
    def difference(self) -> float:
        return self.a.value - self.b.value

    @property
    def errors(self) -> float:
        """The difference, in units of its standard error."""
        error = (self.a.error**2 + self.b.error**2) ** 0.5
        return self.difference / error if error else float("inf") if self.difference else 0.0


def sealed(card: Mapping[str, Any]) -> dict[str, Any]:
    """The card with its SHA-256 added."""
    return {**card, "sha256": json_checksum(card)}


def read(path: Path) -> dict[str, Any]:
    """Reads a score card. Raises ValueError if it is of another version, damaged or changed by hand."""
    try:
        card = json.loads(read_bytes(path))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(card, dict) or card.get("kind") != KIND:
        raise ValueError(f"{path} is not a score card of this version ({KIND}); make it with `fluvial score`")
    if card.pop("sha256", None) != json_checksum(card):
        raise ValueError(f"{path} is damaged, or was changed by hand: its SHA-256 is another; make it again")
    wrong = [f"{key} is {card.get(key)!r}" for key, kind in PARTS.items() if not isinstance(card.get(key), kind)]
    wrong += [f"{name} is {found!r}" for name, found in (card.get("scores") or {}).items() if not _is_score(found)]
    if wrong:
        raise ValueError(f"{path} is not a complete score card: {'; '.join(wrong)}; make it again")
    return sealed(card)


def _is_score(found: Any) -> bool:  # noqa: ANN401
    """True for an entry with a numeric value and error."""
    return isinstance(found, dict) and all(isinstance(found.get(key), float | int) for key in ("value", "error"))


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """Sentences about the entries that must agree in two cards and differ, with both values and the reason."""
    return [
        f"{path} is {short(here)} and {short(there)} ({MUST_AGREE[path]})"
        for path, (here, there) in _entries(a, b).items()
        if here != there and None not in (here, there)
    ]


def unknown(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """The entries that must agree and are missing from one card or both."""
    return [path for path, values in _entries(a, b).items() if None in values]


def _entries(*cards: Mapping[str, Any]) -> dict[str, list[Any]]:
    """The values, in each card, of the entries that must agree."""
    return {path: [card[part].get(key) for card in cards] for path in MUST_AGREE for part, key in [path.split(".")]}


def same_training(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """True if two cards were scored against the same training images."""
    return a["training"].get("hash") == b["training"].get("hash")


def compared(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[Row]:
    """The scores that both cards have. Raises ValueError naming the entries that must agree and differ."""
    if found := differences(a, b):
        raise ValueError(f"these scores cannot be compared: {'; '.join(found)}")
    both = [name for name in a["scores"] if name in b["scores"]]
    if not same_training(a, b):
        both = [name for name in both if name not in OF_TRAINING]
    return [
        Row(name, *(Estimate(c["scores"][name]["value"], c["scores"][name]["error"]) for c in (a, b))) for name in both
    ]


def short(value: Any) -> str:  # noqa: ANN401
    """The value as text; a hash is cut to its first 12 digits."""
    return value[:12] if isinstance(value, str) and len(value) == 64 else str(value)
