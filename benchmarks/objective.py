"""Which objective holds the longest text in M vectors, and in how many steps?

How to run (results go to run/benchmarks/objective-MODEL.jsonl as they come; the same command goes
on after a kill; Ctrl-C is one):

    python -m benchmarks.objective --quick       12 chunks, cross-entropy and ours, M up to 16
    python -m benchmarks.objective               64 chunks, 3 seeds, M up to 32
    python -m benchmarks.objective --objectives all --vectors 4 --seeds 1    every variant at one M
    python -m benchmarks.objective --model mini --model FOLDER    several models in one figure

The capacity at M is the length, in tokens, at which half of the chunks are exact: the judge decodes
them, unrounded, without a pin. Lengths grow from M by factors of 1.33 to 1.5 until fewer than half
are exact; the crossing is interpolated on the logarithm of the length. Chunks are beginnings of
stretches of prose, so that a longer one contains the shorter; a seed draws other stretches. All
objectives share start, optimiser, learning rate, step budget and stop (every argmax right by more
than --margin), unless their name says otherwise.

Cost on two cores, with a model of 10M parameters: --quick 10 minutes; the second line 6 hours (most
of it for M 16 and 32); an objective at M 4, 64 chunks and one seed 4 minutes. The time left is told
after every length.
"""

import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import exp, log
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from benchmarks.measure import (
    Interval,
    Ledger,
    Sample,
    about,
    bootstrap,
    guarded,
    load_model,
    machine,
    numbers,
    open_ledger,
    options,
    put_table,
    samples,
    save_json,
    texts_of,
)
from rag_memtok.cli.console import duration, put, say
from rag_memtok.config import Memorize
from rag_memtok.datatypes import Memory
from rag_memtok.errors import UsageError
from rag_memtok.evaluation.figures import Chart, Line, draw
from rag_memtok.memory.batch import Task
from rag_memtok.memory.optimize import memorize
from rag_memtok.memory.recipes import RECIPES, LossesAndMargins, Objective, Recipe, cross_entropy
from rag_memtok.memory.reconstruct import judge
from rag_memtok.memory.step import Row
from rag_memtok.model.lm import LM
from rag_memtok.model.prompts import template_named

LENGTHS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
HALF = 0.5
QUICK: dict[str, Any] = {"chunks": 12, "seeds": 1, "vectors": (1, 2, 4, 8, 16)}


# --- the objectives


def leads(lm: LM, hidden: Float[Tensor, "P d"], targets: Int[Tensor, " P"]) -> Float[Tensor, " P"]:
    """The margin of each target over the best other token, in logits, with its gradient.

    The gradient goes through two rows of the output layer only.
    """
    with torch.no_grad():
        rivals = lm.raw_logits(hidden).scatter(1, targets[:, None], -torch.inf).argmax(1)
    words = lm.model.get_output_embeddings()
    offset = 0 if words.bias is None else words.bias[targets] - words.bias[rivals]
    return ((hidden * (words.weight[targets] - words.weight[rivals])).sum(-1) + offset).float()


def weighted(factor: float) -> Objective:
    """Cross-entropy, `factor` times as much where the token is wrong."""

    def objective(
        lm: LM, hidden: Float[Tensor, "P d"], targets: Int[Tensor, " P"], spent: Float[Tensor, " P"]
    ) -> LossesAndMargins:
        losses, margins = cross_entropy(lm, hidden, targets, spent)
        return losses * torch.where(margins <= 0, factor, 1.0), margins

    return objective


def hinge(power: float, first: float, last: float | None = None) -> Objective:
    """`relu(delta - margin) ** power`; delta goes from `first` to `last` over the budget."""

    def objective(
        lm: LM, hidden: Float[Tensor, "P d"], targets: Int[Tensor, " P"], spent: Float[Tensor, " P"]
    ) -> LossesAndMargins:
        lead = leads(lm, hidden, targets)
        delta = first + ((first if last is None else last) - first) * spent
        return torch.relu(delta - lead) ** power, lead.detach()

    return objective


def mixture(one: Objective, other: Objective, share: Callable[[Tensor], Tensor]) -> Objective:
    """`one` plus `share(spent)` of `other`."""

    def objective(
        lm: LM, hidden: Float[Tensor, "P d"], targets: Int[Tensor, " P"], spent: Float[Tensor, " P"]
    ) -> LossesAndMargins:
        losses, margins = one(lm, hidden, targets, spent)
        return losses + share(spent) * other(lm, hidden, targets, spent)[0], margins

    return objective


def smoothed(power: float, delta: float, temperature: float) -> Objective:
    """The hinge over a smoothed maximum of the rivals.

    The maximum is `temperature * logsumexp(logits / temperature)`.
    """

    def objective(
        lm: LM, hidden: Float[Tensor, "P d"], targets: Int[Tensor, " P"], spent: Float[Tensor, " P"]
    ) -> LossesAndMargins:
        logits = lm.logits(hidden)
        right = logits.gather(1, targets[:, None])[:, 0]
        others = logits.scatter(1, targets[:, None], -torch.inf)
        soft = temperature * torch.logsumexp(others / temperature, dim=1)
        return torch.relu(delta - (right - soft)) ** power, (right - others.max(1).values).detach()

    return objective


@dataclass(frozen=True, slots=True)
class Variant:
    """An objective to try; `hold_norm`: vectors keep the length of a usual token's embedding."""

    recipe: Recipe
    hold_norm: bool = False


def variants() -> dict[str, Variant]:
    """Everything that is compared.

    The first is what everybody uses, the second what this package does.
    """
    ours, usual = RECIPES["margin"], RECIPES["cross-entropy"]
    third = hinge(3.0, 0.5)
    found = {
        "cross-entropy": usual,
        "ours": ours,
        "cross-entropy, rate of the table": replace(usual, unit="table", lr=1.0, settle=False),
        "ours, rate of the table": replace(ours, unit="table", lr=1.0, settle=False),
        "cross-entropy, rate x0.3": replace(usual, lr=0.3 * usual.lr),
        "cross-entropy, rate x3": replace(usual, lr=3 * usual.lr),
        "cross-entropy, wrong x3": replace(usual, objective=weighted(3.0)),
        "cross-entropy, wrong x6": replace(usual, objective=weighted(6.0)),
    }
    found |= {
        f"hinge^{power:g}, delta {delta:g}": replace(ours, objective=hinge(power, delta))
        for power in (1.0, 2.0, 3.0)
        for delta in (0.1, 0.3, 0.5)
    }
    found |= {
        "hinge^1, delta 1 to 0.1": replace(ours, objective=hinge(1.0, 1.0, 0.1)),
        "hinge^3, delta 1 to 0.3": replace(ours, objective=hinge(3.0, 1.0, 0.3)),
        "hinge^3, delta 0.3 to 1": replace(ours, objective=hinge(3.0, 0.3, 1.0)),
        "hinge^3 + 0.1 cross-entropy": replace(
            ours, objective=mixture(third, cross_entropy, lambda spent: torch.full_like(spent, 0.1))
        ),
        "hinge^3 + fading cross-entropy": replace(
            ours,
            objective=mixture(third, cross_entropy, lambda spent: (1 - 2 * spent).clamp(min=0)),
        ),
        "hinge^3, rivals smoothed 0.3": replace(ours, objective=smoothed(3.0, 0.5, 0.3)),
        "hinge^3, rivals smoothed 1": replace(ours, objective=smoothed(3.0, 0.5, 1.0)),
    }
    held = {
        f"{name}, fixed norm": Variant(found[name], hold_norm=True)
        for name in ("cross-entropy", "ours")
    }
    return {name: Variant(recipe) for name, recipe in found.items()} | held


# --- the work


@dataclass(slots=True, kw_only=True)
class Study:
    """The part of one model: its chunks by seed, and its results so far.

    `until` says until when it may go on (monotonic seconds).
    """

    lm: LM
    arguments: Namespace
    chunks: Sequence[Sequence[Sample]]
    ledger: Ledger
    until: float


@dataclass(frozen=True, slots=True)
class Level:
    """All chunks of all seeds at one length: which are exact, and the steps of each."""

    length: int
    exact: Float[np.ndarray, " N"]
    steps: Float[np.ndarray, " N"]


def written(study: Study, variant: Variant, vectors: int, length: int, seed: int) -> dict[str, Any]:
    """Writes the first `length` tokens of a seed's chunks, and judges those that came out right."""
    lm, arguments = study.lm, study.arguments
    template = template_named(arguments.template, lm)
    settings = Memorize(
        steps=arguments.steps, batch=arguments.batch, seconds_per_chunk=0.0, seed=seed
    )
    tasks = [
        Task(f"{index} {sample.key}", sample.tokens[:length], vectors)
        for index, sample in enumerate(study.chunks[seed])
    ]
    recipe = replace(variant.recipe, margin=arguments.margin)
    norm = float(lm.table.float().norm(dim=-1).mean())

    def hold_norm(row: Row) -> None:
        if variant.hold_norm:
            row.vectors = row.vectors * (norm / row.vectors.norm(dim=-1, keepdim=True))

    exact, steps, wrong = ([0] * len(tasks) for _ in range(3))
    for one in memorize(lm, template, tasks, settings, recipe=recipe, before_step=hold_norm):
        index = int(one.task.key.partition(" ")[0])
        steps[index], wrong[index] = one.steps, one.wrong
        if not one.wrong:
            exact[index] = int(
                judge(lm, template, Memory(one.vectors), one.task.tokens, 0.0)[1].kind == "exact"
            )
    return {"exact": exact, "steps": steps, "wrong": wrong}


def level(study: Study, name: str, vectors: int, length: int) -> Level | None:
    """All seeds at one length, from the ledger or now; None if the time is over."""
    found = []
    for seed in range(study.arguments.seeds):
        key = f"{name}/{vectors}/{seed}/{length}"
        if key not in study.ledger.results:
            if time.monotonic() >= study.until:
                return None
            began = time.monotonic()
            result = written(study, variants()[name], vectors, length, seed)
            study.ledger.add(key, result | {"wall": time.monotonic() - began})
        found.append(study.ledger.results[key])
    exact, steps = (
        np.concatenate([np.asarray(one[part], dtype=float) for one in found])
        for part in ("exact", "steps")
    )
    return Level(length, exact, steps)


def curve(study: Study, name: str, vectors: int) -> tuple[list[Level], bool]:
    """Lengths from M on until fewer than half are exact; and whether it came to its end."""
    levels: list[Level] = []
    longest = min(
        study.arguments.longest,
        study.lm.context - vectors - template_named(study.arguments.template, study.lm).overhead,
    )
    for length in LENGTHS:
        if vectors <= length <= longest:
            found = level(study, name, vectors, length)
            if found is None:
                return levels, False
            levels.append(found)
            say(
                f"  {study.lm.identity.id}, {name}, M = {vectors}, {length} tokens: "
                f"{found.exact.mean():.0%} exact"
            )
            if found.exact.mean() < HALF:
                break
    return levels, True


Curves = dict[tuple[str, int], list[Level]]


def curves(study: Study) -> Curves:
    """All curves of a model, all objectives of a small M first, as far as the time reaches."""
    plan = [
        (name, vectors)
        for vectors in study.arguments.vectors
        for name in study.arguments.objectives
    ]
    found: Curves = {}
    began, fresh = time.monotonic(), 0
    for number, (name, vectors) in enumerate(plan):
        before = len(study.ledger.results)
        found[name, vectors], ended = curve(study, name, vectors)
        if not ended:
            say("--seconds is over; the same command goes on")
            break
        fresh += vectors * (len(study.ledger.results) > before)
        left = (
            (time.monotonic() - began) * sum(more for _, more in plan[number + 1 :]) / max(1, fresh)
        )
        say(
            f"{number + 1}/{len(plan)}  {name}, M = {vectors}: "
            f"{capacity_cell(found[name, vectors])} tokens; {duration(left)} left"
        )
    return found


# --- numbers


def crossing(points: Sequence[tuple[int, float]]) -> float:
    """The length at which half of the chunks are exact, interpolated on its logarithm.

    0 if the first length has fewer already; the last length if none has fewer.
    """
    if not points or points[0][1] < HALF:
        return 0.0
    for (length, share), (longer, less) in pairwise(points):
        if less < HALF:
            return exp(log(length) + (log(longer) - log(length)) * (share - HALF) / (share - less))
    return float(points[-1][0])


def capacity_of(levels: Sequence[Level]) -> Interval:
    """The capacity, with its interval over the chunks."""
    count = len(levels[0].exact) if levels else 1
    return bootstrap(
        count,
        lambda drawn: crossing([(one.length, float(one.exact[drawn].mean())) for one in levels]),
    )


def capacity_cell(levels: Sequence[Level]) -> str:
    """The capacity, or the longest text that was tried.

    The latter stands where the capacity was not reached, because no longer text was tried.
    """
    if not levels:
        return "-"
    return (
        f">= {levels[-1].length}" if levels[-1].exact.mean() >= HALF else capacity_of(levels).text()
    )


def common_level(one: Sequence[Level], other: Sequence[Level]) -> tuple[Level, Level] | None:
    """The longest length at which both have half of their chunks exact."""
    others = {level.length: level for level in other if level.exact.mean() >= HALF}
    both = [
        (level, others[level.length])
        for level in one
        if level.exact.mean() >= HALF and level.length in others
    ]
    return max(both, key=lambda pair: pair[0].length, default=None)


def steps_cell(usual: Sequence[Level], levels: Sequence[Level]) -> str:
    """Row-steps of a chunk, and cross-entropy's, at the longest length that half of both hold."""
    pair = common_level(levels, usual)
    if pair is None:
        return "-"
    mine, theirs = (float(level.steps.mean()) for level in pair)
    return f"{mine:.0f} : {theirs:.0f} at {pair[0].length}"


def put_tables(found: Curves, arguments: Namespace) -> None:
    """Capacity, then row-steps, by objective and M."""
    head = ("objective", *(f"M = {vectors}" for vectors in arguments.vectors))
    capacities, steps = [], []
    for name in arguments.objectives:
        mine = [found.get((name, vectors), []) for vectors in arguments.vectors]
        usual = [found.get((arguments.objectives[0], vectors), []) for vectors in arguments.vectors]
        capacities.append([name, *(capacity_cell(levels) for levels in mine)])
        steps.append(
            [
                name,
                *(steps_cell(theirs, levels) for theirs, levels in zip(usual, mine, strict=True)),
            ]
        )
    put_table(
        "Capacity: tokens of which half of the chunks are exact (95 % interval)", (head, capacities)
    )
    put_table(
        f"Row-steps a chunk, its : those of {arguments.objectives[0]}, at a length in tokens",
        (head, steps),
    )


def lines(model: str, found: Curves, arguments: Namespace) -> list[Line]:
    """Capacity against M for the first two objectives."""
    drawn = []
    for name in arguments.objectives[:2]:
        there = [vectors for vectors in arguments.vectors if found.get((name, vectors))]
        points = [capacity_of(found[name, vectors]) for vectors in there]
        x, y = [float(vectors) for vectors in there], [point.value for point in points]
        drawn.append(
            Line(
                name=f"{model}, {name}",
                x=x,
                y=y,
                low=[point.low for point in points],
                high=[point.high for point in points],
            )
        )
    return drawn


# --- the door


def parsed(words: Sequence[str] | None = None) -> Namespace:
    """The command line."""
    parser = options(__doc__ or "", "objective")
    parser.add_argument(
        "--model",
        action="append",
        help="mini, a folder or a hub id; may be given several times (mini)",
    )
    parser.add_argument(
        "--objectives",
        type=lambda text: tuple(text.split(";")),
        help='names with ";" between them, or all',
    )
    parser.add_argument(
        "--vectors",
        type=numbers,
        default=(1, 2, 4, 8, 16, 32),
        help="M, the numbers of vectors (1,2,4,8,16,32)",
    )
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="draws of chunks (3)")
    parser.add_argument(
        "--margin",
        type=float,
        default=0.0,
        help="logits by which every token must lead for a row to end (0)",
    )
    parser.add_argument(
        "--kinds",
        type=lambda text: tuple(text.split(",")),
        default=("prose",),
        help="of text (prose)",
    )
    parser.add_argument(
        "--longest",
        type=int,
        default=256,
        metavar="N",
        help="the longest text tried, in tokens (256)",
    )
    parser.add_argument("--quick", action="store_true", help="12 chunks, one seed, M 1 to 16")
    if parser.parse_args(words).quick:
        parser.set_defaults(**QUICK)
    arguments = parser.parse_args(words)
    names, everything = arguments.objectives or ("cross-entropy", "ours"), variants()
    arguments.objectives = tuple(everything) if names == ("all",) else names
    if unknown := [name for name in arguments.objectives if name not in everything]:
        raise UsageError(f"no objective {unknown[0]!r}; there are {'; '.join(everything)}")
    return arguments


def study_of(model: str, arguments: Namespace, until: float) -> Study:
    """Loads a model and draws its chunks."""
    lm = load_model(model, arguments)
    texts = {
        kind: text
        for kind, text in texts_of(arguments.texts).items()
        if kind in arguments.kinds or arguments.texts
    }
    chunks = [
        samples(lm, texts, (arguments.longest,), arguments.chunks, seed=seed)
        for seed in range(arguments.seeds)
    ]
    chosen = {
        name: getattr(arguments, name)
        for name in ("chunks", "steps", "margin", "batch", "template", "kinds", "longest")
    }
    path = arguments.out.with_name(f"{arguments.out.name}-{Path(model).name}.jsonl")
    return Study(
        lm=lm,
        arguments=arguments,
        chunks=chunks,
        ledger=open_ledger(path, about(lm, first=chunks[0][0].key, **chosen)),
        until=until,
    )


def main(words: Sequence[str] | None = None) -> None:
    """Measures model after model, and reports."""
    arguments = parsed(words)
    until = time.monotonic() + arguments.seconds
    drawn, summary = [], []
    for model in arguments.model or ["mini"]:
        study = study_of(model, arguments, until)
        found = curves(study)
        put(f"{model}: {study.lm.parameters / 1e6:.1f}M parameters, width {study.lm.width}\n")
        put_tables(found, arguments)
        drawn += lines(model, found, arguments)
        summary.append(
            {"model": model, "machine": machine(study.lm), "results": study.ledger.results}
        )
    save_json(summary, arguments.out.with_suffix(".json"))
    title = "The longest text of which half of the chunks are exact"
    if any(value > 0 for line in drawn for value in line.y):
        draw(
            Chart(
                title=title,
                x_label="vectors (M)",
                y_label="tokens",
                lines=drawn,
                log_x=2,
                log_y=True,
            ),
            arguments.out.with_suffix(".png"),
        )


if __name__ == "__main__":
    guarded(main)
