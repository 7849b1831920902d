"""Measures retrieval over all dev passages.

Run it with `python -m training.retrieval RETRIEVER DATA --lm MODEL`.

Recall@1/5/20 and MRR of full-text search alone, of the LM's pooled embeddings and of the trained
retriever. Writes `retriever.json` beside the retriever: the threshold for "nothing relevant" (5th
percentile of the cosine of gold pairs), and the share of keys in the fused score, which
`benchmarks/passages.py` measures.
"""

import argparse
import json
import re
import sqlite3
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from training.examples import chunks, usable
from training.sources import FREE_QUESTIONS, SPAN_QUESTIONS, hash01, questions

DEPTH = 100  # ranks kept of each list
DENSE_WEIGHT = 0.5  # benchmarks/log.md


@dataclass(frozen=True)
class Pool:
    """All passages, and the questions with the indices of the passages that answer them."""

    passages: list[str]
    questions: list[str]
    gold: list[frozenset[int]]


def pool(data: Path, limit: int) -> Pool:
    """The dev contexts of every source in chunks.

    Gold are the chunks of a question's context that hold the answer, or all if none does.
    """
    index: dict[str, int] = {}
    asked, gold = [], []
    for source in (*SPAN_QUESTIONS, *FREE_QUESTIONS):
        rows = [row for row in questions(data, source, "dev") if usable(row)]
        for row in sorted(rows, key=lambda r: hash01(r["question"] + r["context"], "dev"))[:limit]:
            parts = chunks(row["context"])
            holds = [p for p in parts if row["answers"][0] in p] or parts
            for part in parts:
                index.setdefault(part, len(index))
            asked.append(row["question"])
            gold.append(frozenset(index[p] for p in holds))
    return Pool(list(index), asked, gold)


def full_text(pool: Pool) -> list[list[int]]:
    """Ranks by SQLite's bm25 over the question's words, quoted and joined by OR."""
    database = sqlite3.connect(":memory:")
    database.execute("create virtual table passage using fts5(text)")
    database.executemany("insert into passage(rowid, text) values (?, ?)", enumerate(pool.passages))
    ranks = []
    for question in pool.questions:
        terms = " OR ".join(f'"{word}"' for word in dict.fromkeys(re.findall(r"\w+", question)))
        query = "select rowid from passage where passage match ? order by bm25(passage) limit ?"
        ranks.append([row[0] for row in database.execute(query, (terms, DEPTH))] if terms else [])
    return ranks


def embed(table: np.ndarray, tokenizer: Tokenizer, texts: list[str]) -> np.ndarray:
    """Normalised means of the rows of each text's tokens, `[texts, width]`."""
    encoded = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    out = np.stack(
        [table[e.ids].mean(0) if e.ids else np.zeros(table.shape[1]) for e in encoded]
    ).astype(np.float32)
    return out / np.maximum(np.linalg.norm(out, axis=1, keepdims=True), 1e-9)


def dense(
    table: np.ndarray, tokenizer: Tokenizer, pool: Pool
) -> tuple[list[list[int]], np.ndarray]:
    """Ranks by cosine, and the cosine of each question with the best of its gold passages."""
    scores = embed(table, tokenizer, pool.questions) @ embed(table, tokenizer, pool.passages).T
    ranks = np.argsort(-scores, axis=1)[:, :DEPTH].tolist()
    return ranks, np.array([max(scores[i, j] for j in gold) for i, gold in enumerate(pool.gold)])


def scores(ranks: list[list[int]], gold: list[frozenset[int]]) -> dict[str, float]:
    """Recall at 1, 5 and 20 in per cent, and the mean reciprocal rank."""
    first = [
        next((k for k, p in enumerate(row, 1) if p in right), 10**9)
        for row, right in zip(ranks, gold, strict=True)
    ]
    found = {
        f"recall@{k}": round(100 * sum(f <= k for f in first) / len(first), 1) for k in (1, 5, 20)
    }
    return found | {"mrr": round(sum(1 / f for f in first) / len(first), 3)}


def compare(
    pool: Pool, tables: dict[str, tuple[np.ndarray, Tokenizer]]
) -> tuple[dict[str, dict], dict[str, float]]:
    """The table of scores, and what to write of the last of `tables`."""
    results = {"FTS5 alone": scores(full_text(pool), pool.gold)}
    for name, (table, tokenizer) in tables.items():
        ranks, cosines = dense(table, tokenizer, pool)
        results[name] = scores(ranks, pool.gold)
    threshold = round(float(np.percentile(cosines, 5)), 4)
    return results, {"threshold": threshold, "dense_weight": DENSE_WEIGHT}


def main() -> None:
    """Parses the command line, measures, prints and writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("retriever", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--lm", type=Path, help="a folder of LM weights, for its pooled embeddings")
    parser.add_argument("--questions", type=int, default=100_000, help="at most, of each source")
    args = parser.parse_args()
    folder = next(p.parent for p in sorted(args.retriever.rglob("model.safetensors")))
    table = next(iter(load_file(folder / "model.safetensors").values())).astype(np.float32)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tables = {"trained": (table, tokenizer)}
    if args.lm:
        from training.model import load_embedding  # torch, needed here alone

        tables = {"the LM's embeddings, pooled": (load_embedding(args.lm), tokenizer)} | tables
    passages = pool(args.data, args.questions)
    results, settings = compare(passages, tables)
    (args.retriever / "retriever.json").write_text(json.dumps(settings) + "\n")
    print(f"{len(passages.questions)} questions, {len(passages.passages)} passages\n")
    print("| | Recall@1 | @5 | @20 | MRR |\n|---|--:|--:|--:|--:|")
    for name, row in results.items():
        print(f"| {name} | " + " | ".join(str(v) for v in row.values()) + " |")
    print(f"\n{settings}")


if __name__ == "__main__":
    main()
