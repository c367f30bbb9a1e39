"""Errors that commands end with; they need no torch."""

from collections.abc import Callable
from typing import Any


class UsageError(ValueError):
    """The command line is wrong: exit code 2."""


class Stopped(Exception):
    """Training was asked to stop, and did after a checkpoint: exit code 0."""

    def __init__(self, step: int, signal: str) -> None:
        super().__init__(f"stopped by {signal} after step {step}, with a checkpoint; the same command goes on from it")
        self.step = step


def together(*makes: Callable[[], Any]) -> list[Any]:
    """The results of these functions. Raises one ValueError with the messages of all that raise one."""
    found, wrong = [], []
    for make in makes:
        try:
            found.append(make())
        except ValueError as error:
            wrong.append(str(error))
    if wrong:
        raise ValueError("; and ".join(dict.fromkeys(wrong)))
    return found
