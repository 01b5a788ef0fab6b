"""Workers of a sweep in processes of their own, on this machine or on a cluster: actors of Ray.

Each loads the model once and asks for the next prompt when it is done with one. What a worker maps of transcoder files is
mapped once a machine, by the operating system. A worker that dies is replaced and its prompt is given to another.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

from crosstrace.tracer.sweeps.folder import Outcome
from crosstrace.tracer.sweeps.prompts import SweepPrompt
from crosstrace.tracer.sweeps.worker import Job, Worker, failure

ATTEMPTS = 3
"""A prompt whose workers die this often has failed."""
# Results are small: graphs go to the folder.
_STORE_BYTES = 80 * 2**20


class RayPool:
    """Traces prompts by workers."""

    def __init__(self, job: Job, workers: int | None, address: str | None, on_gpu: bool | None = None) -> None:
        """Start Ray on this machine, or join a cluster, and start the workers.

        Args:
            job: What they work on.
            workers: How many; None for as many as the cluster has GPUs, or cores where it has none or they are not used.
            address: Of the cluster, as `ray.init` takes it; None for this machine.
            on_gpu: Whether each worker gets a GPU, or its part of one; None: where there are any.

        Raises:
            ValueError: Ray is not installed, the cluster cannot be reached, or the model cannot be loaded.
            RuntimeError: Workers die while they load the model.
        """
        self._ray = ray = _ray()
        self._job, self._mine = job, not ray.is_initialized()
        if self._mine:
            quiet = {"log_to_driver": False, "logging_level": "ERROR"}
            try:
                if address is not None:
                    ray.init(address=address, **quiet)
                else:
                    cores = (workers or 1) * job.threads
                    ray.init(num_cpus=cores, object_store_memory=_STORE_BYTES, include_dashboard=False, **quiet)
            except (ConnectionError, RuntimeError, ValueError, OSError) as problem:
                where = "on this machine" if address is None else f"at {address}"
                raise ValueError(f"Ray {where} cannot be used: {' '.join(str(problem).split())}") from None
        found = ray.cluster_resources()
        gpus = found.get("GPU", 0.0) if on_gpu is not False else 0.0
        if workers is None:
            workers = max(1, int(gpus or found.get("CPU", 1.0) // job.threads))
        self._options = {"num_cpus": job.threads, "num_gpus": min(1.0, gpus / workers), "max_restarts": 0}
        self._identity: dict[str, Any] = {}
        self._loading: dict[Any, Any] = {}
        self._idle: list[Any] = []
        self._busy: dict[Any, tuple[Any, int]] = {}
        self._died_loading = 0
        try:
            for _ in range(workers):
                self._start()
            while not self._idle:
                self._wait_for_loading(timeout=None)
        except BaseException:
            self.close()
            raise

    def identity(self) -> dict[str, Any]:
        """Return what graphs depend on, as the workers loaded it; see `Worker.identity`."""
        return self._identity

    def run(self, todo: Sequence[tuple[int, SweepPrompt]]) -> Iterator[Outcome]:
        """Trace prompts in order of the list, each as a worker becomes free; yield them as they are done.

        Raises:
            OSError: A worker cannot write into the folder.
            ValueError: A worker loaded other weights than the others.
            RuntimeError: Workers die while they load the model.
        """
        ray, waiting, prompts = self._ray, deque(number for number, _ in todo), dict(todo)
        deaths: dict[int, int] = {}
        while waiting or self._busy:
            while waiting and self._idle:
                actor, number = self._idle.pop(), waiting.popleft()
                self._busy[actor.trace.remote(number, prompts[number])] = (actor, number)
            done, _ = ray.wait([*self._busy, *self._loading], num_returns=1)
            ref = done[0]
            if ref in self._loading:
                self._loaded(ref)
                continue
            actor, number = self._busy.pop(ref)
            try:
                outcome = ray.get(ref)
            except ray.exceptions.RayTaskError as problem:
                raise (problem.cause or problem) from None
            except ray.exceptions.RayError as problem:
                deaths[number] = deaths.get(number, 0) + 1
                self._start()
                if deaths[number] < ATTEMPTS:
                    waiting.appendleft(number)
                    continue
                outcome = Outcome(number, f"its worker died {ATTEMPTS} times; the last: {_why(problem)}")
            else:
                self._idle.append(actor)
            yield outcome

    def close(self) -> None:
        """End the workers, and Ray where it was started here."""
        for actor in [*self._idle, *self._loading.values(), *(actor for actor, _ in self._busy.values())]:
            self._ray.kill(actor)
        self._idle, self._loading, self._busy = [], {}, {}
        if self._mine:
            self._ray.shutdown()

    def _start(self) -> None:
        actor = self._ray.remote(_Actor).options(**self._options).remote()
        self._loading[actor.load.remote(self._job)] = actor

    def _wait_for_loading(self, timeout: float | None) -> None:
        done, _ = self._ray.wait(list(self._loading), num_returns=1, timeout=timeout)
        for ref in done:
            self._loaded(ref)

    def _loaded(self, ref: Any) -> None:
        actor = self._loading.pop(ref)
        try:
            identity = self._ray.get(ref)
        except self._ray.exceptions.RayTaskError as problem:
            raise (problem.cause or problem) from None
        except self._ray.exceptions.RayError as problem:
            self._died_loading += 1
            if self._died_loading >= ATTEMPTS:
                raise RuntimeError(f"workers die while they load the model: {_why(problem)}") from None
            self._start()
            return
        self._identity = self._identity or identity
        if identity != self._identity:
            different = next(key for key in identity if identity[key] != self._identity[key])
            raise ValueError(f"the workers do not have the same {different.replace('_', ' ')} on all machines")
        self._idle.append(actor)


class _Actor:
    """A worker in a process of its own. It loads the model when it is told to, so that errors come back as they are."""

    def load(self, job: Job) -> dict[str, Any]:
        self._worker = Worker(job)
        return self._worker.identity()

    def trace(self, number: int, prompt: SweepPrompt) -> Outcome:
        return self._worker.trace(number, prompt)


def _ray() -> Any:
    try:
        import ray
    except ImportError:
        raise ValueError(
            "several workers need Ray, which is not installed; pip install 'crosstrace[ray]', or share the prompts out with "
            "--shard i/n"
        ) from None
    return ray


def _why(problem: BaseException) -> str:
    said = failure(problem)
    return said if len(said) <= 200 else f"{said[:200]}…"
