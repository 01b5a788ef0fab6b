"""Jobs as requests see them: awaited on the event loop, followed as a stream of events, cancelled when nobody listens."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from fastapi import HTTPException, Request
from starlette.concurrency import run_in_threadpool

from crosstrace.tracer.server.core.engine import Engine, Job, QueueFullError

_LOOK_SECONDS = 0.5  # how often it is checked whether the client is still there
_EVENT_SECONDS = 0.1
_UNWATCHED_SECONDS = 15.0


class Refused(HTTPException):
    """An answer of one line, `{"error": …}`."""

    def __init__(self, status: int, error: str) -> None:
        super().__init__(status, error)


async def checked(check: Callable[..., Any], *arguments: Any) -> Any:
    """Check a request in a thread of its own, so that a long prompt does not hold up others.

    Raises:
        Refused: It cannot be used; the status is 400.
    """
    try:
        return await run_in_threadpool(check, *arguments)
    except (ValueError, OSError) as problem:
        raise Refused(400, " ".join(str(problem).split())) from None


def submitted(engine: Engine, what: str, work: Callable[[], Any]) -> Job:
    """Put work on the queue.

    Raises:
        Refused: The queue is full; the status is 503.
    """
    try:
        return engine.submit(what, work)
    except QueueFullError as problem:
        raise Refused(503, str(problem)) from None


async def done(engine: Engine, request: Request, what: str, work: Callable[[], Any]) -> Any:
    """Put work on the queue and return its result; if the client goes, the work ends.

    Raises:
        Refused: The queue is full (503), the request cannot be used (400), it failed (500), or the client went (499).
    """
    job = submitted(engine, what, work)
    job.watchers += 1
    loop, finished = asyncio.get_running_loop(), asyncio.Event()

    def wake() -> None:
        with contextlib.suppress(RuntimeError):  # the server has stopped
            loop.call_soon_threadsafe(finished.set)

    job.when_finished(wake)
    try:
        while not finished.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(finished.wait(), _LOOK_SECONDS)
            if not finished.is_set() and await request.is_disconnected():
                job.cancel()
                raise Refused(499, "the client went away")
    except asyncio.CancelledError:
        job.cancel()
        raise
    match job.state:
        case "done":
            return job.result
        case "cancelled":
            raise Refused(503, "the server is going down")
        case _:
            raise Refused(500 if job.is_fault else 400, job.error)


def as_json(engine: Engine, job: Job) -> dict[str, Any]:
    """Return what a page shows of a job."""
    what, at, total = job.progress
    before = engine.before(job) if job.state == "waiting" else 0
    shown = {"id": job.id, "what": job.what, "state": job.state, "doing": what, "done": at, "total": total}
    return {**shown, "before": before, "error": job.error, "result": job.result if job.state == "done" else None}


async def events(engine: Engine, job: Job) -> AsyncIterator[str]:
    """Yield a job's progress as server-sent events, the last of them when it is finished."""
    job.watchers += 1
    try:
        last = ""
        while True:
            is_last = job.is_finished
            told = json.dumps(as_json(engine, job))
            if told != last:
                last = told
                yield f"data: {told}\n\n"
            if is_last:
                return
            await asyncio.sleep(_EVENT_SECONDS)
    finally:
        job.watchers -= 1
        job.unwatched_since = time.monotonic()


async def cancel_unwatched(engine: Engine) -> None:
    """Cancel, as long as the server runs, what nobody follows any more: a closed page's trace."""
    while True:
        await asyncio.sleep(1.0)
        engine.cancel_unwatched(_UNWATCHED_SECONDS)
