"""What a person sees: tables, progress, warnings, and nothing that could steer the terminal. The only home of rich.

Answers go to stdout, talk to stderr. Names and texts from documents are shown with control characters escaped.
"""

import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from rag_memtok.errors import DiskFailure, RagMemtokError, escaped

if TYPE_CHECKING:
    from rag_memtok.audit import Audit
    from rag_memtok.ingest import Ingested, Standing
    from rag_memtok.nouns import Answer
    from rag_memtok.pipeline import Estimate, Status
    from rag_memtok.study.memories import Stage

EVERY = 15.0  # seconds between lines of progress where there is no terminal
SHOWN = 20  # findings and files listed before "and N more"
VERDICTS = ("exact", "pinned", "assisted", "text-only")
# The background of a token that leads by at most so many logits, and one for those that lead by more.
HEAT = ((0.05, "white on #b2182b"), (0.1, "black on #ef8a62"), (0.2, "black on #fddbc7"), (0.4, "black on #d1e5f0"))
COOL = "white on #2166ac"
PINNED = {"correction": "bold reverse", "safety": "bold underline"}


def say(message: str) -> None:
    """One line of talk."""
    print(escaped(message), file=sys.stderr, flush=True)


def put(text: str, end: str = "\n") -> None:
    """Part of the answer: escaped on a terminal, as it is in a pipe."""
    _write(escaped(text) if sys.stdout.isatty() else text, end)


def put_json(value: object) -> None:
    """One JSON value on a line. JSON has no infinity: the margin of a memory that has none is null."""
    _write(json.dumps(finite(value), ensure_ascii=False, allow_nan=False), "\n")


def _write(text: str, end: str) -> None:
    """Writes to standard output.

    Raises:
        DiskFailure: it takes no more. What comes after is lost without a word.
    """
    try:
        print(text, end=end, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        discard()
        raise DiskFailure(f"standard output: {error.strerror}", remedy="free space where it leads, or let it lead elsewhere") from error


def discard() -> None:
    """Lets standard output lead nowhere, or Python would complain of what it could not write while it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def finite(value: Any) -> Any:
    """`value` with null for every number that is not finite."""
    if isinstance(value, Mapping):
        return {name: finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def put_error(error: RagMemtokError, as_json: bool) -> None:
    """What happened, to what, and what to do next."""
    if as_json:
        with suppress(DiskFailure):  # standard error has it all the same
            put_json({"error": {"name": error.name, "exit_code": error.exit_code, "message": str(error), "remedy": error.remedy}})
    say(f"error: {error}")
    if error.remedy:
        say(f"  next: {error.remedy}")


def put_table(rows: Mapping[str, object]) -> None:
    """Two columns, aligned, without a frame: readable in a log, and to `cut` and `awk`."""
    width = max(map(len, rows), default=0)
    for name, value in rows.items():
        put(f"{name:<{width}}   {value}")


def put_columns(rows: Sequence[Sequence[object]]) -> None:
    """Several columns, aligned; newlines within are written out, so that a row is a line."""
    cells = [[escaped(str(cell)).replace("\n", "\\n").replace("\t", "\\t") for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        put("   ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())


def put_strip(tokens: Sequence[tuple[str, float, str]]) -> None:
    """Tokens as (text, lead in logits, pin): on a terminal the text, coloured by the lead; in a pipe a line with its numbers for each."""
    if not sys.stdout.isatty():
        for number, (text, lead, pin) in enumerate(tokens):
            put(f"{number}\t{lead:.4f}\t{pin or '-'}\t{json.dumps(text, ensure_ascii=False)}")
        return
    strip = Text()
    for text, lead, pin in tokens:
        style = next((colour for limit, colour in HEAT if lead <= limit), COOL)
        strip.append(escaped(text).replace("\n", "\u23ce\n"), f"{PINNED.get(pin, '')} {style}".strip())
    console = Console(file=sys.stdout, highlight=False, markup=False, emoji=False)
    console.print(strip, soft_wrap=True)
    legend = [(f"<= {limit}", colour) for limit, colour in HEAT] + [(f"> {HEAT[-1][0]} logits", COOL)]
    console.print(Text("  ").join([Text(f" {words} ", colour) for words, colour in legend] + [Text(kind, PINNED[kind]) for kind in PINNED]))


@contextmanager
def bar(unit: str) -> Iterator[Callable[[int, int, str], None]]:
    """Shows progress on stderr; the function it gives takes how many are done, of how many, and a note."""
    if not sys.stderr.isatty():
        yield _lines(unit)
        return
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn(unit), TimeElapsedColumn(), TextColumn("{task.fields[note]}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=None, note="")
        yield lambda done, total, note: progress.update(task, completed=done, total=total, note=note)


def _lines(unit: str) -> Callable[[int, int, str], None]:
    last = time.monotonic()

    def show(done: int, total: int, note: str) -> None:
        nonlocal last
        if time.monotonic() - last >= EVERY:
            last = time.monotonic()
            say(f"{done} of {total} {unit}  {note}".rstrip())

    return show


def standing_note(standing: "Standing") -> str:
    """Exact so far, steps, time left."""
    left = "" if standing.seconds_left is None else f", {duration(standing.seconds_left)} left"
    return f"{standing.verdicts.get('exact', 0)} exact, step {standing.steps}{left}"


def stage_note(stage: "Stage") -> str:
    """What is being done, and the time left for it."""
    return stage.name + ("" if stage.seconds_left is None else f", {duration(stage.seconds_left)} left")


def counted(number: int, noun: str) -> str:
    """`3 chunks`, `1 chunk`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def put_list(title: str, lines: list[str]) -> None:
    """Up to SHOWN lines of talk under a title."""
    if lines:
        say(f"{title}:")
    for line in lines[:SHOWN]:
        say(f"  {line}")
    if len(lines) > SHOWN:
        say(f"  and {len(lines) - SHOWN} more")


def put_ingested(done: "Ingested") -> None:
    """The table at the end of an ingest."""
    put_list("skipped", [f"{one.path}: {one.reason}" for one in (*done.skipped, *done.over_limit)])
    if done.vanished and not done.removed:
        put_list("gone from the folder, still in the store (--prune removes them)", [file for _, file in done.vanished])
    if not done.files and not done.removed:
        put(f"0 new; {done.unchanged} files unchanged")
        return
    rows: dict[str, object] = {"files": f"{done.files} new or changed, {done.unchanged} unchanged, {done.removed} removed"}
    rows["chunks"] = f"{done.chunks} written, {done.reused} already there"
    rows |= {kind: done.verdicts[kind] for kind in VERDICTS if kind in done.verdicts}
    if done.chunks:
        rows["time"] = f"{done.seconds:.1f} s, {done.seconds / done.chunks:.2f} s a chunk"
    if done.positions:
        factor = done.text_positions / done.positions
        rows["context positions"] = f"{done.positions} instead of {done.text_positions} ({factor:.1f} times fewer)"
        rows["tokens per vector"] = done.tokens_per_vector
    put_table(rows)


def put_estimate(found: "Estimate") -> None:
    """What --dry-run says."""
    put_list("would be skipped", [f"{one.path}: {one.reason}" for one in found.skipped])
    time_needed = f"about {duration(found.seconds)} here" if found.chunks else "no time"
    what = f"{counted(found.chunks, 'chunk')} of {counted(found.files, 'file')} ({found.unchanged} unchanged)"
    put(f"would write {what}, {time_needed}; nothing was written")


def put_answer(found: "Answer", streamed: bool) -> None:
    """The answer, unless it was streamed, its sources, and what it cost."""
    put("" if streamed else found.answer)
    for number, source in enumerate(found.sources, start=1):
        put(f"  [{number}] {source.path}, {source.lines}  (score {source.score:.4f}, {source.verdict})")
    put(
        f"  {found.context_positions} context positions instead of {found.text_positions}; prompt {found.prompt_positions}; "
        f"reader {found.reader}; {found.seconds:.1f} s"
    )
    say(f"reader {found.reader}: {found.reader_reason}")
    if found.passages == "apart":
        say("each memory was read by itself, and the surest answer kept; --passages together puts all into one prompt")


def put_audit(found: "Audit") -> None:
    """Counts, what is not proven, and one sentence."""
    put_list("not proven", [f"{one.kind}: {one.subject}: {one.reason}" for one in found.findings])
    if any(one.kind == "damaged" for one in found.findings):
        say("  next: rag-memtok ingest those files again into the same --store: what is damaged is written anew")
    if any(one.kind == "mismatch" for one in found.findings):
        say("  next: what mismatches is whole but wrong: rag-memtok rm those files, then ingest them again")
    verdicts = "".join(f", {count} {kind}" for kind, count in sorted(found.counts.items()))
    rows: dict[str, object] = {"chunks": f"{found.checked} of {found.chunks} checked{verdicts}"}
    if found.checked:
        partly = found.checked < found.chunks
        of, rest = (f"{found.documents_checked} checked", f", {found.documents} in all") if partly else (found.documents, "")
        rows["documents"] = f"{found.documents_proven} of {of} rejoined and identical{rest}"
    rows |= {"profile": found.profile, "time": f"{found.seconds:.1f} s"}
    if found.sample:
        rows["sample"] = found.sample
    put_table(rows)
    put(found.sentence)


def put_status(found: "Status") -> None:
    """The store at a glance."""
    manifest, summary = found.manifest, found.summary
    rows: dict[str, object] = {
        "documents": summary.documents,
        "chunks": summary.chunks,
        **{kind: count for kind, count in sorted(summary.verdicts.items())},
        "model": f"{manifest.get('model')} {manifest.get('revision', '')} ({manifest.get('dtype')})".replace("  ", " "),
        "template": manifest.get("template"),
        "tokens per vector": f"{manifest.get('tokens_per_vector')} ({manifest.get('tokens_per_vector_origin')})",
        "embedder": manifest.get("embedder"),
        "format": manifest.get("format"),
        "generation": found.generation,
        "size": f"{found.bytes / 1e6:.2f} MB (vectors {summary.bytes.get('vectors', 0)} bytes, text {summary.bytes.get('texts', 0)} bytes)",
    }
    if found.adapter:
        rows["adapter"] = found.adapter
    if summary.orphans:
        rows["unfinished"] = f"{summary.orphans} chunks of files whose ingest did not end; run it again"
    put_table(rows)
