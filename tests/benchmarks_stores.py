"""A store of documents whose texts are kept and whose memories are not written."""

from pathlib import Path

from benchmarks.retrieval import build
from rag_memtok.model.lm import EMBEDDED


def stored(folder: Path, documents: Path) -> Path:
    """Makes it, cut as the embedded model cuts."""
    build(folder, documents, [], EMBEDDED / "tokenizer.json")
    return folder
