"""The vectors that an encoder made of chunks' texts: beside a memory, and never needed to restore.

They can be made again, so a chunk may lack them; a row that is there is what was written.
"""

from collections.abc import Mapping

from rag_memtok.datatypes import ReadableVectors
from rag_memtok.store.database import Database


def readable_of(db: Database, number: int) -> ReadableVectors | None:
    """A chunk's; None where it has none.

    Raises:
        StoreDamaged: they are not what was written.
    """
    for _, encoder, window, codec, rows, width, packed in db.rows("readables", "chunk = ?", number):
        return ReadableVectors(encoder, window, codec, packed, (rows, width))
    return None


def insert_readable(db: Database, number: int, made: ReadableVectors) -> None:
    """Gives a chunk these; within a transaction."""
    db.insert(
        "readables", (number, made.encoder, made.window, made.codec, *made.shape, made.packed)
    )


def put_readables(db: Database, made: Mapping[str, ReadableVectors]) -> None:
    """See `Store.put_readables`."""
    with db.writing():
        for chunk_id, one in made.items():
            insert_readable(db, db.row("chunks", "id = ?", chunk_id)[0], one)


def lacking_readables(db: Database, encoder: str, window: int) -> tuple[str, ...]:
    """See `Store.lacking_readables`."""
    with db.reading():
        rows = db.rows(
            "readables", "encoder = ? AND window = ?", encoder, window, skip_damaged=True
        )
        have = {row[0] for row in rows}
        chunks = db.rows("chunks", "TRUE ORDER BY number", skip_damaged=True)
    return tuple(row[1] for row in chunks if row[0] not in have)
