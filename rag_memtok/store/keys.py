"""The keys that chunks are found by."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Int

from rag_memtok.errors import StoreDamaged
from rag_memtok.store.database import Database
from rag_memtok.store.files import ANOTHER_STORE, DATABASE


def keys_of(db: Database) -> tuple[Int[np.ndarray, " N"], Float[np.ndarray, "N e"]]:
    """See `Store.keys`."""
    placed = "chunk IN (SELECT chunk FROM occurrences)"
    with db.reading():
        count = db.scalar(f"SELECT count(*) FROM keys WHERE {placed}")
        numbers, matrix = np.zeros(count, dtype=np.int64), np.zeros((count, 0), dtype=np.float32)
        there = 0
        for number, packed in db.each("keys", f"{placed} ORDER BY chunk", skip_damaged=True):
            if not there:
                matrix = np.zeros((count, len(packed) // 4), dtype=np.float32)
            if len(packed) != 4 * matrix.shape[1]:
                raise StoreDamaged(
                    f"{db.folder / DATABASE} has keys of several widths", remedy=ANOTHER_STORE
                )
            numbers[there], matrix[there] = number, np.frombuffer(packed, dtype="<f4")
            there += 1
    return numbers[:there], matrix[:there]


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
