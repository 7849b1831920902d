"""File names and headings get their keys where nothing else is to be done."""

from functools import cache

from rag_memtok.errors import InputRefused, ModelUnavailable, WrongModel
from rag_memtok.pipeline.manifest import require_same_embedder
from rag_memtok.pipeline.resources import Say
from rag_memtok.retrieval.embedder import Embedder, load_embedder
from rag_memtok.retrieval.lines import EVERY
from rag_memtok.store.store import Store


def give_keys(store: Store, say: Say) -> None:
    """Gives the file names and headings that are there their keys; loads what some lack only."""
    manifest = store.manifest

    @cache
    def embedder() -> Embedder:
        loaded = load_embedder(manifest["embedder"], recorded=True)
        require_same_embedder(manifest, loaded)
        return loaded

    try:
        store.line_keys(
            manifest["embedder_sha256"], lambda texts: embedder().encode(texts, query=False), EVERY
        )
    except (ModelUnavailable, InputRefused, WrongModel) as error:
        say(f"names and headings have no keys: {error}")
