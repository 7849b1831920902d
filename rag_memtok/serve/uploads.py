"""Files that clients send: kept under `uploads/` of the store, a root of their own.

A name becomes a path in it and nothing else; a file is whole before it has its name.
"""

import fcntl
import os
import secrets
import unicodedata
from collections.abc import AsyncIterator
from logging import getLogger
from pathlib import Path
from urllib.parse import unquote

from rag_memtok.documents.loaders import LOADERS, loader_of
from rag_memtok.documents.names import UPLOADS, resolve_path
from rag_memtok.documents.walk import is_within
from rag_memtok.errors import UsageError
from rag_memtok.store.files import ARRIVING, is_regular_file, store_errors

DEPTH, PART = 16, 200  # folders in a name, and bytes of each of its parts

log = getLogger(__name__)


def parse_name(header: str) -> tuple[str, ...]:
    """The parts of the path that an upload's percent-encoded name means.

    Raises:
        UsageError: it is no name of a file that is read, or one that could leave its folder.
    """
    try:
        name = unquote(header, errors="strict")
    except UnicodeDecodeError:
        raise UsageError("the file's name is not UTF-8", remedy="percent-encode UTF-8") from None
    parts = tuple(name.split("/"))
    if not all(map(_is_part, parts)) or len(parts) > DEPTH:
        raise UsageError(
            f"{name!a} is no name for a file here",
            remedy=f"a relative path: no parts that begin with a dot, no \\, {DEPTH} parts at most",
        )
    if loader_of(name) is None:
        raise UsageError(
            f"{name!a} is of no kind that is read",
            remedy=f"kinds that are: {' '.join(sorted(filter(None, LOADERS)))}",
        )
    return parts


def _is_part(part: str) -> bool:
    plain = not any(
        unicodedata.category(character)[0] == "C" or character in '\\:"' for character in part
    )
    return plain and not part.startswith(".") and 0 < len(part.encode()) <= PART


async def store_upload(
    store: Path, parts: tuple[str, ...], body: AsyncIterator[bytes], most: int
) -> None:
    """Writes an upload, readable by its owner alone, and puts it in its place when it is whole.

    Raises:
        UsageError: it has no or more than `most` bytes, or something is in its way.
    """
    arriving = store / ARRIVING / secrets.token_hex(8)
    with store_errors(store):
        for folder in (store, store / ARRIVING, store / UPLOADS):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(arriving, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        fcntl.flock(handle, fcntl.LOCK_SH)  # as long as it arrives: see `discard_unfinished`
    try:
        with os.fdopen(handle, "wb") as file, store_errors(store):
            async for part in body:
                if file.tell() + len(part) > most:
                    raise UsageError(
                        f"{'/'.join(parts)} has more than {most} bytes",
                        remedy="start the server with a higher --max-upload",
                    )
                file.write(part)
            if not file.tell():
                raise UsageError(f"{'/'.join(parts)} is empty", remedy="send the file as the body")
            file.flush()
            os.fsync(file.fileno())
        _place(arriving, store / UPLOADS, parts)
    finally:
        arriving.unlink(missing_ok=True)


def discard_unfinished(store: Path) -> None:
    """Deletes what a kill left of uploads that had not arrived whole; it may be anyone's text.

    What another server of this store is being sent stays.
    """
    arriving = store / ARRIVING
    if arriving.is_symlink():  # by whoever made the store: it leads elsewhere
        return
    for path in filter(is_regular_file, arriving.glob("*")):
        try:
            with open(path, "rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
        except (BlockingIOError, FileNotFoundError):  # it is arriving, or has arrived
            continue
        except OSError as error:
            log.warning("%s is left of an upload and cannot be deleted: %s", path, error.strerror)


def _place(arriving: Path, folder: Path, parts: tuple[str, ...]) -> None:
    try:
        for part in parts[:-1]:
            folder = folder / part
            folder.mkdir(mode=0o700, exist_ok=True)
            if folder.is_symlink():
                raise NotADirectoryError(folder)
        os.replace(arriving, folder / parts[-1])
    except (FileExistsError, IsADirectoryError, NotADirectoryError):
        raise UsageError(
            f"{'/'.join(parts)}: a file is where a folder should be, or the other way round",
            remedy="give it another name",
        ) from None


def require_allowed(paths: list[str], roots: tuple[str, ...]) -> list[Path]:
    """The `paths` of a client, if all lie, links followed, under one of `roots`.

    Raises:
        UsageError: one of them does not, whether it is there or not.
    """
    folders = [os.path.realpath(root) for root in roots]
    for path in paths:
        real = os.path.realpath(path) if "\0" not in path else ""
        if not os.path.isabs(path) or not any(
            is_within(real, folder) for folder in folders if real
        ):
            raise UsageError(
                f"{path!a} is not under a folder that the server may read",
                remedy="send the file itself, or start the server with --root FOLDER",
            )
    return [Path(resolve_path(os.path.realpath(path))) for path in paths]
