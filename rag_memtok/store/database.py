"""`store.db` as rows.

It is made whole or not at all, opened only if it is ours, read only if it is what was written.
"""

import shlex
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path
from secrets import token_hex
from typing import Any

from rag_memtok.errors import StoreDamaged, UsageError
from rag_memtok.store.files import (
    ANOTHER_STORE,
    DATABASE,
    IGNORE,
    NEW,
    OURS,
    drop_unfinished,
    hold_lock,
    is_regular_file,
    mark,
    put_in_place,
    store_errors,
    write_privately,
)
from rag_memtok.store.formats import FORMAT
from rag_memtok.store.schema import (
    Problem,
    Row,
    admit,
    connect,
    create_tables,
    describe_problem,
    from_disk,
    insert,
    next_state,
    select,
    transaction,
)
from rag_memtok.store.terms import RULES
from rag_memtok.store.upgrade import discard_copy, is_current, upgrade
from rag_memtok.store.words import MADE_BY

RESERVED = frozenset({"store_id", "format", "state"})  # manifest keys that only the store sets

log = getLogger(__name__)


def create(folder: Path, manifest: Mapping[str, str]) -> None:
    """Makes an empty store.

    A kill leaves either no store or a whole one; creating again goes on from there.

    Raises:
        UsageError: there is a store already, or the folder holds other things.
        StoreLocked: another process is making it.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(
            f"{folder} is a file; valid: a new or empty folder", remedy="name another --store"
        )
    with store_errors(folder):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        others = sorted(entry.name for entry in folder.iterdir() if entry.name not in OURS)
    if others:
        raise UsageError(
            f"{folder} is not empty: it holds {others[0]!a}; valid: a new or empty folder",
            remedy="name another --store",
        )
    with hold_lock(folder), store_errors(folder):
        if (folder / DATABASE).exists():
            raise UsageError(
                f"there is a store at {folder} already",
                remedy=f"rag-memtok status --store {shlex.quote(str(folder))}",
            )
        folder.chmod(0o700)
        write_privately(folder / IGNORE, b"*\n")
        write_database(folder / (DATABASE + NEW), manifest)
        put_in_place(folder / DATABASE)


def write_database(path: Path, manifest: Mapping[str, str]) -> None:
    """Writes a new, empty database, over what a kill may have left of an earlier try."""
    path.with_name(f"{path.name}-journal").unlink(missing_ok=True)
    write_privately(path, b"")
    store_id = token_hex(16)
    own = {"store_id": store_id, "format": str(FORMAT), "state": next_state("0"), MADE_BY: RULES}
    values = {**manifest, **own}
    with closing(connect(path, "rwc")) as db, transaction(db, "IMMEDIATE"):
        create_tables(db)
        for row in values.items():
            insert(db, store_id, "manifest", row)


@contextmanager
def open_database(folder: Path, *, write: bool) -> Iterator["Database"]:
    """Opens the database of a store, rolling back what a kill left half written.

    Raises:
        NoStore: there is none.
        StoreLocked: another process writes to it (only if `write`).
        StoreDamaged, FormatMismatch: it is not ours, or of a format that is not read here.
    """
    with store_errors(folder):
        (folder / DATABASE).lstat()
    if not is_regular_file(folder / DATABASE):
        raise StoreDamaged(f"{folder / DATABASE} is not a plain file", remedy=ANOTHER_STORE)
    with ExitStack() as stack:
        if write:
            stack.enter_context(hold_lock(folder))
        with store_errors(folder):
            connection = stack.enter_context(closing(connect(folder / DATABASE, "rw")))
            check_connection(connection, folder, write=write)
            store_id = read_store_id(connection, folder)
        yield Database(folder, write, store_id, connection)


def check_connection(db: sqlite3.Connection, folder: Path, *, write: bool) -> None:
    """Refuses a database that is not ours, and makes the connection read-only unless `write`.

    Where a kill left a journal, which is rolled back by then, a writer checks the whole file too.

    Raises:
        StoreDamaged, FormatMismatch: see `admit`; or SQLite does not find the file whole.
    """
    journal = folder / f"{DATABASE}-journal"
    hot = journal.exists()
    with transaction(db, "DEFERRED"):
        admit(db, folder)
        if (
            hot
            and write
            and (lines := db.execute("PRAGMA quick_check(1)").fetchall()) != [(b"ok",)]
        ):
            raise StoreDamaged(
                f"{folder / DATABASE}: {lines[0][0].decode(errors='replace')}", remedy=ANOTHER_STORE
            )
    # begun by a write that was killed before it counted: SQLite would leave it until the next one
    if write and journal.exists():
        db.execute("PRAGMA journal_mode = TRUNCATE")
        db.execute("PRAGMA journal_mode = DELETE")  # deletes it, under a lock
    if write:
        discard_copy(db, folder)
        drop_unfinished(folder)
    else:
        db.execute("PRAGMA query_only = ON")


def read_store_id(db: sqlite3.Connection, folder: Path) -> str:
    """The store's id, which every checksum is over.

    Raises:
        StoreDamaged: the manifest lost a row that every store has.
    """
    row = db.execute("SELECT value FROM manifest WHERE key = 'store_id'").fetchone()
    store_id = row[0].decode(errors="replace") if row else ""
    whole = {raw[0].decode() for raw, whole in select(db, store_id, "manifest") if whole}
    if not RESERVED <= whole:
        raise StoreDamaged(
            f"{folder / DATABASE}: the manifest lost {', '.join(sorted(RESERVED - whole))}",
            remedy=ANOTHER_STORE,
        )
    return store_id


@dataclass(frozen=True, slots=True)
class Database:
    """An open database: transactions, and rows that are what was written."""

    folder: Path
    writable: bool
    store_id: str
    connection: sqlite3.Connection

    @contextmanager
    def reading(self) -> Iterator[None]:
        """One read transaction: all that is read in it is of one generation."""
        with store_errors(self.folder), transaction(self.connection, "DEFERRED"):
            yield

    @contextmanager
    def writing(self) -> Iterator[None]:
        """One write transaction, which ends with the next state; all of it or nothing.

        The first one of a store of an older format upgrades it.
        """
        assert self.writable, "opened for reading"
        if not is_current(self.connection):
            upgrade(self.connection, self.folder, self.store_id)
        with store_errors(self.folder), transaction(self.connection, "IMMEDIATE"):
            mark("transaction begun")
            yield
            self.insert(
                "manifest", ("state", next_state(self.row("manifest", "key = ?", "state")[1]))
            )
        mark("committed")

    def insert(self, table: str, row: Sequence[Any]) -> None:
        """Writes a row with its checksum, over the row of the same primary key."""
        insert(self.connection, self.store_id, table, row)

    def execute(self, query: str, values: Sequence[Any] = ()) -> sqlite3.Cursor:
        """Runs SQL for what the other methods do not do."""
        return self.connection.execute(query, values)

    def for_each(self, query: str, numbers: Iterable[int]) -> None:
        """Runs SQL once with each number."""
        self.connection.executemany(query, ((number,) for number in numbers))

    def scalar(self, query: str, *values: Any) -> Any:
        """The one value of a query."""
        return self.execute(query, values).fetchone()[0]

    def rows(
        self, table: str, where: str = "TRUE", *values: Any, skip_damaged: bool = False
    ) -> list[Row]:
        """The rows of a table.

        Raises:
            StoreDamaged: one is not what was written; with `skip_damaged` it is logged and left
                out.
        """
        return list(self.each(table, where, *values, skip_damaged=skip_damaged))

    def each(
        self, table: str, where: str = "TRUE", *values: Any, skip_damaged: bool = False
    ) -> Iterator[Row]:
        """As `rows`, one after the other; for use within a transaction."""
        for raw, whole in select(self.connection, self.store_id, table, f"WHERE {where}", values):
            if whole:
                yield from_disk(table, raw)
            elif skip_damaged:
                problem = describe_problem(self.connection, table, raw)
                log.warning("%s: left out: %s", self.folder, problem)
            else:
                raise self.damage(describe_problem(self.connection, table, raw))

    def row(self, table: str, where: str, *values: Any) -> Row:
        """The first row `where`.

        Raises:
            StoreDamaged: it is damaged, or there is none.
        """
        rows = self.rows(table, where, *values)
        if not rows:
            raise self.damage(Problem(table=table, row=ascii(values[-1]), reason="it is not there"))
        return rows[0]

    def part(self, table: str, number: int) -> Row:
        """A chunk's row in one of PARTS.

        Raises:
            StoreDamaged: it is damaged, or there is none.
        """
        rows = self.rows(table, "chunk = ?", number)
        if not rows:
            absent = "it is not there"
            raise self.damage(describe_problem(self.connection, table, (number,), absent))
        return rows[0]

    def damage(self, problem: Problem) -> StoreDamaged:
        """An exception that names a problem and the command that mends it."""
        path = shlex.quote(problem.file) if problem.file else "PATH"
        return StoreDamaged(
            f"{self.folder}: {problem}",
            remedy=f"rag-memtok ingest {path} --store {shlex.quote(str(self.folder))} writes it "
            "anew",
        )

    def next_number(self, table: str) -> int:
        """A number that no row of the table ever had."""
        used = self.scalar(
            "SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = ?", table
        )
        return max(used, self.scalar(f"SELECT coalesce(max(number), 0) FROM {table}")) + 1
