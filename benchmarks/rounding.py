"""How far a memory can be rounded and stay exact.

Also what writing it through the rounding changes, and what it weighs.

How to run (results go to run/benchmarks/rounding.jsonl as they come; the same command goes on after
a kill; Ctrl-C is one):

    python -m benchmarks.rounding --chunks 12     a first look
    python -m benchmarks.rounding                 64 chunks of 64 and 128 tokens, all kinds of text

Every chunk is written unrounded and judged from the packed bytes of every codec; and it is written
anew for each codec as an ingest does it, which measures the loss at the rounded vectors and moves
the unrounded ones. The bytes stand beside those of the text itself.

Cost on two cores, with a model of 10M parameters: writing 1 to 4 s a chunk and codec, judging 0.5
s: 20 minutes at the defaults, 4 for the first look.
"""

import time
import zlib
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from benchmarks.measure import (
    Ledger,
    Sample,
    Table,
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
    samples,
    save_json,
    texts_of,
    usual_tokens_per_vector,
    work_through,
)
from rag_memtok.config import Memorize
from rag_memtok.datatypes import Memory
from rag_memtok.evaluation.figures import Chart, Line, draw
from rag_memtok.memory.batch import Task, make_task
from rag_memtok.memory.codec import CODECS, Codec
from rag_memtok.memory.optimize import memorize
from rag_memtok.memory.reconstruct import judge
from rag_memtok.memory.step import OptimizedMemory
from rag_memtok.model.lm import LM
from rag_memtok.model.prompts import Template, template_named
from rag_memtok.retrieval.embedder import load_embedder
from rag_memtok.store.schema import pack_pins

PLAIN = "float32"


# --- the work


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """The model and settings that all chunks share."""

    lm: LM
    template: Template
    arguments: Namespace
    tokens_per_vector: int
    chunks: Sequence[Sample]

    def written(self, tasks: Sequence[Task], codec: str) -> list[OptimizedMemory]:
        """Optimizes memories as an ingest into a store of this codec does."""
        settings = Memorize(
            steps=self.arguments.steps,
            batch=self.arguments.batch,
            seconds_per_chunk=0.0,
            codec=codec,
        )
        return list(
            memorize(
                self.lm, self.template, tasks, settings, on_step=heartbeat(f"writing, {codec}")
            )
        )

    def judged(self, written: OptimizedMemory, codec: Codec) -> dict[str, Any]:
        """The judge's verdict on the packed bytes, and their size."""
        packed = codec.pack(written.vectors)
        shape = (written.vectors.shape[0], written.vectors.shape[1])
        memory, verdict = judge(
            self.lm,
            self.template,
            Memory(codec.unpack(packed, shape)),
            written.task.tokens,
            self.arguments.tau,
        )
        sizes = {"bytes": len(packed), "pin_bytes": len(pack_pins(memory.pins))}
        return sizes | {
            "exact": verdict.kind == "exact",
            "corrections": verdict.corrections,
            "margin": verdict.margin,
        }


def piece(bench: Bench, indices: Sequence[int]) -> dict[str, Any]:
    """Writes some chunks unrounded, rounds them, and writes them through every rounding."""
    tasks = [
        make_task(
            f"{index} {bench.chunks[index].key}",
            bench.chunks[index].tokens,
            bench.tokens_per_vector,
        )
        for index in indices
    ]
    chunks = {task.key: weight(bench.lm, task) for task in tasks}
    plain = bench.written(tasks, PLAIN)
    for name, codec in CODECS.items():
        for one in plain:
            chunks[one.task.key][name] = bench.judged(one, codec) | {"steps": one.steps}
        for one in bench.written(tasks, name) if name != PLAIN else ():
            chunks[one.task.key][name]["through"] = bench.judged(one, codec) | {"steps": one.steps}
    return {"chunks": list(chunks.values())}


def weight(lm: LM, task: Task) -> dict[str, Any]:
    """A chunk's numbers that no codec changes; sizes in bytes."""
    text = lm.decode(task.tokens)
    return {
        "tokens": len(task.tokens),
        "vectors": task.vectors,
        "key": load_embedder("mini").encode([text], query=False)[0].nbytes,
        "text": len(text.encode()),
        "zlib": len(zlib.compress(text.encode(), 9)),
        "code": code_length(lm, task.tokens) / 8,
    }


# --- the report


def share(hits: Sequence[bool]) -> str:
    """Per cent with its interval."""
    values = np.array(hits, dtype=float)
    return (
        bootstrap(len(values), lambda drawn: float(values[drawn].mean())).text(0, factor=100.0)
        if len(values)
        else "-"
    )


def exactness_table(chunks: Sequence[dict[str, Any]], width: int) -> Table:
    """Exact where what was written is rounded, and where it is written through the rounding."""
    body = []
    for name in CODECS:
        rounded, through = (
            [chunk[name] for chunk in chunks],
            [chunk[name].get("through", chunk[name]) for chunk in chunks],
        )
        bits = (
            8
            * sum(one["bytes"] for one in rounded)
            / sum(chunk["vectors"] * width for chunk in chunks)
        )
        row = [name, f"{bits:.1f}"]
        for ones in (rounded, through):
            pins = (
                100
                * sum(one["corrections"] for one in ones)
                / sum(chunk["tokens"] for chunk in chunks)
            )
            row += [
                share([one["exact"] for one in ones]),
                f"{pins:.1f}",
                f"{np.mean([one['steps'] for one in ones]):.0f}",
            ]
        body.append(row)
    each = ("exact, %", "corrections / 100 tokens", "steps")
    return (
        "codec",
        "bits a number",
        *(f"rounded at the end: {each[0]}", *each[1:]),
        *(f"written through it: {each[0]}", *each[1:]),
    ), body


def bytes_table(chunks: Sequence[dict[str, Any]]) -> Table:
    """Bytes a chunk, beside the text's own."""

    def mean(values: Sequence[float]) -> float:
        return float(np.mean(values))

    rest = [
        f"{mean([chunk[name] for chunk in chunks]):.0f}" for name in ("key", "text", "zlib", "code")
    ]
    body = []
    for name in CODECS:
        vectors, pins = (
            mean([chunk[name][part] for chunk in chunks]) for part in ("bytes", "pin_bytes")
        )
        times = (vectors + pins) / mean([chunk["text"] for chunk in chunks])
        body.append([name, f"{vectors:.0f}", f"{pins:.1f}", *rest, f"{times:.0f}"])
    head = (
        "codec",
        "vectors",
        "pins",
        "key",
        "text",
        "text, zlib",
        "text, the LM's code length",
        "(vectors + pins) / text",
    )
    return head, body


def picture(chunks: Sequence[dict[str, Any]], width: int) -> Chart:
    """The share of exact memories against the bits of a number."""
    names = [name for name in CODECS if name != "bfloat16"]
    bits = [
        8 * float(np.mean([chunk[name]["bytes"] / (chunk["vectors"] * width) for chunk in chunks]))
        for name in names
    ]
    rounded = [100 * float(np.mean([chunk[name]["exact"] for chunk in chunks])) for name in names]
    through = [
        100 * float(np.mean([chunk[name].get("through", chunk[name])["exact"] for chunk in chunks]))
        for name in names
    ]
    lines = [
        Line(name="rounded at the end", x=bits, y=rounded),
        Line(name="written through the rounding", x=bits, y=through),
    ]
    return Chart(
        title="What rounding leaves exact",
        x_label="bits a number",
        y_label="% of the chunks exact",
        lines=lines,
        log_x=2,
    )


def report(bench: Bench, ledger: Ledger) -> None:
    """Prints the tables, and writes JSON and picture."""
    chunks = [
        chunk
        for key, value in ledger.results.items()
        if key.startswith("chunks/")
        for chunk in value["chunks"]
    ]
    if not chunks:
        return
    put_table("Exact without correction pins", exactness_table(chunks, bench.lm.width))
    put_table("Bytes a chunk", bytes_table(chunks))
    save_json(
        {"machine": machine(bench.lm), "about": ledger.results["about"], "chunks": chunks},
        bench.arguments.out.with_suffix(".json"),
    )
    draw(picture(chunks, bench.lm.width), bench.arguments.out.with_suffix(".png"))


def parsed(words: Sequence[str] | None = None) -> Namespace:
    """The command line."""
    parser = options(__doc__ or "", "rounding")
    parser.add_argument("--model", default="mini", help="mini, a folder or a hub id")
    parser.add_argument(
        "--lengths", type=numbers, default=(64, 128), help="of the chunks, in tokens (64,128)"
    )
    parser.add_argument(
        "--tokens-per-vector", type=int, default=0, metavar="N", help="(what is known of the model)"
    )
    tau = Memorize().tau
    parser.add_argument(
        "--tau",
        type=float,
        default=tau,
        help=f"logits under which a right token is pinned for safety ({tau})",
    )
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> None:
    """Writes, rounds, reports."""
    arguments = parsed(words)
    until = time.monotonic() + arguments.seconds
    lm = load_model(arguments.model, arguments)
    template = template_named(arguments.template, lm)
    usual = usual_tokens_per_vector(lm, template, arguments.tokens_per_vector, arguments.steps)
    chunks = samples(lm, texts_of(arguments.texts), arguments.lengths, arguments.chunks)
    bench = Bench(
        lm=lm, template=template, arguments=arguments, tokens_per_vector=usual, chunks=chunks
    )
    names = ("chunks", "lengths", "steps", "batch", "template", "tau")
    chosen = {name: getattr(arguments, name) for name in names}
    ledger = open_ledger(
        arguments.out.with_suffix(".jsonl"),
        about(lm, tokens_per_vector=usual, first=chunks[0].key, **chosen),
    )
    starts = range(0, len(chunks), arguments.batch)
    pieces = [(start, range(start, min(start + arguments.batch, len(chunks)))) for start in starts]
    work_through(
        [
            Unit(f"chunks/{start}", "chunks", partial(piece, bench, indices))
            for start, indices in pieces
        ],
        ledger,
        until,
    )
    report(bench, ledger)


if __name__ == "__main__":
    guarded(main)
