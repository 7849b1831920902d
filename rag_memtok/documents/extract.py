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
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version

from rag_memtok.child import NO_MEMORY, Limits, confine, run, told
from rag_memtok.documents import mail, notebook, office, opendocument, pdf, sheets
from rag_memtok.documents.encodings import Unreadable, known
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
    parse: Callable[[bytes], Extracted]
    number: int = 1
    zipped: bool = True


# --- the parent ---


def extractor(kind: str) -> str:
    """Names how the text is got, our way and the versions it depends on: "pdf/2 pypdf 7.1.0".

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
        tuple((part, reason) for part, reason in answer["unread"]),
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
        found = KINDS[kind].parse(data)
        if not found.text.strip():
            reasons = "; ".join(f"{part}: {reason}" for part, reason in found.unread)
            raise Unreadable(f"no text in it ({reasons or 'pictures of text are not read'})")
        return found
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
    return json.dumps(asdict(answer)).encode()


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
            words, missing = pdf.text_of(page, _cleaned)
            unread += [(number, reason) for reason in missing]
            if words:
                text.write("\n\n" if places else "")
                places.append((text.tell(), f"page {number}"))
                text.write(words)
    except DependencyError:
        raise Unreadable(
            "encrypted with AES: pip install cryptography, or save it without a password first"
        ) from None
    return Extracted(text.getvalue(), tuple(places), "", pdf.by_reason(unread))


def _xlsx(data: bytes) -> Extracted:
    """Each sheet as a table; no library may say what a cell is but by what is stored."""
    text, places = sheets.tables(data)
    return Extracted(_cleaned(text), tuple(places))


def _docx(data: bytes) -> Extracted:
    """The page headers, the body, the page footers; a header that pages share is there once."""
    headers, footers = office.page_texts(data)
    parts = [*headers, _converted("DocxConverter", data), *footers]
    return _by_lines("\n\n".join(filter(None, parts)))


def _office(
    converter: str, places: Callable[[str], Iterator[tuple[int, str]]]
) -> Callable[[bytes], Extracted]:
    """A parser that takes the text of `_converted` and finds the places in it."""

    def parse(data: bytes) -> Extracted:
        text = _cleaned(_converted(converter, data))
        found = tuple(places(text))
        whole = found[:1] and not found[0][0]
        return Extracted(text, found if whole else ((0, "text line 1"), *found))

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
    return ((start, f"text line {number}") for number, (start, _) in enumerate(numbered(text), 1))


def _slides(text: str) -> Iterator[tuple[int, str]]:
    """The slides: each begins with a comment of markitdown's.

    A comment that is out of turn is the text of a slide.
    """
    yield 0, "slide 1"
    number = 2
    for start, line in numbered(text):
        if line == f"<!-- Slide number: {number} -->":
            yield start, f"slide {number}"
            number += 1


def numbered(text: str) -> Iterator[tuple[int, str]]:
    """Yields each line with where it starts."""
    start = 0
    for line in text.split("\n"):
        yield start, line
        start += len(line) + 1


def _opendocument(data: bytes) -> Extracted:
    """A text by the lines of its text, a workbook by its sheets and rows."""
    text, places = opendocument.text_of(data)
    return Extracted(_cleaned(text), tuple(places)) if places else _by_lines(text)


def _by_lines(text: str) -> Extracted:
    text = _cleaned(text)
    return Extracted(text, tuple(_lines(text)))


def _mail(data: bytes) -> Extracted:
    """The text of a mail: its head, its body, the names of what is attached."""
    return _by_lines(mail.text_of_mail(data))


def _notebook(data: bytes) -> Extracted:
    """The text of a Jupyter notebook, cell by cell."""
    text, places = notebook.text_of_notebook(data)
    return Extracted(_cleaned(text), tuple(places))


def _rtf(data: bytes) -> Extracted:
    """The text of an RTF file; notes, page headers and footers stand where they are defined."""
    from striprtf.striprtf import rtf_to_text

    if not data.lstrip().startswith(b"{\\rtf"):
        raise Unreadable("no RTF: it does not begin as such")
    page = CODE_PAGE.search(data)
    text = data.decode(known(f"cp{page[1].decode()}" if page else "") or "cp1252", "replace")
    return _by_lines(rtf_to_text(PASSED_OVER.sub(r"\\par ", text), errors="replace").strip())


KINDS: dict[str, Kind] = {
    "pdf": Kind("pdf", ("pypdf",), _pdf, number=2, zipped=False),
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
