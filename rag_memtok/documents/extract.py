"""Bytes of a PDF, docx, pptx, xlsx or epub -> text and where it stands.

They are parsed in a child process with limits.

Their parsers are large, and a file may come from anyone. So a child does it, which the system ends
when it takes too much memory or time: `python -m rag_memtok.documents.extract KIND` reads the file
from stdin and writes JSON to stdout. This module imports nothing but the standard library, so that
the child loads the one parser it needs and no more. A new kind is a function and a row of `KINDS`.
"""

import contextlib
import io
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import IO, Any

Places = list[tuple[int, str]]  # from this character on, that locator

WAIT = 6  # seconds of the clock for each of the CPU: a busy machine is no reason to skip a file
NO_MEMORY = 9  # the child's exit code when it has too little of it even to say so
# each thread would reserve memory
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "MALLOC_ARENA_MAX")


@dataclass(frozen=True, slots=True)
class Limits:
    """What a child may take.

    `memory` is address space in bytes, `seconds` CPU time, `output` bytes of its answer.
    """

    memory: int = 2 << 30
    seconds: int = 20
    output: int = 64 << 20

    @classmethod
    def of(cls, size: int) -> "Limits":
        """The limits for a file of `size` bytes: a second more for each 100 kB.

        An honest file takes longer the larger it is.
        """
        return cls(seconds=20 + size // 100_000)


@dataclass(frozen=True, slots=True)
class Extracted:
    """A file's text and its locators ("page 3"), or the `problem` for which it has none.

    Each locator comes with the character from which on it holds.
    """

    text: str
    places: tuple[tuple[int, str], ...]
    problem: str = ""


class Refused(Exception):
    """Why a file is not read, in words for the user."""


@dataclass(frozen=True, slots=True)
class Kind:
    """How files of a type are parsed.

    `packages` do it, the optional dependency `extra` brings them, `zipped` says it is a zip file.
    """

    extra: str
    packages: tuple[str, ...]
    parse: Callable[[bytes], tuple[str, Places]]
    zipped: bool = True


# --- the parent ---


def extractor(kind: str) -> str:
    """Names how the text is got, with the versions it depends on: "pdf/1 pypdf 7.1.0".

    Two names are two texts that cannot be compared.
    """
    return " ".join(
        [
            f"{kind}/1",
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


def extracted(kind: str, data: bytes, limits: Limits | None = None) -> Extracted:
    """Parses a file in a child process; whatever it does there, this returns.

    Cost: starting the child, 0.2 s (pdf) or 1 s (the others), and at most `limits`; six times its
        seconds where the machine is busy.
    """
    limits = limits or Limits.of(len(data))
    # -P: a module of that name in the working folder is not the parser
    command = [
        sys.executable,
        "-P",
        __file__,
        kind,
        str(limits.memory),
        str(limits.seconds),
        str(limits.output),
    ]
    code, reply = _run(command, data, limits)
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


def _run(command: Sequence[str], data: bytes, limits: Limits) -> tuple[int, bytes]:
    """Returns the child's exit code (-N: ended by signal N) and what it wrote.

    What it wrote is at most a byte over the limit.
    """
    environment: Mapping[str, str] = {**os.environ, **dict.fromkeys(THREADS, "1")}
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=os.sep,
        env=environment,
    ) as child:
        assert child.stdin and child.stdout
        clock = threading.Timer(WAIT * limits.seconds, child.kill)
        feeder = threading.Thread(target=_feed, args=(child.stdin, data))
        try:
            clock.start()
            feeder.start()
            reply = child.stdout.read(limits.output + 1)
            if len(reply) > limits.output:
                child.kill()
                return 0, reply
            code = child.wait()
            return code if clock.is_alive() else -signal.SIGXCPU, reply
        finally:  # also on Ctrl-C
            child.kill()
            child.wait()
            clock.cancel()
            feeder.join()


def _feed(stdin: IO[bytes], data: bytes) -> None:
    """Writes the file to the child, which may have ended by then."""
    with contextlib.suppress(OSError), stdin:
        stdin.write(data)


# --- the child ---


def main(kind: str, limits: Limits) -> None:
    """Reads a file from stdin and writes `Extracted` as JSON to stdout."""
    _confine(limits)
    with contextlib.redirect_stdout(sys.stderr):  # the answer is all that stdout gets
        reply = _reply(_answer(kind, sys.stdin.buffer.read(), limits.memory))
    sys.stdout.buffer.write(reply)


def _confine(limits: Limits) -> None:
    """Bounds CPU time, memory and what is written, here and for all it may start.

    The parent decides what comes of a Ctrl-C.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    bounds = {
        resource.RLIMIT_CPU: limits.seconds,
        resource.RLIMIT_AS: limits.memory,
        resource.RLIMIT_CORE: 0,
    }
    bounds[resource.RLIMIT_FSIZE] = limits.output
    for which, limit in bounds.items():
        with contextlib.suppress(ValueError, OSError):  # macOS refuses RLIMIT_AS
            resource.setrlimit(which, (limit, limit + (which == resource.RLIMIT_CPU)))


def _answer(kind: str, data: bytes, memory: int) -> Extracted:
    """Parses the file; every error of a parser is a reason to skip it."""
    try:
        if not data:
            raise Refused("empty")
        if KINDS[kind].zipped:
            _check_unpacked(data, memory // 4)  # parsed, XML takes several times its size
        text, places = KINDS[kind].parse(data)
        if not text.strip():
            raise Refused("no text in it (pictures of text are not read)")
        return Extracted(text, tuple(places))
    except Refused as error:
        return Extracted("", (), str(error))
    except MemoryError:
        os._exit(NO_MEMORY)
    except RecursionError:
        return Extracted("", (), "nested too deeply")
    except Exception as error:  # parsers of broken files raise anything
        return Extracted("", (), f"not a readable {kind} file: {_told(error)}")


def _told(error: Exception) -> str:
    """The error on one short line: its words may come from the file."""
    words = "".join(letter if letter.isprintable() else " " for letter in str(error))
    return f"{type(error).__name__} {' '.join(words.split())[:120]}".strip()


def _check_unpacked(data: bytes, limit: int) -> None:
    """Refuses a zip file that says itself that it is a bomb.

    One that lies is cut off at the sizes it tells, by `zipfile`.
    """
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        size = sum(entry.file_size for entry in file.infolist())
    if size > limit:
        raise Refused(f"unpacks to {size >> 20:,} MB, over the limit of {limit >> 20:,} MB")


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
        raise Refused("encrypted: save it without a password first")
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


def _office(
    converter: str, places: Callable[[str], Iterator[tuple[int, str]]]
) -> Callable[[bytes], tuple[str, Places]]:
    """A parser that asks the one converter of markitdown for the file's suffix.

    Nothing is guessed from the file's content, no plugin is loaded.
    """

    def parse(data: bytes) -> tuple[str, Places]:
        from markitdown import StreamInfo, converters

        text = _cleaned(
            getattr(converters, converter)().convert(io.BytesIO(data), StreamInfo()).markdown
        )
        found = list(places(text))
        return text, found if found[:1] and not found[0][0] else [(0, "text line 1"), *found]

    return parse


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


def _rows(text: str) -> Iterator[tuple[int, str]]:
    """A sheet is "## NAME", a line for its first row, a rule, and a line for each further row."""
    sheet, row = "", 0
    for start, line in _numbered(text):
        if line.startswith("## "):
            sheet, row = line[3:], -1
            yield start, f"sheet {sheet}"
        elif line.startswith("|"):
            row += 1
            if row != 1:  # the rule
                yield start, f"sheet {sheet} row {max(row, 1)}"


def _numbered(text: str) -> Iterator[tuple[int, str]]:
    """Yields each line with where it starts."""
    start = 0
    for line in text.split("\n"):
        yield start, line
        start += len(line) + 1


KINDS: dict[str, Kind] = {
    "pdf": Kind("pdf", ("pypdf",), _pdf, zipped=False),
    "docx": Kind("office", ("markitdown", "mammoth"), _office("DocxConverter", _lines)),
    "pptx": Kind("office", ("markitdown", "python-pptx"), _office("PptxConverter", _slides)),
    "xlsx": Kind("office", ("markitdown", "openpyxl", "pandas"), _office("XlsxConverter", _rows)),
    "epub": Kind("office", ("markitdown",), _office("EpubConverter", _lines)),
}

if __name__ == "__main__":
    main(sys.argv[1], Limits(*map(int, sys.argv[2:])))
