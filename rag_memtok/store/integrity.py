"""What is in the store, and what `verify` asks before any model is loaded.

It asks whether every row is what was written, and whether everything is there.
"""

import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rag_memtok.store.formats import COLUMNS, OPTIONAL, PARTS
from rag_memtok.store.schema import Problem, describe_problem, format_in, select, transaction
from rag_memtok.store.words import find_stale, is_outdated, word_indexes

# Rows read in one transaction by the checks of rows with a number and of the word indexes: a writer
# waits for these, not for all of the check. Of the others each is one transaction.
PAGE = 64
LIMIT = 100  # lines that SQLite's own check may give

MISPLACED = """SELECT number, root, file, chunks, count(ordinal)
    FROM documents LEFT JOIN occurrences ON document = number GROUP BY number
    HAVING count(ordinal) <> chunks OR coalesce(min(ordinal), 0) <> 0
        OR coalesce(max(ordinal), chunks - 1) <> chunks - 1"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Numbers of what is in a store.

    `chunks` have an occurrence, `orphans` have none (yet); `verdicts` are those of the chunks;
    `readable` chunks have vectors of an encoder; `bytes` are per table.
    """

    chunks: int
    orphans: int
    documents: int
    verdicts: Mapping[str, int]
    readable: int
    bytes: Mapping[str, int]


def summarize(db: sqlite3.Connection, store_id: str) -> Summary:
    """Counts what is in the store; a damaged verdict counts as "damaged".

    Cost: reads every row once.
    """
    every, documents = (
        scalar(db, "SELECT count(*) FROM chunks"),
        scalar(db, "SELECT count(*) FROM documents"),
    )
    placed = scalar(db, "SELECT count(DISTINCT chunk) FROM occurrences")
    rows = select(db, store_id, "verdicts", "WHERE chunk IN (SELECT chunk FROM occurrences)")
    kinds = Counter(raw[1].decode() if whole else "damaged" for raw, whole in rows)
    sizes = {
        table: scalar(db, f"SELECT coalesce(sum({size_sql(columns)}), 0) FROM {table}")
        for table, columns in format_in(db).columns.items()
    }
    readable = scalar(db, "SELECT count(*) FROM readables") if "readables" in sizes else 0
    for table in word_indexes(db):
        sizes[table] = scalar(db, f"SELECT coalesce(sum(length(block)), 0) FROM {table}_data")
    return Summary(
        chunks=placed,
        orphans=every - placed,
        documents=documents,
        verdicts=dict(kinds),
        readable=readable,
        bytes=sizes,
    )


def scalar(db: sqlite3.Connection, query: str) -> int:
    """The one number a query gives."""
    return db.execute(query).fetchone()[0]


def size_sql(columns: Sequence[str]) -> str:
    """The SQL expression for the bytes of a row."""
    return " + ".join(f"length(CAST({column} AS BLOB))" for column in columns)


def find_problems(
    db: sqlite3.Connection, store_id: str, *, structural: bool = True
) -> Iterator[Problem]:
    """Yields every problem that can be seen without a model.

    With `structural` it also looks by SQLite's own check and in the word indexes.

    Cost: reads all of the database, a few rows in memory at a time; `structural` does so once more.
    """
    if structural:
        yield from guard("store.db", check_structure(db))
    for table in COLUMNS:
        yield from guard(table, check_checksums(db, store_id, table))
    yield from guard("chunks", check_parts(db))
    yield from guard("documents", check_places(db))
    if structural:
        yield from check_word_indexes(db)


def check_word_indexes(db: sqlite3.Connection) -> Iterator[Problem]:
    """Yields what is wrong in the word indexes. Cost: reads all texts and places.

    An index made by other rules is not compared: the next ingest makes it anew.
    """
    for table in () if is_outdated(db) else word_indexes(db):
        yield from guard(table, check_words(db, table))


def word_index_fault(db: sqlite3.Connection) -> str:
    """Why the word indexes have to be made anew; "" if they need not.

    Cost: that of `check_word_indexes`.
    """
    if is_outdated(db):
        return "made by other rules"
    return "damaged" if any(check_word_indexes(db)) else ""


def guard(table: str, problems: Iterator[Problem]) -> Iterator[Problem]:
    """Yields `problems`, and one more where SQLite itself cannot go on with the table."""
    try:
        yield from problems
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError) and error.sqlite_errorcode & 0xFF in (
            sqlite3.SQLITE_BUSY,
            sqlite3.SQLITE_IOERR,
        ):
            raise  # no damage: the system refuses
        yield Problem(table=table, row="?", reason=str(error))
    except UnicodeDecodeError:  # as in `files.store_errors`
        yield Problem(table=table, row="?", reason="SQLite cannot read it")


def check_structure(db: sqlite3.Connection) -> Iterator[Problem]:
    """Yields what SQLite finds in its trees, indexes and references, whatever the rows say."""
    with transaction(db, "DEFERRED"):
        for (line,) in db.execute(f"PRAGMA integrity_check({LIMIT})").fetchall():
            if line != b"ok":
                yield Problem(table="store.db", row="?", reason=line.decode(errors="replace"))
        for table, row, parent, _ in db.execute("PRAGMA foreign_key_check").fetchall():
            yield Problem(
                table=table.decode(),
                row="?" if row is None else str(row),
                reason=f"it refers to a row of {parent.decode()} that is not there",
            )


def check_checksums(db: sqlite3.Connection, store_id: str, table: str) -> Iterator[Problem]:
    """Yields the rows of a table whose checksum is wrong, in pages.

    The two tables without a number have small rows and are one page, of which none is kept.
    """
    key = COLUMNS[table][0]
    if table in ("manifest", "occurrences"):
        with transaction(db, "DEFERRED"):
            rows = select(db, store_id, table)
            damaged = [
                describe_problem(db, table, row_head(raw)) for raw, whole in rows if not whole
            ]
        yield from damaged
        return
    last, size = -(2**63), PAGE
    while size == PAGE:
        rest = f"WHERE {key} > {last} ORDER BY {key} LIMIT {PAGE}"
        with transaction(db, "DEFERRED"):
            page = [(row_head(raw), whole) for raw, whole in select(db, store_id, table, rest)]
            damaged = [describe_problem(db, table, raw) for raw, whole in page if not whole]
        yield from damaged
        if not page or page[-1][0][0] <= last:  # a damaged tree may give a number twice
            return
        last, size = page[-1][0][0], len(page)


def row_head(raw: tuple[Any, ...]) -> tuple[Any, ...]:
    """The columns that name a row: a page of vectors is not held in memory."""
    return raw[:3]


def check_parts(db: sqlite3.Connection) -> Iterator[Problem]:
    """Yields chunks that lack a row in a table, or have one too many."""
    wanted = {"texts": "worded", "keys": "keyed"}
    with transaction(db, "DEFERRED"):
        for table in (part for part in PARTS if part not in OPTIONAL):
            query = f"""SELECT number FROM chunks LEFT JOIN {table} ON chunk = number
                WHERE (chunk IS NOT NULL) <> {wanted.get(table, "1")}"""
            for (number,) in db.execute(query).fetchall():
                yield describe_problem(
                    db, table, (number,), "it is missing, or should not be there"
                )


def check_places(db: sqlite3.Connection) -> Iterator[Problem]:
    """Yields documents whose chunks are not 0, 1, ... up to their count."""
    with transaction(db, "DEFERRED"):
        for number, root, file, chunks, count in db.execute(MISPLACED).fetchall():
            yield describe_problem(
                db,
                "documents",
                (number, root, file),
                f"it has {chunks} chunks, {count} are in their places",
            )


def check_words(db: sqlite3.Connection, table: str) -> Iterator[Problem]:
    """Yields chunks of which a word index has something else than it has to, in pages."""
    last, wrong = -(2**63), "the word index has another text"
    while True:
        page = f"SELECT number FROM chunks WHERE number > {last} ORDER BY number LIMIT {PAGE}"
        with transaction(db, "DEFERRED"):
            end = scalar(db, f"SELECT coalesce(max(number), {last}) FROM ({page})")
            stale = find_stale(db, table, last, end)
            problems = [describe_problem(db, table, (number,), wrong) for number in stale]
        yield from problems
        if end <= last:  # a damaged tree may give a number twice
            break
        last = end
    # FTS5 checks itself only for a writer
    if not db.execute("PRAGMA query_only").fetchone()[0]:
        with transaction(db, "DEFERRED"):
            db.execute(f"INSERT INTO {table} ({table}) VALUES ('integrity-check')")
