"""Compares rules that share vectors out among chunks.

How should they be shared out: by length, by an affine rule, or by what the LM finds surprising?

How to run (results go to run/benchmarks/planned.jsonl as they come; the same command goes on after
a kill; Ctrl-C is one):

    python -m benchmarks.planned --chunks 24 --tokens-per-vector 8     a first look
    python -m benchmarks.planned                         64 chunks, three totals, and the picture

The chunks are those that `ingest` makes of the sample documents, full ones and the short ones that
end a section; every length of chunk gets its share. Each rule has one number that is free; it is
set so that all rules give out the same total: that of T / r, for each r of --tokens-per-vector.
What is left over when no value fits exactly goes unused. A chunk never gets more vectors than
tokens.

Cost on two cores, with a model of 10M parameters: 1 to 5 s a chunk and rule, the more the fewer
fit: 64 chunks x 8 rules x 3 totals an hour, the first look 8 minutes.
"""

import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import (
    DOCS,
    Interval,
    Ledger,
    Unit,
    about,
    bootstrap,
    code_length,
    guarded,
    heartbeat,
    load_model,
    machine,
    numbers,
    open_ledger,
    options,
    put_table,
    save_json,
    work_through,
)
from rag_memtok.config import Documents, Memorize
from rag_memtok.datatypes import sha256_of_text
from rag_memtok.documents.scan import read, scan
from rag_memtok.documents.split import split
from rag_memtok.evaluation.corpora import spread_evenly
from rag_memtok.evaluation.figures import Chart, Line, draw
from rag_memtok.memory.batch import Task
from rag_memtok.memory.optimize import memorize
from rag_memtok.memory.workers import judge_record
from rag_memtok.model.lm import LM
from rag_memtok.model.prompts import digest_of, template_named

CHUNK_TOKENS = 128


@dataclass(frozen=True, slots=True)
class Sized:
    """A chunk's tokens and the bits in which the LM would code them."""

    tokens: tuple[int, ...]
    bits: float


@dataclass(frozen=True, slots=True)
class Rule:
    """A chunk gets `need / c` vectors, rounded up, and at least `floor`.

    c is what is left to choose. `formula` is for people.
    """

    formula: str
    need: Callable[[Sized], float]
    floor: int = 1

    def vectors(self, chunk: Sized, c: float) -> int:
        """The number of vectors."""
        return min(len(chunk.tokens), max(self.floor, ceil(self.need(chunk) / c - 1e-9)))


def length(chunk: Sized) -> float:
    """T."""
    return float(len(chunk.tokens))


def longer(by: int) -> Callable[[Sized], float]:
    """T + a."""
    return lambda chunk: length(chunk) + by


def bits_more(by: float) -> Callable[[Sized], float]:
    """The surprisal + a."""
    return lambda chunk: chunk.bits + by


RULES = (
    Rule("T / c", length),
    Rule("(T + 16) / c", longer(16)),
    Rule("(T + 32) / c", longer(32)),
    Rule("(T + 64) / c", longer(64)),
    Rule("T / c, at least 4", length, 4),
    Rule("T / c, at least 8", length, 8),
    Rule("bits / c", bits_more(0.0)),
    Rule("(bits + 150) / c", bits_more(150.0)),
)


def fitted(rule: Rule, chunks: Sequence[Sized], total: int) -> float:
    """The smallest c (to 1e-6 of itself) at which `rule` gives out no more than `total` vectors."""
    low, high = 1e-6, max(rule.need(chunk) for chunk in chunks)
    while high / low > 1 + 1e-6:
        middle = (low * high) ** 0.5
        if sum(rule.vectors(chunk, middle) for chunk in chunks) > total:
            low = middle
        else:
            high = middle
    return high


def sized_chunks(lm: LM, folder: Path, count: int) -> list[Sized]:
    """`count` chunks of the documents in `folder`, evenly over all of them by length."""
    settings = Documents(chunk_tokens=CHUNK_TOKENS)
    texts = {
        chunk.text
        for source in scan([folder], settings).files
        for document in read(source, settings).documents
        for chunk in split(document, CHUNK_TOKENS, lambda text: len(lm.encode(text)))
    }
    encoded = [tuple(lm.encode(text)) for text in sorted(texts, key=sha256_of_text)]
    by_length = sorted((tokens for tokens in encoded if tokens), key=len)
    return [Sized(tokens, code_length(lm, tokens)) for tokens in spread_evenly(by_length, count)]


# --- the work


@dataclass(frozen=True, slots=True)
class Plan:
    """A rule at a total: each chunk with its number of vectors."""

    rule: Rule
    ratio: int
    c: float
    vectors: tuple[int, ...]

    @property
    def key(self) -> str:
        """The key of its results in the ledger."""
        return f"{self.rule.formula}/{self.ratio}"


def plans(chunks: Sequence[Sized], ratios: Sequence[int]) -> list[Plan]:
    """Every rule at every total."""
    found = []
    for ratio in ratios:
        total = sum(RULES[0].vectors(chunk, ratio) for chunk in chunks)
        for rule in RULES:
            c = fitted(rule, chunks, total)
            found.append(Plan(rule, ratio, c, tuple(rule.vectors(chunk, c) for chunk in chunks)))
    return found


def piece(
    lm: LM, arguments: Namespace, plan: Plan, chunks: Sequence[Sized], indices: Sequence[int]
) -> dict[str, Any]:
    """Writes some chunks as a plan says, and judges what comes back from the packed bytes."""
    template = template_named(arguments.template, lm)
    settings = Memorize(
        steps=arguments.steps, batch=arguments.batch, seconds_per_chunk=0.0, codec=arguments.codec
    )
    tasks = [Task(str(index), chunks[index].tokens, plan.vectors[index]) for index in indices]
    results = []
    for one in memorize(lm, template, tasks, settings, on_step=heartbeat(plan.key)):
        verdict = judge_record(lm, template, settings, one).verdict
        found = {
            "index": int(one.task.key),
            "tokens": verdict.tokens,
            "vectors": one.task.vectors,
            "steps": one.steps,
        }
        results.append(
            found | {"exact": verdict.kind == "exact", "corrections": verdict.corrections}
        )
    return {"chunks": results}


def units(
    lm: LM, arguments: Namespace, planned: Sequence[Plan], chunks: Sequence[Sized]
) -> list[Unit]:
    """Some chunks of every plan, then the next ones.

    So a run that is cut short compares like with like.
    """
    count = arguments.batch
    parts = [
        range(start, len(chunks), -(-len(chunks) // count))
        for start in range(-(-len(chunks) // count))
    ]
    return [
        Unit(
            f"chunks/{plan.key}/{number}",
            plan.key,
            partial(piece, lm, arguments, plan, chunks=chunks, indices=indices),
        )
        for number, indices in enumerate(parts)
        for plan in planned
    ]


# --- the report


def results_of(ledger: Ledger, plan: Plan) -> list[dict[str, Any]]:
    """The ledger's results of a plan."""
    pieces = [
        value for key, value in ledger.results.items() if key.startswith(f"chunks/{plan.key}/")
    ]
    return sorted(
        (chunk for one in pieces for chunk in one["chunks"]), key=lambda chunk: chunk["index"]
    )


def share_exact(results: Sequence[dict[str, Any]]) -> Interval:
    """The share that is exact, in per cent."""
    exact = np.array([100.0 * chunk["exact"] for chunk in results])
    return bootstrap(len(exact), lambda drawn: float(exact[drawn].mean()))


def line(plan: Plan, results: Sequence[dict[str, Any]], edges: Sequence[int]) -> list[str]:
    """One row of the table."""
    tokens = sum(chunk["tokens"] for chunk in results)
    bins = [
        [chunk["exact"] for chunk in results if low < chunk["tokens"] <= high]
        for low, high in zip((0, *edges), edges, strict=False)
    ]
    return [
        plan.rule.formula.replace("c", f"{plan.c:.3g}", 1),
        str(sum(chunk["vectors"] for chunk in results)),
        str(len(results)),
        share_exact(results).text(0),
        *(f"{sum(some)} of {len(some)}" for some in bins),
        f"{100 * sum(chunk['corrections'] for chunk in results) / tokens:.2f}",
        f"{sum(chunk['steps'] for chunk in results) / len(results):.0f}",
    ]


def report(lm: LM, arguments: Namespace, ledger: Ledger, planned: Sequence[Plan]) -> None:
    """Prints the tables, and writes JSON and picture."""
    edges = (32, 71, 112, CHUNK_TOKENS)
    exact_at = [f"exact, to {edge} tokens" for edge in edges]
    head = (
        "vectors of a chunk",
        "in all",
        "chunks",
        "exact, %",
        *exact_at,
        "corrections / 100 tokens",
        "row-steps",
    )
    drawn: dict[str, list[tuple[float, Interval]]] = {}
    found = [(plan, results) for plan in planned if (results := results_of(ledger, plan))]
    for ratio in arguments.tokens_per_vector:
        body = [line(plan, results, edges) for plan, results in found if plan.ratio == ratio]
        put_table(f"As many vectors as T / {ratio} has", (head, body))
    for plan, results in found:
        spent = sum(chunk["tokens"] for chunk in results) / sum(
            chunk["vectors"] for chunk in results
        )
        drawn.setdefault(plan.rule.formula, []).append((spent, share_exact(results)))
    summary = [
        {"rule": plan.rule.formula, "c": plan.c, "ratio": plan.ratio, "chunks": results}
        for plan, results in found
    ]
    save_json(
        {"machine": machine(lm), "about": ledger.results["about"], "rules": summary},
        arguments.out.with_suffix(".json"),
    )
    lines = [
        Line(name=formula, x=[x for x, _ in points], y=[y.value for _, y in points])
        for formula, points in drawn.items()
    ]
    if lines:
        chart = Chart(
            title="How vectors are shared out",
            x_label="tokens for each vector, over all chunks",
            y_label="% of the chunks exact",
            lines=lines,
        )
        draw(chart, arguments.out.with_suffix(".png"))


def parsed(words: Sequence[str] | None = None) -> Namespace:
    """The command line."""
    parser = options(__doc__ or "", "planned")
    parser.add_argument("--model", default="mini", help="mini, a folder or a hub id")
    parser.add_argument(
        "--tokens-per-vector",
        type=numbers,
        default=(8, 10, 12),
        help="the totals to compare at (8,10,12)",
    )
    parser.add_argument("--codec", default="float16", help="what vectors are stored in (float16)")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> None:
    """Plans, writes, reports."""
    arguments = parsed(words)
    until = time.monotonic() + arguments.seconds
    lm = load_model(arguments.model, arguments)
    chunks = sized_chunks(lm, arguments.texts or DOCS, arguments.chunks)
    planned = plans(chunks, arguments.tokens_per_vector)
    chosen = {
        name: getattr(arguments, name)
        for name in ("chunks", "steps", "batch", "template", "codec", "tokens_per_vector")
    }
    chosen["texts"] = str(arguments.texts or DOCS)
    # what is in that folder may change
    chosen["texts_sha256"] = digest_of([chunk.tokens for chunk in chunks])
    ledger = open_ledger(
        arguments.out.with_suffix(".jsonl"),
        about(lm, rules=[rule.formula for rule in RULES], **chosen),
    )
    work_through(units(lm, arguments, planned, chunks), ledger, until)
    report(lm, arguments, ledger, planned)


if __name__ == "__main__":
    guarded(main)
