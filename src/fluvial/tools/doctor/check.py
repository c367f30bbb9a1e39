"""The result of one check."""

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["ok", "look", "wrong", "not checked"]


@dataclass(frozen=True, kw_only=True)
class Check:
    name: str
    found: str
    expected: str
    verdict: Verdict
    advice: str = ""
    """The likely cause and what to do, where the verdict is not ok; else what the check rests on, or nothing."""


def not_checked(name: str, why: str) -> Check:
    """A check that the run gives nothing to decide."""
    return Check(name=name, found="-", expected="-", verdict="not checked", advice=why)


def judge(look: bool, wrong: bool) -> Verdict:
    """The graver of the two, or ok."""
    return "wrong" if wrong else "look" if look else "ok"
