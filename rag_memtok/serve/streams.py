"""Answers as they are made: from the engine's thread to the server's loop to a client."""

import asyncio
import json
from collections.abc import AsyncIterator, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import StreamingResponse

from rag_memtok.serve.engine import Engine, Question, Reply

T = TypeVar("T")
EVENTS = "text/event-stream"


class ClientGone(Exception):
    """The client hung up: nobody reads the reply."""


class AnswerStream:
    """The answer to a question as it is made, for the server's loop.

    Raises:
        Busy: the queue is full.
    """

    def __init__(self, engine: Engine, question: Question) -> None:
        self._loop = asyncio.get_running_loop()
        self._texts: asyncio.Queue[str | None] = asyncio.Queue()  # None: there is no more
        self._first: str | None = None
        self._ticket = engine.ask(question, self._tell)
        self._ticket.result.add_done_callback(lambda _: self._tell(None))

    def _tell(self, text: str | None) -> None:
        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._texts.put_nowait, text)

    async def reply(self) -> Reply:
        """The whole answer. Raises whatever error it ended in."""
        reply: Reply = await asyncio.wrap_future(self._ticket.result)
        return reply

    async def begin(self) -> None:
        """Returns at the first piece of text, or raises the error in place of it."""
        self._first = await self._texts.get()
        if self._first is None:
            self._ticket.result.result()

    async def texts(self) -> AsyncIterator[str]:
        """Yields the answer, piece by piece, after `begin`."""
        text = self._first
        while text is not None:
            if text:
                yield text
            text = await self._texts.get()

    def cancel(self) -> None:
        """Gives the answer up: nobody listens any more."""
        self._ticket.cancel()


async def wait_or_cancel(request: Request, stream: AnswerStream, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work` on a stream, which is cancelled if the client hangs up before.

    Raises:
        ClientGone: it did.
    """
    hung_up = asyncio.ensure_future(request.receive())  # all of the body has been read
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait({hung_up, task}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGone
    finally:
        hung_up.cancel()
        if not task.done():
            task.cancel()
            stream.cancel()


def format_event(data: str | dict[str, Any], name: str = "") -> str:
    """One server-sent event; JSON has no line breaks of its own."""
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False, allow_nan=False)
    return (f"event: {name}\n" if name else "") + f"data: {text}\n\n"


async def _cancel_at_end(stream: AnswerStream, events: AsyncIterator[str]) -> AsyncIterator[str]:
    try:
        async for text in events:
            yield text
    finally:
        stream.cancel()  # does nothing once it was answered


def stream_response(stream: AnswerStream, events: AsyncIterator[str]) -> StreamingResponse:
    """The events as a response; a client that hangs up gives its place back."""
    return StreamingResponse(_cancel_at_end(stream, events), media_type=EVENTS)
