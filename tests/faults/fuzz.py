"""Any bytes at all for the loaders, the store's readers and the configuration.

They come from Hypothesis, which shrinks what it finds.

A coverage-guided fuzzer would go deeper; these inputs are mutations of good ones, which reach as
far as most of the code.
"""

import functools
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import corruption
import files
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from kills import Trial
from world import World

from rag_memtok.config import Documents
from rag_memtok.documents.extract import KINDS
from rag_memtok.documents.scan import Reading, Skipped, read, scan
from rag_memtok.errors import InputRefused, UsageError
from rag_memtok.settings import FILE_NAME, load
from rag_memtok.store.files import DATABASE

SEEDS = {
    "text": ("a.txt", "The lamp\r\nis \U0001f95f quiet.\n".encode()),
    "html": (
        "a.html",
        b"<html><body><h1>Fan</h1><table><tr><td>4&nbsp;euros</td></tr></table><pre> a\n "
        b"b</pre></body></html>",
    ),
    "jsonl": ("a.jsonl", b'{"text": "Ticket 7", "n": [1.50, null]}\n"a \\ud83e\\udd5f"\n'),
    "ics": (
        "a.ics",
        files.calendar(
            ["SUMMARY:one \U0001f95f", "DTSTART:20260312T1400", " 00Z", "DURATION:PT1H"],
            ["SUMMARY:two", "DTSTART:20260501", "RRULE:FREQ=WEEKLY;BYDAY=MO;UNTIL=20261231"],
        ),
    ),
    "pdf": ("a.pdf", files.pdf("one", "two")),
    "docx": ("a.docx", files.docx("one", "two")),
    "pptx": ("a.pptx", files.pptx_of(("one", "two"))),
    "epub": ("a.epub", files.epub("one", "<p>two</p>")),
    "xlsx": ("a.xlsx", files.xlsx({"Stock": [["one", 2.5]]})),
    "odt": ("a.odt", files.opendocument("<text:p>one</text:p>")),
    "ods": ("a.ods", files.sheet(files.cell("2.5", "float", "2.5"))),
    "rtf": ("a.rtf", rb"{\rtf1\ansicpg1252 one\par \'e9 \u8364?}"),
    "eml": ("a.eml", b"Subject: one\nContent-Type: text/html; charset=latin-1\n\n<p>\xe9</p>"),
    "ipynb": ("a.ipynb", files.notebook(files.markdown("one"), files.code("two"))),
}
TOML = (
    b'store = "here"\n[model]\nthreads = 1\n[memorize]\ntau = 0.05\nsteps = '
    b'300\n[documents]\nexclude = ["drafts/"]\n'
)
EDITS = st.lists(
    st.tuples(st.integers(0, 2**16), st.binary(max_size=4), st.integers(0, 8)), max_size=8
)


def edited(content: bytes, edits: list[tuple[int, bytes, int]]) -> bytes:
    """`content` with bytes put in, taken out and replaced."""
    for place, new, gone in edits:
        place %= len(content) + 1
        content = content[:place] + new + content[place + gone :]
    return content


def for_seconds(
    name: str, seconds: float, law: Callable[..., None], *values: st.SearchStrategy
) -> Iterator[Trial]:
    """Tries `law` on ever new values for so long; one Trial a round."""
    end, number, tries = time.monotonic() + seconds, 0, [0]

    @functools.wraps(law)  # whose signature Hypothesis reads
    def counted(*given_values: object, **named_values: object) -> None:
        tries[0] += 1
        law(*given_values, **named_values)

    while time.monotonic() < end:
        number += 1
        quiet = settings(
            max_examples=25, deadline=None, database=None, suppress_health_check=list(HealthCheck)
        )
        wrong: list[str] = []
        before = tries[0]
        try:
            seed(number)(quiet(given(*values)(counted)))()
        except Exception as error:
            wrong.append(
                "\n".join([f"{type(error).__name__}: {error}", *getattr(error, "__notes__", [])])
            )
        for one in range(max(tries[0] - before, len(wrong))):
            yield Trial(
                f"{name}, round {number}", "read or refused", tuple(wrong) if not one else ()
            )


def loaders(world: World, seconds: float) -> Iterator[Trial]:
    """A file of each kind with any bytes gives documents, or is skipped with a reason.

    What is a document is text.
    """
    folder = world.folder / "fuzzed"
    folder.mkdir(exist_ok=True)

    def law(kind: str, edits: list, raw: bytes, take_raw: bool) -> None:
        name, content = SEEDS[kind]
        reading = read_as(folder / name, raw if take_raw else edited(content, edits))
        for document in reading.documents:
            assert (
                document.text.encode().decode() == document.text and document.segments[0].start == 0
            )
        assert reading.documents or reading.skipped and all(one.reason for one in reading.skipped)

    parsed = [kind for kind in SEEDS if kind in KINDS]
    cheap = st.sampled_from([kind for kind in SEEDS if kind not in KINDS])
    yield from for_seconds(
        "loaders", 0.7 * seconds, law, cheap, EDITS, st.binary(max_size=200), st.booleans()
    )
    yield from for_seconds(
        "parsers",
        0.3 * seconds,
        law,
        st.sampled_from(parsed),
        EDITS,
        st.just(b""),
        st.just(False),
    )


def read_as(path: Path, content: bytes) -> Reading:
    """What a file of this name with this content is."""
    path.write_bytes(content)
    try:
        (source,) = scan([path], Documents()).files
    except InputRefused as refused:
        return Reading((), (Skipped("", path.name, str(refused)),))
    return read(source, Documents())


def store_readers(bench: corruption.Bench, seconds: float) -> Iterator[Trial]:
    """Several bytes of store.db changed, put in, taken out: never a wrong answer, never a crash."""

    def law(edits: list, many: int) -> None:
        chosen = random.Random(many)
        places = (
            [(chosen.randrange(len(bench.bytes)), new, len(new)) for _, new, _ in edits]
            if many % 2
            else edits
        )
        changed = edited(bench.bytes, places)
        outcome, wrong = bench.outcome_of(lambda: (bench.copy / DATABASE).write_bytes(changed))
        assert not wrong, (outcome, wrong)

    return for_seconds("store.db", seconds, law, EDITS, st.integers(0, 2**16))


def settings_file(world: World, seconds: float) -> Iterator[Trial]:
    """rag-memtok.toml with any bytes: settings, or refused by name."""
    folder = world.folder / "settings"
    folder.mkdir(exist_ok=True)

    def law(edits: list) -> None:
        (folder / FILE_NAME).write_bytes(edited(TOML, edits))
        try:
            load({}, {}, folder)
        except UsageError as refused:
            assert str(refused)

    return for_seconds("config", seconds, law, EDITS)
