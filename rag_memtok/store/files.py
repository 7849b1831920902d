"""The store's folder: its files, their permissions, and the writer's lock.

Here is also what the errors of SQLite and the system mean to the user.
"""

import errno
import fcntl
import json
import os
import re
import shutil
import signal
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from rag_memtok.config import COLLECTION
from rag_memtok.documents.names import UPLOADS, native_of, resolve_path
from rag_memtok.errors import (
    DiskFailure,
    NoStore,
    OutOfMemory,
    PermissionRefused,
    RagMemtokError,
    StoreDamaged,
    StoreLocked,
    UsageError,
)

DATABASE, INDEX, LOCK, IGNORE, ADAPTER = "store.db", "index.faiss", "lock", ".gitignore", "adapter"
LINES = "lines.keys"
CACHES = (INDEX, LINES)  # of keys: what is in them can be made anew
ARRIVING = f"{UPLOADS}.new"  # what a server is being sent
# in the adapter's folder: a mark, and the folder that an unfinished training goes on from, as it is
# called now and as it was
STALE, ADAPTER_WORK, EARLIER_WORK = "stale", ".rag-memtok-adapt", "work"
WORK_FILE = re.compile(r"(taught-[0-9a-f]{16}|checkpoint)\.safetensors(\.new)?")
COPY = f"{DATABASE}.before"  # what a store was before its upgrade, while that is under way
NEW = ".new"  # what a file is called until it is whole
OURS = frozenset(
    {
        DATABASE,
        f"{DATABASE}-journal",
        DATABASE + NEW,
        f"{DATABASE}{NEW}-journal",
        COPY + NEW,
        *CACHES,
        *(name + NEW for name in CACHES),
        LOCK,
        IGNORE,
        ADAPTER,
        UPLOADS,
        ARRIVING,
    }
)
BUSY_SECONDS = 30.0
PIECE = 1 << 20  # bytes of a file that are copied at a time
ANOTHER_STORE = "ingest into a new store: rag-memtok ingest PATH --store OTHER"
CHECK = "rag-memtok verify --quick names what is damaged"
CRASH_AT = "RAG_MEMTOK_CRASH_AT"


def mark(step: str) -> None:
    """A step after which a kill must lose nothing.

    With RAG_MEMTOK_CRASH_AT=n the n-th step a process comes to is its last (SIGKILL).

    Cost: a look into the environment. The campaign in tests/faults counts n up until a command ends
        before it gets there.
    """
    left = os.environ.get(CRASH_AT, "")
    if not left.isdecimal():
        return
    if left == "1":
        os.write(2, f"killed: {step}\n".encode())
        os.kill(os.getpid(), signal.SIGKILL)
    os.environ[CRASH_AT] = str(int(left) - 1)


@contextmanager
def store_errors(folder: Path) -> Iterator[None]:
    """Turns the errors of SQLite and of the operating system into ours, everywhere in the store.

    Raises:
        StoreLocked, StoreDamaged, DiskFailure, PermissionRefused, OutOfMemory, NoStore: see
            `translate_error`.
    """
    try:
        yield
    except (sqlite3.ProgrammingError, sqlite3.InterfaceError):
        raise  # bugs of ours
    # sqlite3 could not even decode SQLite's message, which quotes damaged bytes
    except UnicodeDecodeError as error:
        raise StoreDamaged(f"{folder / DATABASE}: SQLite cannot read it", remedy=CHECK) from error
    except (sqlite3.Error, OSError) as error:
        ours = translate_error(error, folder)
        if ours is None:
            raise
        raise ours from error


def translate_error(error: sqlite3.Error | OSError, folder: Path) -> RagMemtokError | None:
    """Our error for one of SQLite or the operating system; None: it is not expected."""
    if isinstance(error, OSError):
        return translate_os_error(error, folder)
    detail = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
    code = detail & 0xFF  # the kind of error
    if code == sqlite3.SQLITE_CONSTRAINT and detail != sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY:
        # a bug of ours; that what a row refers to is there was looked up, so there it is a damaged
        # index
        return None
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return StoreLocked(
            f"{folder} is busy: {error}, for {BUSY_SECONDS:.0f} s",
            remedy="run the command again when the other is done",
        )
    if code in (
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_AUTH,
    ) and not has_write_access(folder):
        return PermissionRefused(f"{folder}: {error}", remedy=f"chmod -R u+rwX {folder}")
    if code in (
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_CANTOPEN,
    ):
        return disk_failure(folder, str(error))
    if code == sqlite3.SQLITE_NOMEM:
        return OutOfMemory(
            f"{folder}: {error}", remedy="close other programs, or use a smaller --batch"
        )
    # Our SQL is constant and the schema was compared at opening: what SQLite cannot run now is
    # damage (FTS5 says SQLITE_ERROR for it).
    return StoreDamaged(f"{folder / DATABASE}: {error}", remedy=CHECK)


def translate_os_error(error: OSError, folder: Path) -> RagMemtokError | None:
    """`translate_error` for an error of the operating system."""
    if error.errno in (errno.EACCES, errno.EPERM):
        return PermissionRefused(f"{folder}: {error}", remedy=f"chmod -R u+rwX {folder}")
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return NoStore(
            f"there is no store at {folder}", remedy=f"rag-memtok ingest PATH --store {folder}"
        )
    if error.errno == errno.ELOOP:
        return StoreDamaged(
            f"{folder}: {error}: a link where the store's own file should be",
            remedy="remove the link",
        )
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO):
        return disk_failure(folder, str(error))
    return None


def has_write_access(folder: Path) -> bool:
    """Whether this process may write to the folder and its database, by their permissions alone.

    A disk that is mounted read-only is another matter.
    """
    if folder.exists() and os.statvfs(folder).f_flag & os.ST_RDONLY:
        return True
    return os.access(folder, os.W_OK | os.X_OK) and (
        not (folder / DATABASE).exists() or os.access(folder / DATABASE, os.W_OK)
    )


def disk_failure(folder: Path, reason: str) -> DiskFailure:
    """The error of a disk that refuses: how much is free and how much a write may need.

    The need is a copy of the database when it is compacted, 16 MiB else.
    """
    database = folder / DATABASE
    needed = 16 * 2**20 + (database.stat().st_size if database.exists() else 0)
    free = shutil.disk_usage(folder).free if folder.exists() else 0
    message = (
        f"{folder}: {reason}; nothing that was stored is lost. Free: {free / 2**20:.1f} MiB, "
        f"enough for any write: {needed / 2**20:.1f} MiB"
    )
    return DiskFailure(
        message, remedy="make room (or the disk writable), then run the same command again"
    )


def database_identity(folder: Path) -> tuple[int, int] | None:
    """Which file a store's database is, by the system's numbers; None: there is none.

    Another one in its place is told from it as long as it is open, even if it was removed.
    """
    try:
        status = os.stat(folder / DATABASE)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def is_regular_file(path: Path) -> bool:
    """Whether `path` is a plain file: no link, FIFO or device that someone put in its place."""
    return path.is_file() and not path.is_symlink()


@contextmanager
def hold_lock(folder: Path) -> Iterator[None]:
    """The writer's lock, held within. The kernel drops it with the process: a kill leaves none.

    Raises:
        StoreLocked: another process (or another Store of this one) holds it.
    """
    with store_errors(folder):
        handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreLocked(
                f"{lock_holder(handle)} is writing to {folder}",
                remedy="wait for it, or stop it; reading goes on",
            ) from None
        with store_errors(folder):
            os.ftruncate(handle, 0)
            os.pwrite(
                handle,
                json.dumps(
                    {"pid": os.getpid(), "started": datetime.now(UTC).isoformat(timespec="seconds")}
                ).encode(),
                0,
            )
        mark("locked")
        yield
    finally:
        os.close(handle)


def lock_holder(handle: int) -> str:
    """The process that holds the lock, as it wrote there."""
    try:
        content = json.loads(os.pread(handle, 4096, 0))
        return f"process {int(content['pid'])}, started {str(content['started'])[:40]},"
    except (ValueError, KeyError, TypeError):  # it has the lock, and is about to write who it is
        return "another process"


def list_collections(root: Path) -> list[str]:
    """The names of the stores under a folder that holds several."""
    with store_errors(root):
        names = sorted(entry.name for entry in root.iterdir()) if root.is_dir() else []
    return [
        name for name in names if COLLECTION.fullmatch(name) and (root / name / DATABASE).exists()
    ]


def folder_of(root: Path, collection: str) -> Path:
    """The folder of a store: `root`, or that of a collection in it.

    Raises:
        UsageError: `root` is a store, not a folder of collections, or the other way round: the two
            are never mixed.
    """
    if collection and (root / DATABASE).exists():
        raise UsageError(
            f"{root} is a store itself; it holds no collections",
            remedy="leave --collection out, or name another --store",
        )
    if not collection and not (root / DATABASE).exists() and (names := list_collections(root)):
        shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
        raise UsageError(
            f"{root} holds collections: {shown}",
            remedy="--collection NAME takes one of them, or starts one",
        )
    return root / collection


def sibling(folder: Path, suffix: str) -> Path:
    """Another folder next to a store's: `store` -> `store.old`."""
    whole = folder.absolute()
    return whole.with_name(whole.name + suffix)


def sync_folder(folder: Path) -> None:
    """Flushes the names in a folder to the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_privately(path: Path, content: bytes | Iterable[bytes | memoryview]) -> None:
    """Writes a file that only its owner can read, and flushes it to the disk."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    mark("file begun")
    with os.fdopen(handle, "wb") as file:
        file.writelines((content,) if isinstance(content, bytes) else content)
        file.flush()
        mark("file written")
        os.fsync(file.fileno())


def put_in_place(path: Path) -> None:
    """Renames the finished `path`.new to `path`, and flushes the name to the disk."""
    mark("before the rename")
    os.replace(f"{path}{NEW}", path)
    mark("renamed")
    sync_folder(path.parent)


def drop_unfinished(store: Path) -> None:
    """Removes what a kill left of a cache that was being written."""
    for name in CACHES:
        (store / f"{name}{NEW}").unlink(missing_ok=True)


def outdate_adapter(store: Path) -> None:
    """Marks a store's adapter as trained on what is there no more.

    It also removes what an unfinished training kept: it is chunks' text.
    """
    folder = store / ADAPTER
    if folder.is_dir() and not folder.is_symlink():
        drop_work(folder / ADAPTER_WORK)
        drop_work(folder / EARLIER_WORK)
        write_privately(folder / STALE, b"")


def drop_work(work: Path) -> None:
    """Removes what a training kept to go on from; what else is in its folder stays."""
    with suppress(OSError):
        for file in [] if work.is_symlink() else list(work.iterdir()):
            if WORK_FILE.fullmatch(file.name):
                file.unlink()
        work.rmdir()


def carry_uploads(old: Path, new: Path) -> None:
    """Gives a store copies of what another's server was sent, and nothing else in their place.

    Whoever made the other may have put links or devices there: they stay behind.

    Cost: the disk of the uploads once more.
    """
    target = new / UPLOADS
    with store_errors(new):
        if target.exists():  # of a run that was killed
            shutil.rmtree(target)
        if (old / UPLOADS).is_symlink():
            return
        for folder, _, names in os.walk(old / UPLOADS):
            copies = target / os.path.relpath(folder, old / UPLOADS)
            copies.mkdir(mode=0o700)
            for name in filter(lambda name: is_regular_file(Path(folder, name)), sorted(names)):
                _copy_privately(Path(folder, name), copies / name)
            sync_folder(copies)


def drop_uploads(store: Path, names: Iterable[str]) -> None:
    """Deletes those of the files of these whole names that the store's server was sent.

    No others: whatever a store that someone else made says of its documents and their names, what a
    link or ".." leads to stays.
    """
    uploads = os.path.join(os.path.realpath(store), UPLOADS, "")
    for path in map(resolve_path, map(native_of, names)):
        if path.startswith(uploads) and is_regular_file(Path(path)):
            os.unlink(path)
            mark("upload deleted")


def _copy_privately(path: Path, copy: Path) -> None:
    """Copies a file with its time, by which it is known to be unchanged."""
    with open(path, "rb") as file:
        write_privately(copy, iter(lambda: file.read(PIECE), b""))
        status = os.fstat(file.fileno())
    os.utime(copy, ns=(status.st_atime_ns, status.st_mtime_ns))


def write_whole(path: Path, content: bytes | Iterable[bytes | memoryview]) -> None:
    """Writes a file, at once or piece by piece; it is the old or the new one at any instant.

    Of two at once one wins; a torn file cannot have the right digest.

    Raises:
        OSError: it could not be written; the old file stands.
    """
    new = Path(f"{path}{NEW}")
    new.unlink(missing_ok=True)
    try:
        write_privately(new, content)
        put_in_place(path)
    except OSError:
        new.unlink(missing_ok=True)
        raise
