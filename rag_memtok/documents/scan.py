"""Path -> Documents.

`scan` finds the files worth reading and says why it skips others; `read` turns one of them into
Documents.

A file is (root, file): the folder it was found in, and its name there (names.py).
"""

import hashlib
import os
import re
import shlex
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path, PurePosixPath
from types import MappingProxyType

from rag_memtok.config import Documents
from rag_memtok.datatypes import Document
from rag_memtok.documents.encodings import (
    UTF8,
    Encoding,
    Unreadable,
    canonical_name,
    detect_encoding,
    with_encoding,
)
from rag_memtok.documents.loaders import LOADERS, Loader, loader_of, required_loader
from rag_memtok.documents.names import UPLOADS, escape_controls, group_by_reason, name_of
from rag_memtok.documents.walk import (
    IGNORED,
    Skipped,
    find_files,
    is_within,
    parse_exclude,
    reason_of,
)
from rag_memtok.errors import InputRefused, UsageError

PIPED = "-"  # the root of what came from standard input
NOTHING: Mapping[str, bytes] = MappingProxyType({})
TOLD = 5  # reasons that a refusal tells
TIMES = range(-(2**63), 2**63)  # nanoseconds that a store can hold: 1677 to 2262
URL = re.compile(r"(https?|ftps?|file):/", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFile:
    """A file worth reading.

    `file` is its name in `root`, `path` what the system opens; `sha256` and `size` are of its
    bytes, `modified` is its time in nanoseconds as it was before they were read, -1 if it has none
    that a store can hold.
    `encoding` is what it was found to be in ("" where its format says that), and whether that is
    but `assumed`. `data` are its bytes if they are in no file.
    """

    root: str
    file: str
    path: Path
    sha256: str
    size: int
    modified: int
    encoding: str = ""
    assumed: bool = False
    data: bytes | None = None


@dataclass(frozen=True, slots=True)
class Scan:
    """The files that `scan` found, and what it skipped, each in the order of (root, file).

    `ignored` are the files that are not read because of a .gitignore.
    """

    files: tuple[SourceFile, ...]
    skipped: tuple[Skipped, ...]
    ignored: tuple[Skipped, ...] = ()


@dataclass(frozen=True, slots=True)
class Reading:
    """The documents of a file, and what of it could not be read."""

    documents: tuple[Document, ...]
    skipped: tuple[Skipped, ...]


# --- scan ---


def scan(
    paths: Sequence[Path],
    settings: Documents,
    store: Path | None = None,
    piped: Mapping[str, bytes] = NOTHING,
) -> Scan:
    """The files to read under `paths`, in a fixed order, each once.

    A folder is the root of what is in it, and is searched down to the last folder; what
    `settings.exclude` names is left out without a word, so are `NEVER_READ`, `store` and, even if
    named, the lock files of office programs; what a .gitignore on the way names is told, unless
    `settings.gitignore` is off and it is read. A file's root is the folder given that holds it,
    else its parent; being named, it is read whatever a .gitignore says, and tried as text whatever
    its suffix. Links to files within the root are read, links to folders are not.

    Args:
        piped: what is in no file, by the name it is to have; its root is `PIPED`.

    Raises:
        InputRefused: a path is missing or a URL, or nothing readable was found.
        UsageError: `settings.exclude` is no pattern, `settings.encoding` no encoding, or a name of
            `piped` none of a file.

    Cost: reads every file once.
    """
    exclude = parse_exclude(settings.exclude)
    wanted = _wanted_encoding(settings)
    _require_existing(paths)
    files: dict[tuple[str, str], SourceFile] = {}
    skipped: set[Skipped] = set()
    under_paths = (
        file
        if isinstance(file, Skipped)
        else _examine(root, file, named=named, settings=settings, store=store, wanted=wanted)
        for root, file, named in find_files(
            paths, exclude, gitignore=settings.gitignore, store=store
        )
    )
    from_pipe = (_examine_piped(name, data, settings, wanted) for name, data in piped.items())
    for result in (*under_paths, *from_pipe):
        if isinstance(result, Skipped):
            skipped.add(result)
        else:
            files[result.root, result.file] = result
    # named as well as found: read all the same
    ordered = sorted(
        (item for item in skipped if (item.root, item.path) not in files),
        key=lambda item: (item.root, item.path, item.reason),
    )
    ignored = tuple(item for item in ordered if item.reason == IGNORED)
    rest = tuple(item for item in ordered if item.reason != IGNORED)
    if not files:
        raise nothing_to_read((*paths, *piped), rest, len(ignored))
    return Scan(tuple(files[key] for key in sorted(files)), rest, ignored)


def _wanted_encoding(settings: Documents) -> str:
    """The encoding that the user says all texts are in, "" if none."""
    name = canonical_name(settings.encoding) if settings.encoding else ""
    if settings.encoding and not name:
        raise UsageError(
            f"documents.encoding is {settings.encoding!r}; valid: the name of an encoding",
            remedy="such as cp1252, latin-1, cp1251, shift_jis, gb18030, utf-16-le",
        )
    return name


def _require_existing(paths: Sequence[Path]) -> None:
    for path in map(os.fspath, paths):
        try:
            os.stat(path)
        except (FileNotFoundError, NotADirectoryError, ValueError) as error:
            if URL.match(path):
                raise _url_error(path) from error
            raise InputRefused(
                f"{escape_controls(path)} does not exist", remedy=_supported_types()
            ) from error
        except OSError:
            pass  # `_examine` finds the same and says so


def _url_error(path: str) -> InputRefused:
    url = escape_controls(re.sub(":/+", "://", path, count=1))
    name = PurePosixPath(url.partition("://")[2].partition("?")[0].partition("/")[2]).name
    name = name if PurePosixPath(name).suffix.lower() in LOADERS else f"{name or 'page'}.html"
    return InputRefused(
        f"{url} is a URL, and nothing is read from the network",
        remedy=f"curl -sSL {shlex.quote(url)} | rag-memtok ingest - --name {shlex.quote(name)}",
    )


def nothing_to_read(
    given: Iterable[Path | str], skipped: Sequence[Skipped], ignored: int
) -> InputRefused:
    """The refusal of what was given, of which nothing is read, with what is skipped and why."""
    where = ", ".join(escape_controls(str(path)) for path in given) or "no path"
    reasons = group_by_reason((item.path, item.reason) for item in skipped)
    facts = [f"{len(skipped)} skipped ({'; '.join(reasons[:TOLD])})"][: len(skipped)]
    facts += [f"{ignored} {IGNORED}"][:ignored]
    return InputRefused(
        f"nothing to read in {where}" + (f": {', '.join(facts)}" if facts else ""),
        remedy=("--no-gitignore reads what a .gitignore leaves out; or " if ignored else "")
        + _supported_types(),
    )


def _supported_types() -> str:
    return (
        f"give a folder with files of these types: {' '.join(sorted(LOADERS))}; a single file "
        "of another type is tried as text"
    )


def _belongs_to(store: Path, path: str) -> bool:
    """Whether a file is the store's own, or that of a collection in it; an upload is none."""
    real, folder = os.path.realpath(path), os.path.realpath(store)
    return is_within(real, folder) and UPLOADS not in os.path.relpath(real, folder).split("/")[:2]


def _examine(
    root: str, relative: str, *, named: bool, settings: Documents, store: Path | None, wanted: str
) -> SourceFile | Skipped:
    """The file `relative` of `root` if it can be read as its type wants, else why not."""
    path = os.path.join(root, relative)
    try:
        loader = required_loader(relative, named=named)
        if store and _belongs_to(store, path):
            raise Unreadable("belongs to the store")
        data, modified = _read_bytes(path, settings.max_bytes)
        encoding = _encoding_of(loader, data, wanted)
    except (OSError, Unreadable) as error:
        return Skipped(name_of(root), name_of(relative), reason_of(error))
    return _make_source(
        name_of(root),
        name_of(relative),
        path=Path(path),
        data=data,
        encoding=encoding,
        modified=modified,
    )


def _examine_piped(
    name: str, data: bytes, settings: Documents, wanted: str
) -> SourceFile | Skipped:
    """The file that was piped in if it can be read as its name wants, else why not."""
    path = PurePosixPath(name_of(name))
    file = str(path)
    if not name or name.endswith("/") or not _is_plain(path):
        raise UsageError(
            f"{escape_controls(name)!r} is no name for what is piped in",
            remedy="--name NOTE.md, or with a folder, --name letters/may.txt",
        )
    try:
        _require_small(data, settings.max_bytes)
        encoding = _encoding_of(required_loader(name, named=True), data, wanted)
    except Unreadable as error:
        return Skipped(PIPED, file, str(error))
    source = _make_source(PIPED, file, path=Path(name), data=data, encoding=encoding)
    return replace(source, data=data)


def _is_plain(path: PurePosixPath) -> bool:
    """Whether a path leads down only."""
    return not path.is_absolute() and ".." not in path.parts and str(path) not in ("", ".")


def _encoding_of(loader: Loader, data: bytes, wanted: str) -> Encoding:
    if loader.binary:
        return Encoding("")
    return detect_encoding(data, wanted, markup=loader.markup)


def _make_source(
    root: str, file: str, *, path: Path, data: bytes, encoding: Encoding, modified: int = -1
) -> SourceFile:
    return SourceFile(
        root=root,
        file=file,
        path=path,
        sha256=hashlib.sha256(data).hexdigest(),
        size=len(data),
        modified=modified,
        encoding=encoding.name,
        assumed=encoding.assumed,
    )


def _read_bytes(path: str, limit: int) -> tuple[bytes, int]:
    """The file's bytes, and its time in nanoseconds before they were read: see `SourceFile`.

    It never waits for a FIFO or a device.
    """
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket", stat.S_IFDIR: "a folder"}
        raise Unreadable(f"not a file but {kinds.get(stat.S_IFMT(mode), 'a device')}")
    # O_NONBLOCK: what was a file a moment ago may be a FIFO now
    with open(
        path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0))
    ) as file:
        modified = os.fstat(file.fileno()).st_mtime_ns
        data = file.read(limit + 1)
    _require_small(data, limit)
    return data, modified if modified in TIMES else -1


def _require_small(data: bytes, limit: int) -> None:
    if len(data) > limit:
        raise Unreadable(f"over the limit of {limit:,} bytes (documents.max_bytes)")


# --- read ---


def read(source: SourceFile, settings: Documents) -> Reading:
    """The documents of a file; what cannot be read is listed in the result.

    So one bad file never stops the rest. A file whose bytes are no longer those that `scan` saw is
    skipped whole.

    Cost: linear in its size, and a Segment a line; for a PDF or an office file a child process
        (`extract.extract_text`).
    """
    try:
        data = source.data
        if data is None:
            data, _ = _read_bytes(os.fspath(source.path), settings.max_bytes)
        if hashlib.sha256(data).hexdigest() != source.sha256:
            raise Unreadable("changed while it was read")
        loader = loader_of(source.file) or LOADERS[".txt"]
        parts = list(loader.extract(data, source.encoding or UTF8))
    except UnicodeDecodeError as error:
        reason = f"not {source.encoding} at byte {error.start}"
        return Reading((), (Skipped(source.root, source.file, reason),))
    except (OSError, Unreadable) as error:
        return Reading((), (Skipped(source.root, source.file, reason_of(error)),))
    root, file = source.root, source.file
    extractor = with_encoding(loader.extractor, source.encoding)
    return Reading(
        tuple(
            Document(
                root,
                file,
                path=file + part.suffix,
                text=part.text,
                segments=part.segments,
                extractor=extractor,
                headings=part.headings,
            )
            for part in parts
            if not part.problem
        ),
        tuple(Skipped(root, file + part.suffix, part.problem) for part in parts if part.problem),
    )


def restores_exactly(extractor: str) -> bool:
    """Whether a document's text, written in its encoding, is its file byte for byte."""
    name = extractor.partition(" ")[0]
    return any(loader.exact for loader in LOADERS.values() if loader.extractor == name)


@cache
def is_outdated(extractor: str) -> bool:
    """Whether an older version of this program read it, in a way that has changed since.

    Only our name and number count ("xlsx/1"), not the versions of the libraries: these change
    often, and what they read seldom.
    """
    ours = (loader.extractor.partition(" ")[0].partition("/") for loader in LOADERS.values())
    name, _, number = extractor.partition(" ")[0].partition("/")
    return number.isdecimal() and any(
        name == own and int(number) < int(now) for own, _, now in ours
    )
