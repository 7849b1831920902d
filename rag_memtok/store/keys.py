"""The keys that chunks are found by."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Int

from rag_memtok.errors import StoreDamaged
from rag_memtok.store.database import Database
from rag_memtok.store.files import ANOTHER_STORE, DATABASE


def read_keys(db: Database) -> tuple[Int[np.ndarray, " N"], Float[np.ndarray, "N e"]]:
    """See `Store.keys`."""
    placed = "chunk IN (SELECT chunk FROM occurrences)"
    with db.reading():
        count = db.scalar(f"SELECT count(*) FROM keys WHERE {placed}")
        numbers, matrix = np.zeros(count, dtype=np.int64), np.zeros((count, 0), dtype=np.float32)
        row = 0
        for number, packed in db.each("keys", f"{placed} ORDER BY chunk", skip_damaged=True):
            if not row:
                matrix = np.zeros((count, len(packed) // 4), dtype=np.float32)  # [N, e]
            if len(packed) != 4 * matrix.shape[1]:
                raise StoreDamaged(
                    f"{db.folder / DATABASE} has keys of several widths", remedy=ANOTHER_STORE
                )
            numbers[row], matrix[row] = number, np.frombuffer(packed, dtype="<f4")
            row += 1
    return numbers[:row], matrix[:row]


def replace_keys(
    db: Database, keys: Mapping[str, Float[np.ndarray, " e"]], manifest: Mapping[str, str]
) -> None:
    """See `Store.set_keys`."""
    with db.writing():
        for chunk_id, key in keys.items():
            number, *columns, _, worded = db.row("chunks", "id = ?", chunk_id)
            db.insert("chunks", (number, *columns, 1, worded))
            db.insert("keys", (number, np.asarray(key, dtype="<f4").tobytes()))
        for entry in manifest.items():
            db.insert("manifest", entry)
