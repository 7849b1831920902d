"""Bytes of a PDF, an office file, a notebook, a mail or RTF -> text and where it stands.

They are parsed in a child process with limits.

Their parsers are large, and a file may come from anyone. So a child does it, which the system ends
when it takes too much memory or time (child.py): `python -m rag_memtok.documents.extract KIND`
reads the file from stdin and writes JSON to stdout. The child loads the one parser it needs and no
more. A new kind is a function and a row of `KINDS`; one whose text changes gets the next number.
"""

import contextlib
import io
import json
import os
import re
import signal
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from rag_memtok.child import NO_MEMORY, Limits, confine, run, told
from rag_memtok.documents import mail, notebook, office, opendocument, sheets
from rag_memtok.documents.encodings import Unreadable, known
from rag_memtok.documents.sheets import Places

CODE_PAGE = re.compile(rb"\\ansicpg(\d{3,5})")
# groups of RTF that are passed over, with words in them
PASSED_OVER = re.compile(r"\\(?:footnote|(?:header|footer)[flr]?)\b ?")


@dataclass(frozen=True, slots=True)
class Extracted:
    """A file's text and its locators ("page 3"), or the `problem` for which it has none.

    Each locator comes with the character from which on it holds.
    """

    text: str
    places: tuple[tuple[int, str], ...]
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Kind:
    """How files of a type are parsed.

    `packages` do it, the optional dependency `extra` brings them ("" for none: the standard library
    does it), `zipped` says it is a zip file.
    `number` counts the ways in which we have read these files: what an older one read is read
    again by the next ingest.
    """

    extra: str
    packages: tuple[str, ...]
    parse: Callable[[bytes], tuple[str, Places]]
    number: int = 1
    zipped: bool = True


# --- the parent ---


def extractor(kind: str) -> str:
    """Names how the text is got, our way and the versions it depends on: "pdf/1 pypdf 7.1.0".

    Two names are two texts that cannot be compared.
    """
    return " ".join(
        [
            f"{kind}/{KINDS[kind].number}",
            *(f"{package} {_version(package)}".strip() for package in KINDS[kind].packages),
        ]
    )


def missing(kind: str) -> str:
    """Returns what has to be installed before files of this kind can be read, "" if nothing."""
    absent = [package for package in KINDS[kind].packages if not _version(package)]
    return (
        f"needs {' and '.join(absent)}: pip install 'rag-memtok[{KINDS[kind].extra}]'"
        if absent
        else ""
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def limits_for(size: int) -> Limits:
    """The limits for a file of `size` bytes: a second more for each 100 kB.

    An honest file takes longer the larger it is.
    """
    return Limits(seconds=20 + size // 100_000)


def extracted(kind: str, data: bytes, limits: Limits | None = None) -> Extracted:
    """Parses a file in a child process; whatever it does there, this returns.

    Cost: starting the child, 0.3 s (pdf, xlsx) or 1 s (the others), and at most `limits`; six
        times its seconds where the machine is busy.
    """
    limits = limits or limits_for(len(data))
    code, reply = run("rag_memtok.documents.extract", [kind], data, limits)
    if code == -signal.SIGXCPU:
        return Extracted("", (), f"takes more than {limits.seconds} s to read")
    if code == NO_MEMORY:
        return Extracted("", (), f"takes more than {limits.memory >> 20:,} MB of memory to read")
    if code:
        return Extracted(
            "", (), f"its parser ended with {f'signal {-code}' if code < 0 else f'code {code}'}"
        )
    if len(reply) > limits.output:
        return Extracted("", (), f"its text is over the limit of {limits.output:,} bytes")
    answer = json.loads(reply)
    return Extracted(
        answer["text"],
        tuple((start, locator) for start, locator in answer["places"]),
        answer["problem"],
    )


# --- the child ---


def main(kind: str, limits: Limits) -> None:
    """Reads a file from stdin and writes `Extracted` as JSON to stdout."""
    confine(limits)
    with contextlib.redirect_stdout(sys.stderr):  # the answer is all that stdout gets
        reply = _reply(_answer(kind, sys.stdin.buffer.read(), limits.memory))
    sys.stdout.buffer.write(reply)


def _answer(kind: str, data: bytes, memory: int) -> Extracted:
    """Parses the file; every error of a parser is a reason to skip it."""
    try:
        if not data:
            raise Unreadable("empty")
        if KINDS[kind].zipped:
            _check_unpacked(data, memory // 4)  # parsed, XML takes several times its size
        text, places = KINDS[kind].parse(data)
        if not text.strip():
            raise Unreadable("no text in it (pictures of text are not read)")
        return Extracted(text, tuple(places))
    except Unreadable as error:
        return Extracted("", (), str(error))
    except MemoryError:
        os._exit(NO_MEMORY)
    except RecursionError:
        return Extracted("", (), "nested too deeply")
    except Exception as error:  # parsers of broken files raise anything
        return Extracted("", (), f"not a readable {kind} file: {told(error)}")


def _check_unpacked(data: bytes, limit: int) -> None:
    """Refuses a zip file that says itself that it is a bomb.

    One that lies is cut off at the sizes it tells, by `zipfile`.
    """
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        size = sum(entry.file_size for entry in file.infolist())
    if size > limit:
        raise Unreadable(f"unpacks to {size >> 20:,} MB, over the limit of {limit >> 20:,} MB")


def _reply(answer: Extracted) -> bytes:
    return json.dumps(
        {"text": answer.text, "places": answer.places, "problem": answer.problem}
    ).encode()


def _cleaned(text: str) -> str:
    """Returns `text` as text that UTF-8 can write.

    Halves of surrogate pairs are joined, other halves and NULs replaced by U+FFFD.
    """
    return (
        text.encode("utf-16-le", "surrogatepass")
        .decode("utf-16-le", "replace")
        .replace("\0", "\ufffd")
    )


# --- kinds ---


def _pdf(data: bytes) -> tuple[str, Places]:
    """Page by page; a page without text has no place."""
    import pypdf

    reader = pypdf.PdfReader(io.BytesIO(data))
    if reader.is_encrypted and not _opened(reader):
        raise Unreadable("encrypted: save it without a password first")
    text, places = io.StringIO(), Places()
    for number, page in enumerate(reader.pages, 1):
        if words := _cleaned(page.extract_text()).strip():
            text.write("\n\n" if places else "")
            places.append((text.tell(), f"page {number}"))
            text.write(words)
    return text.getvalue(), places


def _opened(reader: Any) -> bool:
    """Whether the empty password opens it.

    It does where only printing or copying is restricted.
    """
    from pypdf.errors import DependencyError

    with contextlib.suppress(DependencyError):  # AES needs a package for cryptography
        return bool(reader.decrypt(""))
    return False


def _xlsx(data: bytes) -> tuple[str, Places]:
    """Each sheet as a table; no library may say what a cell is but by what is stored."""
    text, places = sheets.tables(data)
    return _cleaned(text), places


def _docx(data: bytes) -> tuple[str, Places]:
    """The page headers, the body, the page footers; a header that pages share is there once."""
    headers, footers = office.page_texts(data)
    parts = [*headers, _converted("DocxConverter", data), *footers]
    text = _cleaned("\n\n".join(filter(None, parts)))
    return text, list(_lines(text))


def _office(
    converter: str, places: Callable[[str], Iterator[tuple[int, str]]]
) -> Callable[[bytes], tuple[str, Places]]:
    """A parser that takes the text of `_converted` and finds the places in it."""

    def parse(data: bytes) -> tuple[str, Places]:
        text = _cleaned(_converted(converter, data))
        found = list(places(text))
        return text, found if found[:1] and not found[0][0] else [(0, "text line 1"), *found]

    return parse


def _converted(converter: str, data: bytes) -> str:
    r"""What the one converter of markitdown for the file's suffix makes of it.

    Nothing is guessed from the file's content, no plugin is loaded. An underscore stays one, and
    is no "\_": people look for what they wrote.
    """
    from markitdown import StreamInfo, converters

    file = io.BytesIO(office.mended(data))
    plain = {"escape_underscores": False, "escape_asterisks": False}
    text = getattr(converters, converter)().convert(file, StreamInfo(), **plain).markdown
    return text.replace("\v", "\n")  # a line end within a paragraph of a slide


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """The places in a file without pages: the lines of the text as extracted.

    These files have no pages before they are laid out.
    """
    return ((start, f"text line {number}") for number, (start, _) in enumerate(_numbered(text), 1))


def _slides(text: str) -> Iterator[tuple[int, str]]:
    """The slides: each begins with a comment of markitdown's.

    A comment that is out of turn is the text of a slide.
    """
    yield 0, "slide 1"
    number = 2
    for start, line in _numbered(text):
        if line == f"<!-- Slide number: {number} -->":
            yield start, f"slide {number}"
            number += 1


def _numbered(text: str) -> Iterator[tuple[int, str]]:
    """Yields each line with where it starts."""
    start = 0
    for line in text.split("\n"):
        yield start, line
        start += len(line) + 1


def _opendocument(data: bytes) -> tuple[str, Places]:
    """A text by the lines of its text, a workbook by its sheets and rows."""
    text, places = opendocument.text_of(data)
    return (_cleaned(text), places) if places else _by_lines(text)


def _by_lines(text: str) -> tuple[str, Places]:
    text = _cleaned(text)
    return text, list(_lines(text))


def _mail(data: bytes) -> tuple[str, Places]:
    """Its head, its text, what is attached."""
    return _by_lines(mail.text_of_mail(data))


def _notebook(data: bytes) -> tuple[str, Places]:
    """Cell by cell."""
    text, places = notebook.text_of_notebook(data)
    return _cleaned(text), places


def _rtf(data: bytes) -> tuple[str, Places]:
    """Its text; notes, and what is on top and at the foot of pages, stand where they are told."""
    from striprtf.striprtf import rtf_to_text

    if not data.lstrip().startswith(b"{\\rtf"):
        raise Unreadable("no RTF: it does not begin as such")
    page = CODE_PAGE.search(data)
    text = data.decode(known(f"cp{page[1].decode()}" if page else "") or "cp1252", "replace")
    return _by_lines(rtf_to_text(PASSED_OVER.sub(r"\\par ", text), errors="replace").strip())


KINDS: dict[str, Kind] = {
    "pdf": Kind("pdf", ("pypdf",), _pdf, zipped=False),
    "docx": Kind("office", ("markitdown", "mammoth"), _docx, number=2),
    "pptx": Kind(
        "office", ("markitdown", "python-pptx"), _office("PptxConverter", _slides), number=2
    ),
    "xlsx": Kind("office", ("openpyxl",), _xlsx, number=2),
    "epub": Kind("office", ("markitdown",), _office("EpubConverter", _lines), number=2),
    "odt": Kind("office", ("odfdo",), _opendocument),
    "ods": Kind("office", ("odfdo",), _opendocument),
    "rtf": Kind("office", ("striprtf",), _rtf, zipped=False),
    "eml": Kind("", (), _mail, zipped=False),
    "ipynb": Kind("", (), _notebook, zipped=False),
}

if __name__ == "__main__":
    main(sys.argv[1], Limits(*map(int, sys.argv[2:])))
