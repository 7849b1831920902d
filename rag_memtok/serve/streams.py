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


class Gone(Exception):
    """The client hung up: nobody is there to be told."""


class Voice:
    """A question under way, to be heard in the server's loop.

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
        """The whole answer. Raises whatever kept it from being given."""
        found: Reply = await asyncio.wrap_future(self._ticket.result)
        return found

    async def begin(self) -> None:
        """Returns at the first words, or raises what kept them from being said."""
        self._first = await self._texts.get()
        if self._first is None:
            self._ticket.result.result()

    async def texts(self) -> AsyncIterator[str]:
        """The answer, piece by piece, after `begin`."""
        text = self._first
        while text is not None:
            if text:
                yield text
            text = await self._texts.get()

    def cancel(self) -> None:
        """Nobody listens any more."""
        self._ticket.cancel()


async def heard(request: Request, voice: Voice, wanted: Coroutine[Any, Any, T]) -> T:
    """What is `wanted` of a voice, which is cancelled if the client hangs up before.

    Raises:
        Gone: it did.
    """
    hung_up = asyncio.ensure_future(request.receive())  # all of the body has been read
    task = asyncio.ensure_future(wanted)
    try:
        await asyncio.wait({hung_up, task}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise Gone
    finally:
        hung_up.cancel()
        if not task.done():
            task.cancel()
            voice.cancel()


def event(data: str | dict[str, Any], name: str = "") -> str:
    """One server-sent event; JSON has no line breaks of its own."""
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False, allow_nan=False)
    return (f"event: {name}\n" if name else "") + f"data: {text}\n\n"


async def _ending_with(voice: Voice, events: AsyncIterator[str]) -> AsyncIterator[str]:
    try:
        async for one in events:
            yield one
    finally:
        voice.cancel()  # does nothing once it was answered


def streamed(voice: Voice, events: AsyncIterator[str]) -> StreamingResponse:
    """The events as a response; a client that hangs up gives its place back."""
    return StreamingResponse(_ending_with(voice, events), media_type=EVENTS)
