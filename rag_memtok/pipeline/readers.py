"""Hits -> passages for the prompt: what each reader makes of a memory.

memory   vectors, as soft tokens: the readable ones beside a memory, else the memory's own
unfolded the readable ones beside a memory, but for the sentence of the kept text that fits the
         question best: that stands there as it is
zoomed   vectors, too, made for the question of the kept text, else of what a memory decodes to
decode   the memories decoded to text first: what a store without text can always do, at the price
         of the decode
text     the kept text: plain retrieval-augmented generation, to compare with
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import compress

import numpy as np

from rag_memtok.datatypes import TEXT_ONLY, Hit, Record, sha256_of_tokens
from rag_memtok.errors import StoreDamaged, UsageError
from rag_memtok.memory.encoder import encode_planned, unfold, unpack_readable
from rag_memtok.memory.reconstruct import (
    decode_checked,
    decode_drafted,
    decodes_to,
    memory_for,
    memory_of,
)
from rag_memtok.memory.windows import count_windows
from rag_memtok.model import lora
from rag_memtok.model.inject import Content
from rag_memtok.model.lm import LM
from rag_memtok.model.precision import in_float32
from rag_memtok.pipeline.readable import ENCODER, find_vector_reader
from rag_memtok.pipeline.reconstruction import draft_of
from rag_memtok.pipeline.session import Session
from rag_memtok.retrieval.relevance import in_best_sentence, zoomed


@dataclass(frozen=True, slots=True, eq=False)
class Readable:
    """A hit whose memory could be read, with the passage a reader made of it.

    `text` is what the passage was made of, where answers are to be copied from it.
    """

    hit: Hit
    record: Record
    passage: Content
    text: str = ""


def known_text(lm: LM, readable: Readable) -> str:
    """A passage's text where it was read or copied from; "" where only vectors were."""
    if readable.text or isinstance(readable.passage, np.ndarray):
        return readable.text
    return lm.decode(readable.passage)


def passage_text(session: Session, readable: Readable) -> str:
    """A passage's text: what was read, else the kept text, else what the memory decodes to."""
    if text := known_text(session.lm, readable):
        return text
    for read_as in (_read_text, _decode_one):
        with suppress(UsageError):  # the store keeps no text
            if tokens := read_as(session, readable.record):
                return session.lm.decode(list(tokens))
    return ""


def _decode_one(session: Session, record: Record) -> Content | None:
    return _decode(session, [record])[0]


def read(
    session: Session, hits: Sequence[Hit], reader: str, question: str = "", *, apart: bool = False
) -> list[Readable]:
    """A passage for the prompt of each hit; a damaged memory is named and left out.

    Args:
        question: what "zoomed" makes vectors for, and "unfolded" looks for a sentence for. It is
            one for all hits together, with as many vectors as without it, or `apart`, where each
            has a prompt of its own, for each.
    """
    records = [record for hit in hits if (record := _read_record(session, hit)) is not None]
    by_id = {hit.chunk_id: hit for hit in hits}
    texts = [""] * len(records)
    if reader == "memory":
        passages: list[Content | None] = _read_vectors(session, records)
        texts = _texts_of_readable(session, records)
    elif reader == "unfolded":
        passages, texts = _read_unfolded(session, records, question, apart=apart)
    elif reader == "zoomed":
        passages, texts = _read_zoomed(session, records, question, apart=apart)
    elif reader == "decode":
        passages = list(_decode(session, records))
    else:
        passages = [_read_text(session, record) for record in records]
    return [
        Readable(by_id[record.chunk_id], record, passage, text)
        for record, passage, text in zip(records, passages, texts, strict=True)
        if passage is not None and len(passage)
    ]


def _read_record(session: Session, hit: Hit) -> Record | None:
    try:
        record = session.store.record(hit.chunk_id)
        if record.codec != TEXT_ONLY:
            memory_for(session.lm, session.template, record)
        return record
    except StoreDamaged as error:
        session.on_warning(f"left out: memory {hit.chunk_id[:12]}: {error}")
        return None


def _read_vectors(session: Session, records: Sequence[Record]) -> list[Content | None]:
    """Readable vectors, else the memories' own; a chunk that lacks readable ones is decoded."""
    if not find_vector_reader(session.store.manifest, session.adapters):
        return [
            session.lm.encode(record.packed.decode())
            if record.codec == TEXT_ONLY
            else memory_of(record).vectors
            for record in records
        ]
    encoder = session.store.manifest[ENCODER]
    vectors = [
        record.readable if record.readable and record.readable.encoder == encoder else None
        for record in records
    ]
    lacking = [
        record for record, readable in zip(records, vectors, strict=True) if readable is None
    ]
    decoded = iter(_decode(session, lacking))
    return [
        next(decoded) if readable is None else unpack_readable(readable) for readable in vectors
    ]


def _texts_of_readable(session: Session, records: Sequence[Record]) -> list[str]:
    """The kept texts that an encoder's vectors are of; "" where there is none."""
    if not find_vector_reader(session.store.manifest, session.adapters):
        return [""] * len(records)
    try:
        contents = [_read_text(session, record) for record in records]
    except UsageError:  # the store keeps no text
        return [""] * len(records)
    return [session.lm.decode(list(content or ())) for content in contents]


def _read_unfolded(
    session: Session, records: Sequence[Record], question: str, *, apart: bool
) -> tuple[list[Content | None], list[str]]:
    """The readable vectors with the best sentence of each text, or of all, as it stands there.

    Where they cannot be those of the text, which is named, the text is read.
    """
    assert session.encoder is not None, "with_adapters loads it"
    passages = _read_vectors(session, records)
    texts = [list(content or ()) for content in (_read_text(session, one) for one in records)]
    groups = [[text] for text in texts] if apart else [texts]
    plain = [own for group in groups for own in in_best_sentence(session.lm, group, question)]
    for number, (record, text) in enumerate(zip(records, texts, strict=True)):
        vectors = passages[number]
        if not (text and record.readable and isinstance(vectors, np.ndarray)):
            continue
        window = record.readable.window
        if len(vectors) == count_windows(len(text), window):
            passages[number] = unfold(session.encoder, text, vectors, window, plain[number])
        else:
            passages[number] = text
            session.on_warning(
                f"read as text: {record.chunk_id[:12]}: its readable vectors are not of its text"
            )
    return passages, [session.lm.decode(text) for text in texts]


def _read_zoomed(
    session: Session, records: Sequence[Record], question: str, *, apart: bool
) -> tuple[list[Content | None], list[str]]:
    """Vectors of the texts for the question, and the texts: the kept ones, else decoded."""
    assert session.encoder is not None, "with_adapters loads it"
    try:
        contents = [_read_text(session, record) for record in records]
    except UsageError:  # the store keeps no text
        contents = _decode(session, records)
    texts = [list(content) for content in contents if content]
    groups = [[text] for text in texts] if apart else [texts]
    made = list[Content]()
    for group in filter(None, groups):
        weights = zoomed(session.lm, group, question)
        made += encode_planned(session.encoder, group, session.config.ask.zoom, weights)
    vectors = iter(made)
    passages = [next(vectors) if content else None for content in contents]
    return passages, [session.lm.decode(list(content or ())) for content in contents]


def _read_text(session: Session, record: Record) -> Content | None:
    try:
        text = (
            record.packed.decode()
            if record.codec == TEXT_ONLY
            else session.store.text(record.chunk_id)
        )
    except StoreDamaged as error:
        session.on_warning(f"left out: text {record.chunk_id[:12]}: {error}")
        return None
    if text is None:
        raise UsageError(
            "this store keeps no text (--no-text)",
            remedy="--read decode gets it back from the memories",
        )
    return session.lm.encode(text)


def _decode(session: Session, records: Sequence[Record]) -> list[Content | None]:
    """Decodes the memories: in one pass over those whose text is kept, which is proved by it.

    One that does not come out there is decoded as the judge does: in fp32, by one pass over its
    text; the others in one batch, and one that comes out wrong there alone.
    """
    coded = [record for record in records if record.codec != TEXT_ONLY]
    drafts = {
        record.chunk_id: draft
        for record in coded
        if (draft := draft_of(session.store, session.lm, record)) is not None
    }
    drafted = [record for record in coded if record.chunk_id in drafts]
    tokens = _decode_together(session, drafted, drafts)
    left = [record for record in drafted if record.chunk_id not in tokens]
    exactly = in_float32(session.lm) if left else session.lm
    for record in left:
        decoded = decode_drafted(
            exactly,
            session.template,
            memory_of(record),
            drafts[record.chunk_id],
            tau=float("-inf"),
        )
        if decoded is not None:
            tokens[record.chunk_id] = decoded.tokens
    rest = [record for record in coded if record.chunk_id not in tokens]
    decodings = decode_checked(
        session.lm,
        session.template,
        [memory_of(record) for record in rest],
        [record.tokens for record in rest],
        lambda index, decoded: sha256_of_tokens(decoded.tokens) == rest[index].tokens_sha256,
    )
    tokens |= {
        record.chunk_id: decoded.tokens for record, decoded in zip(rest, decodings, strict=True)
    }
    return [_check_decoded(session, record, tokens.get(record.chunk_id)) for record in records]


def _decode_together(
    session: Session, records: Sequence[Record], drafts: Mapping[str, Sequence[int]]
) -> dict[str, tuple[int, ...]]:
    """The tokens of the memories that one pass in the reader's arithmetic shows to be their drafts.

    Nothing without an adapter that reads: the base model in that arithmetic is the reader with it
    off.
    """
    if session.reading is None:
        return {}
    tokens = [tuple(drafts[record.chunk_id]) for record in records]
    with lora.switched_off(session.reading) as base:
        shown = decodes_to(
            base, session.template, [memory_of(record) for record in records], tokens
        )
    ids = [record.chunk_id for record in records]
    return dict(compress(zip(ids, tokens, strict=True), shown))


def _check_decoded(
    session: Session, record: Record, tokens: Sequence[int] | None
) -> Content | None:
    if tokens is None:
        return session.lm.encode(record.packed.decode())
    if sha256_of_tokens(tokens) == record.tokens_sha256:
        return tokens
    session.on_warning(
        f"left out: memory {record.chunk_id[:12]} no longer decodes to its text; run rag-memtok "
        "verify"
    )
    return None
