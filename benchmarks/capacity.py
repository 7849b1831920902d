"""What a memory of M vectors holds: the longest text of which half come back exactly.

How to run (results go to run/benchmarks/capacity.jsonl as they come; the same command goes on after
a kill; Ctrl-C is one):

    python -m benchmarks.capacity --texts FOLDER --lengths 48,64,80,96,112     one vector
    python -m benchmarks.capacity --texts FOLDER --vectors 4 --lengths 128,192,256,320

Each file of FOLDER is a text: its first tokens are written, as many as each of --lengths says. What
is written is packed, read back and judged; exact is what needs no correction pin. Beside the length
stand the bits in which the model alone would code the text, without its end, and how many of them
the memory saves (the code length given the memory is nothing: the text is certain).

The published measure is another: a text is made longer, token by token, until 10,000 steps do not
bring it back, and its length then is averaged over texts. So the mean of each text's longest exact
length, of those tried, is given too.

Cost on two cores, with a model of 135M parameters: 0.1 to 0.2 s a row-step of 100 positions; a text
that fits takes 100 to 250 steps, one that does not all --steps: an hour for 20 texts at 5 lengths.
"""

import time
from argparse import Namespace
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import (
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
    texts_of,
    work_through,
)
from benchmarks.objective import Level, capacity_cell
from benchmarks.planned import share_exact
from rag_memtok.config import Memorize
from rag_memtok.errors import UsageError
from rag_memtok.evaluation.figures import Chart, Line, draw
from rag_memtok.memory.batch import Task
from rag_memtok.memory.optimize import memorize
from rag_memtok.memory.workers import judge_record
from rag_memtok.model.lm import LM
from rag_memtok.model.prompts import digest_of, template_named

Texts = dict[str, list[int]]


def prefixes(texts: Texts, length: int) -> dict[str, tuple[int, ...]]:
    """The first `length` tokens of each text.

    Raises:
        UsageError: a text is shorter.
    """
    for name, tokens in texts.items():
        if len(tokens) < length:
            raise UsageError(
                f"{name} has {len(tokens)} tokens, not {length}",
                remedy="longer texts, or shorter --lengths",
            )
    return {name: tuple(tokens[:length]) for name, tokens in texts.items()}


def piece(lm: LM, arguments: Namespace, texts: Texts, length: int) -> dict[str, Any]:
    """Writes the prefixes of some texts, and judges what comes back from the packed bytes."""
    template = template_named(arguments.template, lm)
    settings = Memorize(
        template=arguments.template, recipe=arguments.recipe, steps=arguments.steps,
        batch=arguments.batch, seconds_per_chunk=0.0, codec=arguments.codec,
    )  # fmt: skip
    tasks = [Task(name, cut, arguments.vectors) for name, cut in prefixes(texts, length).items()]
    results = []
    for one in memorize(lm, template, tasks, settings, on_step=heartbeat(str(length))):
        verdict = judge_record(lm, template, settings, one).verdict
        results.append(
            {
                "text": one.task.key,
                "steps": one.steps,
                "exact": verdict.corrections == 0,
                "corrections": verdict.corrections,
                "safeties": verdict.safeties,
                "bits": code_length(lm, one.task.tokens, end=False),
            }
        )
    return {"texts": results}


def units(lm: LM, arguments: Namespace, texts: Texts) -> list[Unit]:
    """Some texts at every length, then the next ones."""
    names = list(texts)
    parts = [
        names[start : start + arguments.batch] for start in range(0, len(names), arguments.batch)
    ]
    return [
        Unit(
            f"{length}/{number}",
            str(length),
            partial(piece, lm, arguments, {name: texts[name] for name in part}, length),
        )
        for number, part in enumerate(parts)
        for length in arguments.lengths
    ]


def results_at(ledger: Ledger, length: int) -> list[dict[str, Any]]:
    """The ledger's results at one length, by text."""
    found = [
        one
        for key, value in ledger.results.items()
        if key.startswith(f"{length}/")
        for one in value["texts"]
    ]
    return sorted(found, key=lambda one: one["text"])


def mean_of(values: Sequence[float]) -> Interval:
    """A mean and its interval."""
    some = np.array(values, dtype=float)
    return bootstrap(len(some), lambda drawn: float(some[drawn].mean()))


def longest(ledger: Ledger, lengths: Sequence[int]) -> dict[str, tuple[int, float]]:
    """Of each text the longest prefix that came back exactly, in tokens and bits (0: none)."""
    found: dict[str, tuple[int, float]] = {}
    for length in sorted(lengths):
        for one in results_at(ledger, length):
            found.setdefault(one["text"], (0, 0.0))
            if one["exact"]:
                found[one["text"]] = (length, one["bits"])
    return found


def levels_of(found: dict[int, list[dict[str, Any]]]) -> list[Level]:
    """The results at each length, of the texts that were tried at every length."""
    tried = [{one["text"] for one in results} for results in found.values() if results]
    common = set.intersection(*tried) if tried else set()
    return [
        Level(
            length,
            np.array([float(one["exact"]) for one in results if one["text"] in common]),
            np.array([float(one["steps"]) for one in results if one["text"] in common]),
        )
        for length, results in sorted(found.items())
        if results
    ]


def row(length: int, results: Sequence[dict[str, Any]]) -> list[str]:
    """One row of the table."""
    wrong = [one["corrections"] for one in results]
    return [
        str(length),
        f"{np.mean([one['bits'] for one in results]):.0f}",
        str(len(results)),
        share_exact(results).text(0),
        f"{100 * sum(wrong) / (len(wrong) * (length + 1)):.1f}",
        f"{np.median([one['steps'] for one in results]):.0f}",
    ]


def report(lm: LM, arguments: Namespace, ledger: Ledger) -> None:
    """Prints the table, and writes it as JSON."""
    found = {length: results_at(ledger, length) for length in arguments.lengths}
    head = ("tokens", "bits", "texts", "exact, %", "corrections / 100 tokens", "steps, median")
    body = [row(length, results) for length, results in found.items() if results]
    title = f"{arguments.vectors} vectors, {arguments.template}, {arguments.recipe}"
    put_table(title, (head, body))
    best = longest(ledger, arguments.lengths)
    if best:
        tokens, bits = zip(*best.values(), strict=True)
        put_table(
            "The longest exact prefix of each text, of those tried",
            (("tokens", "bits"), [[mean_of(tokens).text(), mean_of(bits).text(0)]]),
        )
    levels = levels_of(found)
    put_table("Half of the texts are exact up to", (("tokens",), [[capacity_cell(levels)]]))
    lengths = [float(one.length) for one in levels]
    shares = [100.0 * float(one.exact.mean()) for one in levels]
    line = Line(name=f"{arguments.vectors} vectors", x=lengths, y=shares)
    chart = Chart(
        title=title, x_label="tokens of the text", y_label="% of the texts exact", lines=[line]
    )
    if levels:
        draw(chart, arguments.out.with_suffix(".png"))
    save_json(
        {"machine": machine(lm), "about": ledger.results["about"], "lengths": found},
        arguments.out.with_suffix(".json"),
    )


def parsed(words: Sequence[str] | None = None) -> Namespace:
    """The command line."""
    parser = options(__doc__ or "", "capacity")
    parser.set_defaults(steps=500)
    parser.add_argument("--model", default="smollm2", help="mini, smollm2, a folder or a hub id")
    parser.add_argument("--recipe", default="margin", help="how it is written (margin)")
    parser.add_argument("--vectors", type=int, default=1, metavar="M", help="of each text (1)")
    parser.add_argument(
        "--lengths", type=numbers, default=(48, 64, 80, 96, 112), help="in tokens (48,64,...)"
    )
    parser.add_argument("--codec", default="float16", help="what vectors are stored in (float16)")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> None:
    """Writes, judges, reports."""
    arguments = parsed(words)
    until = time.monotonic() + arguments.seconds
    lm = load_model(arguments.model, arguments)
    texts = {name: lm.encode(text) for name, text in texts_of(arguments.texts).items()}
    chosen = {
        name: getattr(arguments, name)
        for name in ("steps", "batch", "template", "recipe", "vectors", "codec")
    }
    chosen["texts"] = str(arguments.texts or Path("data/docs"))
    chosen["texts_sha256"] = digest_of(tuple(texts.items()))  # what is in that folder may change
    chosen["bits"] = "without the end"
    ledger = open_ledger(arguments.out.with_suffix(".jsonl"), about(lm, **chosen))
    work_through(units(lm, arguments, texts), ledger, until)
    report(lm, arguments, ledger)


if __name__ == "__main__":
    guarded(main)
