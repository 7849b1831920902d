"""A store looked into: its documents, its chunks, one memory token by token."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from rag_memtok.datatypes import TEXT_ONLY, Occurrence, Record, StoredDocument, Verdict
from rag_memtok.documents.names import distinct_names
from rag_memtok.documents.scan import is_outdated
from rag_memtok.errors import StoreDamaged, UsageError
from rag_memtok.memory.reconstruct import decode, margins, memory_for
from rag_memtok.model.lm import LM
from rag_memtok.model.prompts import Template
from rag_memtok.pipeline.recite import recite, weakened
from rag_memtok.store.integrity import Summary
from rag_memtok.store.schema import PIN
from rag_memtok.store.store import Store


@dataclass(frozen=True, slots=True)
class ListedDocument:
    """A document with the verdicts of its chunks; `name` tells it from others of its path."""

    document: StoredDocument
    verdicts: Mapping[str, int]
    name: str


@dataclass(frozen=True, slots=True)
class ListedChunk:
    """A chunk as it was judged when it was written, and its first place.

    `place` is None for a chunk of an unfinished ingest.
    """

    chunk_id: str
    verdict: Verdict
    vectors: int
    places: int
    place: Occurrence | None


@dataclass(frozen=True, slots=True)
class ShownToken:
    """A token of a memory, with its lead in logits over the best other word.

    `pin` is "correction" or "safety" if it is pinned.
    """

    text: str
    margin: float
    pin: str


@dataclass(frozen=True, slots=True)
class Shown:
    """One memory, decoded now.

    The last token is the end; a text-only chunk has none. `bytes` are those of its parts, of its
    text, and "readable", if it has any, of an encoder's vectors.
    """

    chunk_id: str
    codec: str
    shape: tuple[int, int]
    verdict: Verdict
    text: str
    tokens: tuple[ShownToken, ...]
    places: tuple[Occurrence, ...]
    bytes: Mapping[str, int]


def documents_of(store: Store) -> Iterator[ListedDocument]:
    """Every document. Damaged verdicts and places count as "damaged"."""
    papers = store.documents(skip_damaged=True)
    names = distinct_names([(one.root, one.path) for one in papers])
    for document in papers:
        name = names[document.root, document.path]
        try:
            places = store.document_chunks(document.root, document.path)
        except StoreDamaged:
            yield ListedDocument(document, {"damaged": document.chunks}, name)
            continue
        kinds = Counter(_kind(store, place.chunk_id) for place in places)
        yield ListedDocument(document, dict(kinds), name)


def _kind(store: Store, chunk_id: str) -> str:
    try:
        return store.record(chunk_id).verdict.kind
    except StoreDamaged:
        return "damaged"


def chunks_of(store: Store) -> Iterator[ListedChunk]:
    """Every chunk, in the order they were stored. Cost: reads every row once."""
    for chunk_id in store.chunk_ids():
        places = store.occurrences([chunk_id])[chunk_id]
        try:
            record = store.record(chunk_id)
            verdict, vectors = record.verdict, record.shape[0]
        except StoreDamaged as error:
            verdict, vectors = Verdict("damaged", 0, reason=str(error)), 0
        yield ListedChunk(chunk_id, verdict, vectors, len(places), places[0] if places else None)


def outdated_in(store: Store) -> int:
    """How many documents an older version of this program read otherwise than this one would.

    To ingest their files again reads them again.
    """
    with store.snapshot():
        return sum(is_outdated(one.extractor) for one in store.each_document(skip_damaged=True))


def find(store: Store, prefix: str) -> str:
    """The chunk whose id begins with `prefix`.

    Raises:
        UsageError: none does, or several do.
    """
    found = [chunk_id for chunk_id in store.chunk_ids() if chunk_id.startswith(prefix.lower())]
    if len(found) != 1 or not prefix:
        some = ": " + ", ".join(chunk_id[:12] for chunk_id in found[:4]) if found else ""
        raise UsageError(
            f"{len(found)} chunks begin with {prefix!a}{some}",
            remedy="rag-memtok list --chunks has their ids",
        )
    return found[0]


def show(store: Store, lm: LM, template: Template, prefix: str) -> Shown:
    """Decodes one memory, and measures the lead of every token that came out.

    Raises:
        UsageError: not the beginning of one chunk's id.
        StoreDamaged: it cannot be read.

    Cost: twice T + 1 cached steps at batch 1 in fp32.
    """
    chunk_id = find(store, prefix)
    record = store.record(chunk_id)
    recited = weakened(recite(store, lm, template, chunk_id), float(store.manifest.get("tau", 0)))
    tokens = _tokens(lm, template, record, recited.text)
    text = recited.text if recited.text is not None else "".join(one.text for one in tokens[:-1])
    key = 0 if record.key is None else 4 * len(record.key)
    sizes = {
        "vectors": len(record.packed),
        "pins": PIN.size * len(record.pins),
        "key": key,
        "text": len(text.encode()),
    }
    if record.readable is not None:
        sizes["readable"] = len(record.readable.packed)
    places = store.occurrences([chunk_id])[chunk_id]
    return Shown(chunk_id, record.codec, record.shape, recited.verdict, text, tokens, places, sizes)


def _tokens(lm: LM, template: Template, record: Record, text: str | None) -> tuple[ShownToken, ...]:
    """The tokens of what was decoded, right or not."""
    if record.codec == TEXT_ONLY:
        return ()
    memory = memory_for(lm, template, record)
    tokens = (
        lm.encode(text)
        if text is not None
        else list(decode(lm, template, memory, record.tokens + 1).tokens)
    )
    pinned = {pin.position for pin in record.pins}
    leads = margins(lm, template, memory, tokens)
    texts = [lm.decode([token]) for token in tokens] + [lm.decode([template.end])]
    needed = [
        "" if place not in pinned else "correction" if lead <= 0 else "safety"
        for place, lead in enumerate(leads)
    ]
    return tuple(map(ShownToken, texts, leads, needed))


@dataclass(frozen=True, slots=True)
class Collection:
    """One of several stores under a folder."""

    name: str
    model: str
    summary: Summary


@dataclass(frozen=True, slots=True)
class Setting:
    """A dial's effective value and where it comes from.

    That is flag, variable, file, store (the dial leaves it open) or default.
    """

    dial: str
    value: object
    origin: str
