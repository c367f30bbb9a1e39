"""Scores by which settings can be ranked: which direction is better, and from how many samples there is one."""

from difflib import get_close_matches

from fluvial.evaluation.scores import NAMES, SPLITS, named
from fluvial.metrics.precision import DENSITY_K

LOWER = ("frechet_distance", "spatial_frechet_distance", "kernel_distance")
HIGHER = ("classifier_score", "class_accuracy", "precision", "recall", "density", "coverage")
FEWEST = {"classifier_score": 2 * SPLITS, **dict.fromkeys(("kernel_distance", *HIGHER[2:]), DENSITY_K + 1)}
OF_INCEPTION = {name: general for general, name in NAMES.items()}


def ranking(score: str) -> str:
    """The general name of a score, kernel_distance for kid. Raises ValueError for others, with the closest."""
    score = score.replace("-", "_")
    known = [*LOWER, *HIGHER, *OF_INCEPTION]
    if score not in known:
        close = get_close_matches(score, known, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise ValueError(f"there is no score {score!r:.100} to rank by{hint}; there are {', '.join(known)}")
    return OF_INCEPTION.get(score, score)


def is_lower_better(score: str) -> bool:
    """True for distances."""
    return ranking(score) in LOWER


def check_count(score: str, count: int) -> None:
    """Raises ValueError for fewer samples than the score needs."""
    if count < (fewest := FEWEST.get(ranking(score), 2)):
        raise ValueError(f"{score} needs at least {fewest} images, got a count of {count}")


def of_extractor(score: str, extractor: str) -> str:
    """The name that a card has for the score with the features of this extractor.

    Raises ValueError for a name that is Inception's alone, with others.
    """
    general = ranking(score)
    if score in OF_INCEPTION and extractor != "inception":
        raise ValueError(
            f"{score} is of the Inception network's features, and these are of {extractor}: rank by {general}, or take "
            f"the features of inception"
        )
    return named(general, extractor)
