"""Paths -> the files under them; what is left out, what is skipped.

Ignore rules are those of .gitignore files and of `documents.exclude`.
"""

import codecs
import errno
import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pathspec import GitIgnoreSpec

from rag_memtok.documents.loaders import loader_of
from rag_memtok.documents.names import at_or_above, name_of, resolve_path
from rag_memtok.errors import UsageError

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
LOOKED_AT = 10_000  # names in folders that are left out: then no more of them are counted


@dataclass(frozen=True, slots=True)
class Skipped:
    """Something not read: a file, a folder, or a part of a file (`path` "tickets.jsonl#L3").

    It is named as a Document would be.
    """

    root: str
    path: str
    reason: str


def parse_exclude(patterns: Sequence[str]) -> GitIgnoreSpec:
    """The rules by which `documents.exclude` leaves files out.

    Raises:
        UsageError: one of them is no pattern.
    """
    try:
        return GitIgnoreSpec.from_lines(patterns)
    except ValueError as error:
        raise UsageError(
            f"documents.exclude: {error}",
            remedy="write patterns as in a .gitignore, such as 'drafts/' or '*.log'",
        ) from error


def find_files(
    paths: Sequence[Path], exclude: GitIgnoreSpec, *, gitignore: bool, store: Path | None
) -> Iterator[tuple[str, str | Skipped, bool]]:
    """Yields all files under `paths`.

    Each is (root, name in it or why it is skipped, whether it was named itself).

    Args:
        gitignore: rules of .gitignore files count.
        store: a folder that is not looked into.
    """
    folders, files = set[str](), set[str]()
    for path in map(os.fspath, paths):
        try:
            is_folder = stat.S_ISDIR(os.stat(path).st_mode)
        except (OSError, ValueError):
            is_folder = False  # whoever reads it finds the same and says so
        (folders if is_folder else files).add(resolve_path(path))
    roots = {folder for folder in folders if folders.isdisjoint([*at_or_above(folder)][1:])}
    for root in sorted(roots):
        yield from (
            (root, file, False) for file in _walk(root, exclude, gitignore=gitignore, store=store)
        )
    for file in sorted(files):
        root = next((one for one in at_or_above(file) if one in roots), os.path.dirname(file))
        relative = os.path.relpath(file, root)
        # a shell's *.docx names lock files, too
        if not exclude.match_file(relative) and not LOCK_FILE.fullmatch(os.path.basename(file)):
            yield root, relative, True


def is_within(path: str, folder: str) -> bool:
    """Whether a path is a folder, or in it."""
    return os.path.commonpath([path, folder]) == folder


def _walk(
    root: str, exclude: GitIgnoreSpec, *, gitignore: bool, store: Path | None
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
        except OSError as error:
            if not hidden:
                yield Skipped(name_of(root), name_of(folder or "."), reason_of(error))
            continue
        try:
            rules += tuple(
                (len(folder), _read_gitignore(entry.path))
                for entry in inside
                if gitignore and entry.name == ".gitignore" and entry.is_file()
            )
        except OSError as error:
            if not hidden:  # without its rules anything may be what nobody is to read
                reason = f"{reason_of(error)}; its folder is left out, as its rules are not known"
                yield Skipped(name_of(root), name_of(folder + ".gitignore"), reason)
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
            ignored = hidden or _is_ignored(path, rules)
            if is_folder:
                if not ignored or looked_at < LOOKED_AT:
                    pending.append((path, rules, ignored))
            elif entry.is_symlink() and (problem := _link_problem(entry.path, root)):
                if not ignored:
                    yield Skipped(name_of(root), name_of(relative), problem)
            elif not ignored:
                yield relative
            elif loader_of(relative):
                yield Skipped(name_of(root), name_of(relative), IGNORED)


def _read_gitignore(path: str) -> GitIgnoreSpec:
    """The rules of a .gitignore as git reads it.

    A byte-order mark and a line that is no pattern are passed over; only a line feed ends a line.
    """
    patterns = []
    data = Path(path).read_bytes().removeprefix(codecs.BOM_UTF8)
    for ended in data.decode("utf-8", "surrogateescape").split("\n"):
        line = ended.removesuffix("\r")
        try:
            GitIgnoreSpec.from_lines([line])
            patterns.append(line)
        except ValueError:
            continue
    return GitIgnoreSpec.from_lines(patterns)


def _is_ignored(relative: str, rules: Sequence[tuple[int, GitIgnoreSpec]]) -> bool:
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
            "a symbolic link to nothing"
            if isinstance(error, FileNotFoundError)
            else reason_of(error)
        )
    if not is_within(target, root):
        return "a symbolic link leading out of the folder given"
    if not os.path.isdir(target):
        return ""
    return (
        "a symbolic link loop"
        if is_within(path, target)
        else "a symbolic link to a folder; its files are read where they are"
    )


def reason_of(error: Exception) -> str:
    """The reason for which something is skipped, in a few words."""
    if isinstance(error, OSError):
        reasons = {
            errno.ENOENT: "vanished",
            errno.ENOTDIR: "vanished",
            errno.EACCES: "no permission",
            errno.EPERM: "no permission",
        }
        return reasons.get(error.errno or 0, "") or (
            "a symbolic link loop" if error.errno == errno.ELOOP else str(error.strerror)
        )
    return str(error)
