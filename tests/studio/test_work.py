"""One heavy job at a time, in order; a job that is stopped makes room."""

import threading
import time

import pytest

from fluvial.studio.work import Stopped, Work


def test_jobs_run_one_at_a_time_and_in_order():
    work, go, seen, at_once = Work(), threading.Event(), [], []

    def job(name):
        def function(job):
            at_once.append(name)
            assert len(at_once) == 1
            if name == "a":
                go.wait(10)
            seen.append(name)
            at_once.remove(name)
            return name

        return function

    jobs = [work.submit(name, job(name)) for name in "abc"]
    assert work.names() == ["a", "b", "c"] and work.before(jobs[2]) == ["a", "b"]
    go.set()
    assert [each.future.result(10) for each in jobs] == seen == ["a", "b", "c"]
    assert work.names() == [] and work.before(jobs[0]) == []


def test_a_job_stops_where_it_is_or_before_it_starts():
    work, started = Work(), threading.Event()

    def long(job):
        started.set()
        while True:
            job.check()
            time.sleep(0.005)

    running, waiting = work.submit("long", long), work.submit("never", lambda job: 1)
    started.wait(10)
    waiting.stop()
    running.stop()
    for job in (running, waiting):
        with pytest.raises(Stopped):
            job.future.result(10)
    assert work.submit("next", lambda job: 2).future.result(10) == 2
    failed = work.submit("wrong", lambda job: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        failed.future.result(10)
    assert work.names() == []
