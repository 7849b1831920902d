"""Bytes -> text: what a file of each type says, and where in the file it says it.

`loader_of` and `required_loader` tell by a file's name which type it is of. A new type is
one function and one row of `LOADERS`.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath

from rag_memtok.datatypes import Segment
from rag_memtok.documents.encodings import UTF8, Unreadable
from rag_memtok.documents.events import events_of
from rag_memtok.documents.extract import KINDS, extract_text, extractor_name, missing_packages
from rag_memtok.documents.pages import read_page

PICTURES = frozenset(
    ".png .jpg .jpeg .jpe .gif .bmp .tif .tiff .webp .heic .heif .avif .ico .psd".split()
)
# what is not read -> what it can be saved as
OTHERWISE = {".doc": ".docx", ".xls": ".xlsx", ".ppt": ".pptx", ".odp": ".pptx", ".pages": ".docx"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One document of a file; `suffix` ("" or "#L3") tells it from the others.

    `problem`, if not empty, says why it has no text. `headings`: as a `Document`'s.
    """

    suffix: str = ""
    text: str = ""
    segments: tuple[Segment, ...] = ()
    problem: str = ""
    headings: tuple[tuple[int, int, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Loader:
    """A way to make files of a type text: `extract` takes the bytes and the encoding of a text.

    A change of its results is a new `extractor`.

    `exact` says that the text in its encoding is the file, byte for byte; `binary` that the file
    is no text, or says itself in what encoding; `markup` that it may do so as HTML does. `missing`
    says what has to be installed before it can be used, "" if nothing.
    """

    extractor: str
    extract: Callable[..., Iterable[Part]]
    exact: bool = False
    binary: bool = False
    missing: str = ""
    markup: bool = False


def _plain(data: bytes, encoding: str = UTF8) -> Iterator[Part]:
    text = data.decode(encoding)
    starts = [0, *(end.end() for end in re.finditer("\n", text))]
    lines = tuple(Segment(start, f"line {number}") for number, start in enumerate(starts, 1))
    yield Part(text=text, segments=lines)


def _jsonl(data: bytes, encoding: str = UTF8) -> Iterator[Part]:
    """One document a line, as "key: value" lines; a broken line is its own problem only."""
    for number, line in enumerate(data.decode(encoding).removeprefix("\ufeff").split("\n"), 1):
        if not line.strip():
            continue
        text, problem = "", ""
        try:
            text = _format_row(line)
        except json.JSONDecodeError as error:
            problem = f"not JSON at column {error.colno}: {error.msg}"
        except RecursionError:
            problem = "JSON nested too deeply"
        except Unreadable as error:
            problem = str(error)
        yield Part(
            suffix=f"#L{number}",
            text=text,
            segments=(Segment(0, f"line {number}"),),
            problem=problem,
        )


class _Number(str):
    """A number of a JSON file in its own digits: 24.90 must not become 24.9."""


def _format_row(line: str) -> str:
    """A line of JSON as lines "key: value"."""
    value = json.loads(line, parse_float=_Number, parse_int=_Number, parse_constant=_Number)
    fields = value.items() if isinstance(value, dict) else [("", value)]
    rows = [
        (name, field if isinstance(field, str) else _format_value(field)) for name, field in fields
    ]
    text = "\n".join(f"{name}: {field}" if name else field for name, field in rows)
    if not text.strip():
        raise Unreadable("nothing in it")
    if no_text := re.search("[\0\ud800-\udfff]", text):
        raise Unreadable(f"the character {ascii(no_text[0])} is not text")
    return text


def _format_value(value: object) -> str:
    """`value` as JSON on one line."""
    if isinstance(value, _Number):
        return value
    if isinstance(value, dict):
        return (
            "{"
            + ", ".join(
                f"{_format_value(name)}: {_format_value(field)}" for name, field in value.items()
            )
            + "}"
        )
    if isinstance(value, list):
        return "[" + ", ".join(map(_format_value, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


def _calendar(data: bytes, encoding: str = "") -> Iterator[Part]:
    """One document an event, by the line in which it begins; its summary is its heading.

    It takes bytes, as its lines are unfolded before they are decoded.
    """
    for event in events_of(data):
        yield Part(
            suffix=f"#L{event.line}",
            text=event.text,
            segments=(Segment(0, f"line {event.line}"),),
            problem=event.problem,
            headings=((0, 0, event.summary),),
        )


def _html(data: bytes, encoding: str = UTF8) -> Iterator[Part]:
    page = read_page(data.decode(encoding).removeprefix("\ufeff"))
    yield Part(
        text=page.text,
        segments=_segments(page.places),
        problem="" if page.places else "no visible text",
        headings=tuple(page.headings),
    )


def _parsed(kind: str, data: bytes, encoding: str = "") -> Iterator[Part]:
    """The text of a file that a parser reads in the child process."""
    extracted = extract_text(kind, data)
    yield Part(
        text=extracted.text,
        segments=_segments(extracted.places),
        problem=extracted.problem,
    )
    for part, reason in extracted.unread:
        yield Part(suffix=f"#{part}", problem=reason)


def _segments(places: Iterable[tuple[int, str]]) -> tuple[Segment, ...]:
    return tuple(Segment(start, locator) for start, locator in places)


_TEXT = (
    ".txt .text .md .markdown .mdx .rst .adoc .org .tex .log .srt .vtt .csv .tsv .json "
    ".yaml .yml .toml .ini .cfg .xml .css .sql .sh .bat .ps1 .diff .patch .r .py .pyi .js .mjs "
    ".jsx .ts .tsx .java .kt .scala .swift .c .h .cc .cpp .hpp .cs .rs .go .rb .php .pl "
    ".lua .jl .hs .ml .ex .el .vim .proto"
)
LOADERS: dict[str, Loader] = {
    **dict.fromkeys(_TEXT.split(), Loader(extractor="text/1", extract=_plain, exact=True)),
    **dict.fromkeys(
        [".html", ".htm", ".xhtml"], Loader(extractor="html/3", extract=_html, markup=True)
    ),
    **dict.fromkeys([".jsonl", ".ndjson"], Loader(extractor="jsonl/1", extract=_jsonl)),
    ".ics": Loader(extractor="ics/1", extract=_calendar, binary=True),
    **{
        f".{kind}": Loader(
            extractor=extractor_name(kind),
            extract=partial(_parsed, kind),
            binary=True,
            missing=missing_packages(kind),
        )
        for kind in KINDS
    },
}


def required_loader(file: str, *, named: bool) -> Loader:
    """The loader that a file is read with.

    Args:
        named: the user named the file itself: of an unknown type it is tried as text.

    Raises:
        Unreadable: it is not, or something has to be installed before.
    """
    suffix = _suffix(file)
    if suffix in PICTURES:
        raise Unreadable("a picture: text in pictures is not read")
    loader = loader_of(file) or (LOADERS[".txt"] if named else None)
    if loader is None:
        other = f"; save it as {OTHERWISE[suffix]}" if suffix in OTHERWISE else ""
        raise Unreadable(
            f"no loader for {suffix}{other}"
            if suffix
            else "a hidden file, read only if it is named"
        )
    if loader.missing:
        raise Unreadable(loader.missing)
    return loader


def loader_of(file: str) -> Loader | None:
    """The loader for a file of that name; without a suffix it is text, unless it is hidden."""
    hidden = PurePosixPath(file).name.startswith(".")
    return LOADERS.get(_suffix(file) or ("" if hidden else ".txt"))


def _suffix(file: str) -> str:
    """A file's suffix; what follows the dot of a number or an abbreviation is none."""
    suffix = PurePosixPath(file).suffix.lower()
    return "" if suffix[1:].isdecimal() or not suffix.isprintable() or " " in suffix else suffix
