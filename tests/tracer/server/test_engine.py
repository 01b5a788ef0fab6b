"""The queue: one at a time, bounded, with progress, and an end for what nobody waits for."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

pytest.importorskip("fastapi")

from crosstrace.tracer.progress import row_progress, step_progress
from crosstrace.tracer.server.core.engine import Engine, QueueFullError


@pytest.fixture
def engine() -> Iterator[Engine]:
    made = Engine(2)
    yield made
    made.close()


def held(engine: Engine):
    """A job that runs until it is let go."""
    let_go, began = threading.Event(), threading.Event()

    def work() -> str:
        began.set()
        with row_progress(100) as advance:
            while not let_go.wait(0.005):
                advance(1)
        return "done"

    job = engine.submit("held", work)
    assert began.wait(10)
    return job, let_go


def test_one_job_runs_at_a_time_in_order(engine):
    order: list[int] = []
    first, let_go = held(engine)
    jobs = [engine.submit(str(i), lambda i=i: order.append(i)) for i in range(2)]
    assert engine.is_busy
    assert [engine.before(job) for job in jobs] == [1, 2]
    assert not order
    let_go.set()
    assert all(job.wait(10) for job in (first, *jobs))
    assert (order, first.result) == ([0, 1], "done")


def test_what_is_too_much_for_the_queue_is_refused(engine):
    first, let_go = held(engine)
    jobs = [engine.submit("waits", lambda: None) for _ in range(2)]
    with pytest.raises(QueueFullError, match="2 requests are waiting already"):
        engine.submit("too much", lambda: None)
    let_go.set()
    assert all(job.wait(10) for job in (first, *jobs))
    assert engine.submit("again", lambda: 1).wait(10)


def test_progress_of_rows_and_steps_reaches_the_job(engine):
    seen = threading.Event()

    def work() -> None:
        with row_progress(10) as advance:
            advance(3)
        with step_progress() as report:
            report("heads", 1, 4)
        seen.wait(10)

    job = engine.submit("work", work)
    while job.progress[0] != "heads":
        time.sleep(0.005)
    assert job.progress == ("heads", 1, 4)
    seen.set()
    assert job.wait(10)


def test_a_running_job_ends_where_it_next_reports_progress(engine):
    job, _ = held(engine)
    job.cancel()
    assert job.wait(10)
    assert job.state == "cancelled"


def test_a_waiting_job_that_is_cancelled_never_begins(engine):
    ran: list[int] = []
    first, let_go = held(engine)
    job = engine.submit("waits", lambda: ran.append(1))
    job.cancel()
    let_go.set()
    assert first.wait(10)
    assert job.wait(10)
    assert (job.state, ran) == ("cancelled", [])


@pytest.mark.parametrize(
    ("error", "said", "is_fault"),
    [(ValueError("no such\nlayer"), "no such layer", False), (KeyError("x"), "internal error: KeyError", True)],
)
def test_an_error_ends_the_job_and_not_the_thread(engine, error, said, is_fault):
    def work() -> None:
        raise error

    job = engine.submit("fails", work)
    assert job.wait(10)
    assert (job.state, job.error, job.is_fault) == ("failed", said, is_fault)
    after = engine.submit("works", lambda: 7)
    assert after.wait(10)
    assert after.result == 7


def test_a_job_that_nobody_follows_is_cancelled_and_one_that_is_followed_is_not(engine):
    followed, let_go = held(engine)
    followed.watchers = 1
    unfollowed = engine.submit("waits", lambda: None)
    time.sleep(0.05)
    engine.cancel_unwatched(0.01)
    let_go.set()
    assert followed.wait(10)
    assert unfollowed.wait(10)
    assert (followed.state, unfollowed.state) == ("done", "cancelled")


def test_callbacks_come_once_whether_before_or_after_the_end(engine):
    called: list[str] = []
    job, let_go = held(engine)
    job.when_finished(lambda: called.append("before"))
    let_go.set()
    assert job.wait(10)
    job.when_finished(lambda: called.append("after"))
    deadline = time.monotonic() + 10
    while len(called) < 2 and time.monotonic() < deadline:
        time.sleep(0.005)
    assert sorted(called) == ["after", "before"]


def test_a_callback_that_fails_does_not_end_the_thread(engine):
    job, let_go = held(engine)
    job.when_finished(lambda: 1 / 0)
    let_go.set()
    assert engine.submit("works", lambda: None).wait(10)


def test_only_the_last_jobs_are_remembered(engine):
    jobs = []
    for i in range(300):
        jobs.append(engine.submit(str(i), lambda: None))
        assert jobs[-1].wait(10)
    assert engine.job(jobs[0].id) is None
    assert engine.job(jobs[-1].id) is jobs[-1]


def test_closing_ends_what_runs_and_takes_nothing_more():
    engine = Engine(2)
    job, _ = held(engine)
    engine.close()
    assert job.state == "cancelled"
    with pytest.raises(QueueFullError, match="going down"):
        engine.submit("late", lambda: None)
