"""The result of one check."""

from dataclasses import dataclass
from typing import Literal

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


def not_checked(name: str, why: str) -> Check:
    """A check that could not be made, with the reason."""
    return Check(name=name, found="-", expected="-", verdict="not checked", advice=why)


def judge(look: bool, wrong: bool) -> Verdict:
    """The verdict: wrong, else look, else ok."""
    return "wrong" if wrong else "look" if look else "ok"
