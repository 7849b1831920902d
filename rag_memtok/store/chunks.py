"""The rows of one chunk: read as a record, written whole."""

import numpy as np

from rag_memtok.datatypes import Record, Verdict
from rag_memtok.store.database import Database
from rag_memtok.store.readables import insert_readable, read_readable
from rag_memtok.store.removal import delete_parts
from rag_memtok.store.schema import pack_pins, unpack_pins, verdict_row
from rag_memtok.store.words import fill


def read_record(db: Database, chunk_id: str) -> Record:
    """See `Store.record`; within a transaction."""
    number, _, tokens, tokens_sha256, keyed, _ = db.row("chunks", "id = ?", chunk_id)
    _, codec, rows, width, packed = db.part("vectors", number)
    return Record(
        chunk_id=chunk_id,
        tokens=tokens,
        tokens_sha256=tokens_sha256,
        codec=codec,
        packed=packed,
        shape=(rows, width),
        pins=unpack_pins(db.part("pins", number)[1]),
        verdict=Verdict(*db.part("verdicts", number)[1:]),
        key=np.frombuffer(db.part("keys", number)[1], dtype="<f4") if keyed else None,  # [e]
        readable=read_readable(db, number),
    )


def write_record(db: Database, record: Record, text: str | None) -> None:
    """Writes all rows of a chunk in one transaction, over what there is of it."""
    with db.writing():
        number = db.scalar(
            "SELECT max(number) FROM chunks WHERE id = ?", record.chunk_id
        ) or db.next_number("chunks")
        delete_parts(db, [number])
        keyed, worded = int(record.key is not None), int(text is not None)
        db.insert(
            "chunks", (number, record.chunk_id, record.tokens, record.tokens_sha256, keyed, worded)
        )
        db.insert("vectors", (number, record.codec, *record.shape, record.packed))
        db.insert("pins", (number, pack_pins(record.pins)))
        db.insert("verdicts", (number, *verdict_row(record.verdict)))
        if record.readable is not None:
            insert_readable(db, number, record.readable)
        if record.key is not None:
            db.insert("keys", (number, np.asarray(record.key, dtype="<f4").tobytes()))
        if text is not None:
            db.insert("texts", (number, text))
            fill(db.connection, "words", "number = ?", number)
