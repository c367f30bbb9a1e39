"""Heavy work of the studio: one job at a time, the others wait in order."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from threading import Event, Lock
from typing import Any


class Stopped(Exception):
    """The job was asked to stop."""


class Job:
    """Work that waits, runs, or is done."""

    def __init__(self, name: str, function: Callable[["Job"], Any]) -> None:
        self.name, self.function = name, function
        self.future: Future[Any] = Future()
        """Its result; of a job that was stopped, `Stopped`."""
        self._stop = Event()

    def stop(self) -> None:
        """Asks it to stop at its next step, or not to start."""
        self._stop.set()

    def check(self) -> None:
        """Raises Stopped if it was asked to stop. The function calls it often."""
        if self._stop.is_set():
            raise Stopped(self.name)


class Work:
    """A thread that does one job after another."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="studio")
        self._lock, self._jobs = Lock(), list[Job]()

    def submit(self, name: str, function: Callable[[Job], Any]) -> Job:
        """Lets `function(job)` run when those before it are done; `name` is for the queue that pages show."""
        job = Job(name, function)
        with self._lock:
            self._jobs.append(job)
        self._pool.submit(self._run, job)
        return job

    def _run(self, job: Job) -> None:
        try:
            job.check()
            result = job.function(job)
        except BaseException as error:
            self._done(job)
            job.future.set_exception(error)
        else:
            self._done(job)
            job.future.set_result(result)

    def _done(self, job: Job) -> None:
        with self._lock, suppress(ValueError):
            self._jobs.remove(job)

    def names(self) -> list[str]:
        """The names of the job that runs, and of those that wait, in order."""
        with self._lock:
            return [job.name for job in self._jobs]

    def before(self, job: Job) -> list[str]:
        """The names of the jobs before a job."""
        with self._lock:
            return [other.name for other in self._jobs[: self._jobs.index(job)]] if job in self._jobs else []
