"""How `store.db` is opened and its rows read and written, each with its checksum.

`formats.py` has the tables, `store.py` the verbs.

SQLite does not notice a flipped bit in row data, so every row carries a sha256 of our own over
(store id, table, all its columns). The store id makes rows of two stores distinct, the table and
the primary key those of one: swapped rows are found like flipped bits.
"""

import hashlib
import secrets
import sqlite3
import struct
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rag_memtok.datatypes import Pin, Verdict
from rag_memtok.errors import StoreDamaged
from rag_memtok.store.files import ANOTHER_STORE, BUSY_SECONDS, DATABASE, mark
from rag_memtok.store.formats import (
    COLUMNS,
    CURRENT,
    KEY_COLUMNS,
    LATER,
    NAMES,
    VERSION,
    Format,
    format_of,
)

APPLICATION_ID = 0x524D544B  # "RMTK"
PIN = struct.Struct("<IIB")
PIN_KINDS: tuple[Literal["correction"], Literal["safety"]] = ("correction", "safety")
Row = tuple[Any, ...]

PRAGMAS = (
    "trusted_schema = OFF",
    "cell_size_check = ON",
    "mmap_size = 0",
    "foreign_keys = ON",
    "secure_delete = ON",
    "journal_mode = DELETE",
    "synchronous = EXTRA",
)


def checksum(store_id: str, table: str, values: Sequence[Any]) -> bytes:
    """The sha256 of a row.

    Each value is hashed with its kind and length, so that no two rows hash the same bytes.
    """
    digest = hashlib.sha256()
    for value in (store_id, table, *values):
        kind, data = encode_value(value)
        digest.update(b"%c%d:" % (kind, len(data)))
        digest.update(data)
    return digest.digest()


def encode_value(value: object) -> tuple[bytes, bytes]:
    """A column's kind and bytes.

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
    """A file's name as the file system has it.

    Bytes that are not UTF-8 arrive as lone surrogates (PEP 383).
    """
    return name.encode("utf-8", "surrogateescape")


def to_disk(table: str, row: Sequence[Any]) -> Row:
    """A row as its values are bound: names as bytes."""
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
    """Writes one row of the present format with its checksum, over that of the same primary key."""
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

    `rest` is WHERE and what follows. A row of an older format is filled up with LATER.
    """
    columns = format_in(db).columns.get(table, ())
    if not columns:  # a table that came later
        return
    later = tuple(LATER[column] for column in COLUMNS[table][len(columns) :])
    for *raw, stored in db.execute(
        f"SELECT {', '.join(columns)}, checksum FROM {table} {rest}", values
    ):
        yield (*raw, *later), stored == checksum(store_id, table, raw)


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Damage in the store: in which table and row.

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


def describe_problem(
    db: sqlite3.Connection, table: str, raw: Sequence[Any], reason: str = "its checksum is wrong"
) -> Problem:
    """The problem of a row that is not what was written, with what is left of whose it is."""
    row = "/".join(
        str(value.decode(errors="replace") if isinstance(value, bytes) else value)
        for value in raw[: KEY_COLUMNS.get(table, 1)]
    )
    if table == "manifest":
        return Problem(table=table, row=ascii(row), reason=reason)
    if table == "documents":
        return Problem(table=table, row=row, reason=reason, file=path_on_disk(raw[1:3]))
    number = raw[2] if table == "occurrences" else raw[0]
    chunk_id, file = None, None
    with suppress(sqlite3.Error):  # what it says is a courtesy: damage here is reported where it is
        chunk = db.execute("SELECT id FROM chunks WHERE number = ?", (number,)).fetchone()
        # a flipped bit may have made a number of it
        if chunk and isinstance(chunk[0], bytes):
            chunk_id = chunk[0].decode(errors="replace")
        query = (
            "SELECT root, file FROM documents JOIN occurrences ON document = number "
            "WHERE {} = ? LIMIT 1"
        )
        owner, value = ("document", raw[0]) if table == "occurrences" else ("chunk", number)
        file = path_on_disk(db.execute(query.format(owner), (value,)).fetchone())
    return Problem(table=table, row=row, reason=reason, chunk_id=chunk_id, file=file)


def files_of_chunk(db: sqlite3.Connection, number: object) -> Iterator[str]:
    """The paths on disk of every file that a chunk stands in, as far as they can be read."""
    query = "SELECT root, file FROM documents JOIN occurrences ON document = number WHERE chunk = ?"
    with suppress(sqlite3.Error):  # as in `describe_problem`
        yield from filter(None, map(path_on_disk, db.execute(query, (number,))))


def path_on_disk(names: Sequence[Any] | None) -> str | None:
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

    Any thread may use it, one at a time: to see to that is the caller's.
    """
    db = sqlite3.connect(
        f"{database.absolute().as_uri()}?mode={mode}",
        uri=True,
        timeout=BUSY_SECONDS,
        isolation_level=None,
        check_same_thread=False,
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


def create_tables(db: sqlite3.Connection) -> None:
    """Creates the empty tables of the present format."""
    db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    db.execute(f"PRAGMA user_version = {VERSION}")
    for statement in CURRENT.ddl.values():
        db.execute(statement)


def schema_objects(db: sqlite3.Connection) -> set[tuple[bytes, ...]]:
    """Every table, index, trigger and view of a database with its SQL."""
    return set(db.execute("SELECT type, name, tbl_name, coalesce(sql, '') FROM sqlite_master"))


def expected_objects(format_: Format) -> set[tuple[bytes, ...]]:
    """The `schema_objects` of a store of a format, by building one in memory.

    FTS5's own tables are as this SQLite makes them.
    """
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as db:
        db.text_factory = bytes
        for statement in format_.ddl.values():
            db.execute(statement)
        return schema_objects(db)


def read_pragma(db: sqlite3.Connection, name: str) -> int:
    """The value of a pragma that is a number."""
    return int(db.execute(f"PRAGMA {name}").fetchone()[0])


def format_in(db: sqlite3.Connection, where: object = "the store") -> Format:
    """The format of a database as it is now: while one reads, another may upgrade it.

    Raises:
        FormatMismatch: not one that this program reads.
    """
    return format_of(read_pragma(db, "user_version"), where)


def next_state(state: str) -> str:
    """The state after `state`: the generation, one up, and a nonce.

    A restored backup that is written to again never has the state of what it replaced.
    """
    return f"{int(state.partition(' ')[0]) + 1} {secrets.token_hex(8)}"


def admit(db: sqlite3.Connection, folder: Path) -> None:
    """Refuses a database that is not ours, or has not exactly the tables of its format.

    To be called before anything is asked of it.

    Raises:
        StoreDamaged: not our database, or something in it (a trigger, a view, a changed table) that
            we did not make.
        FormatMismatch: it is of a format that this program does not read.
    """
    if read_pragma(db, "application_id") != APPLICATION_ID:
        raise StoreDamaged(
            f"{folder / DATABASE} is not a database of rag-memtok", remedy=ANOTHER_STORE
        )
    present, expected = schema_objects(db), expected_objects(format_in(db, folder))
    if present != expected:
        names = sorted(
            b" ".join(entry[:2]).decode(errors="replace") for entry in present ^ expected
        )
        raise StoreDamaged(
            f"{folder / DATABASE} has other tables than ours: {', '.join(names)}",
            remedy=ANOTHER_STORE,
        )


def pack_pins(pins: Sequence[Pin]) -> bytes:
    """A chunk's pins as the bytes of one row, so that a lost pin cannot go unseen."""
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
