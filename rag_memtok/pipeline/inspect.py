"""A store looked into: its documents, its chunks, one memory token by token."""

import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rag_memtok.config import Config
from rag_memtok.datatypes import TEXT_ONLY, Occurrence, Record, StoredDocument, Verdict
from rag_memtok.documents.names import distinct_names, join_name, name_of, resolve_path
from rag_memtok.documents.scan import is_outdated
from rag_memtok.errors import StoreDamaged, UsageError
from rag_memtok.memory.reconstruct import decode, margins, memory_for
from rag_memtok.model.lm import LM
from rag_memtok.model.prompts import Template
from rag_memtok.pipeline.manifest import complete_config
from rag_memtok.pipeline.reconstruction import mark_fragile, reconstruct
from rag_memtok.settings import dials, value_of
from rag_memtok.store import files
from rag_memtok.store.integrity import Summary
from rag_memtok.store.schema import PIN
from rag_memtok.store.store import Store, open_store


@dataclass(frozen=True, slots=True)
class ListedDocument:
    """A document with the verdicts of its chunks; `name` tells it from others of its path."""

    document: StoredDocument
    verdicts: Mapping[str, int]
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
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
    """A token of a memory, with its margin in logits over the best other token.

    `pin` is "correction" or "safety" if it is pinned.
    """

    text: str
    margin: float
    pin: str


@dataclass(frozen=True, slots=True, kw_only=True)
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


@dataclass(frozen=True, slots=True)
class Collection:
    """One of several stores under a folder."""

    name: str
    model: str
    summary: Summary


@dataclass(frozen=True, slots=True)
class Setting:
    """A setting's effective value and where it comes from.

    That is flag, variable, file, store (the setting leaves it open) or default.
    """

    name: str
    value: object
    origin: str


def list_documents(store: Store) -> Iterator[ListedDocument]:
    """Yields every document. Damaged verdicts and places count as "damaged"."""
    documents = store.documents(skip_damaged=True)
    names = distinct_names([(document.root, document.path) for document in documents])
    for document in documents:
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


def list_chunks(store: Store) -> Iterator[ListedChunk]:
    """Yields every chunk, in the order they were stored. Cost: reads every row once."""
    for chunk_id in store.chunk_ids():
        yield _list_chunk(store, chunk_id)


def page_of_chunks(
    store: Store, path: str | None, start: int, count: int
) -> tuple[list[ListedChunk], int]:
    """`count` chunks from number `start` on, and how many there are; within a `snapshot`.

    With `path` they are those of the documents of this path, each with its place there, in the
    order of the document; a document has each of its chunks once.

    Cost: reads these chunks' rows, of the others no more than their ids.
    """
    if path is None:
        chunk_ids = store.chunk_ids()
        listed = [_list_chunk(store, chunk_id) for chunk_id in chunk_ids[start : start + count]]
        return listed, len(chunk_ids)
    places: dict[tuple[str, str], Occurrence] = {}
    for document in store.documents_at(path):
        for place in _places_in(store, document):
            places.setdefault((document.root, place.chunk_id), place)
    listed = [
        replace(_list_chunk(store, place.chunk_id), place=place)
        for place in [*places.values()][start : start + count]
    ]
    return listed, len(places)


def _places_in(store: Store, document: StoredDocument) -> Sequence[Occurrence]:
    """Where the document's chunks stand; of a damaged one, those of which that is known."""
    root, path = document.root, document.path
    try:
        return store.document_chunks(root, path)
    except StoreDamaged:
        everywhere = store.occurrences(store.chunk_ids()).values()
        kept = [place for places in everywhere for place in places]
        return sorted(
            (place for place in kept if (place.root, place.path) == (root, path)),
            key=lambda place: place.ordinal,
        )


def _list_chunk(store: Store, chunk_id: str) -> ListedChunk:
    places = store.occurrences([chunk_id])[chunk_id]
    try:
        record = store.record(chunk_id)
        verdict, vectors = record.verdict, record.shape[0]
    except StoreDamaged as error:
        verdict, vectors = Verdict("damaged", 0, reason=str(error)), 0
    return ListedChunk(
        chunk_id=chunk_id,
        verdict=verdict,
        vectors=vectors,
        places=len(places),
        place=places[0] if places else None,
    )


def find_files(store: Store, path: str) -> list[tuple[str, str]]:
    """The (root, file) of what lies at or under `path`, else of what `list` calls so.

    Damaged documents count: whoever forgets a file wants them gone as well.

    Raises:
        UsageError: it is the name of one of a file's documents, such as a row.
    """
    folder = name_of(resolve_path(path)).rstrip("/") + "/"
    with store.snapshot():
        stored = list(store.each_file())
        files = [names for names in stored if f"{join_name(*names)}/".startswith(folder)]
        return files or _find_called(store, stored, path)


def _find_called(
    store: Store, stored: Sequence[tuple[str, str]], path: str
) -> list[tuple[str, str]]:
    """Those of the stored files that are called `path`; see `find_files`."""
    called = distinct_names(stored)
    if files := [names for names in stored if called[names] == path]:
        return files
    documents = store.documents(skip_damaged=True)
    listed = distinct_names([(document.root, document.path) for document in documents])
    whole = name_of(resolve_path(path))
    for document in documents:
        root, file = document.root, document.file
        if path != listed[root, document.path] and whole != join_name(root, document.path):
            continue
        if document.path == file:
            return [(root, file)]
        count = sum((one.root, one.file) == (root, file) for one in documents)
        forgotten = f"all {count} documents" if count > 1 else "the only document"
        command = f"rag-memtok rm {shlex.quote(called[root, file])}"
        raise UsageError(
            f"{path} is a part of {file}, and files are forgotten whole",
            remedy=f"{command} forgets {forgotten} of the file",
        )
    return []


def list_collections(root: Path) -> Iterator[Collection]:
    """Yields the stores under a folder, by name.

    Raises:
        UsageError: it is a file.
    """
    if root.exists() and not root.is_dir():
        raise UsageError(f"{root} is a file", remedy="--store names the folder of the collections")
    for name in files.list_collections(root):
        with open_store(root / name, write=False) as store:
            manifest = store.manifest
            model = f"{manifest.get('model')} {manifest.get('revision', '')}".strip()
            yield Collection(name, model, store.summary())


def effective_settings(
    config: Config, manifest: Mapping[str, str], origins: Mapping[str, str]
) -> list[Setting]:
    """Every setting with its origin; what `config` leaves open is that of the manifest, if any."""
    completed, settings = complete_config(config, manifest), []
    for name in dials():
        value = value_of(completed, name)
        filled_in = bool(manifest) and value != value_of(config, name)
        settings.append(Setting(name, value, "store" if filled_in else origins[name]))
    return settings


def count_outdated(store: Store) -> int:
    """The number of documents that an older version of this program read otherwise.

    To ingest their files again reads them again.
    """
    with store.snapshot():
        return sum(
            is_outdated(document.extractor) for document in store.each_document(skip_damaged=True)
        )


def find_chunk(store: Store, prefix: str) -> str:
    """The chunk whose id begins with `prefix`.

    Raises:
        UsageError: none does, or several do.
    """
    chunk_ids = [chunk_id for chunk_id in store.chunk_ids() if chunk_id.startswith(prefix.lower())]
    if len(chunk_ids) != 1 or not prefix:
        listed = ": " + ", ".join(chunk_id[:12] for chunk_id in chunk_ids[:4]) if chunk_ids else ""
        raise UsageError(
            f"{len(chunk_ids)} chunks begin with {prefix!a}{listed}",
            remedy="rag-memtok list --chunks has their ids",
        )
    return chunk_ids[0]


def show(store: Store, lm: LM, template: Template, prefix: str) -> Shown:
    """Decodes one memory, and measures the margin of every token that came out.

    Raises:
        UsageError: not the beginning of one chunk's id.
        StoreDamaged: it cannot be read.

    Cost: twice T + 1 cached steps at batch 1 in fp32.
    """
    chunk_id = find_chunk(store, prefix)
    record = store.record(chunk_id)
    chunk = mark_fragile(
        reconstruct(store, lm, template, chunk_id), float(store.manifest.get("tau", 0))
    )
    tokens = _tokens(lm, template, record, chunk.text)
    text = chunk.text if chunk.text is not None else "".join(token.text for token in tokens[:-1])
    sizes = {
        "vectors": len(record.packed),
        "pins": PIN.size * len(record.pins),
        "key": 0 if record.key is None else 4 * len(record.key),
        "text": len(text.encode()),
    }
    if record.readable is not None:
        sizes["readable"] = len(record.readable.packed)
    return Shown(
        chunk_id=chunk_id,
        codec=record.codec,
        shape=record.shape,
        verdict=chunk.verdict,
        text=text,
        tokens=tokens,
        places=store.occurrences([chunk_id])[chunk_id],
        bytes=sizes,
    )


def _tokens(lm: LM, template: Template, record: Record, text: str | None) -> tuple[ShownToken, ...]:
    """The tokens that a memory decodes to, right or not."""
    if record.codec == TEXT_ONLY:
        return ()
    memory = memory_for(lm, template, record)
    tokens = (
        lm.encode(text)
        if text is not None
        else list(decode(lm, template, memory, record.tokens + 1).tokens)
    )
    pinned = {pin.position for pin in record.pins}
    found_margins = margins(lm, template, memory, tokens)
    texts = [lm.decode([token]) for token in tokens] + [lm.decode([template.end])]
    kinds = [
        "" if position not in pinned else "correction" if margin <= 0 else "safety"
        for position, margin in enumerate(found_margins)
    ]
    return tuple(map(ShownToken, texts, found_margins, kinds))
