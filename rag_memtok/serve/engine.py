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
from rag_memtok.pipeline.session import Session
from rag_memtok.serve.metrics import Metrics

T = TypeVar("T")
LONGEST_WAIT = 60  # seconds that a client is told to wait, at most

log = getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A question; `k` 0, `within` "" and `limit` 0 are as the store's session has them."""

    text: str
    before: str = ""
    k: int = 0
    within: str = ""
    limit: int = 0


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer, the number of its tokens, and whether it ended by itself."""

    answer: Answer
    tokens: int
    complete: bool


@dataclass(slots=True, eq=False, kw_only=True)
class Ticket:
    """A place in the queue: the work, and its result.

    `work` is a question, or something else to do with the session. Once it is cancelled nothing
    more is done for it.
    """

    work: Question | Callable[[Session], Any]
    on_text: Callable[[str], None] = lambda text: None
    result: "Future[Any]" = field(default_factory=Future)
    since: float = field(default_factory=time.monotonic)
    cancelled: bool = False

    def cancel(self) -> None:
        """Gives the result up: nobody wants it any more."""
        self.cancelled = True


class Engine:
    """A store that many ask at once; made for one server, closed once."""

    def __init__(self, store: MemoryStore, metrics: Metrics, places: int) -> None:
        self.store, self.metrics, self.places = store, metrics, places
        self._queue: deque[Ticket] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._running = 0  # how many are being answered
        self._seconds = 1.0  # that a question takes, lately
        self._thread = threading.Thread(target=self._run, name="answers", daemon=True)
        metrics.gauge("questions_waiting", lambda: self.waiting)

    @property
    def waiting(self) -> int:
        """The number of tickets in the queue."""
        return len(self._queue)

    @property
    def in_progress(self) -> int:
        """The number of tickets that wait or are being answered."""
        with self._changed:
            return len(self._queue) + self._running

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
        return self._put(Ticket(work=question, on_text=on_text))

    def call(self, work: Callable[[Session], T]) -> "Future[T]":
        """Puts other work with the session into the queue.

        Raises:
            Busy: the queue is full, or the server ends.
        """
        return self._put(Ticket(work=work)).result

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
            full = sum(not waiting.cancelled for waiting in self._queue) >= self.places
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
        while tickets := self._take():
            try:
                self._serve(tickets)
            except Exception as error:  # it costs these their answers, and nobody else
                for ticket in tickets:
                    self._fail(ticket, error)
        self.store.close()

    def _take(self) -> list[Ticket]:
        """Takes what waits, at most a batch; nothing once all is done and the server ends."""
        with self._changed:
            self._running = 0
            while not self._queue and not self._closing:
                self._changed.wait()
            self._running = min(len(self._queue), BATCH)
            return [self._queue.popleft() for _ in range(self._running)]

    def _serve(self, tickets: Sequence[Ticket]) -> None:
        session = self.store.session()
        ready: list[tuple[Ticket, Prepared]] = []
        for ticket in tickets:
            if ticket.cancelled:
                self.metrics.count("questions_total", outcome="cancelled")
            elif isinstance(ticket.work, Question):
                with self._fail_on_error(ticket):
                    ready.append((ticket, prepare_ticket(session, ticket, ticket.work)))
            else:
                with self._fail_on_error(ticket):
                    ticket.result.set_result(ticket.work(session))
        for group in group_into_batches(ready):
            self._answer(session, group)

    def _answer(self, session: Session, group: Sequence[tuple[Ticket, Prepared]]) -> None:
        """Lets a group of questions share its forward passes."""
        began = time.monotonic()
        try:
            responses = respond(session, [prepared for _, prepared in group])
        except Exception as error:
            for ticket, _ in group:
                self._fail(ticket, error)
            return
        self.metrics.count("batches_total")
        self.metrics.count("batched_questions_total", len(group))
        for (ticket, prepared), response in zip(group, responses, strict=True):
            with self._fail_on_error(ticket):
                answer = finish(session, prepared, response)
                self._tell(ticket, Reply(answer, len(response.tokens), response.complete))
        self._seconds += 0.2 * ((time.monotonic() - began) / len(group) - self._seconds)

    def _tell(self, ticket: Ticket, reply: Reply) -> None:
        seconds = time.monotonic() - ticket.since
        outcome = (
            "cancelled" if ticket.cancelled else "refused" if reply.answer.refused else "answered"
        )
        self.metrics.count("questions_total", outcome=outcome)
        self.metrics.count("answer_seconds_sum", seconds)
        self.metrics.count("answer_seconds_count")
        answer = replace(reply.answer, seconds=seconds)
        ticket.result.set_result(replace(reply, answer=answer))

    @contextmanager
    def _fail_on_error(self, ticket: Ticket) -> Iterator[None]:
        """An error within fails this ticket, and no other."""
        try:
            yield
        except Exception as error:
            self._fail(ticket, error)

    def _fail(self, ticket: Ticket, error: Exception) -> None:
        if ticket.result.done():
            return
        if not isinstance(error, RagMemtokError):
            log.error("a question was not answered", exc_info=error)
        found_nothing = isinstance(error, NoUsableMemory)
        self.metrics.count("questions_total", outcome="nothing" if found_nothing else "failed")
        ticket.result.set_exception(error)


def prepare_ticket(session: Session, ticket: Ticket, question: Question) -> Prepared:
    """Prepares a ticket's question for the LM."""
    settings = session.config.retrieve
    return prepare(
        session,
        question.text,
        question.before,
        retrieve=replace(
            settings, k=question.k or settings.k, within=question.within or settings.within
        ),
        limit=question.limit,
        on_text=ticket.on_text,
        cancelled=lambda: ticket.cancelled,
    )


def group_into_batches(
    ready: Sequence[tuple[Ticket, Prepared]],
) -> list[list[tuple[Ticket, Prepared]]]:
    """Groups of questions, in their order, whose prompts are one batch; at least one question."""
    groups: list[list[tuple[Ticket, Prepared]]] = []
    prompts = BATCH
    for pair in ready:
        count = len(pair[1].prompts)
        if prompts + count > BATCH:
            groups.append([])
            prompts = 0
        groups[-1].append(pair)
        prompts += count
    return groups
