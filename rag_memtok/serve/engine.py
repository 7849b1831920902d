"""The one thread that asks the store: a queue with a bound, questions answered in batches.

SQLite's connection, the tokenizer and the model are that thread's alone. Whatever waits when it
looks into the queue is answered in the same forward passes.
"""

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from logging import getLogger
from typing import Any, TypeVar

from rag_memtok.datatypes import Answer
from rag_memtok.errors import Busy, NoStore, NoUsableMemory, RagMemtokError
from rag_memtok.model.inject import BATCH
from rag_memtok.pipeline.answer import Prepared, finish, prepare, respond
from rag_memtok.pipeline.handle import MemoryStore
from rag_memtok.pipeline.readers import Session
from rag_memtok.serve.metrics import Metrics

T = TypeVar("T")
LONGEST_WAIT = 60  # seconds that a client is told to wait, at most

log = getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is asked; `k` 0, `within` "" and `limit` 0 are as the store's session has them."""

    text: str
    before: str = ""
    k: int = 0
    within: str = ""
    limit: int = 0


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer, the tokens it was said in, and whether it ended by itself."""

    answer: Answer
    tokens: int
    complete: bool


@dataclass(slots=True, eq=False)
class Ticket:
    """A place in the queue: what is to be done, and what came of it.

    `work` is a question, or something else to do with the session. Once it is cancelled nothing
    more is done for it.
    """

    work: Question | Callable[[Session], Any]
    on_text: Callable[[str], None] = lambda text: None
    result: "Future[Any]" = field(default_factory=Future)
    since: float = field(default_factory=time.monotonic)
    cancelled: bool = False

    def cancel(self) -> None:
        """Nobody wants it any more."""
        self.cancelled = True


class Engine:
    """A store that many ask at once; made for one server, closed once."""

    def __init__(self, store: MemoryStore, metrics: Metrics, places: int) -> None:
        self.store, self.metrics, self.places = store, metrics, places
        self._queue: deque[Ticket] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._at_work = 0  # how many are being answered
        self._seconds = 1.0  # that a question takes, lately
        self._thread = threading.Thread(target=self._run, name="answers", daemon=True)
        metrics.gauge("questions_waiting", lambda: self.waiting)

    @property
    def waiting(self) -> int:
        """How many are in the queue."""
        return len(self._queue)

    @property
    def under_way(self) -> int:
        """How many wait or are being answered."""
        with self._changed:
            return len(self._queue) + self._at_work

    def start(self) -> None:
        """Loads the store and its model, and answers from then on.

        A store that is not there yet is opened when it is.

        Raises:
            InputRefused: it was not made here, and is not trusted.
            StoreDamaged, WrongModel, ModelUnavailable, ...: see `api.session`.
        """
        self._thread.start()
        with suppress(NoStore):
            self.call(lambda session: None).result()

    def ask(self, question: Question, on_text: Callable[[str], None]) -> Ticket:
        """Puts a question into the queue; `on_text` gets the answer piece by piece, in the thread.

        Raises:
            Busy: the queue is full, or the server ends.
        """
        return self._put(Ticket(question, on_text))

    def call(self, work: Callable[[Session], T]) -> "Future[T]":
        """Has something done with the session, in its turn.

        Raises:
            Busy: the queue is full, or the server ends.
        """
        return self._put(Ticket(work)).result

    def finish(self) -> None:
        """Takes nothing more; what waits is answered."""
        with self._changed:
            self._closing = True
            self._changed.notify()

    def close(self) -> None:
        """Takes nothing more, and returns when all that waits is answered."""
        self.finish()
        self._thread.join()

    def _put(self, ticket: Ticket) -> Ticket:
        with self._changed:
            full = sum(not one.cancelled for one in self._queue) >= self.places
            if full or self._closing:
                self.metrics.count("questions_total", outcome="busy")
                wait = math.ceil(self._seconds * (len(self._queue) + 1))
                raise Busy(
                    "the server ends" if self._closing else f"{self.places} questions wait already",
                    remedy="ask again in a while",
                    seconds=min(max(wait, 1), LONGEST_WAIT),
                )
            self._queue.append(ticket)
            self._changed.notify()
        return ticket

    def _run(self) -> None:
        while some := self._taken():
            try:
                self._serve(some)
            except Exception as error:  # it costs these their answers, and nobody else
                for one in some:
                    self._fail(one, error)
        self.store.close()

    def _taken(self) -> list[Ticket]:
        """What waits, at most a batch of it; nothing once all is done and the server ends."""
        with self._changed:
            self._at_work = 0
            while not self._queue and not self._closing:
                self._changed.wait()
            self._at_work = min(len(self._queue), BATCH)
            return [self._queue.popleft() for _ in range(self._at_work)]

    def _serve(self, some: Sequence[Ticket]) -> None:
        session = self.store.session()
        ready: list[tuple[Ticket, Prepared]] = []
        for one in some:
            if one.cancelled:
                self.metrics.count("questions_total", outcome="cancelled")
            elif isinstance(one.work, Question):
                with self._failing(one):
                    ready.append((one, prepared(session, one, one.work)))
            else:
                with self._failing(one):
                    one.result.set_result(one.work(session))
        for group in grouped(ready):
            self._answer(session, group)

    def _answer(self, session: Session, group: Sequence[tuple[Ticket, Prepared]]) -> None:
        """Lets a group of questions share its forward passes."""
        began = time.monotonic()
        try:
            responses = respond(session, [ready for _, ready in group])
        except Exception as error:
            for one, _ in group:
                self._fail(one, error)
            return
        self.metrics.count("batches_total")
        self.metrics.count("batched_questions_total", len(group))
        for (one, ready), response in zip(group, responses, strict=True):
            with self._failing(one):
                answer = finish(session, ready, response)
                self._tell(one, Reply(answer, len(response.tokens), response.complete))
        self._seconds += 0.2 * ((time.monotonic() - began) / len(group) - self._seconds)

    def _tell(self, one: Ticket, reply: Reply) -> None:
        seconds = time.monotonic() - one.since
        outcome = (
            "cancelled" if one.cancelled else "refused" if reply.answer.refused else "answered"
        )
        self.metrics.count("questions_total", outcome=outcome)
        self.metrics.count("answer_seconds_sum", seconds)
        self.metrics.count("answer_seconds_count")
        answer = replace(reply.answer, seconds=seconds)
        one.result.set_result(replace(reply, answer=answer))

    @contextmanager
    def _failing(self, one: Ticket) -> Iterator[None]:
        """What goes wrong within is the ticket's, and nobody else's."""
        try:
            yield
        except Exception as error:
            self._fail(one, error)

    def _fail(self, one: Ticket, error: Exception) -> None:
        if one.result.done():
            return
        if not isinstance(error, RagMemtokError):
            log.error("a question was not answered", exc_info=error)
        nothing = isinstance(error, NoUsableMemory)
        self.metrics.count("questions_total", outcome="nothing" if nothing else "failed")
        one.result.set_exception(error)


def prepared(session: Session, ticket: Ticket, question: Question) -> Prepared:
    """A ticket's question, ready for the LM."""
    found = session.config.retrieve
    return prepare(
        session,
        question.text,
        question.before,
        retrieve=replace(found, k=question.k or found.k, within=question.within or found.within),
        limit=question.limit,
        on_text=ticket.on_text,
        cancelled=lambda: ticket.cancelled,
    )


def grouped(
    ready: Sequence[tuple[Ticket, Prepared]],
) -> list[list[tuple[Ticket, Prepared]]]:
    """In their order, so many that their prompts are one batch; at least one question."""
    groups: list[list[tuple[Ticket, Prepared]]] = []
    rows = BATCH
    for one in ready:
        count = len(one[1].prompts)
        if rows + count > BATCH:
            groups.append([])
            rows = 0
        groups[-1].append(one)
        rows += count
    return groups
