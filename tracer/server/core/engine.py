"""One model at work at a time: a bounded queue and the one thread that takes from it.

Requests come in on the server's event loop; everything that touches a model runs here, so that nothing has to be locked and
memory is that of one request.
"""

from __future__ import annotations

import logging
import queue
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Literal

from crosstrace.tracer.progress import watched

State = Literal["waiting", "running", "done", "failed", "cancelled"]
log = logging.getLogger(__name__)

_REMEMBERED = 256  # finished jobs that can still be asked about
_USER_ERRORS = (ValueError, OSError, MemoryError)


class QueueFullError(RuntimeError):
    """As many requests wait as may."""


class CancelledError(Exception):
    """Nobody waits for the result any more."""


class Job:
    """One piece of work on the queue. Its attributes are read from other threads; only the worker writes them.

    Attributes:
        id: Cannot be guessed: whoever knows it may watch and cancel.
        what: What is done, for people.
        state: `waiting`, `running`, `done`, `failed` or `cancelled`.
        progress: What is being done, how much of it, and out of how much.
        result: What the work returned.
        error: Why it failed, in one line.
        is_fault: Whether that was a fault of the program rather than of the request.
    """

    def __init__(self, what: str, work: Callable[[], Any]) -> None:
        self.id = secrets.token_urlsafe(16)
        self.what, self.state = what, "waiting"
        self.progress: tuple[str, int, int] = ("waiting", 0, 0)
        self.result: Any = None
        self.error = ""
        self.is_fault = False
        self.watchers = 0
        self.unwatched_since = time.monotonic()
        self._work: Callable[[], Any] | None = work
        self._cancelled = threading.Event()
        self._finished = threading.Event()
        self._callbacks: list[Callable[[], object]] = []
        self._lock = threading.Lock()

    state: State

    @property
    def is_finished(self) -> bool:
        """Whether nothing will change any more."""
        return self._finished.is_set()

    def when_finished(self, callback: Callable[[], object]) -> None:
        """Call a function once it is finished, in the worker's thread, or now if it is already."""
        with self._lock:
            if not self._finished.is_set():
                self._callbacks.append(callback)
                return
        callback()

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until it is finished; say whether it is."""
        return self._finished.wait(seconds)

    def cancel(self) -> None:
        """Let it end as soon as the work next reports progress, or before it begins."""
        self._cancelled.set()

    def told(self, what: str, done: int, total: int) -> None:
        """Note progress; see `crosstrace.tracer.progress.watched`.

        Raises:
            CancelledError: It is to end.
        """
        if self._cancelled.is_set():
            raise CancelledError
        self.progress = (what, done, total)

    def run(self) -> None:
        """Do the work, in the worker's thread."""
        assert self._work is not None
        try:
            self.told("starting", 0, 0)
            self.state = "running"
            with watched(self.told):
                self.result = self._work()
            self.state = "done"
        except CancelledError:
            self.state = "cancelled"
        except _USER_ERRORS as problem:
            self.error, self.state = " ".join(str(problem).split()) or type(problem).__name__, "failed"
        except Exception as problem:  # the thread has to live on
            log.exception("%s failed", self.what)
            self.error, self.is_fault, self.state = f"internal error: {type(problem).__name__}", True, "failed"
        finally:
            self._work = None  # what it holds may be large
            with self._lock:
                self._finished.set()
            for callback in self._callbacks:
                try:
                    callback()
                except Exception:  # the thread has to live on
                    log.exception("what waited for %s failed", self.what)


class Engine:
    """The queue and its thread."""

    def __init__(self, most_waiting: int) -> None:
        """
        Args:
            most_waiting: How many jobs wait while another runs.
        """
        self._queue: queue.Queue[Job | None] = queue.Queue(most_waiting)
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._lock = threading.Lock()
        self._running: Job | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="crosstrace worker", daemon=True)
        self._thread.start()

    @property
    def is_busy(self) -> bool:
        """Whether a job runs or waits."""
        return self._running is not None or not self._queue.empty()

    def submit(self, what: str, work: Callable[[], Any]) -> Job:
        """Put work on the queue.

        Args:
            what: What is done, for people.
            work: Called in the worker's thread; its progress goes to the job.

        Raises:
            QueueFullError: As many jobs wait as may, or the server is going down.
        """
        job = Job(what, work)
        if self._closed:
            raise QueueFullError("the server is going down")
        try:
            self._queue.put_nowait(job)
        except queue.Full:
            raise QueueFullError(f"{self._queue.maxsize} requests are waiting already; try again later") from None
        with self._lock:
            self._jobs[job.id] = job
            for known in [one for one in self._jobs.values() if one.is_finished][
                : max(0, len(self._jobs) - _REMEMBERED)
            ]:
                del self._jobs[known.id]
        return job

    def job(self, job_id: str) -> Job | None:
        """Return a job that runs, waits, or ended not long ago."""
        with self._lock:
            return self._jobs.get(job_id)

    def before(self, job: Job) -> int:
        """Return how many jobs come before one that waits."""
        with self._lock:
            unfinished = [one for one in self._jobs.values() if not one.is_finished]
        return unfinished.index(job) if job in unfinished else 0

    def cancel_unwatched(self, seconds: float) -> None:
        """Cancel the jobs whose progress nobody has followed for a while.

        Args:
            seconds: How long that may be: a page that is loaded again takes a moment.
        """
        now = time.monotonic()
        with self._lock:
            jobs = list(self._jobs.values())
        for job in jobs:
            if not job.is_finished and job.watchers == 0 and now - job.unwatched_since > seconds:
                job.cancel()

    def close(self) -> None:
        """Cancel everything and end the thread."""
        self._closed = True
        with self._lock:
            for job in self._jobs.values():
                job.cancel()
        try:
            self._queue.put(None, timeout=10)
        except queue.Full:
            return  # a thread that hangs ends with the process
        self._thread.join(timeout=10)

    def _work(self) -> None:
        while (job := self._queue.get()) is not None:
            self._running = job
            job.run()
            self._running = None
            del job
