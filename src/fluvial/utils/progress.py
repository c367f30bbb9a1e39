"""Progress of long commands: a bar in a terminal, a line every few seconds elsewhere."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

SECONDS = 10  # between printed lines where there is no terminal
BRIEF = 2  # seconds up to which nothing is printed there


@contextmanager
def phase(what: str) -> Iterator[None]:
    """Names what goes on, in a terminal while it does; elsewhere afterwards, with its seconds, if it took long."""
    console, started = Console(stderr=True), time.perf_counter()
    if console.is_terminal:
        with console.status(what):
            yield
        return
    yield
    if (taken := time.perf_counter() - started) > BRIEF:
        print(f"{what}: {taken:.0f} s", flush=True)


class Bar:
    """A progress bar that shows `done` of `total`; use it in a with statement."""

    def __init__(
        self, total: int, done: int = 0, *, what: str = "", every_call: bool = False, quiet: bool = False
    ) -> None:
        console = Console(stderr=True)
        self.total, self.first, self.what = total, done, what
        self.every_call = every_call
        self.started = self.shown = time.perf_counter()
        columns = (
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.description}", markup=False),
            TimeRemainingColumn(),
        )
        self.quiet = quiet
        self.bar = Progress(*columns, console=console) if console.is_terminal and not quiet else None
        self.task = self.bar.add_task(what or "starting", total=total, completed=done) if self.bar else None

    def __enter__(self) -> "Bar":
        if self.bar is not None:
            self.bar.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.bar is not None:
            self.bar.stop()

    def show(self, done: int, text: str = "") -> None:
        """Updates the bar; without a terminal, prints a line every 10 s, or at `every_call`, and at the end.

        The end of what was brief is not printed.
        """
        if self.quiet:
            return
        if self.bar is not None and self.task is not None:
            self.bar.update(self.task, completed=done, description=text or self.what)
            return
        now = time.perf_counter()
        over = done == self.total and (self.shown > self.started or now - self.started > BRIEF)
        if self.every_call or over or now - self.shown > SECONDS:
            left = (now - self.started) / max(1, done - self.first) * (self.total - done)
            what = " ".join(part for part in (self.what, f"{done:>{len(str(self.total))}}/{self.total}") if part)
            print(f"{what}  {text}  {left:.0f} s left" if text else f"{what}  {left:.0f} s left", flush=True)
            self.shown = now


def duration(seconds: float) -> str:
    """A time span such as 2 h 5 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60:,} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {rest} s"
