"""Cards: numbers with where they come from, as JSON, and whether two of them can be compared."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from fluvial.metrics import Estimate

KIND = "fluvial scores 1"
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
PARTS = {"of", "scores", "images", "extractor", "reference", "training", "sampling", "warnings", "made_by"}
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


def is_card(card: Any) -> bool:  # noqa: ANN401
    """Whether this is a card that this version reads."""
    return isinstance(card, dict) and card.get("kind") == KIND and card.keys() >= PARTS


def read(card: Any, name: str) -> dict[str, Any]:  # noqa: ANN401
    """The card, if it is one. Raises ValueError if not."""
    if not is_card(card):
        raise ValueError(f"{name} is no card of scores that this version reads ({KIND}); make it with `fluvial score`")
    return card


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
