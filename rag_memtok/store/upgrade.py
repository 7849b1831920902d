"""A store of an older format becomes one of the present: by its first write, under the lock.

    store.db          format 1 until the one transaction is committed, then the present one
    store.db.before   a copy of it as it was, until SQLite finds the upgraded one whole

A kill leaves one or the other: the next write goes on or removes the copy.
"""

import shlex
import sqlite3
from collections.abc import Iterable
from contextlib import closing, suppress
from itertools import accumulate
from logging import getLogger
from pathlib import Path

from rag_memtok.documents.headings import headings_above
from rag_memtok.errors import StoreDamaged
from rag_memtok.store.files import (
    COPY,
    DATABASE,
    NEW,
    mark,
    put_in_place,
    store_errors,
    sync_folder,
    write_privately,
)
from rag_memtok.store.formats import BLOBS, COLUMNS, CURRENT, FORMAT, VERSION
from rag_memtok.store.schema import (
    Row,
    admit,
    connect,
    format_in,
    from_disk,
    insert,
    next_state,
    read_pragma,
    select,
    transaction,
)
from rag_memtok.store.terms import RULES
from rag_memtok.store.words import MADE_BY, fill, reset

log = getLogger(__name__)

DAMAGED = b""  # the checksum of a row that was damaged before: it stays so


def is_current(db: sqlite3.Connection) -> bool:
    """Whether a database is of the present format."""
    return read_pragma(db, "user_version") == VERSION


def upgrade(db: sqlite3.Connection, folder: Path, store_id: str) -> None:
    """Brings a store to the present format, in one transaction after a copy.

    Rows of which the checksum was right get their new one; damaged rows stay damaged.

    Raises:
        DiskFailure: there is no room for a copy; the store is as it was.
        StoreDamaged: SQLite cannot read it, or does not find it whole afterwards.

    Cost: the disk of two stores; documents and occurrences in memory.
    """
    log.info("%s is upgraded to store format %d", folder, FORMAT)
    with store_errors(folder):
        try:
            copy_aside(db, folder / COPY)
            # rows that refer to none (damage) may not keep the others from being written
            db.execute("PRAGMA foreign_keys = OFF")
            with transaction(db, "IMMEDIATE"):
                mark("upgrade begun")
                rebuild(db, store_id)
                admit(db, folder)
            mark("upgraded")
        finally:
            db.execute("PRAGMA foreign_keys = ON")
            discard_copy(db, folder)


def copy_aside(db: sqlite3.Connection, path: Path) -> None:
    """Copies the database, page by page, to a private file; it is whole when it has its name.

    SQLite copies it: to close the file of an open database would drop its locks.
    """
    new = path.with_name(path.name + NEW)
    write_privately(new, b"")
    with closing(connect(new, "rw")) as copy:
        copy.execute("PRAGMA journal_mode = MEMORY").close()
        db.backup(copy)
    sync_folder(new)  # which is as good for a file
    put_in_place(path)


def discard_copy(db: sqlite3.Connection, folder: Path) -> None:
    """Removes the copy that an upgrade made, whether it ended or not.

    Raises:
        StoreDamaged: SQLite finds the copy whole, and not the store: the copy stays.
    """
    copy = folder / COPY
    copy.with_name(copy.name + NEW).unlink(missing_ok=True)
    if not copy.exists():
        return
    if not is_whole(db) and is_copy_whole(copy):
        raise StoreDamaged(
            f"{folder / DATABASE} is not whole; {copy} is what it was before its upgrade",
            remedy=shlex.join(["mv", str(copy), str(folder / DATABASE)]),
        )
    copy.unlink()
    mark("copy removed")
    sync_folder(folder)


def is_whole(db: sqlite3.Connection) -> bool:
    """Whether SQLite finds nothing wrong. Cost: reads all of it."""
    return bool(db.execute("PRAGMA quick_check(1)").fetchall() == [(b"ok",)])


def is_copy_whole(copy: Path) -> bool:
    """`is_whole` of a copy; damage that is older than an upgrade is in both."""
    with closing(connect(copy, "rw")) as db:
        return is_whole(db)


def rebuild(db: sqlite3.Connection, store_id: str) -> None:
    """Rewrites every table in the present format; within a transaction."""
    before = format_in(db)
    changed = [table for table in before.columns if before.columns[table] != COLUMNS[table]]
    kept = {table: list(select(db, store_id, table)) for table in changed}
    state = db.execute("SELECT value FROM manifest WHERE key = 'state'").fetchone()[0].decode()
    used = db.execute("SELECT seq, name FROM sqlite_sequence").fetchall()
    for table in reversed(changed):
        db.execute(f"DROP TABLE {table}")
    existing = {name.decode() for (name,) in db.execute("SELECT name FROM sqlite_master")}
    for name, statement in CURRENT.ddl.items():
        if name not in existing:
            db.execute(statement)
    db.execute(f"PRAGMA user_version = {VERSION}")
    for table, rows in kept.items():
        refill(db, store_id, table, rows)
    put_headings(db, store_id)
    db.execute("DELETE FROM sqlite_sequence")  # numbers that were ever used stay used
    db.executemany("INSERT INTO sqlite_sequence (seq, name) VALUES (?, CAST(? AS TEXT))", used)
    reset(db, "words")
    fill(db, "names")
    for row in (("format", str(FORMAT)), ("state", next_state(state)), (MADE_BY, RULES)):
        insert(db, store_id, "manifest", row)


def put_headings(db: sqlite3.Connection, store_id: str) -> None:
    """Gives places the headings above them, where all texts of their document are kept and whole.

    Cost: reads every kept text, of one document at a time.
    """
    for raw, whole in list(select(db, store_id, "documents")):
        if not whole:
            continue
        number, _, file, *_ = from_disk("documents", raw)
        rest = "WHERE document = ? ORDER BY ordinal"
        rows = list(select(db, store_id, "occurrences", rest, (number,)))
        texts = [
            text[1].decode()
            for place, place_whole in rows
            if place_whole
            for text, text_whole in select(db, store_id, "texts", "WHERE chunk = ?", (place[2],))
            if text_whole
        ]
        if not rows or len(texts) != len(rows):
            continue
        starts = list(accumulate(map(len, texts[:-1]), initial=0))
        for (place, _), above in zip(
            rows, headings_above(file, "".join(texts), starts), strict=True
        ):
            if above:
                insert(db, store_id, "occurrences", (*from_disk("occurrences", place)[:-1], above))


def refill(
    db: sqlite3.Connection, store_id: str, table: str, rows: Iterable[tuple[Row, bool]]
) -> None:
    """Writes the rows of a table again, those that are whole first."""
    for raw, whole in sorted(rows, key=lambda row: not row[1]):
        if whole:
            insert(db, store_id, table, from_disk(table, raw))
            continue
        slots = [
            "CAST(? AS TEXT)" if isinstance(value, bytes) and column not in BLOBS else "?"
            for column, value in zip(COLUMNS[table], raw, strict=True)
        ]
        with suppress(sqlite3.IntegrityError):  # what no column can hold is lost, and seen as that
            columns = ", ".join(COLUMNS[table])
            db.execute(
                f"INSERT INTO {table} ({columns}, checksum) VALUES ({', '.join(slots)}, ?)",
                (*raw, DAMAGED),
            )
