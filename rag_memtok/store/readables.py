"""The vectors that an encoder made of chunks' texts: beside a memory, and never needed to restore.

They can be made again, so a chunk may lack them; a row that is there is what was written.
"""

from collections.abc import Mapping

from rag_memtok.datatypes import ReadableVectors
from rag_memtok.store.database import Database


def read_readable(db: Database, number: int) -> ReadableVectors | None:
    """The readable vectors of a chunk; None where it has none.

    Raises:
        StoreDamaged: they are not what was written.
    """
    for _, encoder, window, codec, rows, width, packed in db.rows("readables", "chunk = ?", number):
        return ReadableVectors(
            encoder=encoder, window=window, codec=codec, packed=packed, shape=(rows, width)
        )
    return None


def insert_readable(db: Database, number: int, vectors: ReadableVectors) -> None:
    """Writes the readable vectors of a chunk; within a transaction."""
    columns = (vectors.encoder, vectors.window, vectors.codec, *vectors.shape, vectors.packed)
    db.insert("readables", (number, *columns))


def put_readables(db: Database, by_chunk: Mapping[str, ReadableVectors]) -> None:
    """See `Store.put_readables`."""
    with db.writing():
        for chunk_id, vectors in by_chunk.items():
            insert_readable(db, db.row("chunks", "id = ?", chunk_id)[0], vectors)


def lacking_readables(db: Database, encoder: str, window: int) -> tuple[str, ...]:
    """See `Store.lacking_readables`."""
    with db.reading():
        rows = db.rows(
            "readables", "encoder = ? AND window = ?", encoder, window, skip_damaged=True
        )
        have = {row[0] for row in rows}
        chunks = db.rows("chunks", "TRUE ORDER BY number", skip_damaged=True)
    return tuple(row[1] for row in chunks if row[0] not in have)
