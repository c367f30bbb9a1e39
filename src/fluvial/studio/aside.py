"""Work done aside, in threads: a page stays answerable meanwhile, and one that is closed goes no further."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from nicegui import background_tasks, ui
from nicegui.element import Element

from fluvial.studio.work import Job

T = TypeVar("T")


async def opened() -> None:
    """Waits until the browser shows the page. Raises CancelledError, which ends what waits, if it never does."""
    await _while_open(ui.context.client.connected())


async def aside(function: Callable[[], T]) -> T:
    """The result of a function that is called in a thread.

    Raises CancelledError, which ends what waits for it, if the page is closed meanwhile.
    """
    return await _while_open(asyncio.get_running_loop().run_in_executor(None, function))


async def finished(job: Job) -> Any:  # noqa: ANN401 - what the job returns
    """The result of a job. Raises what it raises, and CancelledError if the page is closed meanwhile."""
    return await _while_open(asyncio.wrap_future(job.future))


async def _while_open(waited: Awaitable[T]) -> T:
    client = ui.context.client
    try:
        return await waited
    finally:
        if client.is_deleted:
            raise asyncio.CancelledError


def begin(work: Coroutine[Any, Any, None]) -> None:
    """Lets work on the page begin, in whose middle other events of the page are answered."""
    background_tasks.create(work, context=ui.context.client)


def teller(element: Element) -> Callable[..., object]:
    """`tell(function, *values)` for threads: the page calls the function, unless that of this element is closed."""
    loop = asyncio.get_running_loop()

    def call(function: Callable[..., Any], *values: Any) -> None:  # noqa: ANN401
        if not element.is_deleted:
            function(*values)

    return lambda function, *values: loop.call_soon_threadsafe(call, function, *values)
