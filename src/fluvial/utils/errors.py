"""Errors that commands end with; they need no torch."""


class UsageError(ValueError):
    """The command line is wrong: exit code 2."""


class Stopped(Exception):
    """Training was asked to stop, and did after a checkpoint: exit code 0."""

    def __init__(self, step: int, signal: str) -> None:
        super().__init__(f"stopped by {signal} after step {step}, with a checkpoint; the same command goes on from it")
        self.step = step
