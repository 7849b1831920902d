"""The shape of `store.db`: its tables, its pragmas, its rows and their checksums.

`store.py` has the verbs.

SQLite does not notice a flipped bit in row data, so every row carries a sha256 of our own over
(store id, table, all its columns). The store id makes rows of two stores distinct, the table and
the primary key those of one: swapped rows are found like flipped bits.
"""

import hashlib
import sqlite3
import struct
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rag_memtok.datatypes import Pin, Verdict
from rag_memtok.errors import FormatMismatch, StoreDamaged
from rag_memtok.store.files import BUSY_SECONDS, DATABASE, mark

FORMAT = 1
APPLICATION_ID = 0x524D544B  # "RMTK"
PIN = struct.Struct("<IIB")
PIN_KINDS: tuple[Literal["correction"], Literal["safety"]] = ("correction", "safety")
Row = tuple[Any, ...]

# File and folder names are BLOBs: a name on disk need not be UTF-8. Every column but a table's
# checksum is in its COLUMNS, in this order.
COLUMNS: dict[str, tuple[str, ...]] = {
    "manifest": ("key", "value"),
    "documents": (
        "number",
        "root",
        "file",
        "path",
        "sha256",
        "file_sha256",
        "chunks",
        "characters",
        "extractor",
    ),
    "chunks": ("number", "id", "tokens", "tokens_sha256", "keyed", "worded"),
    "occurrences": ("document", "ordinal", "chunk", "start", "stop", "locator"),
    "texts": ("chunk", "text"),
    "vectors": ("chunk", "codec", "rows", "width", "packed"),
    "pins": ("chunk", "packed"),
    "keys": ("chunk", "packed"),
    "verdicts": ("chunk", "kind", "tokens", "corrections", "safeties", "margin", "reason"),
}
NAMES = {"root", "file", "path"}
KEY_COLUMNS = {"occurrences": 2}  # how many columns the primary key has, where not one
# the tables that hold at most one row per chunk
PARTS = ("texts", "vectors", "pins", "keys", "verdicts")

TOKENIZE = '"unicode61 remove_diacritics 2"'
WORDS = f"CREATE VIRTUAL TABLE words USING fts5 (text, tokenize = {TOKENIZE})"
# `words` is a cache of the texts, written in the chunk's transaction; no triggers, which
# trusted_schema=OFF would refuse. AUTOINCREMENT: a number is never used again, so that no stale
# index or row can point at another chunk or document. Every character is part of the format.
DDL = (
    "CREATE TABLE manifest (\n"
    "        key TEXT PRIMARY KEY, value TEXT NOT NULL, checksum BLOB NOT NULL) STRICT, "
    "WITHOUT ROWID",
    "CREATE TABLE documents (\n"
    "        number INTEGER PRIMARY KEY AUTOINCREMENT, root BLOB NOT NULL, "
    "file BLOB NOT NULL, path BLOB NOT NULL, sha256 TEXT NOT NULL,\n"
    "        file_sha256 TEXT NOT NULL, chunks INTEGER NOT NULL, "
    "characters INTEGER NOT NULL, extractor TEXT NOT NULL, checksum BLOB NOT NULL,\n"
    "        UNIQUE (root, path)) STRICT",
    "CREATE INDEX documents_by_file ON documents (root, file)",
    "CREATE TABLE chunks (\n"
    "        number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, "
    "tokens INTEGER NOT NULL, tokens_sha256 TEXT NOT NULL,\n"
    "        keyed INTEGER NOT NULL, worded INTEGER NOT NULL, checksum BLOB NOT NULL) STRICT",
    "CREATE TABLE occurrences (\n"
    "        document INTEGER NOT NULL REFERENCES documents, ordinal INTEGER NOT NULL, "
    "chunk INTEGER NOT NULL REFERENCES chunks,\n"
    "        start INTEGER NOT NULL, stop INTEGER NOT NULL, locator TEXT NOT NULL, "
    "checksum BLOB NOT NULL,\n"
    "        PRIMARY KEY (document, ordinal)) STRICT, WITHOUT ROWID",
    "CREATE INDEX occurrences_by_chunk ON occurrences (chunk)",
    "CREATE TABLE texts (\n"
    "        chunk INTEGER PRIMARY KEY REFERENCES chunks, text TEXT NOT NULL, "
    "checksum BLOB NOT NULL) STRICT",
    "CREATE TABLE vectors (\n"
    "        chunk INTEGER PRIMARY KEY REFERENCES chunks, codec TEXT NOT NULL, "
    "rows INTEGER NOT NULL, width INTEGER NOT NULL,\n"
    "        packed BLOB NOT NULL, checksum BLOB NOT NULL) STRICT",
    "CREATE TABLE pins (\n"
    "        chunk INTEGER PRIMARY KEY REFERENCES chunks, packed BLOB NOT NULL, "
    "checksum BLOB NOT NULL) STRICT",
    "CREATE TABLE keys (\n"
    "        chunk INTEGER PRIMARY KEY REFERENCES chunks, packed BLOB NOT NULL, "
    "checksum BLOB NOT NULL) STRICT",
    "CREATE TABLE verdicts (\n"
    "        chunk INTEGER PRIMARY KEY REFERENCES chunks, kind TEXT NOT NULL, "
    "tokens INTEGER NOT NULL, corrections INTEGER NOT NULL,\n"
    "        safeties INTEGER NOT NULL, margin REAL NOT NULL, reason TEXT NOT NULL, "
    "checksum BLOB NOT NULL) STRICT",
    WORDS,
)
PRAGMAS = (
    "trusted_schema = OFF",
    "cell_size_check = ON",
    "mmap_size = 0",
    "foreign_keys = ON",
    "secure_delete = ON",
    "journal_mode = DELETE",
    "synchronous = EXTRA",
)

ANOTHER_STORE = "ingest into a new store: rag-memtok ingest PATH --store OTHER"


def checksum(store_id: str, table: str, values: Sequence[Any]) -> bytes:
    """Returns the row's sha256.

    Each value is hashed with its kind and length, so that no two rows hash the same bytes.
    """
    digest = hashlib.sha256()
    for value in (store_id, table, *values):
        kind, data = encoded(value)
        digest.update(b"%c%d:" % (kind, len(data)))
        digest.update(data)
    return digest.digest()


def encoded(value: object) -> tuple[bytes, bytes]:
    """Returns a column's kind and bytes.

    TEXT is read back as bytes (a flipped bit may leave no UTF-8), so it hashes like a BLOB.
    """
    if isinstance(value, bytes):
        return b"b", value
    if isinstance(value, str):
        return b"b", value.encode("utf-8")
    if isinstance(value, float):
        return b"f", struct.pack("<d", value)
    return b"i", str(value).encode()


def name_bytes(name: str) -> bytes:
    """Returns a file's name as the file system has it.

    Bytes that are not UTF-8 arrive as lone surrogates (PEP 383).
    """
    return name.encode("utf-8", "surrogateescape")


def to_disk(table: str, row: Sequence[Any]) -> Row:
    """Returns a row as it is bound."""
    return tuple(
        name_bytes(value) if column in NAMES else value
        for column, value in zip(COLUMNS[table], row, strict=True)
    )


def from_disk(table: str, raw: Sequence[Any]) -> Row:
    """Undoes `to_disk`, for a row whose checksum is right."""
    return tuple(
        value
        if not isinstance(value, bytes) or column == "packed"
        else value.decode("utf-8", "surrogateescape" if column in NAMES else "strict")
        for column, value in zip(COLUMNS[table], raw, strict=True)
    )


def insert(db: sqlite3.Connection, store_id: str, table: str, row: Sequence[Any]) -> None:
    """Writes one row with its checksum, over the row of the same primary key."""
    raw = to_disk(table, row)
    marks = ", ".join("?" * (len(raw) + 1))
    db.execute(
        f"INSERT OR REPLACE INTO {table} ({', '.join(COLUMNS[table])}, checksum) VALUES ({marks})",
        (*raw, checksum(store_id, table, raw)),
    )
    mark(f"row of {table}")


def select(
    db: sqlite3.Connection, store_id: str, table: str, rest: str = "", values: Sequence[Any] = ()
) -> Iterator[tuple[Row, bool]]:
    """Yields each row of a query, as it is on the disk, and whether its checksum is right.

    `rest` is WHERE and what follows.
    """
    for *raw, stored in db.execute(
        f"SELECT {', '.join(COLUMNS[table])}, checksum FROM {table} {rest}", values
    ):
        yield tuple(raw), stored == checksum(store_id, table, raw)


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong in the store: in which table and row.

    `chunk_id` and `file` (its path on disk) say whose, where that is known.
    """

    table: str
    row: str
    reason: str
    chunk_id: str | None = None
    file: str | None = None

    def __str__(self) -> str:
        whose = "".join(
            f", {name} {value!a}"
            for name, value in (("chunk", self.chunk_id), ("of", self.file))
            if value
        )
        return f"table {self.table}, row {self.row}{whose}: {self.reason}"


def problem(
    db: sqlite3.Connection, table: str, raw: Sequence[Any], reason: str = "its checksum is wrong"
) -> Problem:
    """Describes a row that is not what was written.

    It tells whatever can still be found out about whose it is.
    """
    row = "/".join(
        str(value.decode(errors="replace") if isinstance(value, bytes) else value)
        for value in raw[: KEY_COLUMNS.get(table, 1)]
    )
    if table == "manifest":
        return Problem(table, ascii(row), reason)
    if table == "documents":
        return Problem(table, row, reason, file=file_of(raw[1:3]))
    number = raw[2] if table == "occurrences" else raw[0]
    chunk_id, file = None, None
    with suppress(sqlite3.Error):  # what it says is a courtesy: damage here is reported where it is
        chunk = db.execute("SELECT id FROM chunks WHERE number = ?", (number,)).fetchone()
        chunk_id = chunk and chunk[0].decode(errors="replace")
        occurrence = (
            "SELECT root, file FROM documents JOIN occurrences ON document = number "
            "WHERE "
            "{} = ? LIMIT 1"
        )
        owner, value = ("document", raw[0]) if table == "occurrences" else ("chunk", number)
        file = file_of(db.execute(occurrence.format(owner), (value,)).fetchone())
    return Problem(table, row, reason, chunk_id, file)


def file_of(names: Sequence[Any] | None) -> str | None:
    """The path on disk of a document's (root, file), as far as they are still names."""
    if names is None or not all(isinstance(name, bytes) for name in names):
        return None
    return "/".join(name.decode("utf-8", "surrogateescape") for name in names)


@contextmanager
def transaction(db: sqlite3.Connection, kind: str) -> Iterator[None]:
    """One transaction, DEFERRED or IMMEDIATE: all of it or nothing.

    Inside another it is part of that.
    """
    if db.in_transaction:
        yield
        return
    db.execute(f"BEGIN {kind}")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:  # a full disk has rolled back already
            db.execute("ROLLBACK")
        raise


def connect(database: Path, mode: str) -> sqlite3.Connection:
    """Opens a database with our pragmas; `mode` is "rw" or "rwc".

    Readers too open "rw": only so can they roll back what a kill left.

    TEXT comes back as bytes: whether it is still UTF-8 is known only after its checksum.
    """
    db = sqlite3.connect(
        f"{database.absolute().as_uri()}?mode={mode}",
        uri=True,
        timeout=BUSY_SECONDS,
        isolation_level=None,
    )
    try:
        db.text_factory = bytes
        if mode == "rwc":
            db.execute("PRAGMA page_size = 16384")
        for setting in PRAGMAS:
            db.execute(f"PRAGMA {setting}").close()
    except BaseException:
        db.close()
        raise
    return db


def build(db: sqlite3.Connection) -> None:
    """Makes the empty tables of this format."""
    db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    db.execute(f"PRAGMA user_version = {FORMAT}")
    for statement in DDL:
        db.execute(statement)


def reset_words(db: sqlite3.Connection) -> None:
    """Makes the word index anew from the texts.

    FTS5 cannot drop a table it cannot read: it first gets the inner rows of an empty one.
    """
    with closing(sqlite3.connect(":memory:")) as fresh:
        fresh.execute(WORDS)
        for table in ("words_config", "words_data"):
            rows = fresh.execute(f"SELECT * FROM {table}").fetchall()
            db.execute(f"DELETE FROM {table}")
            db.executemany(f"INSERT INTO {table} VALUES (?, ?)", rows)
    db.execute("DROP TABLE words")
    db.execute(WORDS)
    db.execute("INSERT INTO words (rowid, text) SELECT chunk, text FROM texts")


def objects(db: sqlite3.Connection) -> set[tuple[bytes, ...]]:
    """Every table, index, trigger and view with its SQL."""
    return set(db.execute("SELECT type, name, tbl_name, coalesce(sql, '') FROM sqlite_master"))


def expected_objects() -> set[tuple[bytes, ...]]:
    """What `objects` gives for a store of this format, by building one in memory.

    FTS5's own tables are as this SQLite makes them.
    """
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as db:
        db.text_factory = bytes
        build(db)
        return objects(db)


def pragma(db: sqlite3.Connection, name: str) -> int:
    """The value of a pragma that is a number."""
    return int(db.execute(f"PRAGMA {name}").fetchone()[0])


def admit(db: sqlite3.Connection, folder: Path) -> None:
    """Lets a database in only if it is one of ours, of this format, and with exactly our tables.

    This comes before anything is asked of it.

    Raises:
        StoreDamaged: not our database, or something in it (a trigger, a view, a changed table) that
            we did not make.
        FormatMismatch: it is of another format.
    """
    if pragma(db, "application_id") != APPLICATION_ID:
        raise StoreDamaged(
            f"{folder / DATABASE} is not a database of rag-memtok", remedy=ANOTHER_STORE
        )
    if (version := pragma(db, "user_version")) != FORMAT:
        raise FormatMismatch(
            f"{folder} is of store format {version}, this program reads {FORMAT}",
            remedy="use the rag-memtok that wrote it",
        )
    found, expected = objects(db), expected_objects()
    if found != expected:
        names = sorted(b" ".join(entry[:2]).decode(errors="replace") for entry in found ^ expected)
        raise StoreDamaged(
            f"{folder / DATABASE} has other tables than ours: {', '.join(names)}",
            remedy=ANOTHER_STORE,
        )


def pack_pins(pins: Sequence[Pin]) -> bytes:
    """One row for all of a chunk's pins, so that a lost pin cannot go unseen."""
    return b"".join(PIN.pack(pin.position, pin.token, PIN_KINDS.index(pin.kind)) for pin in pins)


def unpack_pins(packed: bytes) -> tuple[Pin, ...]:
    """Undoes `pack_pins`."""
    return tuple(
        Pin(position, token, PIN_KINDS[kind]) for position, token, kind in PIN.iter_unpack(packed)
    )


def verdict_row(verdict: Verdict) -> Row:
    """A verdict's columns. SQLite keeps no minus zero, which would look like damage."""
    return (
        verdict.kind,
        verdict.tokens,
        verdict.corrections,
        verdict.safeties,
        verdict.margin + 0.0,
        verdict.reason,
    )
