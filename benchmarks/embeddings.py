"""Are memory vectors embeddings? Retrieval and classification by them, against the usual ways.

    python -m benchmarks.embeddings --limit 64

The same passages of `data/docs` (about 32 tokens each) in every row of the table, compared by
cosine: M = 1, or the mean of M > 1 vectors. A memory that starts at its text's own token embeddings
still carries some of them, so one that starts at random stands beside it. Queries are written as
memories, too. Expect memories to lose: from different starts the same text gives nearly orthogonal
vectors.

    duplicates   a passage from which every seventh word is missing: is the passage itself among
                 the first k?
    questions    the sample questions: is a passage with the answer, of the right file, among the
                 first k?
    files        nearest centroid, leave-one-out: is the passage's own file's centroid the nearest?

Cost with the embedded model: (passages + queries) x 4 kinds of memories x at most --steps steps;
about 10 CPU minutes as it is.
"""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from rag_memtok import config
from rag_memtok.cli import console
from rag_memtok.documents.scan import read, scan
from rag_memtok.documents.split import split
from rag_memtok.evaluation.corpora import spread_evenly
from rag_memtok.memory.batch import Task, make_task
from rag_memtok.memory.optimize import Step, memorize
from rag_memtok.memory.recipes import recipe_named
from rag_memtok.model.lm import LM, load
from rag_memtok.model.prompts import template_named
from rag_memtok.retrieval.embedder import load_embedder

DATA = Path(__file__).parent.parent / "data"
PASSAGE_TOKENS, TOKENS_PER_VECTOR, LEFT_OUT = 32, 8, 7
Encode = Callable[[Sequence[str], bool], np.ndarray]
"""(texts, whether they are questions) -> a row for each."""


@dataclass(frozen=True, slots=True)
class Passage:
    """A text and the file it is from."""

    text: str
    file: str


@dataclass(frozen=True, slots=True)
class Trials:
    """The queries, and the passages that each should find.

    `right` has for each query the numbers of those passages.
    """

    passages: tuple[Passage, ...]
    duplicates: tuple[str, ...]
    questions: tuple[str, ...]
    right: tuple[frozenset[int], ...]


# --- what is measured


def nearest(queries: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The numbers of `rows` by falling cosine, for each query."""
    unit = [
        matrix / np.maximum(np.linalg.norm(matrix, axis=1, keepdims=True), 1e-12)
        for matrix in (queries, rows)
    ]
    return np.argsort(-(unit[0] @ unit[1].T), axis=1, kind="stable")


def recall(ranked: np.ndarray, right: Sequence[frozenset[int]], k: int) -> float:
    """The share of queries with a right row among the first `k`."""
    return sum(
        bool(wanted & set(found[:k].tolist())) for found, wanted in zip(ranked, right, strict=True)
    ) / max(1, len(right))


def centroid_accuracy(rows: np.ndarray, labels: Sequence[str]) -> float:
    """The accuracy of the nearest centroid by cosine.

    The centroid of a row's own label is without that row, and labels with one row only are left
    out.
    """
    names = [name for name in dict.fromkeys(labels) if labels.count(name) > 1]
    unit = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    sums = {
        name: sum(row for row, label in zip(unit, labels, strict=True) if label == name)
        for name in names
    }
    tried = [(row, label) for row, label in zip(unit, labels, strict=True) if label in sums]
    hits = 0
    for row, label in tried:
        centroids = np.stack([sums[name] - row if name == label else sums[name] for name in names])
        hits += names[int(nearest(row[None], centroids)[0, 0])] == label
    return hits / max(1, len(tried))


# --- the texts


def nearly(text: str) -> str:
    """`text` without every seventh word."""
    return " ".join(word for number, word in enumerate(text.split(), start=1) if number % LEFT_OUT)


def trials_of(lm: LM, limit: int) -> Trials:
    """`limit` passages, those with answers to sample questions first.

    Those are of half as many sample questions; then come others, evenly spread.
    """
    settings = config.Documents()
    passages = []
    for source in scan([DATA / "docs"], settings).files:
        for document in read(source, settings).documents:
            found = split(document, PASSAGE_TOKENS, lambda text: len(lm.encode(text)))
            passages += [
                Passage(chunk.text, source.file)
                for chunk in found
                if len(chunk.text.split()) >= LEFT_OUT
            ]
    asked = [
        json.loads(line)
        for line in (DATA / "questions.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    holds = [
        (
            row["question"],
            {
                one
                for one in passages
                if one.file == row["file"] and in_it(row["answers"], one.text)
            },
        )
        for row in asked
    ]
    chosen = [
        holds[int(number)]
        for number in spread_evenly(
            [str(number) for number, (_, right) in enumerate(holds) if right], limit // 2
        )
    ]
    wanted = {one for _, right in chosen for one in right}
    others = spread_evenly(
        [str(number) for number, one in enumerate(passages) if one not in wanted],
        max(0, limit - len(wanted)),
    )
    kept = tuple(
        dict.fromkeys(
            [one for one in passages if one in wanted]
            + [passages[int(number)] for number in others]
        )
    )
    right = tuple(
        frozenset(number for number, one in enumerate(kept) if one in found) for _, found in chosen
    )
    return Trials(
        kept,
        tuple(nearly(one.text) for one in kept[: limit // 2]),
        tuple(question for question, _ in chosen),
        right,
    )


def in_it(answers: Sequence[str], text: str) -> bool:
    """Whether one of the answers stands in `text`."""
    return any(answer.lower() in text.lower() for answer in answers)


# --- the ways


def memories(
    lm: LM, start: str, *, single: bool, steps: int, on_step: Callable[[Step], None]
) -> Encode:
    """Texts as the mean of their memory's vectors.

    There is one vector in all if `single`, else one for 8 tokens.
    """
    recipe = replace(recipe_named("margin"), start=start, steps=steps)  # type: ignore[arg-type]

    def encode(texts: Sequence[str], query: bool) -> np.ndarray:
        tokens = [tuple(lm.encode(text)) for text in texts]
        tasks = [
            Task(text, one, 1) if single else make_task(text, one, TOKENS_PER_VECTOR)
            for text, one in zip(texts, tokens, strict=True)
        ]
        settings = config.Memorize(seconds_per_chunk=0.0)
        written = {
            one.task.key: one
            for one in memorize(
                lm, template_named("bare", lm), tasks, settings, on_step=on_step, recipe=recipe
            )
        }
        exact = sum(one.wrong == 0 for one in written.values())
        console.say(
            f"{start} start, {'M = 1' if single else 'M = T / 8'}: {exact} of {len(written)} exact"
        )
        return np.stack([written[text].vectors.mean(0) for text in texts])

    return encode


def pooled_tokens(lm: LM) -> Encode:
    """Texts as the mean of their token embeddings."""
    return lambda texts, query: np.stack(
        [lm.embed(lm.encode(text)).float().mean(0).cpu().numpy() for text in texts]
    )


def pooled_states(lm: LM) -> Encode:
    """Texts as the mean of the LM's last hidden states over them."""

    @torch.inference_mode()
    def encode(texts: Sequence[str], query: bool) -> np.ndarray:
        return np.stack(
            [
                lm.hidden(lm.embed(lm.encode(text))[None])[0].float().mean(0).cpu().numpy()
                for text in texts
            ]
        )

    return encode


def ways(lm: LM, steps: int, on_step: Callable[[Step], None]) -> Mapping[str, Encode]:
    """Every row of the table."""
    rng = np.random.default_rng(0)
    return {
        "chance": lambda texts, query: rng.standard_normal((len(texts), lm.width)),
        "memory, M = 1, random start": memories(
            lm, "random", single=True, steps=steps, on_step=on_step
        ),
        "memory, M = 1, own tokens": memories(
            lm, "pooled", single=True, steps=steps, on_step=on_step
        ),
        "memory, M = T / 8, random start": memories(
            lm, "random", single=False, steps=steps, on_step=on_step
        ),
        "memory, M = T / 8, own tokens": memories(
            lm, "pooled", single=False, steps=steps, on_step=on_step
        ),
        "token embeddings, pooled": pooled_tokens(lm),
        "last hidden states, pooled": pooled_states(lm),
        "the shipped retriever": lambda texts, query: load_embedder("mini").encode(
            texts, query=query
        ),
    }


def scores(encode: Encode, trials: Trials) -> dict[str, float]:
    """One row of the table."""
    keys = encode([one.text for one in trials.passages], False)
    again, asked = (
        nearest(encode(trials.duplicates, False), keys),
        nearest(encode(trials.questions, True), keys),
    )
    itself = [frozenset({number}) for number in range(len(trials.duplicates))]
    found = {f"duplicates@{k}": recall(again, itself, k) for k in (1, 5)} | {
        f"questions@{k}": recall(asked, trials.right, k) for k in (1, 5)
    }
    return found | {"files": centroid_accuracy(keys, [one.file for one in trials.passages])}


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="mini")
    parser.add_argument(
        "--limit", type=int, default=64, help="passages; half as many duplicates, and questions"
    )
    parser.add_argument("--steps", type=int, default=100, help="steps a memory, at most")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON, too")
    args = parser.parse_args()
    lm = load(config.Model(id=args.model, threads=args.threads))
    trials, found = trials_of(lm, args.limit), dict[str, dict[str, float]]()
    with console.bar("ways") as show:
        for name, encode in ways(
            lm, args.steps, lambda at: show(len(found), 8, f"step {at.steps}, {at.right} right")
        ).items():
            found[name] = scores(encode, trials)
            show(len(found), 8, name)
    sizes = (
        f"{len(trials.passages)} passages, {len(trials.duplicates)} duplicates, "
        f"{len(trials.questions)} questions"
    )
    console.put(f"{lm.identity.id} {lm.identity.revision}: {sizes}")
    columns = list(found["chance"])
    console.put_columns(
        [
            ["way", *columns],
            *[[name, *(f"{row[column]:.3f}" for column in columns)] for name, row in found.items()],
        ]
    )
    if args.out:
        args.out.write_text(
            json.dumps({"model": lm.identity.id, "sizes": sizes, "rows": found}, indent=1)
        )


if __name__ == "__main__":
    main()
