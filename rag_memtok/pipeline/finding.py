"""What a question finds, without a language model."""

from rag_memtok.config import Retrieve
from rag_memtok.datatypes import Found, Hit
from rag_memtok.errors import StoreDamaged
from rag_memtok.pipeline.citation import source_of
from rag_memtok.pipeline.first_words import nothing_found_error, require_words
from rag_memtok.retrieval.embedder import Embedder
from rag_memtok.retrieval.index import open_index
from rag_memtok.retrieval.search import search
from rag_memtok.store.store import Store


def find_chunks(store: Store, embedder: Embedder, question: str, settings: Retrieve) -> list[Found]:
    """The chunks relevant to `question`, best first.

    Raises:
        NoUsableMemory: there is none.
    """
    require_words(question)
    hits = search(store, open_index(store, embedder), embedder, question, settings)
    if not hits:
        raise nothing_found_error(store)
    return [_read_hit(store, hit) for hit in hits]


def _read_hit(store: Store, hit: Hit) -> Found:
    try:
        kind, text = store.record(hit.chunk_id).verdict.kind, store.text(hit.chunk_id)
    except StoreDamaged:
        kind, text = "damaged", None
    return Found(source_of(store, hit, kind), text or "")
