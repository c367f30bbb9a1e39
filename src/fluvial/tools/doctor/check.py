"""The result of one check."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Verdict = Literal["ok", "look", "wrong", "not checked"]


@dataclass(frozen=True, kw_only=True)
class Check:
    """A check's finding, what was expected, and a verdict."""

    name: str
    found: str
    expected: str
    verdict: Verdict
    advice: str = ""
    """The likely cause and what to do, if the verdict is not ok; why it was not checked; or ""."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """The settings to train again with, if that mends it, such as {"optim.lr": 1e-4}."""
    command: str = ""
    """Another command that mends it, with RUN for the folder."""


def not_checked(name: str, why: str) -> Check:
    """A check that could not be made, with the reason."""
    return Check(name=name, found="-", expected="-", verdict="not checked", advice=why)


def judge(look: bool, wrong: bool) -> Verdict:
    """The verdict: wrong, else look, else ok."""
    return "wrong" if wrong else "look" if look else "ok"


def worst_first(checks: Sequence[Check]) -> list[Check]:
    """The checks that found something, those that are wrong before those to look at."""
    return [check for verdict in ("wrong", "look") for check in checks if check.verdict == verdict]


def rounded(value: float) -> float:
    """The value to one digit, as one would set it."""
    return float(f"{value:.1g}")
