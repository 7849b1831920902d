"""A store of the present format made into one of format 1, as the program of then would have it."""

import sqlite3
from contextlib import closing
from pathlib import Path

from rag_memtok.store.formats import FORMAT_1
from rag_memtok.store.schema import checksum, select
from rag_memtok.store.store import open_store


def to_format_1(folder: Path) -> Path:
    """Rewrites the database of a store; what format 1 cannot hold is gone."""
    with open_store(folder, write=False) as store:
        rows = {
            table: [raw[: len(columns)] for raw, _ in select(store._db.connection, "", table)]
            for table, columns in FORMAT_1.columns.items()
        }
        used = store._db.execute("SELECT name, seq FROM sqlite_sequence").fetchall()
        store_id = store.store_id
    path = folder / "store.db"
    path.unlink()
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA page_size = 16384")
        db.execute(f"PRAGMA application_id = {0x524D544B}")
        db.execute("PRAGMA user_version = 1")
        for statement in FORMAT_1.ddl.values():
            db.execute(statement)
        for table, raws in rows.items():
            for raw in raws:
                write(db, store_id, table, (b"format", b"1") if raw[0] == b"format" else raw)
        db.execute("DELETE FROM sqlite_sequence")
        db.executemany("INSERT INTO sqlite_sequence VALUES (CAST(? AS TEXT), ?)", used)
        db.execute("INSERT INTO words (rowid, text) SELECT chunk, text FROM texts")
        db.commit()
    path.chmod(0o600)
    return folder


def write(db: sqlite3.Connection, store_id: str, table: str, raw: tuple) -> None:
    """Writes a row with the checksum of format 1; bytes go where they are text, too."""
    info = db.execute(f"PRAGMA table_info({table})").fetchall()
    kinds = {name: kind for _, name, kind, *_ in info}
    columns = FORMAT_1.columns[table]
    slots = ["CAST(? AS TEXT)" if kinds[name] == "TEXT" else "?" for name in columns]
    db.execute(
        f"INSERT INTO {table} ({', '.join(columns)}, checksum) VALUES ({', '.join(slots)}, ?)",
        (*raw, checksum(store_id, table, raw)),
    )
