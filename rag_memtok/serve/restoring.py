"""A document decoded for a client, some of its memories at a time between the questions."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from itertools import chain
from typing import TypeVar

from rag_memtok.datatypes import StoredDocument
from rag_memtok.errors import Busy
from rag_memtok.pipeline.reconstruction import Reconstructed, reconstruct_all
from rag_memtok.pipeline.restore import UNPROVEN
from rag_memtok.pipeline.session import Session
from rag_memtok.serve.refusals import refusal_of
from rag_memtok.serve.serving import Serving
from rag_memtok.serve.streams import format_event

T = TypeVar("T")
PART = 4  # memories that are decoded while a question waits
AGAIN = 0.5  # seconds until a place is asked for again


def document_at(session: Session, root: str, path: str) -> StoredDocument | None:
    """The document of that root and path; None if there is none that is whole."""
    return next(
        (document for document in session.store.documents_at(path) if document.root == root), None
    )


async def stream_document(serving: Serving, document: StoredDocument) -> AsyncIterator[str]:
    """Yields the events of a document: `text` for each of its chunks, then whether that was all.

    It is `restored` if the texts, joined, are the document; else `refused` (of which `damaged` says
    whether the store is) or `error`. The kept text is at most a draft, of which nothing is
    believed. One part of the document is in memory at a time.
    """
    try:
        async for text in _document_events(serving, document):
            yield text
    except Exception as error:
        yield format_event(refusal_of(error)[1], "error")


async def _document_events(serving: Serving, document: StoredDocument) -> AsyncIterator[str]:
    digest, missing, damaged = hashlib.sha256(), False, False
    places = await _call_when_free(
        serving, lambda session: session.store.document_chunks(document.root, document.path)
    )
    chunk_ids = [place.chunk_id for place in places]
    for start in range(0, len(chunk_ids), PART):
        batch = chunk_ids[start : start + PART]
        chunks = await _call_when_free(serving, partial(reconstruct_chunks, batch))
        for chunk in (chunks[chunk_id] for chunk_id in batch):
            missing |= chunk.text is None
            damaged |= chunk.verdict.kind == "damaged"
            digest.update((chunk.text or "").encode())
            yield format_event({"text": "" if missing else chunk.text}, "text")
    if missing or digest.hexdigest() != document.sha256:
        yield format_event({"reason": UNPROVEN, "damaged": damaged}, "refused")
    else:
        yield format_event({"sha256": document.sha256}, "restored")


def reconstruct_chunks(chunk_ids: Sequence[str], session: Session) -> dict[str, Reconstructed]:
    """Chunks by their ids, decoded from their memories and compared with their hashes."""
    batches = reconstruct_all(session.store, session.lm, session.template, chunk_ids)
    return {chunk.chunk_id: chunk for chunk in chain.from_iterable(batches)}


async def _call_when_free(serving: Serving, work: Callable[[Session], T]) -> T:
    """The result of `work`, as soon as the queue has a place for it.

    Raises:
        Busy: the server ends.
    """
    while True:
        try:
            return await asyncio.wrap_future(serving.engine.call(work))
        except Busy:
            if serving.ending.has_begun:
                raise
            await asyncio.sleep(AGAIN)
