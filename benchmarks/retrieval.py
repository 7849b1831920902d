"""Is the right file among the first k hits?

The sample questions over the sample documents: `python -m benchmarks.retrieval`.

Chunks, keys and words as `ingest` stores them; the memories themselves play no part in finding, so
none are written.
"""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from rag_memtok.config import Documents, Retrieve
from rag_memtok.documents.scan import read, scan
from rag_memtok.documents.split import split
from rag_memtok.model.lm import EMBEDDED
from rag_memtok.pipeline.plan import Piece, places_of, stored_document
from rag_memtok.pipeline.writer import text_only_record
from rag_memtok.retrieval.embedder import load_embedder
from rag_memtok.retrieval.index import open_index
from rag_memtok.retrieval.search import search
from rag_memtok.store.store import create, open_store

DATA = Path(__file__).parent.parent / "data"


def build(
    folder: Path, documents: Path, exclude: Sequence[str], tokenizer: Path, keys: str = "mini"
) -> None:
    """Makes a store of `documents` that keeps text alone, cut as a model of that tokenizer cuts.

    `keys` names the embedder.
    """
    words, embedder = Tokenizer.from_file(str(tokenizer)), load_embedder(keys)
    settings = Documents(exclude=tuple(exclude), chunk_tokens=128)
    create(folder, {})
    with open_store(folder, write=True) as store:
        for source in scan([documents], settings).files:
            parts = read(source, settings).documents
            cut = [
                split(part, settings.chunk_tokens, lambda text: len(words.encode(text).ids))
                for part in parts
            ]
            for chunk in (chunk for chunks in cut for chunk in chunks):
                key = embedder.encode([chunk.text], query=False)[0]
                store.put(text_only_record(chunk, key), chunk.text)
            pieces = [tuple(Piece(chunk, None) for chunk in chunks) for chunks in cut]
            stored = [
                stored_document(source, part, some)
                for part, some in zip(parts, pieces, strict=True)
            ]
            places = [
                place
                for part, some in zip(parts, pieces, strict=True)
                for place in places_of(part, some)
            ]
            store.replace_file(source.root, source.file, stored, places)


def share_found(folder: Path, questions: Sequence[dict], k: int, dense_weight: float) -> float:
    """The share of `questions` whose file is among the first `k` hits.

    `dense_weight` 1 is keys alone, 0 words alone, -1 as recorded.
    """
    settings, embedder = Retrieve(k=k, dense_weight=dense_weight), load_embedder("mini")
    with open_store(folder, write=False) as store:
        index = open_index(store, embedder)
        found = [
            {
                place.path.partition("#")[0]
                for hit in search(store, index, embedder, row["question"], settings)
                for place in hit.occurrences
            }
            for row in questions
        ]
    return sum(row["file"] in files for row, files in zip(questions, found, strict=True)) / len(
        questions
    )


def answerable(*, library: bool) -> list[dict]:
    """The sample questions that have an answer, those on `library/` or only the others."""
    rows = [
        json.loads(line)
        for line in (DATA / "questions.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    return [
        row for row in rows if row["file"] and (library or not row["file"].startswith("library/"))
    ]


def main() -> None:
    """Prints the table."""
    for title, exclude, questions in (
        ("8 files", ["library/"], answerable(library=False)),
        ("22 files", [], answerable(library=True)),
    ):
        with tempfile.TemporaryDirectory() as folder:
            build(Path(folder) / "store", DATA / "docs", exclude, EMBEDDED / "tokenizer.json")
            for name, weight in (("words", 0.0), ("keys", 1.0), ("fused", -1.0)):
                shares = [share_found(Path(folder) / "store", questions, k, weight) for k in (1, 3)]
                print(
                    f"{title}, {len(questions)} questions, {name:5}: top 1 {shares[0]:.1%}, top 3 "
                    f"{shares[1]:.1%}"
                )


if __name__ == "__main__":
    main()
