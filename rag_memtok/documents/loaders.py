"""Bytes -> text: what a file of each type says, and where in the file it says it.

A new type is one function and one row of `LOADERS`.
"""

import io
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from html.parser import HTMLParser

from rag_memtok.datatypes import Segment
from rag_memtok.documents.extract import KINDS, extracted, extractor, missing


class Unreadable(Exception):
    """Why a file, or a part of it, cannot be read.

    Loaders raise it; `scan` and `read` turn it into a Skipped.
    """


@dataclass(frozen=True, slots=True)
class Part:
    """One document of a file; `suffix` ("" or "#L3") tells it from the others.

    `problem`, if not empty, says why it has no text.
    """

    suffix: str
    text: str
    segments: tuple[Segment, ...]
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Loader:
    """How files of a type become text: `extract` takes the bytes.

    A change of its results is a new `extractor`.

    `exact` says that the text in UTF-8 is the file, byte for byte; `binary` that `extract` wants
    files which are not UTF-8 text. `missing` says what has to be installed before it can be used,
    "" if nothing.
    """

    extractor: str
    exact: bool
    extract: Callable[[bytes], Iterable[Part]]
    binary: bool = False
    missing: str = ""


def text_of(data: bytes) -> str:
    """Returns UTF-8 `data` as text, no character of it changed.

    Byte-order mark, line ends and normal form stay.

    Raises:
        Unreadable: it is not UTF-8 text, or there is nothing in it.
    """
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise Unreadable("UTF-16 or UTF-32 text; convert it to UTF-8 (iconv -f UTF-16 -t UTF-8)")
    if (zero := data.find(0)) >= 0:
        hint = (
            "; UTF-16 without a byte-order mark?"
            if not any(data[:64:2]) or not any(data[1:64:2])
            else ""
        )
        raise Unreadable(f"binary: a NUL at byte {zero}{hint}")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Unreadable(f"not UTF-8 at byte {error.start}") from error
    if not text.removeprefix("\ufeff").strip():
        raise Unreadable("only white space" if text else "empty")
    return text


def _plain(data: bytes) -> Iterator[Part]:
    text = text_of(data)
    starts = [0, *(found.end() for found in re.finditer("\n", text))]
    yield Part(
        "", text, tuple(Segment(start, f"line {number}") for number, start in enumerate(starts, 1))
    )


def _jsonl(data: bytes) -> Iterator[Part]:
    """One document a line, as "key: value" lines; a broken line is its own problem only."""
    for number, line in enumerate(text_of(data).removeprefix("\ufeff").split("\n"), 1):
        if not line.strip():
            continue
        text, problem = "", ""
        try:
            text = _readable(line)
        except json.JSONDecodeError as error:
            problem = f"not JSON at column {error.colno}: {error.msg}"
        except RecursionError:
            problem = "JSON nested too deeply"
        except Unreadable as error:
            problem = str(error)
        yield Part(f"#L{number}", text, (Segment(0, f"line {number}"),), problem)


class _Number(str):
    """A number of a JSON file in its own digits: 24.90 must not become 24.9."""


def _readable(line: str) -> str:
    value = json.loads(line, parse_float=_Number, parse_int=_Number, parse_constant=_Number)
    fields = value.items() if isinstance(value, dict) else [("", value)]
    rows = [(name, field if isinstance(field, str) else _compact(field)) for name, field in fields]
    text = "\n".join(f"{name}: {field}" if name else field for name, field in rows)
    if not text.strip():
        raise Unreadable("nothing in it")
    if found := re.search("[\0\ud800-\udfff]", text):
        raise Unreadable(f"the character {ascii(found[0])} is not text")
    return text


def _compact(value: object) -> str:
    """Returns `value` as JSON on one line."""
    if isinstance(value, _Number):
        return value
    if isinstance(value, dict):
        return (
            "{"
            + ", ".join(f"{_compact(name)}: {_compact(field)}" for name, field in value.items())
            + "}"
        )
    if isinstance(value, list):
        return "[" + ", ".join(map(_compact, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


class _Page(HTMLParser):
    """Collects the visible text of a page.

    Blocks become lines, cells of a row are parted by " | ", white space runs together.
    """

    UNSEEN = frozenset("script style template noscript".split())
    BLOCKS = frozenset(
        "p h1 h2 h3 h4 h5 h6 table ul ol dl pre blockquote section article form figure hr "
        "title".split()
    )
    LINES = BLOCKS | frozenset(
        "br div li tr dt dd option caption header footer main nav aside".split()
    )

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.text, self.segments = io.StringIO(), list[Segment]()
        self.cells = self.unseen = self.pre = 0
        # what stands before the next visible text: "", " ", line ends, or as many " | " as cells
        # began
        self.gap = ""

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.unseen += tag in self.UNSEEN
        self.pre += tag == "pre"
        self.widen(tag)
        if tag in ("td", "th"):
            if self.cells:
                self.gap = ("" if "\n" in self.gap else self.gap.rstrip(" ")) + " | "
            self.cells += 1

    def handle_endtag(self, tag: str) -> None:
        self.unseen = max(0, self.unseen - (tag in self.UNSEEN))
        self.pre = max(0, self.pre - (tag == "pre"))
        self.widen(tag)

    def widen(self, tag: str) -> None:
        """Makes the gap at least as wide as `tag` (or white space) asks.

        A cell that has just begun stays in its row.
        """
        if tag in ("tr", "table"):
            self.cells, self.gap = 0, self.gap.replace(" | ", "")
        wanted = (
            "\n\n"
            if tag in self.BLOCKS and not self.cells
            else "\n"
            if tag in self.LINES
            else " "
            if tag == " "
            else ""
        )
        if "|" not in self.gap:
            self.gap = max(self.gap, wanted, key=lambda gap: (gap.count("\n"), len(gap)))

    def handle_data(self, data: str) -> None:
        if self.unseen:
            return
        for number, line in enumerate(data.split("\n")):
            if number and self.pre and "|" not in self.gap:
                # bounded, or a page of blank lines takes quadratic time
                self.gap = self.gap[:100] + "\n"
            elif number or line[:1].isspace():
                self.widen(" ")
            shown = line.rstrip() if self.pre else " ".join(line.split())
            if shown:
                self.add(shown, f"line {self.getpos()[0] + number}")
            if shown and line[-1].isspace():
                self.widen(" ")

    def add(self, text: str, locator: str) -> None:
        self.text.write(self.gap if self.segments else "")
        if not self.segments or self.segments[-1].locator != locator:
            self.segments.append(Segment(self.text.tell(), locator))
        self.text.write(text)
        self.gap = ""


def _html(data: bytes) -> Iterator[Part]:
    text, page = text_of(data), _Page()
    # html.parser looks for the end of each tag and comment as far as the file goes: with very many
    # that have none, for hours
    if text.count("<!--", text.rfind("-->") + 1) > 100 or any(
        piece.count("<") > 100 for piece in text.split(">")
    ):
        raise Unreadable("not HTML: more than 100 tags or comments are never closed")
    try:
        page.feed(text)
        page.close()
    except AssertionError as error:  # html.parser's own, at "<![name["
        raise Unreadable(f"not HTML: {error}") from error
    yield Part(
        "", page.text.getvalue(), tuple(page.segments), "" if page.segments else "no visible text"
    )


def _parsed(kind: str, data: bytes) -> Iterator[Part]:
    found = extracted(kind, data)
    yield Part(
        "",
        found.text,
        tuple(Segment(start, locator) for start, locator in found.places),
        found.problem,
    )
    for part, reason in found.unread:
        yield Part(f"#{part}", "", (), reason)


_TEXT = (
    ".txt .text .md .markdown .rst .adoc .org .tex .log .csv .tsv .json .yaml .yml .toml .ini "
    ".cfg .xml .css .sql .sh .bat .ps1 .diff .patch .r .py .pyi .js .mjs .jsx .ts .tsx .java .kt "
    ".scala .swift .c .h .cc .cpp .hpp .cs .rs .go .rb .php .pl .lua .jl .hs .ml .ex .el .vim "
    ".proto"
)
LOADERS: dict[str, Loader] = {
    **dict.fromkeys(_TEXT.split(), Loader("text/1", True, _plain)),
    **dict.fromkeys([".html", ".htm"], Loader("html/1", False, _html)),
    **dict.fromkeys([".jsonl", ".ndjson"], Loader("jsonl/1", False, _jsonl)),
    **{
        f".{kind}": Loader(
            extractor(kind), False, partial(_parsed, kind), binary=True, missing=missing(kind)
        )
        for kind in KINDS
    },
}
