"""Hits -> passages for the prompt: which reader, and what it makes of a memory.

memory   vectors, as soft tokens: the readable ones beside a memory, else the memory's own
decode   the memories decoded to text first: what a store without text can always do, at the price
         of the decode
text     the kept text: plain retrieval-augmented generation, to compare with
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from rag_memtok.config import Config
from rag_memtok.datatypes import TEXT_ONLY, Hit, Record, sha256_of_tokens
from rag_memtok.errors import StoreDamaged, UsageError
from rag_memtok.memory.encoder import unpack_readable
from rag_memtok.memory.reconstruct import (
    decode_checked,
    decode_drafted,
    memory_for,
    memory_of,
)
from rag_memtok.model import lora
from rag_memtok.model.engine import Engine, LocalEngine
from rag_memtok.model.inject import Content
from rag_memtok.model.lm import LM
from rag_memtok.model.precision import for_reading
from rag_memtok.model.prompts import Template
from rag_memtok.pipeline.adapters import SHIPPED, Adapter, Adapters
from rag_memtok.pipeline.readable import ENCODER, ENOUGH, WINDOW, reads_vectors, shares
from rag_memtok.pipeline.recite import draft_of
from rag_memtok.retrieval.embedder import Embedder
from rag_memtok.retrieval.index import Index
from rag_memtok.store.store import Store

Adapt = Callable[[LM, str, Path, bool, str], LM]


@dataclass(frozen=True, slots=True, eq=False)
class Session:
    """Everything that stays loaded between questions.

    `reading` is the LM with that one of the `adapters` on that reads as the session's reader does:
    it answers, and does nothing else; None: there is none. `remote` is the server that answers in
    its place, if one does.
    """

    store: Store
    lm: LM
    template: Template
    embedder: Embedder
    index: Index
    config: Config
    on_warning: Callable[[str], None] = lambda message: None
    adapters: Adapters = Adapters()
    reading: LM | None = None
    remote: Engine | None = None

    @property
    def engine(self) -> Engine:
        """What generates."""
        return self.remote or LocalEngine(self.reading or self.lm)


@dataclass(frozen=True, slots=True, eq=False)
class Readable:
    """A hit whose memory could be read, with the passage a reader made of it."""

    hit: Hit
    record: Record
    passage: Content


def reads_apart(session: Session) -> bool:
    """Whether each of several passages gets a prompt of its own.

    It is as asked for; `auto`: where the reader of text, else the model, was measured to be better
    so.
    """
    reader = session.adapters.text
    asked: str = session.config.ask.passages
    if asked == "auto" and reader is not None and reader.bond.passages:
        asked = reader.bond.passages
    return session.config.retrieve.k > 1 and (
        asked == "apart" or (asked == "auto" and session.lm.reads_per_passage)
    )


def reader_of(session: Session) -> tuple[str, str]:
    """The reader that answers with the session's adapters at hand, and why."""
    config = session.config
    return choose_reader(
        config.ask.read,
        session.store.manifest,
        session.adapters,
        1 if reads_apart(session) else config.retrieve.k,
    )


def choose_reader(
    asked: str, manifest: Mapping[str, str], found: Adapters, k: int
) -> tuple[str, str]:
    """Returns the reader and why.

    `auto` reads vectors directly only where that was measured to be good enough: the readable ones
    of a chunk, else its memory's own for so many (`k`) in a prompt, alone or among others.
    """
    if asked != "auto":
        return asked, "asked for"
    if reader := reads_vectors(manifest, found):
        return _by_share(int(manifest[WINDOW]), dict(shares(reader)))
    adapter = found.memory
    if manifest.get("write") != "readable" and (adapter is None or adapter.folder in SHIPPED):
        return (
            "decode",
            "these memories were written to be decoded, not to be read: the frozen model cannot "
            "use them directly",
        )
    if adapter is None:
        return (
            "decode",
            "how well these memories are read directly was not measured: rag-memtok adapt does; "
            "--read memory reads them",
        )
    share = adapter.bond.dev.get("share_alone" if k == 1 else "share", 0.0)
    among = "one memory" if k == 1 else "memories among others"
    measured = (
        f"with the adapter in {adapter.folder} reading {among} directly measured "
        f"{share:.0%} of reading the text"
    )
    return (
        ("memory", measured) if share >= ENOUGH else ("decode", f"{measured}, under {ENOUGH:.0%}")
    )


def _by_share(window: int, measured: Mapping[int, float]) -> tuple[str, str]:
    """Whether vectors of so many tokens are read, by what reading them was measured to reach."""
    vectors = f"reading vectors of {window} tokens each"
    if window not in measured:
        return "decode", f"{vectors} was not measured; --read memory reads them"
    share = f"{vectors} measured {measured[window]:.0%} of reading text"
    if measured[window] >= ENOUGH:
        return "memory", share
    return "decode", f"{share}, under {ENOUGH:.0%}; --read memory reads them"


def adapted(lm: LM, template_sha256: str, folder: Path, quick: bool, adapter_sha256: str) -> LM:
    """The LM that reads with an adapter on; the adapter's hash tells it from one there before.

    `quick`: in the arithmetic in which texts are read here.

    Raises:
        WrongModel, InputRefused: see `lora.load_adapter`.
    """
    return lora.load_adapter(for_reading(lm) if quick else lm, folder, template_sha256)


def with_adapters(session: Session, found: Adapters, load: Adapt = adapted) -> Session:
    """Loads the one that is on for the session's reader beside its LM.

    Args:
        load: gives the LM that reads, which may be loaded already.

    Raises:
        WrongModel, InputRefused: see `lora.load_adapter`.
    """
    equipped = replace(session, adapters=found)
    chosen = adapter_on(equipped)
    if chosen is None:
        return equipped
    bond = chosen.bond
    quick = bond.kind == "text" and session.config.ask.engine == "here"
    reading = load(session.lm, session.template.digest, chosen.folder, quick, bond.adapter_sha256)
    return replace(equipped, reading=reading)


def adapter_on(session: Session) -> Adapter | None:
    """The one of the session's adapters that is on when its reader reads; None: it has none."""
    reader, found = reader_of(session)[0], session.adapters
    vectors = reads_vectors(session.store.manifest, found) if reader == "memory" else None
    return vectors or found.of(reader)


def words_of(session: Session, one: Readable) -> str:
    """A passage as words: those that were read, else the kept text, else what it decodes to."""
    if not isinstance(one.passage, np.ndarray):
        return session.lm.decode(one.passage)
    for read_as in (_text, _only_decoded):
        with suppress(UsageError):  # the store keeps no text
            if tokens := read_as(session, one.record):
                return session.lm.decode(list(tokens))
    return ""


def _only_decoded(session: Session, record: Record) -> Content | None:
    return _decoded(session, [record])[0]


def read(session: Session, hits: Sequence[Hit], reader: str) -> list[Readable]:
    """Turns each hit into a passage for the prompt; a damaged memory is named and left out."""
    records = [record for hit in hits if (record := _record(session, hit)) is not None]
    by_id = {hit.chunk_id: hit for hit in hits}
    if reader == "memory":
        passages: list[Content | None] = _vectors(session, records)
    elif reader == "decode":
        passages = list(_decoded(session, records))
    else:
        passages = [_text(session, record) for record in records]
    return [
        Readable(by_id[record.chunk_id], record, passage)
        for record, passage in zip(records, passages, strict=True)
        if passage is not None and len(passage)
    ]


def _record(session: Session, hit: Hit) -> Record | None:
    try:
        record = session.store.record(hit.chunk_id)
        if record.codec != TEXT_ONLY:
            memory_for(session.lm, session.template, record)
        return record
    except StoreDamaged as error:
        session.on_warning(f"left out: memory {hit.chunk_id[:12]}: {error}")
        return None


def _vectors(session: Session, records: Sequence[Record]) -> list[Content | None]:
    """The readable vectors, else the memories' own; what has no readable ones is decoded."""
    if not reads_vectors(session.store.manifest, session.adapters):
        return [
            session.lm.encode(record.packed.decode())
            if record.codec == TEXT_ONLY
            else memory_of(record).vectors
            for record in records
        ]
    encoder = session.store.manifest[ENCODER]
    own = [
        one.readable if one.readable and one.readable.encoder == encoder else None
        for one in records
    ]
    lacking = [record for record, one in zip(records, own, strict=True) if one is None]
    decoded = iter(_decoded(session, lacking))
    return [next(decoded) if one is None else unpack_readable(one) for one in own]


def _text(session: Session, record: Record) -> Content | None:
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


def _decoded(session: Session, records: Sequence[Record]) -> list[Content | None]:
    """Decodes the memories: one pass each where the text is kept, which is proved by it.

    The others are decoded in one batch, and one that comes out wrong there alone, as the judge
    does.
    """
    coded = [record for record in records if record.codec != TEXT_ONLY]
    tokens = {record.chunk_id: _drafted(session, record) for record in coded}
    rest = [record for record in coded if tokens[record.chunk_id] is None]
    found = decode_checked(
        session.lm,
        session.template,
        [memory_of(record) for record in rest],
        [record.tokens for record in rest],
        lambda index, one: sha256_of_tokens(one.tokens) == rest[index].tokens_sha256,
    )
    tokens |= {record.chunk_id: one.tokens for record, one in zip(rest, found, strict=True)}
    return [_proven(session, record, tokens.get(record.chunk_id)) for record in records]


def _drafted(session: Session, record: Record) -> tuple[int, ...] | None:
    """What a memory decodes to, if one pass over the kept text shows it; nothing is believed."""
    draft = draft_of(session.store, session.lm, record)
    if draft is None:
        return None
    decoded = decode_drafted(
        session.lm, session.template, memory_of(record), draft, tau=float("-inf")
    )
    return None if decoded is None else decoded.tokens


def _proven(session: Session, record: Record, tokens: Sequence[int] | None) -> Content | None:
    if tokens is None:
        return session.lm.encode(record.packed.decode())
    if sha256_of_tokens(tokens) == record.tokens_sha256:
        return tokens
    session.on_warning(
        f"left out: memory {record.chunk_id[:12]} no longer decodes to its text; run rag-memtok "
        "verify"
    )
    return None
