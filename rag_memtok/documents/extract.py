"""Bytes of a PDF, an office file, a notebook, a mail or RTF -> text and where it stands.

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
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version

from rag_memtok.child import NO_MEMORY, Limits, confine, run, told
from rag_memtok.documents import mail, notebook, office, opendocument, pdf, sheets
from rag_memtok.documents.encodings import EMPTY, Unreadable, canonical_name
from rag_memtok.documents.sheets import Places

CODE_PAGE = re.compile(rb"\\ansicpg(\d{3,5})")
# groups of RTF that are passed over, with words in them
PASSED_OVER = re.compile(r"\\(?:footnote|(?:header|footer)[flr]?)\b ?")


@dataclass(frozen=True, slots=True)
class Extracted:
    """A file's text and its locators ("page 3"), or the `problem` for which it has none.

    Each locator comes with the character from which on it holds. `unread` says of parts of the file
    ("pages 2, 5-7") why they are not in the text.
    """

    text: str
    places: tuple[tuple[int, str], ...]
    problem: str = ""
    unread: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A type of files: what parses them, and what has to be installed for it.

    `packages` do it, the optional dependency `extra` brings them ("" for none: the standard library
    does it), `zipped` says it is a zip file. `number` counts the ways in which we have read these
    files: what an older one read is read again by the next ingest.
    """

    parse: Callable[[bytes], Extracted]
    extra: str = ""
    packages: tuple[str, ...] = ()
    number: int = 1
    zipped: bool = True


# --- the parent ---


def extractor_name(kind: str) -> str:
    """The name of how a text is got, with versions of what it depends on: "pdf/2 pypdf 7.1.0".

    Two names are two texts that cannot be compared.
    """
    return " ".join(
        [
            f"{kind}/{KINDS[kind].number}",
            *(f"{package} {_version(package)}".strip() for package in KINDS[kind].packages),
        ]
    )


def missing_packages(kind: str) -> str:
    """The remedy where packages are missing that read files of this kind; "" if none is."""
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


def extract_text(kind: str, data: bytes, limits: Limits | None = None) -> Extracted:
    """The text of a file, parsed in a child process; whatever happens there, this returns.

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
        tuple((part, reason) for part, reason in answer["unread"]),
    )


# --- the child ---


def main(kind: str, limits: Limits) -> None:
    """Reads a file from stdin and writes `Extracted` as JSON to stdout."""
    confine(limits)
    with contextlib.redirect_stdout(sys.stderr):  # the reply is all that stdout gets
        reply = _encode(_parse(kind, sys.stdin.buffer.read(), limits.memory))
    sys.stdout.buffer.write(reply)


def _parse(kind: str, data: bytes, memory: int) -> Extracted:
    """Parses the file; every error of a parser is a reason to skip it."""
    try:
        if not data:
            raise Unreadable(EMPTY)
        if KINDS[kind].zipped:
            _check_unpacked(data, memory // 4)  # parsed, XML takes several times its size
        extracted = KINDS[kind].parse(data)
        if not extracted.text.strip():
            reasons = "; ".join(f"{part}: {reason}" for part, reason in extracted.unread)
            raise Unreadable(f"no text in it ({reasons or 'pictures of text are not read'})")
        return extracted
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


def _encode(extracted: Extracted) -> bytes:
    return json.dumps(asdict(extracted)).encode()


def _clean(text: str) -> str:
    """`text` as text that UTF-8 can write.

    Halves of surrogate pairs are joined, other halves and NULs replaced by U+FFFD.
    """
    return (
        text.encode("utf-16-le", "surrogatepass")
        .decode("utf-16-le", "replace")
        .replace("\0", "\ufffd")
    )


# --- kinds ---


def _pdf(data: bytes) -> Extracted:
    """The text of a PDF, page by page; a page without text has no locator."""
    import pypdf
    from pypdf.errors import DependencyError

    reader = pypdf.PdfReader(io.BytesIO(data))
    text, places, unread = io.StringIO(), Places(), list[tuple[int, str]]()
    try:
        # the empty password opens it where only printing or copying is restricted
        if reader.is_encrypted and not reader.decrypt(""):
            raise Unreadable("encrypted: save it without a password first")
        for number, page in enumerate(reader.pages, 1):
            words, reasons = pdf.text_of(page, _clean)
            unread += [(number, reason) for reason in reasons]
            if words:
                text.write("\n\n" if places else "")
                places.append((text.tell(), f"page {number}"))
                text.write(words)
    except DependencyError:
        raise Unreadable(
            "encrypted with AES: pip install cryptography, or save it without a password first"
        ) from None
    return Extracted(text.getvalue(), tuple(places), "", pdf.group_pages(unread))


def _xlsx(data: bytes) -> Extracted:
    """The sheets of an xlsx as tables; a cell is what is stored, whatever a library makes of it."""
    text, places = sheets.read_workbook(data)
    return Extracted(_clean(text), tuple(places))


def _docx(data: bytes) -> Extracted:
    """A docx: its page headers, each once, the body, the page footers."""
    headers, footers = office.page_texts(data)
    parts = [*headers, _convert("DocxConverter", data), *footers]
    return _place_by_lines("\n\n".join(filter(None, parts)))


def _office_parser(
    converter: str, places: Callable[[str], Iterator[tuple[int, str]]]
) -> Callable[[bytes], Extracted]:
    """A parser that takes the text of `_convert` and finds the places in it."""

    def parse(data: bytes) -> Extracted:
        text = _clean(_convert(converter, data))
        located = tuple(places(text))
        from_start = located[:1] and not located[0][0]
        return Extracted(text, located if from_start else ((0, "text line 1"), *located))

    return parse


def _convert(converter: str, data: bytes) -> str:
    r"""The Markdown that the one converter of markitdown for the file's suffix makes of it.

    Nothing is guessed from the file's content, no plugin is loaded. An underscore stays one, and
    is no "\_": people look for what they wrote.
    """
    from markitdown import StreamInfo, converters

    file = io.BytesIO(office.mend(data))
    plain = {"escape_underscores": False, "escape_asterisks": False}
    text = getattr(converters, converter)().convert(file, StreamInfo(), **plain).markdown
    return text.replace("\v", "\n")  # a line end within a paragraph of a slide


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """The places in a file without pages: the lines of the text as extracted.

    These files have no pages before they are laid out.
    """
    return ((start, f"text line {number}") for number, (start, _) in enumerate(each_line(text), 1))


def _slides(text: str) -> Iterator[tuple[int, str]]:
    """The slides: each begins with a comment of markitdown's.

    A comment that is out of turn is the text of a slide.
    """
    yield 0, "slide 1"
    number = 2
    for start, line in each_line(text):
        if line == f"<!-- Slide number: {number} -->":
            yield start, f"slide {number}"
            number += 1


def each_line(text: str) -> Iterator[tuple[int, str]]:
    """Yields the start and the text of each line, its end left out."""
    start = 0
    for line in text.split("\n"):
        yield start, line
        start += len(line) + 1


def _opendocument(data: bytes) -> Extracted:
    """The text of an odt by its lines, that of an ods by its sheets and rows."""
    text, places = opendocument.text_of(data)
    return Extracted(_clean(text), tuple(places)) if places else _place_by_lines(text)


def _place_by_lines(text: str) -> Extracted:
    """A text with a place for each line."""
    text = _clean(text)
    return Extracted(text, tuple(_lines(text)))


def _mail(data: bytes) -> Extracted:
    """The text of a mail: its head, its body, the names of what is attached."""
    return _place_by_lines(mail.text_of_mail(data))


def _notebook(data: bytes) -> Extracted:
    """The text of a Jupyter notebook, cell by cell."""
    text, places = notebook.text_of_notebook(data)
    return Extracted(_clean(text), tuple(places))


def _rtf(data: bytes) -> Extracted:
    """The text of an RTF file; notes, page headers and footers stand where they are defined."""
    from striprtf.striprtf import rtf_to_text

    if not data.lstrip().startswith(b"{\\rtf"):
        raise Unreadable("no RTF: it does not begin as such")
    page = CODE_PAGE.search(data)
    text = data.decode(
        canonical_name(f"cp{page[1].decode()}" if page else "") or "cp1252", "replace"
    )
    return _place_by_lines(rtf_to_text(PASSED_OVER.sub(r"\\par ", text), errors="replace").strip())


_office_kind = partial(Kind, extra="office")
KINDS: dict[str, Kind] = {
    "pdf": Kind(parse=_pdf, extra="pdf", packages=("pypdf",), number=2, zipped=False),
    "docx": _office_kind(parse=_docx, packages=("markitdown", "mammoth"), number=2),
    "pptx": _office_kind(
        parse=_office_parser("PptxConverter", _slides),
        packages=("markitdown", "python-pptx"),
        number=2,
    ),
    "xlsx": _office_kind(parse=_xlsx, packages=("openpyxl",), number=2),
    "epub": _office_kind(
        parse=_office_parser("EpubConverter", _lines), packages=("markitdown",), number=2
    ),
    "odt": _office_kind(parse=_opendocument, packages=("odfdo",)),
    "ods": _office_kind(parse=_opendocument, packages=("odfdo",)),
    "rtf": _office_kind(parse=_rtf, packages=("striprtf",), zipped=False),
    "eml": Kind(parse=_mail, zipped=False),
    "ipynb": Kind(parse=_notebook, zipped=False),
}

if __name__ == "__main__":
    main(sys.argv[1], Limits(*map(int, sys.argv[2:])))
