"""The keys that chunks are found by."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Int

from rag_memtok.errors import StoreDamaged
from rag_memtok.store.database import Database
from rag_memtok.store.files import ANOTHER_STORE, DATABASE


def keys_of(db: Database) -> tuple[Int[np.ndarray, " N"], Float[np.ndarray, "N e"]]:
    """See `Store.keys`."""
    with db.reading():
        rows = db.rows(
            "keys", "chunk IN (SELECT chunk FROM occurrences) ORDER BY chunk", skip_damaged=True
        )
    if len({len(packed) for _, packed in rows}) > 1:
        raise StoreDamaged(
            f"{db.folder / DATABASE} has keys of several widths", remedy=ANOTHER_STORE
        )
    matrix = np.frombuffer(b"".join(packed for _, packed in rows), dtype="<f4")
    width = -1 if rows else 0
    return np.array([number for number, _ in rows], dtype=np.int64), matrix.reshape(
        len(rows), width
    )


def replace_keys(
    db: Database, keys: Mapping[str, Float[np.ndarray, " e"]], told: Mapping[str, str]
) -> None:
    """See `Store.set_keys`."""
    with db.writing():
        for chunk_id, key in keys.items():
            row = db.row("chunks", "id = ?", chunk_id)
            db.insert("chunks", (*row[:4], 1, *row[5:]))
            db.insert("keys", (row[0], np.asarray(key, dtype="<f4").tobytes()))
        for entry in told.items():
            db.insert("manifest", entry)
