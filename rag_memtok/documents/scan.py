"""Path -> Documents.

`scan` finds the files worth reading and says why it skips others; `read` turns one of them into
Documents.

A file is (root, file): the folder it was found in, and its name there (names.py).
"""

import errno
import hashlib
import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath

from pathspec import GitIgnoreSpec

from rag_memtok.config import Documents
from rag_memtok.datatypes import Document
from rag_memtok.documents.loaders import LOADERS, Loader, Unreadable, text_of
from rag_memtok.documents.names import grouped, located, name_of, shown
from rag_memtok.errors import InputRefused, UsageError

# Never looked into, nor reported: version control, environments, caches, stores of ours, and what
# only steers tools.
NEVER_READ = frozenset(
    ".git .hg .svn .bzr .jj CVS _darcs .venv node_modules __pycache__ .rag-memtok .tox .nox "
    ".mypy_cache .pytest_cache .ruff_cache "
    ".hypothesis .ipynb_checkpoints .gitignore .gitattributes .gitmodules .DS_Store".split()
)
# What an office program keeps beside a file while it has it open: who that is, and no text.
LOCK_FILE = re.compile(
    r"~\$.*\.(do[ct]|xl[st]|pp[ts]|pot)[xmb]?|\.~lock\..*#", re.DOTALL | re.IGNORECASE
)
IGNORED = "left out because of a .gitignore"
TOLD = 5  # reasons that a refusal tells
LOOKED_AT = 10_000  # names in folders that are left out: then no more of them are counted
TEXT_NAMES = frozenset(
    "README LICENSE NOTICE AUTHORS COPYING CHANGELOG TODO Makefile Dockerfile".split()
)


@dataclass(frozen=True, slots=True)
class Skipped:
    """Something not read: a file, a folder, or a part of a file (`path` "tickets.jsonl#L3").

    It is named as a Document would be.
    """

    root: str
    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file worth reading.

    `file` is its name in `root`, `path` what the system opens; `sha256` and `size` are of its
    bytes, `modified` is its time in nanoseconds as it was before they were read.
    """

    root: str
    file: str
    path: Path
    sha256: str
    size: int
    modified: int


@dataclass(frozen=True, slots=True)
class Scan:
    """What `scan` found, each in the order of (root, file).

    `ignored` are the files that are not read because of a .gitignore.
    """

    files: tuple[SourceFile, ...]
    skipped: tuple[Skipped, ...]
    ignored: tuple[Skipped, ...] = ()


@dataclass(frozen=True, slots=True)
class Reading:
    """What `read` made of a file: its documents, and what of it could not be read."""

    documents: tuple[Document, ...]
    skipped: tuple[Skipped, ...]


# --- scan ---


def scan(paths: Sequence[Path], settings: Documents, store: Path | None = None) -> Scan:
    """Finds what to read under `paths`, in a fixed order, each file once.

    A folder is the root of what is in it, and is searched down to the last folder; what
    `settings.exclude` names is left out without a word, so are `NEVER_READ`, `store` and, even if
    named, the lock files of office programs; what a .gitignore on the way names is told, unless
    `settings.gitignore` is off and it is read. A file's root is the folder given that holds it,
    else its parent; being named, it is read whatever a .gitignore says, and tried as text whatever
    its suffix. Links to files within the root are read, links to folders are not.

    Raises:
        InputRefused: a path is missing, or nothing readable was found.
        UsageError: `settings.exclude` is no pattern.

    Cost: reads every file once.
    """
    exclude = _exclude(settings.exclude)
    files: dict[tuple[str, str], SourceFile] = {}
    skipped: set[Skipped] = set()
    for root, found, named in _found(paths, exclude, settings.gitignore, store):
        result = (
            found if isinstance(found, Skipped) else _examined(root, found, named, settings, store)
        )
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
        raise nothing_to_read(paths, rest, len(ignored))
    return Scan(tuple(files[key] for key in sorted(files)), rest, ignored)


def _exclude(patterns: Sequence[str]) -> GitIgnoreSpec:
    try:
        return GitIgnoreSpec.from_lines(patterns)
    except ValueError as error:
        raise UsageError(
            f"documents.exclude: {error}",
            remedy="write patterns as in a .gitignore, such as 'drafts/' or '*.log'",
        ) from error


def nothing_to_read(
    paths: Sequence[Path], skipped: Sequence[Skipped], ignored: int
) -> InputRefused:
    """The refusal of paths of which nothing is read, with what is skipped and why."""
    where = ", ".join(shown(str(path)) for path in paths) or "no path"
    reasons = grouped((one.path, one.reason) for one in skipped)
    told = [f"{len(skipped)} skipped ({'; '.join(reasons[:TOLD])})"][: len(skipped)]
    told += [f"{ignored} {IGNORED}"][:ignored]
    return InputRefused(
        f"nothing to read in {where}" + (f": {', '.join(told)}" if told else ""),
        remedy=("--no-gitignore reads what a .gitignore leaves out; or " if ignored else "")
        + _supported(),
    )


def _supported() -> str:
    return (
        f"give a folder with files of these types: {' '.join(sorted(LOADERS))}; a single file "
        "of another type is tried as text"
    )


def _found(
    paths: Sequence[Path], exclude: GitIgnoreSpec, gitignore: bool, store: Path | None
) -> Iterator[tuple[str, str | Skipped, bool]]:
    """Yields all there is under `paths`.

    Each is (root, name in it or why it is skipped, whether it was named itself).
    """
    folders, files = set[str](), set[str]()
    for path in map(os.fspath, paths):
        try:
            is_folder = stat.S_ISDIR(os.stat(path).st_mode)
        except (FileNotFoundError, NotADirectoryError, ValueError) as error:
            raise InputRefused(f"{shown(path)} does not exist", remedy=_supported()) from error
        except OSError:
            is_folder = False  # `_examined` finds the same and says so
        (folders if is_folder else files).add(located(path))
    roots = {
        folder
        for folder in folders
        if not any(_within(folder, other) for other in folders - {folder})
    }
    for root in sorted(roots):
        yield from ((root, found, False) for found in _walk(root, exclude, gitignore, store))
    for file in sorted(files):
        root = next((root for root in roots if _within(file, root)), os.path.dirname(file))
        relative = os.path.relpath(file, root)
        # a shell's *.docx names lock files, too
        if not exclude.match_file(relative) and not LOCK_FILE.fullmatch(os.path.basename(file)):
            yield root, relative, True


def _within(path: str, folder: str) -> bool:
    return os.path.commonpath([path, folder]) == folder


def _walk(
    root: str, exclude: GitIgnoreSpec, gitignore: bool, store: Path | None
) -> Iterator[str | Skipped]:
    """Yields the names of the files in `root`, and what is skipped.

    A loop, as folders nest deeper than Python's stack. In a folder that is left out the files are
    but counted.
    """
    forbidden, looked_at = os.path.realpath(store) if store else None, 0
    pending: list[tuple[str, tuple[tuple[int, GitIgnoreSpec], ...], bool]] = [("", (), False)]
    while pending:
        folder, rules, hidden = pending.pop()
        try:
            with os.scandir(os.path.join(root, folder)) as entries:
                inside = sorted(entries, key=lambda entry: entry.name)
            rules += tuple(
                (len(folder), _gitignore(entry.path))
                for entry in inside
                if gitignore and entry.name == ".gitignore" and entry.is_file()
            )
        except OSError as error:
            if not hidden:
                yield Skipped(name_of(root), name_of(folder or "."), _reason(error))
            continue
        looked_at += hidden * len(inside)
        for entry in inside:
            relative = folder + entry.name
            is_folder = entry.is_dir(follow_symlinks=False)
            path = relative + "/" * is_folder
            if (
                entry.name in NEVER_READ
                or (not is_folder and LOCK_FILE.fullmatch(entry.name))
                or entry.path == forbidden
                or exclude.match_file(path)
            ):
                continue
            ignored = hidden or _ignored(path, rules)
            if is_folder:
                if not ignored or looked_at < LOOKED_AT:
                    pending.append((path, rules, ignored))
            elif entry.is_symlink() and (problem := _link_problem(entry.path, root)):
                if not ignored:
                    yield Skipped(name_of(root), name_of(relative), problem)
            elif not ignored:
                yield relative
            elif _loader(relative):
                yield Skipped(name_of(root), name_of(relative), IGNORED)


def _gitignore(path: str) -> GitIgnoreSpec:
    """Reads a .gitignore as git does: a line that is no pattern is passed over."""
    patterns = []
    for line in Path(path).read_bytes().decode("utf-8", "surrogateescape").splitlines():
        try:
            GitIgnoreSpec.from_lines([line])
            patterns.append(line)
        except ValueError:
            continue
    return GitIgnoreSpec.from_lines(patterns)


def _ignored(relative: str, rules: Sequence[tuple[int, GitIgnoreSpec]]) -> bool:
    """Whether the deepest .gitignore with an opinion leaves it out.

    `rules`: (length of its folder's name, itself).
    """
    opinions = (spec.check_file(relative[start:]).include for start, spec in reversed(rules))
    return next((opinion for opinion in opinions if opinion is not None), False)


def _link_problem(path: str, root: str) -> str:
    try:
        target = os.path.realpath(path, strict=True)
    except OSError as error:
        return (
            "a symbolic link to nothing" if isinstance(error, FileNotFoundError) else _reason(error)
        )
    if not _within(target, root):
        return "a symbolic link leading out of the folder given"
    if not os.path.isdir(target):
        return ""
    return (
        "a symbolic link loop"
        if _within(path, target)
        else "a symbolic link to a folder; its files are read where they are"
    )


def _examined(
    root: str, relative: str, named: bool, settings: Documents, store: Path | None
) -> SourceFile | Skipped:
    """Returns the file `relative` of `root` if it can be read as its type wants, else why not."""
    path = os.path.join(root, relative)
    loader = _loader(relative) or (LOADERS[".txt"] if named else None)
    try:
        if loader is None:
            raise Unreadable(
                f"no loader for {PurePosixPath(relative).suffix or 'a name without a suffix'}"
            )
        if store and _within(os.path.realpath(path), os.path.realpath(store)):
            raise Unreadable("belongs to the store")
        if loader.missing:
            raise Unreadable(loader.missing)
        data, modified = _bytes(path, settings.max_bytes)
        if not loader.binary:
            text_of(data)
    except (OSError, Unreadable) as error:
        return Skipped(name_of(root), name_of(relative), _reason(error))
    digest = hashlib.sha256(data).hexdigest()
    return SourceFile(name_of(root), name_of(relative), Path(path), digest, len(data), modified)


def _bytes(path: str, limit: int) -> tuple[bytes, int]:
    """Returns the file's bytes, and its time before they were read.

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
    if len(data) > limit:
        raise Unreadable(f"over the limit of {limit:,} bytes (documents.max_bytes)")
    return data, modified


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        known = {
            errno.ENOENT: "vanished",
            errno.ENOTDIR: "vanished",
            errno.EACCES: "no permission",
            errno.EPERM: "no permission",
        }
        return known.get(error.errno or 0, "") or (
            "a symbolic link loop" if error.errno == errno.ELOOP else str(error.strerror)
        )
    return str(error)


# --- read ---


def read(source: SourceFile, settings: Documents) -> Reading:
    """Turns a file into its documents; whatever is wrong with it is told in the result.

    So one bad file never stops the rest.

    A file whose bytes are no longer those `scan` saw is skipped whole.

    Cost: linear in its size, and a Segment a line; for a PDF or an office file a child process
        (`extract.extracted`).
    """
    try:
        data, _ = _bytes(os.fspath(source.path), settings.max_bytes)
        if hashlib.sha256(data).hexdigest() != source.sha256:
            raise Unreadable("changed while it was read")
        loader = _loader(source.file) or LOADERS[".txt"]
        parts = list(loader.extract(data))
    except (OSError, Unreadable) as error:
        return Reading((), (Skipped(source.root, source.file, _reason(error)),))
    root, file = source.root, source.file
    return Reading(
        tuple(
            Document(root, file, file + part.suffix, part.text, part.segments, loader.extractor)
            for part in parts
            if not part.problem
        ),
        tuple(Skipped(root, file + part.suffix, part.problem) for part in parts if part.problem),
    )


def restores_exactly(extractor: str) -> bool:
    """Whether a document's text, written in UTF-8, is its file byte for byte."""
    return any(loader.exact for loader in LOADERS.values() if loader.extractor == extractor)


@cache
def outdated(extractor: str) -> bool:
    """Whether an older version of this program read it, in a way that has changed since.

    Only our name and number count ("xlsx/1"), not the versions of the libraries: these change
    often, and what they read seldom.
    """
    ours = (loader.extractor.partition(" ")[0].partition("/") for loader in LOADERS.values())
    name, _, number = extractor.partition(" ")[0].partition("/")
    return number.isdecimal() and any(
        name == own and int(number) < int(now) for own, _, now in ours
    )


def _loader(file: str) -> Loader | None:
    name = PurePosixPath(file)
    return LOADERS.get(".txt" if name.name in TEXT_NAMES else name.suffix.lower())
