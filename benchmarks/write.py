"""Ours against the published ways of writing a memory.

All have the same texts, same model and same machine, in one run.

How to run (results go to run/benchmarks/write.jsonl as they come; the same command goes on after a
kill; Ctrl-C is one):

    python -m benchmarks.write --model smollm2                     all of it: --plan says how long
    python -m benchmarks.write --model smollm2 --seconds 7200      what begins within two hours
    python -m benchmarks.write --cells 2+3+4+6:1 --chunks 24       short texts, as mini holds them

A cell is texts of one length, or of several in turn, in so many vectors: `--cells 32:1,64:1,128:4`.
Rows are ours; every way of rivals.py tuned, within the --steps that ours has, on texts that are not
measured: six settings of learning rate and warm-up, and further ones for as long as the best stands
at an edge; and in the first and the last cell the public recipes as published (batch 1, fp32, own
steps and template) on --published-chunks texts; a text that grows is left out where none is longer
than it grows by. With --race N only the N ways that are best in the first cell, and the paper's,
are tuned in the others. What is written is packed, read back and judged.
Ours and the tuned rows take turns, --group texts at a time, so that a run that is stopped has had
the same texts of all; the published ones come behind them, cell by cell.

Steps are counted while writing. What a step takes is measured at the end, row after row, three
times within minutes: no other part of the run needs the machine for itself. It is told by a whole
writing of --group texts together, in at most 60 steps: those at the end are cheaper than those at
the beginning. A text's seconds are its steps times the median of that (a text that grows: at its
first length).

The plan stands at the head of the output: the most row-steps of each row, without the settings
beyond an edge, and what they would take at the pace of a few steps that are tried first.

Cost on two cores: with a model of 10M parameters a batched row-step takes about 10 ms, with one of
135M 0.1 s for 32 tokens and 0.2 for 128; as published, in float32 one by one, twice as much and
more. A text that does not fit takes all of the published steps: 3000 and 10000 of sastre2025 and
cramming2026, 5000 of kuratov2025, or 2000 after its last gain. The time left is told after every
piece of work.
"""

import math
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Sequence
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
    work_through,
)
from benchmarks.rivals import (
    ENGINE,
    OURS,
    PUBLISHED,
    Cell,
    Contender,
    Score,
    Setting,
    Way,
    best_setting,
    can_grow,
    cells,
    confined,
    contender,
    settings_to_try,
    tuned,
    ways,
)
from rag_memtok.cli.console import duration, put
from rag_memtok.config import Memorize
from rag_memtok.datatypes import Record
from rag_memtok.errors import named
from rag_memtok.evaluation.figures import Chart, Line, draw
from rag_memtok.memory.batch import Task, init_pooled
from rag_memtok.memory.optimize import memorize
from rag_memtok.memory.recipes import recipe_named
from rag_memtok.memory.step import OptimizedMemory, Row
from rag_memtok.memory.workers import judge_record
from rag_memtok.model.lm import LM
from rag_memtok.model.precision import uses_low_precision
from rag_memtok.model.prompts import template_named

PACE = 3  # steps by which the plan reckons
CLOCKED = 60  # steps of a text, at most, by which the clock tells what one takes
ROUNDS = 3  # of the clock
PAPER = "sastre2025"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """The model, texts and settings that all rows share; `rivals` are the ways but ours."""

    lm: LM
    arguments: Namespace
    chunks: dict[Cell, Sequence[Sample]]
    tuning: dict[Cell, Sequence[Sample]]
    rivals: dict[str, Way]

    @property
    def cells(self) -> Sequence[Cell]:
        """The cells, in order."""
        return self.arguments.cells

    @property
    def base(self) -> Memorize:
        """The settings that rows share."""
        chosen = self.arguments
        return Memorize(
            template=chosen.template, codec=chosen.codec, batch=chosen.batch, seed=chosen.seed
        )

    def write(self, row: Contender, chunks: Iterable[tuple[int, Sample]]) -> list[OptimizedMemory]:
        """Writes `chunks`, together if the row is not one of those written alone."""
        tasks = [
            Task(f"{index} {sample.key}", sample.tokens, row.cell.vectors)
            for index, sample in chunks
        ]
        return self._grown(row, tasks) if row.way.growth else self._written(row, tasks, {})

    def _written(
        self, row: Contender, tasks: Sequence[Task], starts: dict[str, OptimizedMemory]
    ) -> list[OptimizedMemory]:
        """Writes `tasks`; those that `starts` has begin with its vectors."""
        project = confined(self.lm, row.way.directions, row.settings.seed)

        def before_step(state: Row) -> None:
            if not state.step and state.task.key in starts:
                start = torch.from_numpy(starts[state.task.key].vectors)
                state.vectors = start.to(state.vectors)
            project(state)

        return list(
            memorize(
                self.lm,
                template_named(row.settings.template, self.lm),
                tasks,
                row.settings,
                on_step=heartbeat(row.key),
                recipe=row.way.recipe,
                before_step=before_step,
            )
        )

    def _grown(self, row: Contender, tasks: Sequence[Task]) -> list[OptimizedMemory]:
        """Writes beginnings of the texts, each from the vectors of the one before.

        A text grows once all of it is right; its steps are bounded in all. What it has not grown
        to is counted wrong.
        """
        most, growth, ended = row.way.recipe.steps, row.way.growth, dict[str, OptimizedMemory]()
        for task in tasks:
            found: OptimizedMemory | None = None
            for length in range(growth, len(task.tokens) + growth, growth):
                left = most - (found.steps if found else 0)
                if left <= 0 or (found and found.wrong):
                    break
                stage = replace(
                    row, way=replace(row.way, recipe=replace(row.way.recipe, steps=left))
                )
                begun = {task.key: found} if found else {}
                (one,) = self._written(
                    stage, [Task(task.key, task.tokens[:length], task.vectors)], begun
                )
                steps, seconds = (found.steps, found.seconds) if found else (0, 0.0)
                found = replace(one, steps=one.steps + steps, seconds=one.seconds + seconds)
            assert found is not None
            missing = len(task.tokens) - len(found.task.tokens)
            ended[task.key] = replace(found, task=task, wrong=found.wrong + missing)
        return list(ended.values())


# --- the rows


def first_rows(bench: Bench) -> list[Contender]:
    """Ours in every cell, and what is run with its own steps in the first and the last."""
    arguments, rows = bench.arguments, list[Contender]()
    ours = Way(recipe=recipe_named(OURS))
    for cell in bench.cells:
        budgets = {"ours": arguments.steps} | {
            f"ours, {steps} steps": steps for steps in arguments.budgets
        }
        rows += [
            contender(bench.base, OURS, variant=variant, cell=cell, way=ours, steps=steps)
            for variant, steps in budgets.items()
        ]
    for cell in dict.fromkeys((bench.cells[0], bench.cells[-1])):
        rows += [
            contender(bench.base, name, variant=variant, cell=cell, way=way)
            for name, way in bench.rivals.items()
            for variant in ((PUBLISHED, ENGINE) if arguments.engine else (PUBLISHED,))
            if way.published and can_grow(way, cell)
        ]
    return rows


def trial(bench: Bench, name: str, cell: Cell, setting: Setting) -> Contender:
    """A setting of the way `name`, as it is tried and as it is measured if it is the best."""
    rate, warmup = setting
    return contender(
        bench.base,
        name,
        variant=f"tuned: x{rate:g} warm-up {warmup}",
        cell=cell,
        way=tuned(bench.rivals[name], setting),
        steps=bench.arguments.steps,
    )


def scores(bench: Bench, ledger: Ledger, name: str, cell: Cell) -> dict[Setting, Score]:
    """What the ledger knows of the settings of a way in a cell."""
    found, known = dict[Setting, Score](), True
    while known:
        known = False
        for setting in settings_to_try(found):
            key = tuning_key(trial(bench, name, cell, setting))
            if setting not in found and (one := ledger.results.get(key)):
                found[setting] = (one["exact"], -one["wrong"], -one["steps"])
                known = True
    return found


def to_tune(bench: Bench, ledger: Ledger) -> list[tuple[str, Cell]]:
    """Every way in every cell where it is tuned, as far as is known."""
    everywhere = [(name, cell) for cell in bench.cells for name in tunable(bench, cell)]
    if not bench.arguments.race:
        return everywhere
    first, best = bench.cells[0], dict[str, Score]()
    in_first = tunable(bench, first)
    for name in in_first:
        known = scores(bench, ledger, name, first)
        if not all(setting in known for setting in settings_to_try(known)):
            return [(name, first) for name in in_first]
        best[name] = max(known.values())
    ahead = sorted(best, key=lambda name: best[name], reverse=True)[: bench.arguments.race]
    return [(name, cell) for name, cell in everywhere if cell == first or name in {*ahead, PAPER}]


def tunable(bench: Bench, cell: Cell) -> list[str]:
    """The ways that can be tuned in a cell."""
    ways_there = bench.rivals.items() if bench.tuning[cell] else ()
    return [name for name, way in ways_there if can_grow(way, cell)]


def tuning_units(bench: Bench, ledger: Ledger) -> list[Unit]:
    """The settings to try, as far as what is known asks for them."""
    return [
        tuning_unit(bench, trial(bench, name, cell, setting))
        for name, cell in to_tune(bench, ledger)
        for setting in settings_to_try(scores(bench, ledger, name, cell))
    ]


def tuned_rows(bench: Bench, ledger: Ledger) -> list[Contender]:
    """The best setting of each way in each cell.

    The best is the most exact, then the one with the fewest wrong tokens, then with the fewest
    row-steps.
    """
    rows = []
    for name, cell in to_tune(bench, ledger):
        known = scores(bench, ledger, name, cell)
        settings = settings_to_try(known)
        if all(setting in known for setting in settings):
            best = trial(bench, name, cell, best_setting(settings, known))
            rows.append(best)
            rows += [
                replace(
                    best,
                    variant=f"{best.variant}, {steps} steps",
                    way=replace(best.way, recipe=replace(best.way.recipe, steps=steps)),
                )
                for steps in bench.arguments.budgets
            ]
    return rows


# --- the work


def tuning_key(row: Contender) -> str:
    """The key of a trial in the ledger."""
    return f"tuning/{row.key}"


def tuning_unit(bench: Bench, row: Contender) -> Unit:
    """One setting on all held-out texts."""

    def run() -> dict[str, Any]:
        written = bench.write(row, enumerate(bench.tuning[row.cell]))
        return {
            "exact": sum(one.wrong == 0 for one in written),
            "wrong": sum(one.wrong for one in written),
            "steps": sum(one.steps for one in written),
        }

    return Unit(tuning_key(row), f"tuning {row.name} {row.cell.name}", run)


def texts_for(bench: Bench, row: Contender) -> int:
    """The number of texts that a row is measured on."""
    few = bench.arguments.published_chunks if row.variant in (PUBLISHED, ENGINE) else 0
    every = len(bench.chunks[row.cell])
    return min(few or every, every)


def measured_units(bench: Bench, rows: Sequence[Contender]) -> list[Unit]:
    """The texts of every row in pieces.

    Rows take turns within a cell, ordered by where in the texts a piece begins; those with their
    own steps come behind all others.
    """
    group, pieces = bench.arguments.group, list[tuple[tuple[int, ...], Unit]]()
    for order, row in enumerate(rows):
        total, size = texts_for(bench, row), 1 if row.is_alone else group
        own_steps = row.variant in (PUBLISHED, ENGINE)
        for start in range(0, total, size):
            indices = range(start, min(start + size, total))
            unit = Unit(
                f"chunks/{row.key}/{start}-{indices[-1]}",
                row.key,
                partial(written_and_judged, bench, row, indices),
            )
            pieces.append(((own_steps, bench.cells.index(row.cell), start, order), unit))
    for number, cell in enumerate(bench.cells):
        for start in range(0, len(bench.chunks[cell]), group):
            indices = range(start, min(start + group, len(bench.chunks[cell])))
            floor = Unit(
                f"floors/{cell.name}/{start}", "floors", partial(floors, bench, cell, indices)
            )
            pieces.append(((0, number, start, -1), floor))
    return [unit for _, unit in sorted(pieces, key=lambda piece: piece[0])]


def clock_units(bench: Bench, rows: Sequence[Contender]) -> list[Unit]:
    """What a step of each row takes, and how fast the machine is: all in turn, and again."""
    units = list[Unit]()
    for turn in range(ROUNDS):
        units.append(Unit(f"rates/{turn}", "rates", partial(rates, bench.lm)))
        units += [
            Unit(f"clock/{row.key}/{turn}", row.key, partial(clocked, bench, row)) for row in rows
        ]
    return units


def clocked(bench: Bench, row: Contender) -> dict[str, Any]:
    """The seconds that a step of a text takes: its share of all that the writing of some takes."""
    together = 1 if row.is_alone else bench.arguments.group
    texts = list(enumerate(bench.chunks[row.cell]))[:together]
    steps = min(CLOCKED, row.way.recipe.steps)
    few = replace(row, way=replace(row.way, recipe=replace(row.way.recipe, steps=steps)))
    began = time.monotonic()
    written = bench.write(few, texts)
    return {"step": (time.monotonic() - began) / sum(one.steps for one in written)}


def seconds_a_step(ledger: Ledger, row: Contender) -> float:
    """The median of what the clock says of a row; NaN before it was asked."""
    found = [ledger.results.get(f"clock/{row.key}/{turn}") for turn in range(ROUNDS)]
    return float(np.median([one["step"] for one in found])) if all(found) else float("nan")


def written_and_judged(bench: Bench, row: Contender, indices: Sequence[int]) -> dict[str, Any]:
    """Writes those texts, and judges what comes back from the packed bytes."""
    forget_peak(bench.lm.device)
    written = bench.write(row, [(index, bench.chunks[row.cell][index]) for index in indices])
    peak = peak_bytes(bench.lm.device)
    chunks = [result(bench, row.settings, one) | {"steps": one.steps} for one in written]
    passes = 1 if row.name == OURS else 2
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


def floors(bench: Bench, cell: Cell, indices: Sequence[int]) -> dict[str, Any]:
    """The same texts without any writing.

    They are read from no memory, from vectors that nobody trained, and as the LM would code them.
    """
    lm, chunks = bench.lm, dict[str, list[dict[str, Any]]]()
    for index in indices:
        sample = bench.chunks[cell][index]
        untrained = Task(f"{index} -", sample.tokens, cell.vectors)
        pooled = init_pooled(lm, untrained).cpu().numpy()
        nothing = np.zeros((0, lm.width), np.float32)
        for name, task, vectors in (
            ("no memory, pins only", replace(untrained, vectors=0), nothing),
            ("pooled vectors, untrained", untrained, pooled),
        ):
            read = OptimizedMemory(
                task=task, vectors=vectors, wrong=0, margin=0.0, steps=0, seconds=0.0
            )
            bits = {"code_bits": code_length(lm, sample.tokens)}
            chunks.setdefault(name, []).append(result(bench, bench.base, read) | bits)
    return {"chunks": chunks}


def rates(lm: LM) -> dict[str, Any]:
    """The speed of the machine at this moment."""
    return {name: matmul_rate(lm.device, getattr(torch, name)) for name in ("float32", "bfloat16")}


# --- the plan


def pace_units(bench: Bench) -> list[Unit]:
    """A few steps of each cell, together and alone: the pace that the plan reckons with."""
    ours = Way(recipe=recipe_named(OURS))
    rows = [
        contender(bench.base, OURS, variant=variant, cell=cell, way=ours, steps=PACE)
        for cell in bench.cells
        for variant in (ENGINE, PUBLISHED)
    ]

    def run(row: Contender) -> dict[str, Any]:
        texts = list(enumerate(bench.chunks[row.cell]))[: 1 if row.is_alone else None]
        began = time.monotonic()
        written = bench.write(row, texts)
        return {"pace": (time.monotonic() - began) / sum(one.steps for one in written)}

    return [Unit(f"pace/{row.cell.name}/{row.variant}", "pace", partial(run, row)) for row in rows]


@dataclass(frozen=True, slots=True)
class Planned:
    """A line of the plan: so many texts, each of at most so many steps."""

    name: str
    cell: Cell
    texts: int
    steps: int
    alone: bool = False

    def seconds(self, ledger: Ledger) -> float:
        """The most it takes, at the pace that was found."""
        kind = PUBLISHED if self.alone else ENGINE
        pace: float = ledger.results[f"pace/{self.cell.name}/{kind}"]["pace"]
        return self.texts * self.steps * pace


def planned(bench: Bench) -> list[Planned]:
    """What is to be done, tuning first."""
    lines, steps = list[Planned](), bench.arguments.steps
    for cell in bench.cells:
        count = len(tunable(bench, cell))
        if bench.arguments.race and cell != bench.cells[0]:
            count = min(count, bench.arguments.race + 1)
        tries = count * len(settings_to_try({})) * len(bench.tuning[cell])
        lines += [
            Planned("tuning, six settings a way", cell, tries, steps),
            *(
                Planned("all ways tuned", cell, count * len(bench.chunks[cell]), budget)
                for budget in (steps, *bench.arguments.budgets)
            ),
        ]
    return lines + [
        Planned(
            f"{row.name}, {row.variant}",
            row.cell,
            texts_for(bench, row),
            row.way.recipe.steps,
            row.is_alone,
        )
        for row in first_rows(bench)
    ]


def plan(bench: Bench, ledger: Ledger) -> Table:
    """The plan for people, with the most time that it takes."""
    lines = planned(bench)
    body = [
        [one.name, one.cell.title, str(one.texts), str(one.steps), duration(one.seconds(ledger))]
        for one in lines
    ]
    whole = duration(sum(one.seconds(ledger) for one in lines))
    return ("row", "cell", "texts", "steps of each, at most", "time, at most"), [
        *body,
        ["all", "", "", "", whole],
    ]


# --- the report


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A row with the results of its texts, by index."""

    name: str
    variant: str
    cell: Cell
    chunks: dict[int, dict[str, Any]]
    peak: int = 0
    dtype: str = ""

    @property
    def title(self) -> str:
        """Its title in a table."""
        return f"{self.name}, {self.variant}" if self.variant else self.name

    def over(
        self,
        numerator: str,
        denominator: str,
        indices: Sequence[int] | None = None,
        factor: float = 1.0,
    ) -> Interval:
        """`factor` times the sum of one number over the sum of another.

        It comes with its interval over the texts; "" counts the texts.
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
        step = seconds_a_step(ledger, row)
        chunks = {
            chunk["index"]: chunk | {"seconds": step * chunk["steps"]}
            for piece in pieces
            for chunk in piece["chunks"]
        }
        draft = row.way.recipe.low_precision and uses_low_precision(bench.lm, row.settings.draft)
        if chunks:
            found.append(
                Measured(
                    name=row.name,
                    variant=row.variant,
                    cell=row.cell,
                    chunks=dict(sorted(chunks.items())),
                    peak=max(piece["peak"] for piece in pieces),
                    dtype="bfloat16" if draft else "float32",
                )
            )
    return found


def unwritten(bench: Bench, ledger: Ledger) -> list[Measured]:
    """The ledger's results of rows that need no optimization."""
    found = []
    for cell in bench.cells:
        pieces = [
            value["chunks"]
            for key, value in ledger.results.items()
            if key.startswith(f"floors/{cell.name}/")
        ]
        for name in pieces[0] if pieces else ():
            chunks = {chunk["index"]: chunk for piece in pieces for chunk in piece[name]}
            found.append(Measured(name=name, variant="", cell=cell, chunks=chunks))
    return found


HEAD = (
    "row", "texts", "exact, %", "corrections / 100 tokens", "safety pins / 100 tokens",
    "row-steps", "s / text", "**exact / minute**", "smallest margin", "GFLOP / text",
    "% of matmul rate", "peak MiB",
)  # fmt: skip


def main_table(rows: Sequence[Measured], best_rates: dict[str, float]) -> Table:
    """Everything of every row of a cell."""
    return HEAD, [main_line(row, best_rates) for row in rows]


def main_line(row: Measured, best_rates: dict[str, float]) -> list[str]:
    """One row: intervals where they decide something."""
    line = [
        row.title,
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
        known(row.over("seconds", "").value, 2),
        row.over("exact", "seconds", factor=60.0).text(2),
        f"{min(exact):.3f}" if exact else "-",
        f"{row.over('flops', '').value / 1e9:.0f}",
        known(100 * share, 1),
        f"{row.peak / 2**20:.0f}",
    ]


def known(value: float, digits: int) -> str:
    """A number in a table; what was not measured is a dash."""
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def length_table(rows: Sequence[Measured]) -> Table:
    """Exact without correction pins by the texts' length, in per cent."""
    lengths = sorted({chunk["tokens"] for row in rows for chunk in row.chunks.values()})
    body = []
    for row in rows:
        shares = [
            [chunk["exact"] for chunk in row.chunks.values() if chunk["tokens"] == length]
            for length in lengths
        ]
        shown = [f"{100 * sum(some) / len(some):.0f}" if some else "-" for some in shares]
        body.append([row.title, *shown])
    return ("row", *(f"{length} tokens" for length in lengths)), body


def gain_table(rows: Sequence[Measured]) -> Table:
    """Ours against each other row of the cell, paired.

    Compared are the texts that both have; by length, where there are several and the other has any.
    """
    body = []
    for ours in (row for row in rows if row.variant == "ours"):
        for other in (row for row in rows if row.name != OURS):
            common = sorted(ours.chunks.keys() & other.chunks.keys())
            lengths = sorted({ours.chunks[index]["tokens"] for index in common})
            for length in (0, *(lengths if len(lengths) > 1 else ())):
                chosen = [
                    index
                    for index in common
                    if not length or ours.chunks[index]["tokens"] == length
                ]
                if not length or any(other.chunks[index]["exact"] for index in chosen):
                    body.append(gain_line(ours, other, chosen, length))
    return (
        "ours against",
        "tokens",
        "texts",
        "exact, ours",
        "exact, its",
        "points more",
        "times its rate",
    ), body


def gain_line(ours: Measured, other: Measured, chosen: Sequence[int], length: int) -> list[str]:
    """One comparison; where the other has none exact its rate is only bounded."""
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
    bound = "" if any(other.chunks[index]["exact"] for index in chosen) else "at least "
    return [
        other.title,
        str(length or "all"),
        str(len(chosen)),
        *shares,
        more.text(0),
        bound + gain.text(1),
    ]


def gain_over(ours: Measured, other: Measured, chosen: Sequence[int]) -> float:
    """Our rate as a multiple of that of `other`.

    The rate is texts exact without correction pins in the same time. A row that has none exact is
    given one for all of its time: a lower bound of the multiple.
    """
    exact, seconds = (
        [sum(float(row.chunks[index][name]) for index in chosen) for row in (ours, other)]
        for name in ("exact", "seconds")
    )
    return ratio(exact[0] * seconds[1], max(1.0, exact[1]) * seconds[0])


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
        x_label="seconds to write a text",
        y_label="correction pins in 100 tokens",
        lines=drawn,
        log_x=2,
    )


def report(bench: Bench, ledger: Ledger, rows: Sequence[Contender]) -> None:
    """Prints the tables, and writes JSON and pictures."""
    written, floor = gathered(bench, ledger, rows), unwritten(bench, ledger)
    speeds = [value for key, value in ledger.results.items() if key.startswith("rates/")]
    best_rates = {
        name: max(value[name] for value in speeds)
        for name in (("float32", "bfloat16") if speeds else ())
    }
    for cell in bench.cells:
        there = [row for row in (*written, *floor) if row.cell == cell]
        if there:
            put_cell(bench, cell, there, best_rates)
    summary = [
        {
            "row": row.title,
            "cell": row.cell.name,
            "dtype": row.dtype,
            "peak_bytes": row.peak,
            "chunks": list(row.chunks.values()),
        }
        for row in (*written, *floor)
    ]
    save_json(
        {
            "machine": machine(bench.lm),
            "about": ledger.results["about"],
            "plan": plan(bench, ledger)[1],
            "matmul": best_rates,
            "rows": summary,
        },
        bench.arguments.out.with_suffix(".json"),
    )


def put_cell(
    bench: Bench, cell: Cell, rows: Sequence[Measured], best_rates: dict[str, float]
) -> None:
    """Prints a cell's tables, and draws its picture."""
    here, written = machine(bench.lm), [row for row in rows if row.peak]
    put_table(
        f"{cell.title}; {bench.lm.identity.id}, {here['device']}, {here['threads']} threads",
        main_table(rows, best_rates),
    )
    if len(cell.lengths) > 1:
        put_table(
            "Exact without correction pins, in per cent, by the length of the texts",
            length_table(written),
        )
    put_table("Texts exact without correction pins in the same time", gain_table(written))
    for row in (row for row in rows if not row.peak and not row.chunks[0]["vectors"]):
        bits, pins = row.over("code_bits", "tokens"), row.over("pin_bits", "tokens")
        put(
            f"The LM's own code length of the text: {bits.text(2)} bits a token; pins without a "
            f"memory: {pins.value:.2f}.\n"
        )
    if written:
        out, name = bench.arguments.out, cell.name.replace(":", "-")
        draw(
            picture(written, f"Writing on {bench.lm.identity.id}: {cell.title}"),
            out.with_name(f"{out.name}-{name}.png"),
        )


def parsed(words: Sequence[str] | None = None) -> Namespace:
    """The command line."""
    parser: ArgumentParser = options(__doc__ or "", "write")
    parser.set_defaults(chunks=16)
    parser.add_argument("--model", default="mini", help="mini, smollm2, a folder or a hub id")
    parser.add_argument(
        "--ways",
        type=lambda text: tuple(text.split(";")) if text else (),
        default=tuple(ways()),
        help="the ways but ours, by name, with a ; between; '' for ours alone",
    )
    parser.add_argument(
        "--cells",
        type=cells,
        default=cells("32:1,64:1,128:4"),
        help="TOKENS:VECTORS (32:1,64:1,128:4)",
    )
    parser.add_argument(
        "--published-chunks",
        type=int,
        default=3,
        metavar="N",
        help="texts of the rows that keep their published steps (3; 0: all)",
    )
    parser.add_argument(
        "--engine",
        action="store_true",
        help="the recipes with their own steps in our engine as well: batched, drafted in bfloat16",
    )
    parser.add_argument(
        "--tuning-chunks",
        type=int,
        default=3,
        metavar="N",
        help="held-out texts (3; 0: no tuned rows)",
    )
    parser.add_argument(
        "--race",
        type=int,
        default=0,
        metavar="N",
        help="tune only the N best ways of the first cell, and the paper's, in the others (0: all)",
    )
    parser.add_argument(
        "--budgets",
        type=lambda text: numbers(text) if text else (),
        default=(),
        help="further budgets of steps for ours and the tuned",
    )
    parser.add_argument(
        "--group",
        type=int,
        default=16,
        metavar="N",
        help="texts after which the next row has its turn (16)",
    )
    parser.add_argument("--plan", action="store_true", help="only print the plan")
    parser.add_argument("--codec", default="float16", help="what vectors are stored in (float16)")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(words)


def bench_of(arguments: Namespace) -> Bench:
    """The model, the texts and the ways that the command line names."""
    lm, known = load_model(arguments.model, arguments), ways()
    texts = texts_of(arguments.texts)

    def cut(count: int, *, held_out: bool) -> dict[Cell, Sequence[Sample]]:
        return {
            cell: samples(lm, texts, cell.lengths, count, held_out=held_out, seed=arguments.seed)
            for cell in arguments.cells
        }

    return Bench(
        lm=lm,
        arguments=arguments,
        chunks=cut(arguments.chunks, held_out=False),
        tuning=cut(arguments.tuning_chunks, held_out=True),
        rivals={name: named("way", known, name) for name in arguments.ways},
    )


def main(words: Sequence[str] | None = None) -> None:
    """Plans, tunes, measures, reports."""
    arguments = parsed(words)
    until = time.monotonic() + arguments.seconds
    bench = bench_of(arguments)
    names = (
        "chunks", "steps", "batch", "group", "template", "codec", "seed", "tuning_chunks"
    )  # fmt: skip
    chosen = {name: getattr(arguments, name) for name in names}
    first = {cell.name: bench.chunks[cell][0].key for cell in bench.cells}
    ledger = open_ledger(
        arguments.out.with_suffix(".jsonl"), about(bench.lm, first=first, **chosen)
    )
    if not work_through(pace_units(bench), ledger, until):
        return
    put_table("The plan, at the pace of a few steps here", plan(bench, ledger))
    if arguments.plan:
        return
    rows = first_rows(bench)
    if tune(bench, ledger, until):
        rows += tuned_rows(bench, ledger)
        work_through([*measured_units(bench, rows), *clock_units(bench, rows)], ledger, until)
    report(bench, ledger, rows)


def tune(bench: Bench, ledger: Ledger, until: float) -> bool:
    """Tries settings until none is asked for any more; returns whether it came to that."""
    done = False
    while not done:
        units = tuning_units(bench, ledger)
        done = all(unit.key in ledger.results for unit in units)
        if not done and not work_through(units, ledger, until):
            return False
    return True


if __name__ == "__main__":
    guarded(main)
