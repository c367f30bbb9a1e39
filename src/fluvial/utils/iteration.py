"""A function that calls back, as an iterator."""

from collections.abc import Callable, Generator
from queue import SimpleQueue
from threading import Thread
from typing import NamedTuple, TypeVar

Item = TypeVar("Item")


class _Ended(NamedTuple):
    """The end of the work, with its error if it had one."""

    error: BaseException | None = None


def iterated(work: Callable[[Callable[[Item], None]], None]) -> Generator[Item, None, None]:
    """The items that `work(emit)` passes to `emit`, one by one, each computed when it is asked for.

    The work runs in a thread of its own, which waits in `emit` until the next item is asked for: the thread and its
    caller never run at the same time. Where the iterator is closed or dropped, `emit` raises GeneratorExit, as `yield`
    would, and the thread has ended when close() returns. An error of the work is raised from the iterator.
    """
    told: SimpleQueue[Item | _Ended] = SimpleQueue()
    asked: SimpleQueue[bool] = SimpleQueue()

    def emit(item: Item) -> None:
        told.put(item)
        if not asked.get():
            raise GeneratorExit

    def run() -> None:
        try:
            work(emit)
            told.put(_Ended())
        except BaseException as error:
            told.put(_Ended(error))

    thread = Thread(target=run, daemon=True)  # an iterator that is left open does not keep the process from ending
    thread.start()
    try:
        while not isinstance(item := told.get(), _Ended):
            yield item
            asked.put(True)
    finally:
        asked.put(False)
        thread.join()
    if item.error is not None:
        raise item.error
