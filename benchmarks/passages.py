"""Is the right chunk among the first k hits? On the dev sets of questions over passages.

`python -m benchmarks.passages FOLDER [--passages 500] [--questions 300] [--embedder mini]`: FOLDER
has a `.jsonl.xz` a set, of `{"context", "question", "answers", "split"}`. Each passage is a file;
right is a chunk of the question's own that holds an answer, or any of these where none does. Words
alone, keys alone, fused; chunks, keys and words as `ingest` stores them.
"""

import argparse
import json
import lzma
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.retrieval import build
from rag_memtok.config import Retrieve
from rag_memtok.datatypes import sha256_of_text
from rag_memtok.model.lm import EMBEDDED
from rag_memtok.retrieval.embedder import Embedder, load_embedder
from rag_memtok.retrieval.index import open_index
from rag_memtok.retrieval.search import search
from rag_memtok.store.store import Store, open_store

WAYS = {"words": 0.0, "keys": 1.0, "fused": -1.0}
DEPTHS = (1, 3, 10)


def drawn(file: Path, passages: int, questions: int) -> tuple[list[str], list[dict]]:
    """Passages of a set's dev part, and questions about them; by hash, so ever the same ones."""
    with lzma.open(file, "rt", encoding="utf-8") as lines:
        rows = [row for row in map(json.loads, lines) if row["split"] == "dev" and row["context"]]
    rows.sort(key=lambda row: sha256_of_text(row["question"] + row["context"]))
    kept = list(dict.fromkeys(row["context"] for row in rows))[:passages]
    among = set(kept)
    return kept, [row for row in rows if row["context"] in among][:questions]


def right_chunks(store: Store, row: dict) -> set[str]:
    """The ids of the chunks of a question's passage that hold an answer, else of all of them."""
    (document,) = store.documents_at(f"{sha256_of_text(row['context'])}.txt")
    ids = [one.chunk_id for one in store.document_chunks(document.root, document.path)]
    texts = {one: (store.text(one) or "").casefold() for one in ids}
    holding = {
        one for one in ids if any(answer.casefold() in texts[one] for answer in row["answers"])
    }
    return holding or set(ids)


def recalls(
    store: Store, embedder: Embedder, rows: Sequence[dict]
) -> Iterator[tuple[str, list[float], list[str]]]:
    """For each way its share of questions with a right chunk among the first 1, 3 and 10.

    With the questions that have none among 10.
    """
    index = open_index(store, embedder)
    right = [right_chunks(store, row) for row in rows]
    for way, weight in WAYS.items():
        settings = Retrieve(k=max(DEPTHS), dense_weight=weight)
        ranks = [
            next(
                (
                    rank
                    for rank, hit in enumerate(
                        search(store, index, embedder, row["question"], settings), start=1
                    )
                    if hit.chunk_id in wanted
                ),
                max(DEPTHS) + 1,
            )
            for row, wanted in zip(rows, right, strict=True)
        ]
        shares = [sum(rank <= depth for rank in ranks) / len(ranks) for depth in DEPTHS]
        lost = [
            row["question"] for row, rank in zip(rows, ranks, strict=True) if rank > max(DEPTHS)
        ]
        yield way, shares, lost


def measured(
    file: Path, passages: int, questions: int, keys: str
) -> Iterator[tuple[str, list[float]]]:
    """The recalls on one set, by the keys of that embedder."""
    texts, rows = drawn(file, passages, questions)
    if not rows:
        return
    with tempfile.TemporaryDirectory() as folder:
        documents, store = Path(folder) / "documents", Path(folder) / "store"
        documents.mkdir()
        for text in texts:
            (documents / f"{sha256_of_text(text)}.txt").write_text(text, encoding="utf-8")
        build(store, documents, [], EMBEDDED / "tokenizer.json", keys)
        with open_store(store, write=False) as opened:
            for way, shares, _ in recalls(opened, load_embedder(keys), rows):
                yield f"{len(texts)} passages, {len(rows)} questions, {way}", shares


def main() -> None:
    """Prints a line for each set and way."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--passages", type=int, default=500)
    parser.add_argument("--questions", type=int, default=300)
    parser.add_argument("--embedder", default="mini", help="mini, minilm, a folder or a hub id")
    parser.add_argument("--only", default="*", help="the sets of such names")
    args = parser.parse_args()
    for file in sorted(args.folder.glob(f"{args.only}.jsonl.xz")):
        for title, shares in measured(file, args.passages, args.questions, args.embedder):
            told = ", ".join(
                f"@{depth} {share:.1%}" for depth, share in zip(DEPTHS, shares, strict=True)
            )
            print(f"{file.name.partition('.')[0]}, {title}: {told}", flush=True)


if __name__ == "__main__":
    main()
