"""Ingests and audits: one at a time in a thread of their own, beside the questions.

The thread has the same weights, and a configuration, a tokenizer and a connection of its own.
"""

import secrets
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from logging import getLogger
from typing import Any, Literal

from rag_memtok.datatypes import Progress
from rag_memtok.errors import Busy, RagMemtokError
from rag_memtok.pipeline.audit import Audit
from rag_memtok.pipeline.handle import MemoryStore
from rag_memtok.pipeline.ingest import Ingested
from rag_memtok.serve.metrics import Metrics

WAITING, REMEMBERED = 32, 200  # jobs
ENDS, LATER = "the server ends", "try again later"
ENDED = frozenset({"done", "failed", "stopped"})

log = getLogger(__name__)


class Stopped(KeyboardInterrupt):
    """Ends a job as Ctrl-C does: what is done is kept."""


@dataclass(slots=True, eq=False, kw_only=True)
class Job:
    """An ingest or an audit: its state, progress and result.

    `version` grows with every change. `joins`: whether one more file may be added while it waits.
    """

    id: str
    kind: Literal["ingest", "verify"]
    subjects: list[str]
    work: Callable[[MemoryStore], Ingested | Audit]
    joins: bool = False
    state: Literal["waiting", "running", "done", "failed", "stopped"] = "waiting"
    progress: Progress | None = None
    result: Ingested | Audit | None = None
    error: Exception | None = None
    version: int = 0

    def update(self, **changes: Any) -> None:
        """Sets fields, the state last: whoever sees that it ended sees its result, too."""
        for name in sorted(changes, key=lambda name: name == "state"):
            setattr(self, name, changes[name])
        self.version += 1


class Jobs:
    """The jobs of a server; made once, closed once."""

    def __init__(self, store: MemoryStore, metrics: Metrics) -> None:
        self._store, self._metrics = store.beside(self._tell), metrics
        self._jobs: dict[str, Job] = {}
        self._queue: deque[Job] = deque()
        self._changed = threading.Condition()
        self._closing = self._stopping = False
        self._current: Job | None = None
        self._thread = threading.Thread(target=self._run, name="jobs", daemon=True)
        self._thread.start()
        metrics.gauge("jobs_waiting", lambda: len(self._queue))

    def add(
        self,
        kind: Literal["ingest", "verify"],
        subjects: Sequence[str],
        work: Callable[[MemoryStore], Ingested | Audit],
        *,
        joins: bool = False,
    ) -> Job:
        """Puts a job into the queue; one that `joins` may become part of one that waits.

        Raises:
            Busy: too many wait, or the server ends.
        """
        with self._changed:
            if self._closing:
                raise Busy(ENDS, remedy=LATER, seconds=30)
            if joins and (waiting := next((job for job in self._queue if job.joins), None)):
                waiting.update(subjects=[*waiting.subjects, *subjects])
                return waiting
            if len(self._queue) >= WAITING:
                raise Busy(f"{WAITING} jobs wait already", remedy=LATER, seconds=30)
            job = Job(
                id=secrets.token_hex(8),
                kind=kind,
                subjects=list(subjects),
                work=work,
                joins=joins,
            )
            self._jobs[job.id] = job
            self._queue.append(job)
            self._changed.notify()
            return job

    def all(self) -> list[Job]:
        """The jobs that are remembered, the last one first."""
        with self._changed:
            return list(reversed(self._jobs.values()))

    def get(self, id: str) -> Job | None:
        """The job of that id."""
        return self._jobs.get(id)

    @property
    def running(self) -> Job | None:
        """The job that runs; None: there is none."""
        job = self._current
        return job if job and job.state == "running" else None

    def finish(self) -> int:
        """Takes nothing more and ends what waits, but not what runs; returns how many waited."""
        with self._changed:
            self._closing = True
            waited = len(self._queue)
            for job in self._queue:
                job.update(state="stopped")
            self._queue.clear()
            self._changed.notify()
            return waited

    def stop(self) -> None:
        """Ends what runs at its next step, and what waits at once; what is done is kept."""
        self.finish()
        self._stopping = True

    def close(self) -> None:
        """Stops, and returns when nothing runs."""
        self.stop()
        self._thread.join()

    def _run(self) -> None:
        while job := self._next():
            self._work(job)
            self._metrics.count("jobs_total", kind=job.kind, state=job.state)
        self._store.close()

    def _next(self) -> Job | None:
        with self._changed:
            while not self._queue and not self._closing:
                self._changed.wait()
            if not self._queue:
                return None
            self._current = self._queue.popleft()
            self._current.update(state="running")
            ended = [job.id for job in self._jobs.values() if job.state in ENDED]
            for id in ended[: max(0, len(self._jobs) - REMEMBERED)]:
                del self._jobs[id]
            return self._current

    def _work(self, job: Job) -> None:
        try:
            result = job.work(self._store)
        except Stopped:
            job.update(state="stopped")
        except Exception as error:
            if not isinstance(error, RagMemtokError):
                log.exception("a job failed")
            job.update(state="failed", error=error)
        else:
            stopped = isinstance(result, Audit) and result.interrupted
            job.update(state="stopped" if stopped else "done", result=result)

    def _tell(self, progress: Progress) -> None:
        """Notes the progress of the running job; here it is stopped.

        Raises:
            Stopped: the server ends.
        """
        if self._current:
            self._current.update(progress=progress)
        if self._stopping:
            raise Stopped
