r"""What files are called: bytes that may be anything, as text.

Names are kept as they are, newlines included, with two exceptions that make any name valid text and
that `native_of` undoes: a byte that is not UTF-8 is written \xNN, and a backslash is doubled.
"""

import os
import re
import stat
from collections import Counter
from collections.abc import Collection, Iterable

UPLOADS = "uploads"  # the folder of a store that holds what its server was sent
NAMED = 3  # files of one reason that are named


def name_of(native: str) -> str:
    """Returns the system's name of a file as valid, reversible text.

    See the head of this file; "/" stands between folders.
    """
    name = native.replace(os.sep, "/").replace("\\", "\\\\")
    return re.sub("[\udc80-\udcff]", lambda found: f"\\x{ord(found[0]) - 0xDC00:02x}", name)


def native_of(name: str) -> str:
    """Returns the system's name of a file: `native_of(name_of(native)) == native`."""
    return re.sub(
        r"\\(\\|x[0-9a-f]{2})",
        lambda found: "\\" if found[1] == "\\" else chr(0xDC00 + int(found[1][1:], 16)),
        name,
    )


def joined(root: str, file: str) -> str:
    """Returns the whole name of a file."""
    return f"{root.rstrip('/')}/{file}"


def located(path: str) -> str:
    """Returns where a file or folder is, or was.

    Links on the way there are followed, and a link to a folder, but not one to a file.
    """
    if os.path.isdir(path):
        return os.path.realpath(path)
    return os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))


def told_apart(files: Collection[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """What to call each (root, path): its path, with as much of its root as tells it apart."""
    counts = Counter(path for _, path in files)
    found = {(root, path): path for root, path in files if counts[path] == 1}
    same = [one for one in files if counts[one[1]] > 1]
    for size in range(1, max((root.count("/") for root, _ in same), default=0) + 2):
        longer = {
            (root, path): joined("/".join(root.split("/")[-size:]), path) for root, path in same
        }
        taken = Counter(longer.values()) + Counter(found.values())
        found |= {one: name for one, name in longer.items() if taken[name] == 1}
        same = [one for one in same if one not in found]
    return found | {(root, path): joined(root, path) for root, path in same}


def is_gone(root: str, file: str) -> bool:
    """Whether there is no such file any more.

    One that the system does not let us look for may still be there.
    """
    try:
        return stat.S_ISDIR(os.lstat(native_of(joined(root, file))).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False


def shown(name: str) -> str:
    """Returns `name` for a message.

    Control characters and others that could disturb a terminal are escaped.
    """
    return "".join(
        character if character.isprintable() else ascii(character)[1:-1] for character in name
    )


def grouped(files: Iterable[tuple[str, str]]) -> list[str]:
    """Each (name, reason) as "name: reason", more than NAMED of one reason together.

    These are "12 files: reason (the first names, ...)".
    """
    named: dict[str, list[str]] = {}
    for name, reason in files:
        named.setdefault(reason, []).append(name)
    told = []
    for reason, names in named.items():
        if len(names) <= NAMED:
            told += [f"{shown(name)}: {reason}" for name in names]
        else:
            first = ", ".join(map(shown, names[:NAMED]))
            told.append(f"{len(names)} files: {reason} ({first}, ...)")
    return told
