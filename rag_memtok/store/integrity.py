"""What is in the store, and what `verify` asks before any model is loaded.

It asks whether every row is what was written, and whether everything is there.
"""

import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rag_memtok.store.formats import COLUMNS, OPTIONAL, PARTS
from rag_memtok.store.schema import Problem, format_in, problem, select, transaction
from rag_memtok.store.words import indexes, outdated, stale

PAGE = 64  # rows read in one transaction: a writer waits for these, not for the whole check
LIMIT = 100  # lines that SQLite's own check may give

MISPLACED = """SELECT number, root, file, chunks, count(ordinal)
    FROM documents LEFT JOIN occurrences ON document = number GROUP BY number
    HAVING count(ordinal) <> chunks OR coalesce(min(ordinal), 0) <> 0
        OR coalesce(max(ordinal), chunks - 1) <> chunks - 1"""


@dataclass(frozen=True, slots=True)
class Summary:
    """Counts.

    `chunks` have an occurrence, `orphans` have none (yet); `verdicts` are those of the chunks;
    `readable` chunks have vectors of an encoder; `bytes` are per table.
    """

    chunks: int
    orphans: int
    documents: int
    verdicts: Mapping[str, int]
    readable: int
    bytes: Mapping[str, int]


def summarise(db: sqlite3.Connection, store_id: str) -> Summary:
    """Counts what is in the store; a damaged verdict counts as "damaged".

    Cost: reads every row once.
    """
    every, documents = (
        scalar(db, "SELECT count(*) FROM chunks"),
        scalar(db, "SELECT count(*) FROM documents"),
    )
    placed = scalar(db, "SELECT count(DISTINCT chunk) FROM occurrences")
    found = select(db, store_id, "verdicts", "WHERE chunk IN (SELECT chunk FROM occurrences)")
    kinds = Counter(raw[1].decode() if whole else "damaged" for raw, whole in found)
    sizes = {
        table: scalar(db, f"SELECT coalesce(sum({size(columns)}), 0) FROM {table}")
        for table, columns in format_in(db).columns.items()
    }
    readable = scalar(db, "SELECT count(*) FROM readables") if "readables" in sizes else 0
    for table in indexes(db):
        sizes[table] = scalar(db, f"SELECT coalesce(sum(length(block)), 0) FROM {table}_data")
    return Summary(placed, every - placed, documents, dict(kinds), readable, sizes)


def scalar(db: sqlite3.Connection, query: str) -> int:
    """The one number a query gives."""
    return db.execute(query).fetchone()[0]


def size(columns: Sequence[str]) -> str:
    """The SQL for a row's bytes."""
    return " + ".join(f"length(CAST({column} AS BLOB))" for column in columns)


def problems(db: sqlite3.Connection, store_id: str, structural: bool = True) -> Iterator[Problem]:
    """Yields everything wrong that can be seen without a model.

    With `structural` it also looks by SQLite's own check and in the word indexes.

    Cost: reads all of the database, a few rows in memory at a time; `structural` does so once more.
    """
    if structural:
        yield from guarded("store.db", structure(db))
    for table in COLUMNS:
        yield from guarded(table, checksums(db, store_id, table))
    for table, questions in (("chunks", parts(db)), ("documents", places(db))):
        yield from guarded(table, questions)
    if structural:
        yield from index(db)


def index(db: sqlite3.Connection) -> Iterator[Problem]:
    """Yields what is wrong in the word indexes. Cost: reads all texts and places.

    One made by other rules is not compared: the next ingest makes it anew.
    """
    for table in () if outdated(db) else indexes(db):
        yield from guarded(table, words(db, table))


def wrong_with_words(db: sqlite3.Connection) -> str:
    """Why the word indexes have to be made anew; "" if they need not. Cost: that of `index`."""
    if outdated(db):
        return "made by other rules"
    return "damaged" if any(index(db)) else ""


def guarded(table: str, found: Iterator[Problem]) -> Iterator[Problem]:
    """Yields what is found.

    Where SQLite itself cannot go on, that is a problem too, and the next part is looked at.
    """
    try:
        yield from found
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError) and error.sqlite_errorcode & 0xFF in (
            sqlite3.SQLITE_BUSY,
            sqlite3.SQLITE_IOERR,
        ):
            raise  # no damage: the system refuses
        yield Problem(table, "?", str(error))
    except UnicodeDecodeError:  # as in `files.store_errors`
        yield Problem(table, "?", "SQLite cannot read it")


def structure(db: sqlite3.Connection) -> Iterator[Problem]:
    """What SQLite finds in its trees, indexes and references.

    It knows nothing of the rows' content.
    """
    with transaction(db, "DEFERRED"):
        for (line,) in db.execute(f"PRAGMA integrity_check({LIMIT})").fetchall():
            if line != b"ok":
                yield Problem("store.db", "?", line.decode(errors="replace"))
        for table, row, parent, _ in db.execute("PRAGMA foreign_key_check").fetchall():
            yield Problem(
                table.decode(),
                "?" if row is None else str(row),
                f"it refers to a row of {parent.decode()} that is not there",
            )


def checksums(db: sqlite3.Connection, store_id: str, table: str) -> Iterator[Problem]:
    """The rows of a table whose checksum is wrong, in pages.

    The two tables without a number have small rows and are one page, of which none is kept.
    """
    key = COLUMNS[table][0]
    if table in ("manifest", "occurrences"):
        with transaction(db, "DEFERRED"):
            rows = select(db, store_id, table)
            found = [problem(db, table, head(raw)) for raw, whole in rows if not whole]
        yield from found
        return
    last, size = -(2**63), PAGE
    while size == PAGE:
        rest = f"WHERE {key} > {last} ORDER BY {key} LIMIT {PAGE}"
        with transaction(db, "DEFERRED"):
            page = [(head(raw), whole) for raw, whole in select(db, store_id, table, rest)]
            found = [problem(db, table, raw) for raw, whole in page if not whole]
        yield from found
        if not page or page[-1][0][0] <= last:  # a damaged tree may give a number twice
            return
        last, size = page[-1][0][0], len(page)


def head(raw: tuple[Any, ...]) -> tuple[Any, ...]:
    """What of a row is needed to name it, so that a page of vectors is not held in memory."""
    return raw[:3]


def parts(db: sqlite3.Connection) -> Iterator[Problem]:
    """Chunks that lack a row in a table, or have one too many."""
    wanted = {"texts": "worded", "keys": "keyed"}
    with transaction(db, "DEFERRED"):
        for table in (one for one in PARTS if one not in OPTIONAL):
            query = f"""SELECT number FROM chunks LEFT JOIN {table} ON chunk = number
                WHERE (chunk IS NOT NULL) <> {wanted.get(table, "1")}"""
            for (number,) in db.execute(query).fetchall():
                yield problem(db, table, (number,), "it is missing, or should not be there")


def places(db: sqlite3.Connection) -> Iterator[Problem]:
    """Documents whose chunks are not 0, 1, ... up to their count."""
    with transaction(db, "DEFERRED"):
        for number, root, file, chunks, count in db.execute(MISPLACED).fetchall():
            yield problem(
                db,
                "documents",
                (number, root, file),
                f"it has {chunks} chunks, {count} are in their places",
            )


def words(db: sqlite3.Connection, table: str) -> Iterator[Problem]:
    """Chunks of which a word index has something else than it has to."""
    with transaction(db, "DEFERRED"):
        for number in stale(db, table):
            yield problem(db, table, (number,), "the word index has another text")
        # FTS5 checks itself only for a writer
        if not db.execute("PRAGMA query_only").fetchone()[0]:
            db.execute(f"INSERT INTO {table} ({table}) VALUES ('integrity-check')")
