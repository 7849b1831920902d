"""How far can a memory be rounded and stay exact; does training through the rounding mend what breaks; and what does it weigh?

How to run (results go to run/benchmarks/rounding.jsonl as they come; the same command goes on after a kill; Ctrl-C is one):

    python benchmarks/rounding.py --chunks 12     a first look
    python benchmarks/rounding.py                 64 chunks of 64 and 128 tokens, all kinds of text

Every chunk is written once, in fp32, and judged from the packed bytes of every codec. Where it was exact and rounding broke it, it is
trained on for at most --finish-steps: the loss is measured at the rounded vectors, its gradient moves the unrounded ones (the
straight-through estimator; Bengio et al. 2013, arXiv:1308.3432). The bytes stand beside those of the text itself.

Cost on two cores, with a model of 10M parameters: writing 1 to 4 s a chunk, judging 0.5 s for each of five codecs, finishing up to 6 s for
each that broke: 10 minutes at the defaults, 2 for the first look.
"""

import time
import zlib
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from measure import (
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
    rows_of,
    samples,
    save_json,
    texts_of,
    usual_tokens_per_vector,
    work_through,
    write_with,
)
from torch import Tensor

from rag_memtok.codec import CODECS, Codec, finite, require_bytes
from rag_memtok.config import Memorize
from rag_memtok.layout import Task, task_of
from rag_memtok.lm import LM
from rag_memtok.memorize import Row, Written, memorize
from rag_memtok.nouns import Memory
from rag_memtok.prompts import Template, template_named
from rag_memtok.recipes import RECIPES, Recipe
from rag_memtok.reconstruct import judge
from rag_memtok.retrieve import load_embedder
from rag_memtok.schema import pack_pins
from rag_memtok.study.figures import Chart, Line, draw

PLAIN = "float32"
GROUP = 32  # numbers that share a scale in four bits
LARGEST = 7  # of four bits with a sign, zero in the middle
SMALLEST_SCALE, LARGEST_SCALE = np.float32(2.0**-14), np.float32(2.0**15)


# --- four bits


def pack_int4(vectors: Float[np.ndarray, "M d"]) -> bytes:
    """Scales of GROUP numbers each, little-endian float16, then a number in half a byte: 4.5 bits each. A row is filled up with zeros."""
    groups = in_groups(finite(vectors, float(LARGEST_SCALE) * LARGEST))
    wanted = np.clip(np.abs(groups).max(axis=1) / LARGEST, SMALLEST_SCALE, LARGEST_SCALE)
    scales = wanted.astype("<f2")
    scales = np.where(scales.astype(np.float32) < wanted, np.nextafter(scales, np.float16(np.inf)), scales).astype("<f2")
    codes = (np.rint(groups / scales.astype(np.float32)[:, None]) + LARGEST).astype(np.uint8)
    return scales.tobytes() + (codes[:, ::2] | codes[:, 1::2] << 4).tobytes()


def unpack_int4(packed: bytes, shape: tuple[int, int]) -> Float[np.ndarray, "M d"]:
    """The inverse, up to the rounding."""
    rows, width = shape
    groups = rows * -(-width // GROUP)
    require_bytes(packed, shape, groups * (2 + GROUP // 2))
    scales = np.frombuffer(packed, "<f2", groups).astype(np.float32)
    halves = np.frombuffer(packed, np.uint8, offset=2 * groups).reshape(groups, GROUP // 2)
    codes = np.stack([halves & 15, halves >> 4], axis=-1).reshape(groups, GROUP).astype(np.float32) - LARGEST
    return (codes * scales[:, None]).reshape(rows, -1)[:, :width].astype(np.float32)


def in_groups(vectors: Float[np.ndarray, "M d"]) -> Float[np.ndarray, "N g"]:
    """The numbers of every row, GROUP at a time."""
    return np.pad(vectors, ((0, 0), (0, -vectors.shape[1] % GROUP))).reshape(-1, GROUP)


def codecs() -> dict[str, Codec]:
    """Those of the package, and four bits."""
    return CODECS | {"int4": Codec(pack_int4, unpack_int4)}


# --- training through the rounding


@dataclass(slots=True)
class StraightThrough:
    """Between two steps: what a step did to the rounded vectors is done to the unrounded ones, and those are rounded for the next."""

    codec: Codec
    held: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def rounded(self, vectors: Float[Tensor, "M d"]) -> Float[Tensor, "M d"]:
        """As they come back from the packed bytes."""
        shape = (vectors.shape[0], vectors.shape[1])
        return torch.from_numpy(self.codec.unpack(self.codec.pack(vectors.cpu().numpy()), shape).copy()).to(vectors.device)

    def begin(self, row: Row) -> None:
        """Before the first step."""
        self.held[row.task.key] = (row.vectors, self.rounded(row.vectors))
        row.vectors = self.held[row.task.key][1]

    def between(self, row: Row) -> None:
        """After every step."""
        whole, rounded = self.held[row.task.key]
        whole = whole + (row.vectors - rounded)
        row.vectors = self.rounded(whole)
        self.held[row.task.key] = (whole, row.vectors)


def finished(lm: LM, template: Template, broken: Sequence[Written], codec: Codec, recipe: Recipe, settings: Memorize) -> list[Written]:
    """Goes on from `broken`, training through `codec`; what comes back is rounded already."""
    through = StraightThrough(codec)
    vectors = {one.task.key: torch.from_numpy(one.vectors).to(lm.device) for one in broken}
    rows = list(rows_of(lm, template, recipe, [one.task for one in broken], settings))
    for row in rows:
        row.vectors = vectors[row.task.key]
        through.begin(row)
    return list(write_with(lm, template, recipe, rows, settings, through.between))


# --- the work


@dataclass(frozen=True, slots=True)
class Bench:
    """What all chunks share."""

    lm: LM
    template: Template
    arguments: Namespace
    tokens_per_vector: int
    chunks: Sequence[Sample]

    def judged(self, written: Written, codec: Codec) -> dict[str, Any]:
        """What the judge says of the packed bytes, and their weight."""
        packed = codec.pack(written.vectors)
        shape = (written.vectors.shape[0], written.vectors.shape[1])
        memory, verdict = judge(self.lm, self.template, Memory(codec.unpack(packed, shape)), written.task.tokens, self.arguments.tau)
        sizes = {"bytes": len(packed), "pin_bytes": len(pack_pins(memory.pins))}
        return sizes | {"exact": verdict.kind == "exact", "corrections": verdict.corrections, "margin": verdict.margin}


def piece(bench: Bench, indices: Sequence[int]) -> dict[str, Any]:
    """Writes some chunks, rounds them, mends what broke."""
    arguments = bench.arguments
    settings = Memorize(steps=arguments.steps, batch=arguments.batch, seconds_per_chunk=0.0)
    tasks = [task_of(f"{index} {bench.chunks[index].key}", bench.chunks[index].tokens, bench.tokens_per_vector) for index in indices]
    written = list(memorize(bench.lm, bench.template, tasks, settings, heartbeat("writing")))
    chunks = {one.task.key: weight(bench.lm, one.task) | {PLAIN: bench.judged(one, CODECS[PLAIN])} for one in written}
    for name, codec in codecs().items():
        if name != PLAIN:
            mend(bench, written, name, codec, chunks)
    return {"chunks": list(chunks.values())}


def mend(bench: Bench, written: Sequence[Written], name: str, codec: Codec, chunks: dict[str, dict[str, Any]]) -> None:
    """Adds to `chunks` what `codec` does to each, and what finishing makes of those it breaks."""
    broken = []
    for one in written:
        chunk = chunks[one.task.key]
        chunk[name] = bench.judged(one, codec)
        if chunk[PLAIN]["exact"] and not chunk[name]["exact"]:
            broken.append(one)
    arguments = bench.arguments
    recipe = replace(RECIPES["margin"], lr=arguments.finish_rate, warmup=0, draft=False, steps=arguments.finish_steps)
    settings = Memorize(batch=arguments.batch, seconds_per_chunk=0.0)
    for one in finished(bench.lm, bench.template, broken, codec, recipe, settings):
        chunks[one.task.key][name]["finished"] = bench.judged(one, codec) | {"steps": one.steps}


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
    return bootstrap(len(values), lambda drawn: float(values[drawn].mean())).text(0, factor=100.0) if len(values) else "-"


def exactness_table(chunks: Sequence[dict[str, Any]], width: int) -> Table:
    """Exact before and after, and after finishing."""
    body = []
    for name in codecs():
        before = [chunk for chunk in chunks if chunk[PLAIN]["exact"]]
        broken = [chunk[name]["finished"] for chunk in before if "finished" in chunk[name]]
        after = [chunk[name].get("finished", chunk[name])["exact"] for chunk in before]
        pins = 100 * sum(chunk[name]["corrections"] for chunk in chunks) / sum(chunk["tokens"] for chunk in chunks)
        steps = f"{np.mean([one['steps'] for one in broken]):.0f}" if broken else "-"
        bits = 8 * sum(chunk[name]["bytes"] for chunk in chunks) / sum(chunk["vectors"] * width for chunk in chunks)
        stay = [chunk[name]["exact"] for chunk in before]
        mended = f"{sum(one['exact'] for one in broken)} of {len(broken)}"
        body.append([name, f"{bits:.1f}", f"{len(before)} of {len(chunks)}", share(stay), f"{pins:.1f}", mended, steps, share(after)])
    head = ("codec", "bits a number", "exact in fp32", "of these exact, %", "corrections / 100 tokens", "mended", "steps", "then exact, %")
    return head, body


def bytes_table(chunks: Sequence[dict[str, Any]]) -> Table:
    """Bytes a chunk, beside the text's own."""

    def mean(values: Sequence[float]) -> float:
        return float(np.mean(values))

    rest = [f"{mean([chunk[name] for chunk in chunks]):.0f}" for name in ("key", "text", "zlib", "code")]
    body = []
    for name in codecs():
        vectors, pins = (mean([chunk[name][part] for chunk in chunks]) for part in ("bytes", "pin_bytes"))
        times = (vectors + pins) / mean([chunk["text"] for chunk in chunks])
        body.append([name, f"{vectors:.0f}", f"{pins:.1f}", *rest, f"{times:.0f}"])
    head = ("codec", "vectors", "pins", "key", "text", "text, zlib", "text, the LM's code length", "(vectors + pins) / text")
    return head, body


def picture(chunks: Sequence[dict[str, Any]], width: int) -> Chart:
    """What stays exact against the bits of a number."""
    before = [chunk for chunk in chunks if chunk[PLAIN]["exact"]]
    names = [name for name in codecs() if name != "bfloat16"]
    bits = [8 * float(np.mean([chunk[name]["bytes"] / (chunk["vectors"] * width) for chunk in before])) for name in names]
    stay = [100 * float(np.mean([chunk[name]["exact"] for chunk in before])) for name in names]
    then = [100 * float(np.mean([chunk[name].get("finished", chunk[name])["exact"] for chunk in before])) for name in names]
    lines = [Line("rounded", bits, stay), Line("rounded, then trained through it", bits, then)]
    return Chart("What rounding leaves exact", "bits a number", "% of the exact chunks", lines, log_x=2)


def report(bench: Bench, ledger: Ledger) -> None:
    """Prints the tables, and writes JSON and picture."""
    chunks = [chunk for key, value in ledger.results.items() if key.startswith("chunks/") for chunk in value["chunks"]]
    if not chunks:
        return
    put_table("Exact without correction pins, before and after", exactness_table(chunks, bench.lm.width))
    put_table("Bytes a chunk", bytes_table(chunks))
    save_json({"machine": machine(bench.lm), "about": ledger.results["about"], "chunks": chunks}, bench.arguments.out.with_suffix(".json"))
    if any(chunk[PLAIN]["exact"] for chunk in chunks):
        draw(picture(chunks, bench.lm.width), bench.arguments.out.with_suffix(".png"))


def parsed(words: Sequence[str] | None = None) -> Namespace:
    """The command line."""
    parser = options(__doc__ or "", "rounding")
    parser.add_argument("--model", default="mini", help="mini, a folder or a hub id")
    parser.add_argument("--lengths", type=numbers, default=(64, 128), help="of the chunks, in tokens (64,128)")
    parser.add_argument("--tokens-per-vector", type=int, default=0, metavar="N", help="(what is known of the model)")
    tau = Memorize().tau
    parser.add_argument("--tau", type=float, default=tau, help=f"logits under which a right token is pinned for safety ({tau})")
    parser.add_argument("--finish-steps", type=int, default=200, metavar="N", help="the most steps through the rounding (200)")
    parser.add_argument(
        "--finish-rate", type=float, default=0.3, metavar="X", help="their learning rate, in the vectors' root mean square (0.3)"
    )
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> None:
    """Writes, rounds, mends, reports."""
    arguments = parsed(words)
    until = time.monotonic() + arguments.seconds
    lm = load_model(arguments.model, arguments)
    template = template_named(arguments.template, lm)
    usual = usual_tokens_per_vector(lm, template, arguments.tokens_per_vector, arguments.steps)
    chunks = samples(lm, texts_of(arguments.texts), arguments.lengths, arguments.chunks)
    bench = Bench(lm, template, arguments, usual, chunks)
    names = ("chunks", "lengths", "steps", "batch", "template", "tau", "finish_steps", "finish_rate")
    chosen = {name: getattr(arguments, name) for name in names}
    ledger = open_ledger(arguments.out.with_suffix(".jsonl"), about(lm, tokens_per_vector=usual, first=chunks[0].key, **chosen))
    starts = range(0, len(chunks), arguments.batch)
    pieces = [(start, range(start, min(start + arguments.batch, len(chunks)))) for start in starts]
    work_through([Unit(f"chunks/{start}", "chunks", partial(piece, bench, indices)) for start, indices in pieces], ledger, until)
    report(bench, ledger)


if __name__ == "__main__":
    guarded(main)
