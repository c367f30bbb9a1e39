"""Work beside a page: its results come back, and a page that is closed meanwhile goes no further."""

import asyncio
from threading import Event

import pytest

pytest.importorskip("nicegui")
from nicegui import Client, background_tasks, core, ui
from starlette.requests import Request

from fluvial.studio.aside import aside, finished, opened
from fluvial.studio.work import Work

REQUEST = Request({"type": "http", "method": "GET", "path": "/", "query_string": b"", "headers": []})


def ended(work, how: str = "") -> list[str]:
    """What `work(go, seen)` has seen at its end; while it waits for `go`, its page is closed, or it is cancelled."""
    go, seen = Event(), []

    async def both() -> None:
        core.loop = asyncio.get_running_loop()
        with Client(ui.page("/"), request=REQUEST) as client:
            task = background_tasks.create(work(go, seen), context=client)
        await asyncio.sleep(0.05)
        assert seen == ["began"]
        if how == "closed":
            client.delete()
        elif how == "cancelled":  # as NiceGUI does with a timer whose element is removed
            task.cancel()
        go.set()
        await asyncio.wait([task])
        assert task.cancelled() is bool(how)
        if how != "closed":
            client.delete()

    asyncio.run(both())
    return seen


async def in_a_thread(go, seen) -> None:
    seen.append("began")
    seen.append(await aside(lambda: f"done {go.wait(10)}"))


async def as_a_job(go, seen) -> None:
    seen.append("began")
    seen.append(await finished(Work().submit("a job", lambda job: f"done {go.wait(10)}")))


async def as_a_job_that_fails(go, seen) -> None:
    def fail(job):
        go.wait(10)
        raise ValueError("no such run")

    seen.append("began")
    try:
        await finished(Work().submit("a job", fail))
    except ValueError as error:
        seen.append(str(error))


@pytest.mark.parametrize(
    ("work", "result"),
    [(in_a_thread, "done True"), (as_a_job, "done True"), (as_a_job_that_fails, "no such run")],
    ids=["thread", "job", "failure"],
)
def test_a_result_comes_back_unless_the_page_is_closed(work, result):
    assert ended(work) == ["began", result]
    assert ended(work, "closed") == ended(work, "cancelled") == ["began"]


def test_a_page_that_is_never_shown_is_given_up():
    async def shown(go, seen) -> None:
        seen.append("began")
        await opened()
        seen.append("shown")

    assert ended(shown, "closed") == ["began"]
