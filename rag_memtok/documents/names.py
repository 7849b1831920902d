r"""Names of files: bytes that may be anything, as text.

Names are kept as they are, newlines included, with two exceptions that make any name valid text and
that `native_of` undoes: a byte that is not UTF-8 is written \xNN, and a backslash is doubled.
"""

import os
import re
import stat
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path, PurePath

from rag_memtok.errors import UsageError

UPLOADS = "uploads"  # the folder of a store that holds what its server was sent
NAMED = 3  # files of one reason that are named


def given_path(path: str | os.PathLike[str]) -> Path:
    """A path that a user gives; an empty one is no path, though `Path` takes it for this folder.

    Raises:
        UsageError: it is empty.
    """
    if not os.fspath(path):
        raise UsageError(
            "a path is empty, as a shell variable is that was never set",
            remedy="name a file or folder; the current folder is .",
        )
    return Path(path)


def name_of(native: str) -> str:
    """The system's name of a file as valid, reversible text.

    See the head of this file; "/" stands between folders.
    """
    name = native.replace(os.sep, "/").replace("\\", "\\\\")
    return re.sub("[\udc80-\udcff]", lambda byte: f"\\x{ord(byte[0]) - 0xDC00:02x}", name)


def native_of(name: str) -> str:
    """The system's name of a file: `native_of(name_of(native)) == native`."""
    return re.sub(
        r"\\(\\|x[0-9a-f]{2})",
        lambda escape: "\\" if escape[1] == "\\" else chr(0xDC00 + int(escape[1][1:], 16)),
        name,
    )


def join_name(root: str, file: str) -> str:
    """The whole name of the file `file` of `root`."""
    return f"{root.rstrip('/')}/{file}"


def at_or_above(path: str) -> Iterator[str]:
    """Yields a whole path without "/." and "/" at its end, and every folder above it."""
    here = PurePath(path)
    yield from map(str, (here, *here.parents))


def resolve_path(path: str) -> str:
    """The absolute path of a file or folder that is there, or was.

    Links on the way there are followed, and a link to a folder, but not one to a file.
    """
    if os.path.isdir(path):
        return os.path.realpath(path)
    return os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))


def distinct_names(files: Collection[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """A name for each (root, path): its path, with as much of its root as tells it apart."""
    counts = Counter(path for _, path in files)
    names = {(root, path): path for root, path in files if counts[path] == 1}
    same = [(root, path) for root, path in files if counts[path] > 1]
    for size in range(1, max((root.count("/") for root, _ in same), default=0) + 2):
        longer = {
            (root, path): join_name("/".join(root.split("/")[-size:]), path) for root, path in same
        }
        taken = Counter(longer.values()) + Counter(names.values())
        names |= {file: name for file, name in longer.items() if taken[name] == 1}
        same = [file for file in same if file not in names]
    return names | {(root, path): join_name(root, path) for root, path in same}


def is_gone(root: str, file: str) -> bool:
    """Whether there is no such file any more.

    One that the system does not let us look for may still be there.
    """
    try:
        return stat.S_ISDIR(os.lstat(native_of(join_name(root, file))).st_mode)
    except (FileNotFoundError, NotADirectoryError, ValueError):  # a damaged name may be none
        return True
    except OSError:
        return False


def escape_controls(name: str) -> str:
    """`name` for a message: what could disturb a terminal is escaped.

    That is control characters, and others that cannot be printed.
    """
    return "".join(
        character if character.isprintable() else ascii(character)[1:-1] for character in name
    )


def group_by_reason(files: Iterable[tuple[str, str]]) -> list[str]:
    """A line "name: reason" for each (name, reason), more than NAMED of one reason together.

    These are "12 files: reason (the first names, ...)".
    """
    by_reason: dict[str, list[str]] = {}
    for name, reason in files:
        by_reason.setdefault(reason, []).append(name)
    lines = []
    for reason, names in by_reason.items():
        if len(names) <= NAMED:
            lines += [f"{escape_controls(name)}: {reason}" for name in names]
        else:
            first = ", ".join(map(escape_controls, names[:NAMED]))
            lines.append(f"{len(names)} files: {reason} ({first}, ...)")
    return lines
