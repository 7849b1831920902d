"""Ours against the published ways of writing a memory.

All have the same chunks, same model and same machine, in one run.

How to run (results go to run/benchmarks/write.jsonl as they come; the same command goes on after a
kill; Ctrl-C is one):

    python -m benchmarks.write --chunks 8 --published-chunks 1 --tuning-chunks 4     a first look
    python -m benchmarks.write --published-chunks 8 --tuning-chunks 8    what two cores do in an
                                                                         evening
    python -m benchmarks.write --lengths 2,4,8,12 --vectors one --published-chunks 16 \
        --out run/benchmarks/write-short
                                                                                     where one
                                                                                     vector holds
                                                                                     something
    python -m benchmarks.write                                                       all of it

Each public recipe has three rows: as published (batch 1, fp32, its own steps and template); the
same in our engine (batched, drafted in bfloat16 where the hardware has it); and with learning rate
and warm-up tuned on held-out chunks, within the --steps that ours has. Every row writes with one
vector a chunk and with the usual tokens per vector; what is written is packed, read back and
judged. Rows take turns, --group chunks at a time, so that what else the machine does falls on all
alike.

Cost on two cores, with a model of 10M parameters: a batched row-step takes about 10 ms, one as
published 15 ms. A chunk that does not fit takes all of the published steps: 3000, 5000 and 10000 of
sastre2025, kuratov2025 and cramming2026, 8 minutes for the three rows as published and in our
engine together, for each number of vectors; --published-chunks says for how many chunks this is
paid. Tuning is 15 settings x --tuning-chunks x up to --steps row-steps for each recipe and number
of vectors: 15 minutes each at 20 chunks. The first look takes about an hour, the second line 4,
everything most of a day. The time left is told after every piece of work.
"""

import time
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks.measure import (
    Interval,
    Ledger,
    Sample,
    Table,
    Unit,
    about,
    bootstrap,
    code_length,
    forget_peak,
    guarded,
    heartbeat,
    load_model,
    machine,
    matmul_rate,
    numbers,
    open_ledger,
    options,
    peak_bytes,
    pin_price,
    put_table,
    samples,
    save_json,
    step_flops,
    texts_of,
    usual_tokens_per_vector,
    work_through,
)
from rag_memtok.cli.console import put, say
from rag_memtok.config import Memorize
from rag_memtok.datatypes import Record
from rag_memtok.errors import UsageError
from rag_memtok.evaluation.figures import Chart, Line, draw
from rag_memtok.memory.batch import Task, init_pooled, make_task
from rag_memtok.memory.optimize import memorize
from rag_memtok.memory.recipes import Recipe, cross_entropy, recipe_named
from rag_memtok.memory.step import OptimizedMemory
from rag_memtok.memory.workers import judge_record
from rag_memtok.model.lm import LM
from rag_memtok.model.precision import uses_low_precision
from rag_memtok.model.prompts import template_named

OURS = "margin"
PUBLIC = ("sastre2025", "kuratov2025", "cramming2026")
RATES = (0.1, 0.3, 1.0, 3.0, 10.0)  # factors of a recipe's own learning rate
WIDER = {"kuratov2025": (30.0, 100.0, 300.0, 1000.0)}  # it does best beyond ten times its own
WARMUPS = (0, 20, 100)
ONE, USUAL = "one", "usual"  # vectors of a chunk
PUBLISHED, ENGINE = "published", "engine"  # both with the recipe's own steps


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """A row of the table: a recipe and how it is run. `vectors` is ONE or USUAL."""

    name: str
    variant: str
    vectors: str
    recipe: Recipe
    settings: Memorize

    @property
    def key(self) -> str:
        """The key of its results in the ledger."""
        return f"{self.name}/{self.variant}/{self.vectors}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """The model, chunks and settings that all rows share."""

    lm: LM
    arguments: Namespace
    tokens_per_vector: int
    chunks: Sequence[Sample]
    tuning: Sequence[Sample]
    public: dict[str, Recipe]

    def task(self, index: int, sample: Sample, vectors: str) -> Task:
        """The task of writing `sample`."""
        key = f"{index} {sample.key}"
        return (
            Task(key, sample.tokens, 1)
            if vectors == ONE
            else make_task(key, sample.tokens, self.tokens_per_vector)
        )

    def write(
        self, contender: Contender, chunks: Sequence[tuple[int, Sample]]
    ) -> list[OptimizedMemory]:
        """Writes `chunks` together."""
        lm, settings = self.lm, contender.settings
        tasks = [self.task(index, sample, contender.vectors) for index, sample in chunks]
        return list(
            memorize(
                lm,
                template_named(settings.template, lm),
                tasks,
                settings,
                on_step=heartbeat(contender.key),
                recipe=contender.recipe,
            )
        )


# --- the rows


def contender(
    bench: Bench, name: str, variant: str, vectors: str, recipe: Recipe, steps: int = 0
) -> Contender:
    """The recipe `name` in one of its variants; at most `steps` steps, if given."""
    arguments, alone = bench.arguments, variant == PUBLISHED
    recipe = recipe if alone else replace(recipe, low_precision=True)
    settings = Memorize(
        template=recipe.template or arguments.template,
        codec=arguments.codec,
        batch=1 if alone else arguments.batch,
        draft="float32" if alone else "auto",
        seconds_per_chunk=0.0,
        seed=arguments.seed,
    )
    return Contender(
        name=name,
        variant=variant,
        vectors=vectors,
        recipe=replace(recipe, steps=steps or recipe.steps),
        settings=settings,
    )


def recipes(names: Sequence[str]) -> dict[str, Recipe]:
    """The public recipes that there are; others are told and left out."""
    found = {}
    for name in names:
        try:
            found[name] = recipe_named(name)
        except UsageError as error:
            say(f"left out: {error}")
    return found


def first_rows(bench: Bench) -> list[Contender]:
    """Every row that needs no tuning."""
    rows = []
    for vectors in bench.arguments.vectors:
        ours, usual = recipe_named(OURS), bench.arguments.steps
        rows += [contender(bench, OURS, variant="ours", vectors=vectors, recipe=ours, steps=usual)]
        rows += [
            contender(
                bench,
                OURS,
                variant=f"ours, {steps} steps",
                vectors=vectors,
                recipe=ours,
                steps=steps,
            )
            for steps in bench.arguments.budgets
        ]
        for name, recipe in bench.public.items():
            rows += [
                contender(bench, name, variant, vectors, recipe) for variant in (PUBLISHED, ENGINE)
            ]
    return rows


def trials(bench: Bench) -> list[Contender]:
    """Every setting that is tried on the held-out chunks."""
    return [
        contender(
            bench,
            name,
            variant=f"x{rate:g} warm-up {warmup}",
            vectors=vectors,
            recipe=tuned(recipe, rate, warmup),
            steps=bench.arguments.steps,
        )
        for vectors in bench.arguments.vectors
        for name, recipe in bench.public.items()
        for rate in (*RATES, *WIDER.get(name, ()))
        for warmup in WARMUPS
    ]


def tuned(recipe: Recipe, rate: float, warmup: int) -> Recipe:
    """`recipe` with `rate` times its learning rate and another warm-up."""
    return replace(
        recipe,
        lr=rate * recipe.lr,
        first_lr=rate * recipe.first_lr,
        last_lr=rate * recipe.last_lr,
        warmup=warmup,
    )


def tuned_rows(bench: Bench, ledger: Ledger) -> list[Contender]:
    """The best trial of each recipe and number of vectors.

    The best is the most exact, then the one with the fewest wrong tokens, then with the fewest
    row-steps.
    """
    best: dict[tuple[str, str], tuple[tuple[int, int, int], Contender]] = {}
    for trial in trials(bench):
        if found := ledger.results.get(f"tuning/{trial.key}"):
            score = (found["exact"], -found["wrong"], -found["steps"])
            if (trial.name, trial.vectors) not in best or score > best[trial.name, trial.vectors][
                0
            ]:
                best[trial.name, trial.vectors] = (score, trial)
    budgets = (0, *bench.arguments.budgets)
    return [
        replace(trial, variant=f"tuned: {trial.variant}" + (f", {steps} steps" if steps else ""),
                recipe=replace(trial.recipe, steps=steps or trial.recipe.steps))
        for _, trial in best.values() for steps in budgets
    ]  # fmt: skip


# --- the work


def tuning_unit(bench: Bench, trial: Contender) -> Unit:
    """One setting on all held-out chunks."""

    def run() -> dict[str, Any]:
        written = bench.write(trial, list(enumerate(bench.tuning)))
        return {
            "exact": sum(one.wrong == 0 for one in written),
            "wrong": sum(one.wrong for one in written),
            "steps": sum(one.steps for one in written),
        }

    return Unit(f"tuning/{trial.key}", f"tuning {trial.name} {trial.vectors}", run)


def measured_units(bench: Bench, rows: Sequence[Contender]) -> list[Unit]:
    """The chunks of every row in pieces, ordered by where in the chunks they begin.

    Rows take turns.
    """
    arguments, pieces = bench.arguments, []
    for order, row in enumerate(rows):
        alone = row.variant == PUBLISHED
        few = arguments.published_chunks if row.variant in (PUBLISHED, ENGINE) else 0
        total = min(few or len(bench.chunks), len(bench.chunks))
        size = 1 if alone else arguments.group
        for start in range(0, total, size):
            indices = range(start, min(start + size, total))
            unit = Unit(
                f"chunks/{row.key}/{start}-{indices[-1]}",
                row.key,
                partial(written_and_judged, bench, row, indices),
            )
            pieces.append((start, order, unit))
    for start in range(0, len(bench.chunks), arguments.group):
        indices = range(start, min(start + arguments.group, len(bench.chunks)))
        pieces.append((start, -2, Unit(f"rates/{start}", "rates", partial(rates, bench.lm))))
        pieces.append(
            (start, -1, Unit(f"floors/{start}", "floors", partial(floors, bench, indices)))
        )
    return [unit for _, _, unit in sorted(pieces, key=lambda piece: piece[:2])]


def written_and_judged(bench: Bench, row: Contender, indices: Sequence[int]) -> dict[str, Any]:
    """Writes those chunks, and judges what comes back from the packed bytes.

    `seconds` are those of writing, shared out by row-steps.
    """
    forget_peak(bench.lm.device)
    began = time.monotonic()
    written = bench.write(row, [(index, bench.chunks[index]) for index in indices])
    seconds = time.monotonic() - began
    peak = peak_bytes(bench.lm.device)
    total = sum(one.seconds for one in written)
    chunks = [
        result(bench, row.settings, one)
        | {"seconds": seconds * one.seconds / total, "steps": one.steps}
        for one in written
    ]
    passes = 2 if row.recipe.objective is cross_entropy else 1
    overhead = template_named(row.settings.template, bench.lm).overhead
    for chunk in chunks:
        positions = overhead - 1 + chunk["vectors"] + chunk["tokens"]
        chunk["flops"] = chunk["steps"] * step_flops(
            bench.lm, positions, chunk["tokens"] + 1, passes
        )
    return {"chunks": chunks, "peak": peak}


def result(bench: Bench, settings: Memorize, written: OptimizedMemory) -> dict[str, Any]:
    """The judge's verdict on the packed bytes."""
    index, sample = int(written.task.key.partition(" ")[0]), written.task.tokens
    template = template_named(settings.template, bench.lm)
    record = judge_record(bench.lm, template, settings, written)
    return {
        "index": index,
        "tokens": len(sample),
        "vectors": record.shape[0],
        "pin_bits": pin_bits(bench.lm, record),
    } | verdict_of(record)


def verdict_of(record: Record) -> dict[str, Any]:
    """The numbers of a verdict."""
    verdict = record.verdict
    return {
        "exact": verdict.kind == "exact",
        "corrections": verdict.corrections,
        "safeties": verdict.safeties,
        "margin": verdict.margin,
    }


def pin_bits(lm: LM, record: Record) -> int:
    """The bits of a chunk's pins: a position and a token each."""
    return len(record.pins) * pin_price(lm, record.tokens)


def floors(bench: Bench, indices: Sequence[int]) -> dict[str, Any]:
    """The same chunks without any writing.

    They are read from no memory, from vectors that nobody trained, and as the LM would code them.
    """
    lm, settings = (
        bench.lm,
        Memorize(template=bench.arguments.template, codec=bench.arguments.codec),
    )
    chunks: dict[str, list[dict[str, Any]]] = {
        "no memory": [],
        **{f"untrained {vectors}": [] for vectors in bench.arguments.vectors},
    }
    for index in indices:
        sample = bench.chunks[index]
        bits = code_length(lm, sample.tokens)
        nothing = OptimizedMemory(
            task=Task(f"{index} -", sample.tokens, 0),
            vectors=np.zeros((0, lm.width), np.float32),
            wrong=0,
            margin=0.0,
            steps=0,
            seconds=0.0,
        )
        chunks["no memory"].append(result(bench, settings, nothing) | {"code_bits": bits})
        for vectors in bench.arguments.vectors:
            task = bench.task(index, sample, vectors)
            untrained = OptimizedMemory(
                task=task,
                vectors=init_pooled(lm, task).cpu().numpy(),
                wrong=0,
                margin=0.0,
                steps=0,
                seconds=0.0,
            )
            chunks[f"untrained {vectors}"].append(result(bench, settings, untrained))
    return {"chunks": chunks}


def rates(lm: LM) -> dict[str, Any]:
    """The speed of the machine at this moment."""
    return {name: matmul_rate(lm.device, getattr(torch, name)) for name in ("float32", "bfloat16")}


# --- the report


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A row with the results of its chunks, by index."""

    name: str
    variant: str
    vectors: str
    chunks: dict[int, dict[str, Any]]
    peak: int
    dtype: str

    @property
    def title(self) -> str:
        """Its title in a table."""
        return f"{self.name}, {self.variant}"

    def over(
        self,
        numerator: str,
        denominator: str,
        indices: Sequence[int] | None = None,
        factor: float = 1.0,
    ) -> Interval:
        """`factor` times the sum of one number over the sum of another.

        It comes with its interval over the chunks; "" counts the chunks.
        """
        chosen = [self.chunks[index] for index in (self.chunks if indices is None else indices)]
        top = np.array([float(chunk.get(numerator, 0)) for chunk in chosen])
        bottom = np.array([float(chunk.get(denominator, 1)) for chunk in chosen])
        return bootstrap(
            len(chosen), lambda drawn: ratio(factor * top[drawn].sum(), bottom[drawn].sum())
        )


def ratio(top: float, bottom: float) -> float:
    """`top / bottom`; over nothing it is infinite, and nothing over nothing no number."""
    if bottom:
        return float(top / bottom)
    return float("inf") if top else float("nan")


def gathered(bench: Bench, ledger: Ledger, rows: Sequence[Contender]) -> list[Measured]:
    """The ledger's results of `rows`."""
    found = []
    for row in rows:
        pieces = [
            value
            for key, value in ledger.results.items()
            if key.rpartition("/")[0] == f"chunks/{row.key}"
        ]
        chunks = {chunk["index"]: chunk for piece in pieces for chunk in piece["chunks"]}
        draft = row.recipe.low_precision and uses_low_precision(bench.lm, row.settings.draft)
        if chunks:
            peak = max(piece["peak"] for piece in pieces)
            found.append(
                Measured(
                    name=row.name,
                    variant=row.variant,
                    vectors=row.vectors,
                    chunks=dict(sorted(chunks.items())),
                    peak=peak,
                    dtype="bfloat16" if draft else "float32",
                )
            )
    return found


def untrained(bench: Bench, ledger: Ledger) -> list[Measured]:
    """The ledger's results of rows that need no optimization."""
    pieces = [value["chunks"] for key, value in ledger.results.items() if key.startswith("floors/")]
    found = []
    for name in pieces[0] if pieces else ():
        chunks = {chunk["index"]: chunk for piece in pieces for chunk in piece[name]}
        title, _, vectors = name.partition(" ")
        vectors = "" if name == "no memory" else vectors
        found.append(
            Measured(
                name="no memory" if not vectors else "pooled vectors",
                variant="pins only" if not vectors else title,
                vectors=vectors,
                chunks=chunks,
                peak=0,
                dtype="",
            )
        )
    return found


HEAD = (
    "row", "M", "chunks", "exact, %", "corrections / 100 tokens", "safety pins / 100 tokens",
    "row-steps", "s / chunk", "**exact / minute**", "smallest margin", "GFLOP / chunk",
    "% of matmul rate", "peak MiB",
)  # fmt: skip


def main_table(rows: Sequence[Measured], best_rates: dict[str, float]) -> Table:
    """Everything of every row."""
    return HEAD, [main_line(row, best_rates) for row in rows]


def main_line(row: Measured, best_rates: dict[str, float]) -> list[str]:
    """One row: intervals where they decide something."""
    line = [
        row.title,
        {ONE: "1", USUAL: "usual", "": "0"}[row.vectors],
        str(len(row.chunks)),
        row.over("exact", "", factor=100.0).text(0),
        row.over("corrections", "tokens", factor=100.0).text(1),
        f"{row.over('safeties', 'tokens', factor=100.0).value:.1f}",
    ]
    if not row.peak:
        return line + ["-"] * (len(HEAD) - len(line))
    exact = [
        chunk["margin"]
        for chunk in row.chunks.values()
        if chunk["exact"] and chunk["margin"] is not None
    ]
    share = row.over("flops", "seconds").value / best_rates.get(row.dtype, float("inf"))
    return line + [
        f"{row.over('steps', '').value:.0f}",
        f"{row.over('seconds', '').value:.2f}",
        row.over("exact", "seconds", factor=60.0).text(2),
        f"{min(exact):.3f}" if exact else "-",
        f"{row.over('flops', '').value / 1e9:.0f}",
        f"{100 * share:.1f}",
        f"{row.peak / 2**20:.0f}",
    ]


def length_table(rows: Sequence[Measured]) -> Table:
    """Exact without correction pins by the chunks' length, in per cent."""
    lengths = sorted({chunk["tokens"] for row in rows for chunk in row.chunks.values()})
    body = []
    for row in rows:
        shares = [
            [chunk["exact"] for chunk in row.chunks.values() if chunk["tokens"] == length]
            for length in lengths
        ]
        cells = [f"{100 * sum(some) / len(some):.0f}" if some else "-" for some in shares]
        body.append([row.title, "1" if row.vectors == ONE else "usual", *cells])
    return ("row", "M", *(f"{length} tokens" for length in lengths)), body


def gain_table(rows: Sequence[Measured]) -> Table:
    """Ours against each other row with as many vectors, paired.

    Compared are the chunks that both have; by length, where the other has any.
    """
    body = []
    for ours in (row for row in rows if row.variant == "ours"):
        for other in (row for row in rows if row.vectors == ours.vectors and row.name != OURS):
            common = sorted(ours.chunks.keys() & other.chunks.keys())
            for length in (0, *sorted({ours.chunks[index]["tokens"] for index in common})):
                chosen = [
                    index
                    for index in common
                    if not length or ours.chunks[index]["tokens"] == length
                ]
                if not length or any(other.chunks[index]["exact"] for index in chosen):
                    body.append(gain_line(ours, other, chosen, length))
    return (
        "ours against",
        "M",
        "tokens",
        "chunks",
        "exact, ours",
        "exact, its",
        "points more",
        "times its rate",
    ), body


def gain_line(ours: Measured, other: Measured, chosen: Sequence[int], length: int) -> list[str]:
    """One comparison."""
    gain = bootstrap(
        len(chosen), lambda drawn: gain_over(ours, other, [chosen[index] for index in drawn])
    )
    lead = np.array(
        [
            100.0 * ours.chunks[index]["exact"] - 100.0 * other.chunks[index]["exact"]
            for index in chosen
        ]
    )
    more = bootstrap(len(chosen), lambda drawn: float(lead[drawn].mean()))
    shares = [f"{100 * row.over('exact', '', chosen).value:.0f} %" for row in (ours, other)]
    vectors = "1" if ours.vectors == ONE else "usual"
    return [
        other.title,
        vectors,
        str(length or "all"),
        str(len(chosen)),
        *shares,
        more.text(0),
        gain.text(1),
    ]


def gain_over(ours: Measured, other: Measured, chosen: Sequence[int]) -> float:
    """Our rate as a multiple of that of `other`.

    The rate is chunks exact without correction pins in the same time.
    """
    exact, seconds = (
        [sum(float(row.chunks[index][name]) for index in chosen) for row in (ours, other)]
        for name in ("exact", "seconds")
    )
    return ratio(exact[0] * seconds[1], exact[1] * seconds[0])


def picture(rows: Sequence[Measured], title: str) -> Chart:
    """Correction pins against seconds: a line for each way of writing.

    The line goes through the way's budgets of steps.
    """
    lines: dict[str, list[tuple[float, Interval]]] = {}
    for row in rows:
        way = f"{row.name}, {row.variant.partition(':')[0].partition(',')[0]}"
        pins = row.over("corrections", "tokens", factor=100.0)
        lines.setdefault(way, []).append((row.over("seconds", "").value, pins))
    drawn = []
    for way, points in lines.items():
        points = sorted(points, key=lambda point: point[0])
        values = [pins for _, pins in points]
        x, y = [seconds for seconds, _ in points], [pins.value for pins in values]
        drawn.append(
            Line(
                name=way,
                x=x,
                y=y,
                low=[pins.low for pins in values],
                high=[pins.high for pins in values],
            )
        )
    return Chart(
        title=title,
        x_label="seconds to write a chunk",
        y_label="correction pins in 100 tokens",
        lines=drawn,
        log_x=2,
    )


def report(bench: Bench, ledger: Ledger, rows: Sequence[Contender]) -> None:
    """Prints the tables, and writes JSON and picture."""
    written, floor = gathered(bench, ledger, rows), untrained(bench, ledger)
    found = [value for key, value in ledger.results.items() if key.startswith("rates/")]
    best_rates = (
        {name: max(value[name] for value in found) for name in ("float32", "bfloat16")}
        if found
        else {}
    )
    here = machine(bench.lm)
    where = (
        f"{bench.lm.identity.id}, {here['device']}, {here['threads']} threads; usual M: a "
        f"vector for {bench.tokens_per_vector} tokens"
    )
    put_table(where, main_table([*written, *floor], best_rates))
    put_table(
        "Exact without correction pins, in per cent, by the length of the chunks",
        length_table(written),
    )
    put_table("Chunks exact without correction pins in the same time", gain_table(written))
    for row in floor[:1]:
        bits, pins = row.over("code_bits", "tokens"), row.over("pin_bits", "tokens")
        put(
            f"The LM's own code length of the text: {bits.text(2)} bits a token; pins without a "
            f"memory: {pins.value:.2f}."
        )
    summary = [
        {
            "row": row.title,
            "vectors": row.vectors,
            "dtype": row.dtype,
            "peak_bytes": row.peak,
            "chunks": list(row.chunks.values()),
        }
        for row in (*written, *floor)
    ]
    save_json(
        {"machine": here, "about": ledger.results["about"], "matmul": best_rates, "rows": summary},
        bench.arguments.out.with_suffix(".json"),
    )
    for vectors in dict.fromkeys(row.vectors for row in written):
        there = [row for row in written if row.vectors == vectors]
        many = (
            "one vector a chunk"
            if vectors == ONE
            else f"a vector for {bench.tokens_per_vector} tokens"
        )
        path = bench.arguments.out
        draw(
            picture(there, f"Writing on {bench.lm.identity.id}, {many}"),
            path.with_name(f"{path.name}-{vectors}.png"),
        )


def parsed(words: Sequence[str] | None = None) -> Namespace:
    """The command line."""
    parser: ArgumentParser = options(__doc__ or "", "write")
    parser.add_argument("--model", default="mini", help="mini, a folder or a hub id")
    parser.add_argument(
        "--recipes",
        type=lambda text: tuple(text.split(",")),
        default=PUBLIC,
        help="the public recipes, by name",
    )
    parser.add_argument(
        "--vectors",
        type=lambda text: tuple(text.split(",")),
        default=(ONE, USUAL),
        help="one,usual: vectors of a chunk",
    )
    parser.add_argument(
        "--tokens-per-vector",
        type=int,
        default=0,
        metavar="N",
        help="the usual (what is known of the model)",
    )
    parser.add_argument(
        "--lengths",
        type=numbers,
        default=(16, 32, 64, 128),
        help="of the chunks, in tokens (16,32,64,128)",
    )
    parser.add_argument(
        "--published-chunks",
        type=int,
        default=0,
        metavar="N",
        help="chunks of the rows that keep their published steps (0: all)",
    )
    parser.add_argument(
        "--tuning-chunks",
        type=int,
        default=20,
        metavar="N",
        help="held-out chunks (20; 0: no tuned rows)",
    )
    parser.add_argument(
        "--budgets",
        type=numbers,
        default=(100,),
        help="further budgets of steps for ours and the tuned (100)",
    )
    parser.add_argument(
        "--group",
        type=int,
        default=32,
        metavar="N",
        help="chunks after which the next row has its turn (32)",
    )
    parser.add_argument("--codec", default="float16", help="what vectors are stored in (float16)")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> None:
    """Tunes, measures, reports."""
    arguments = parsed(words)
    until = time.monotonic() + arguments.seconds
    lm = load_model(arguments.model, arguments)
    texts = texts_of(arguments.texts)
    chunks = samples(lm, texts, arguments.lengths, arguments.chunks, seed=arguments.seed)
    held_out = samples(
        lm, texts, arguments.lengths, arguments.tuning_chunks, held_out=True, seed=arguments.seed
    )
    usual = usual_tokens_per_vector(
        lm, template_named(arguments.template, lm), arguments.tokens_per_vector, arguments.steps
    )
    bench = Bench(
        lm=lm,
        arguments=arguments,
        tokens_per_vector=usual,
        chunks=chunks,
        tuning=held_out,
        public=recipes(arguments.recipes),
    )
    names = (
        "chunks",
        "lengths",
        "steps",
        "batch",
        "group",
        "template",
        "codec",
        "seed",
        "tuning_chunks",
    )
    chosen = {name: getattr(arguments, name) for name in names}
    ledger = open_ledger(
        arguments.out.with_suffix(".jsonl"),
        about(lm, tokens_per_vector=usual, first=chunks[0].key, **chosen),
    )
    units = [tuning_unit(bench, trial) for trial in trials(bench)] if held_out else []
    rows = first_rows(bench)
    if work_through(units, ledger, until):
        rows += tuned_rows(bench, ledger)
        work_through(measured_units(bench, rows), ledger, until)
    report(bench, ledger, rows)


if __name__ == "__main__":
    guarded(main)
