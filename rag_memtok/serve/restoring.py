"""A document decoded for a client, some of its memories at a time between the questions."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from itertools import chain
from typing import TypeVar

from rag_memtok.datatypes import StoredDocument
from rag_memtok.errors import Busy
from rag_memtok.pipeline.readers import Session
from rag_memtok.pipeline.reconstruction import Reconstructed, reconstruct_all
from rag_memtok.pipeline.restore import UNPROVEN
from rag_memtok.serve.refusals import refusal_of
from rag_memtok.serve.serving import Serving
from rag_memtok.serve.streams import event

T = TypeVar("T")
PART = 4  # memories that are decoded while a question waits
AGAIN = 0.5  # seconds until a place is asked for again


def document_at(session: Session, root: str, path: str) -> StoredDocument | None:
    """The document of that identity; None if there is none that is whole."""
    return next((one for one in session.store.documents_at(path) if one.root == root), None)


async def decoded(here: Serving, document: StoredDocument) -> AsyncIterator[str]:
    """The events of a document: `text` for each of its chunks, then whether that was all.

    It is `restored` if the texts, joined, are the document; else `refused` (of which `damaged` says
    whether the store is) or `error`. The kept text is at most a draft, of which nothing is
    believed. One part of the document is in memory at a time.
    """
    try:
        async for one in _decoded(here, document):
            yield one
    except Exception as error:
        yield event(refusal_of(error)[1], "error")


async def _decoded(here: Serving, document: StoredDocument) -> AsyncIterator[str]:
    digest, missing, damaged = hashlib.sha256(), False, False
    places = await _called(
        here, lambda session: session.store.document_chunks(document.root, document.path)
    )
    chunk_ids = [one.chunk_id for one in places]
    for start in range(0, len(chunk_ids), PART):
        some = chunk_ids[start : start + PART]
        found = await _called(here, partial(recited, some))
        for one in (found[chunk_id] for chunk_id in some):
            missing |= one.text is None
            damaged |= one.verdict.kind == "damaged"
            digest.update((one.text or "").encode())
            yield event({"text": "" if missing else one.text}, "text")
    if missing or digest.hexdigest() != document.sha256:
        yield event({"reason": UNPROVEN, "damaged": damaged}, "refused")
    else:
        yield event({"sha256": document.sha256}, "restored")


def recited(chunk_ids: Sequence[str], session: Session) -> dict[str, Reconstructed]:
    """Some chunks, decoded from their memories and compared with their hashes."""
    found = reconstruct_all(session.store, session.lm, session.template, chunk_ids)
    return {one.chunk_id: one for one in chain.from_iterable(found)}


async def _called(here: Serving, work: Callable[[Session], T]) -> T:
    """What `work` gives, as soon as there is a place for it.

    Raises:
        Busy: the server ends.
    """
    while True:
        try:
            return await asyncio.wrap_future(here.engine.call(work))
        except Busy:
            if here.ending.begun:
                raise
            await asyncio.sleep(AGAIN)
