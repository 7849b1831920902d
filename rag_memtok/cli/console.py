"""What a person sees: tables, progress, warnings, and nothing that could steer the terminal.

The only home of rich.

Answers go to stdout, talk to stderr. Names and texts from documents are shown with control
characters escaped.
"""

import errno
import json
import math
import os
import stat
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.text import Text

from rag_memtok.errors import DiskFailure, NoUsableMemory, RagMemtokError, escaped

if TYPE_CHECKING:
    from rag_memtok.datatypes import OnProgress, Progress

EVERY = 15.0  # seconds between lines of progress where there is no terminal
SHOWN = 20  # findings and files listed before "and N more"
# The background of a token that leads by at most so many logits, and one for those that lead by
# more.
HEAT = (
    (0.05, "white on #b2182b"),
    (0.1, "black on #ef8a62"),
    (0.2, "black on #fddbc7"),
    (0.4, "black on #d1e5f0"),
)
COOL = "white on #2166ac"
PINNED = {"correction": "bold reverse", "safety": "bold underline"}


def say(message: str) -> None:
    """One line of talk; on a terminal that was closed it is lost.

    Raises:
        BrokenPipeError: nobody reads it. What comes after is lost without a word.
    """
    try:
        print(escaped(message), file=sys.stderr, flush=True)
    except BrokenPipeError:
        discard(sys.stderr)
        raise
    except OSError as error:
        if not terminal_closed(error):
            raise
        discard(sys.stderr)


def put(text: str, end: str = "\n") -> None:
    """Part of the answer: escaped on a terminal, as it is in a pipe."""
    _write(escaped(text) if sys.stdout.isatty() else text, end)


def put_json(value: object) -> None:
    """One JSON value on a line.

    JSON has no infinity: the margin of a memory that has none is null.
    """
    value = finite(value)
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    if not is_unicode(sys.stdout.encoding) or not is_encodable(text):
        text = json.dumps(value, allow_nan=False)
    _write(text, "\n")


def is_encodable(text: str) -> bool:
    """Whether a text is without the halves of characters that stand for bytes of no UTF-8 name."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_unicode(encoding: str | None) -> bool:
    """Whether every character can be written to a stream of that encoding."""
    return (encoding or "utf-8").lower().replace("-", "").startswith("utf")


def _write(text: str, end: str) -> None:
    """Writes to standard output.

    Raises:
        DiskFailure: it takes no more. What comes after is lost without a word.
        BrokenPipeError: nobody reads it, or its terminal was closed; so here.
    """
    try:
        print(text, end=end, flush=True)
    except BrokenPipeError:
        discard()
        raise
    except OSError as error:
        closed = terminal_closed(error)
        discard()
        if closed:
            raise BrokenPipeError from error
        raise DiskFailure(
            f"standard output: {error.strerror}",
            remedy="free space where it leads, or let it lead elsewhere",
        ) from error


def discard(stream: TextIO | None = None) -> None:
    """Lets standard output, or another stream, lead nowhere.

    Otherwise Python would complain of what it could not write while it ends.
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), (stream or sys.stdout).fileno())


def closed_terminals() -> list[TextIO]:
    """Those of standard output and error that lead to a terminal that is no more."""
    closed = []
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # a stream that is no file
            device = stat.S_ISCHR(os.fstat(stream.fileno()).st_mode)
            if device and not stream.isatty():
                closed.append(stream)
    return closed


def terminal_closed(error: OSError) -> bool:
    """Whether that is why something cannot be written."""
    return error.errno == errno.EIO and bool(closed_terminals())


def finite(value: Any) -> Any:
    """`value` with null for every number that is not finite."""
    if isinstance(value, Mapping):
        return {name: finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def put_error(
    error: RagMemtokError, as_json: bool, about: Mapping[str, object] = MappingProxyType({})
) -> None:
    """What happened, to what, and what to do next; in JSON with what it is `about`."""
    if as_json:
        _put_error_as_json(error, about)
    _say_error(error)


def put_last_error(error: RagMemtokError, as_json: bool) -> None:
    """As `put_error`, at the end: where nobody reads it, it is lost, and the end is what it is."""
    if as_json:
        with suppress(BrokenPipeError):
            _put_error_as_json(error, {})
    with suppress(BrokenPipeError):
        _say_error(error)


def _put_error_as_json(error: RagMemtokError, about: Mapping[str, object]) -> None:
    known = {
        "name": error.name,
        "exit_code": error.exit_code,
        "message": str(error),
        "remedy": error.remedy,
    }
    refused = {"refused": "retrieval"} if isinstance(error, NoUsableMemory) else {}
    with suppress(DiskFailure):  # standard error has it all the same
        put_json({**about, "error": known, **refused})


def _say_error(error: RagMemtokError) -> None:
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
    cells = [
        [escaped(str(cell)).replace("\n", "\\n").replace("\t", "\\t") for cell in row]
        for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        put(
            "   ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        )


def put_strip(tokens: Sequence[tuple[str, float, str]]) -> None:
    """Puts out tokens, each as (text, lead in logits, pin).

    On a terminal it is the text, coloured by the lead; in a pipe a line with its numbers for each.
    """
    if not sys.stdout.isatty():
        for number, (text, lead, pin) in enumerate(tokens):
            put(f"{number}\t{lead:.4f}\t{pin or '-'}\t{json.dumps(text, ensure_ascii=False)}")
        return
    strip = Text()
    for text, lead, pin in tokens:
        style = next((colour for limit, colour in HEAT if lead <= limit), COOL)
        strip.append(
            escaped(text).replace("\n", "\u23ce\n"), f"{PINNED.get(pin, '')} {style}".strip()
        )
    console = Console(file=sys.stdout, highlight=False, markup=False, emoji=False)
    console.print(strip, soft_wrap=True)
    legend = [(f"<= {limit}", colour) for limit, colour in HEAT] + [
        (f"> {HEAT[-1][0]} logits", COOL)
    ]
    console.print(
        Text("  ").join(
            [Text(f" {words} ", colour) for words, colour in legend]
            + [Text(kind, PINNED[kind]) for kind in PINNED]
        )
    )


@contextmanager
def progress_bar(unit: str) -> Iterator["OnProgress"]:
    """Shows on stderr how far work is that counts `unit`: a bar on a terminal, lines elsewhere."""
    if not sys.stderr.isatty():
        yield _lines(unit)
        return
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None, note="")
        yield lambda at: bar.update(task, completed=at.done, total=at.total, note=noted(at))


def _lines(unit: str) -> "OnProgress":
    last = time.monotonic()

    def show(at: "Progress") -> None:
        nonlocal last
        if time.monotonic() - last >= EVERY:
            last = time.monotonic()
            say(f"{at.done} of {at.total} {unit}  {noted(at)}".rstrip())

    return show


def noted(at: "Progress") -> str:
    """What is being done, the facts, and the time left, in a phrase."""
    facts = (
        f"{name} {value:.3f}" if isinstance(value, float) else f"{name} {value}"
        for name, value in at.facts.items()
        if math.isfinite(value)
    )
    left = [] if at.seconds_left is None else [f"{duration(at.seconds_left)} left"]
    return ", ".join([*filter(None, [at.stage]), *facts, *left])


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
