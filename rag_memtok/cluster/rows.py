"""Tasks, records and recited chunks as the rows that go between machines. The only home of pyarrow.

Every column is plain: numbers, strings, bytes. Nothing of a store is pickled on its way, by us or
by the engine, so that nothing of one is ever unpickled.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import pyarrow as pa

from rag_memtok.datatypes import ReadableVectors, Record, Verdict
from rag_memtok.memory.batch import Task
from rag_memtok.pipeline.audit import Checked
from rag_memtok.pipeline.readable import Comparison
from rag_memtok.pipeline.reconstruction import Reconstructed
from rag_memtok.store.schema import pack_pins, unpack_pins

Row = dict[str, Any]
Table: TypeAlias = pa.Table

NUMBERS = pa.list_(pa.int64())
VERDICT = pa.struct(
    [
        ("kind", pa.string()),
        ("tokens", pa.int64()),
        ("corrections", pa.int64()),
        ("safeties", pa.int64()),
        ("margin", pa.float64()),
        ("reason", pa.string()),
    ]
)
READABLE = pa.struct(
    [
        ("encoder", pa.string()),
        ("window", pa.int64()),
        ("codec", pa.string()),
        ("packed", pa.binary()),
        ("shape", NUMBERS),
    ]
)
TASK = pa.schema([("chunk", pa.string()), ("tokens", NUMBERS), ("vectors", pa.int64())])
RECORD = pa.schema(
    [
        ("chunk", pa.string()),
        ("tokens", pa.int64()),
        ("tokens_sha256", pa.string()),
        ("codec", pa.string()),
        ("packed", pa.binary()),
        ("shape", NUMBERS),
        ("pins", pa.binary()),
        ("verdict", VERDICT),
        ("readable", READABLE),
    ]
)
# what is sent to be recited
STORED = pa.schema([*RECORD, ("text", pa.string())])
# why a chunk did not come about: `error` is a class of errors.py, or "" for any other
FAILURE = [
    ("failed", pa.bool_()),
    ("error", pa.string()),
    ("reason", pa.string()),
    ("remedy", pa.string()),
]
WRITTEN = pa.schema([*RECORD, ("steps", pa.int64()), *FAILURE])
RECITED = pa.schema(
    [
        ("chunk", pa.string()),
        ("verdict", VERDICT),
        ("text", pa.string()),
        ("tokens", NUMBERS),
        ("corrections", NUMBERS),
        ("written_margin", pa.float64()),
        ("device", pa.string()),
        ("comparison", pa.struct([("kind", pa.string()), ("reason", pa.string())])),
        *FAILURE,
    ]
)


def table_of(rows: Iterable[Mapping[str, Any]], schema: pa.Schema) -> Table:
    """Rows as a table; what a row lacks is null."""
    return pa.Table.from_pylist(list(rows), schema=schema)


def rows_of(table: Table) -> list[Row]:
    """A table's rows."""
    return table.to_pylist()


def task_row(task: Task) -> Row:
    """A task as a row of TASK."""
    return {"chunk": task.key, "tokens": list(task.tokens), "vectors": task.vectors}


def task_from_row(row: Row) -> Task:
    """The task in a row of TASK."""
    return Task(row["chunk"], tuple(row["tokens"]), row["vectors"])


def record_row(record: Record) -> Row:
    """A record as a row of RECORD. Its key does not travel: the committer makes it."""
    return {
        "chunk": record.chunk_id,
        "tokens": record.tokens,
        "tokens_sha256": record.tokens_sha256,
        "codec": record.codec,
        "packed": record.packed,
        "shape": list(record.shape),
        "pins": pack_pins(record.pins),
        "verdict": asdict(record.verdict),
        "readable": None if record.readable is None else asdict(record.readable),
    }


def record_from_row(row: Row) -> Record:
    """The record in a row of RECORD, without its key."""
    columns = row["readable"]
    readable = None
    if columns is not None:
        readable = ReadableVectors(**columns | {"shape": tuple(columns["shape"])})
    return Record(
        chunk_id=row["chunk"],
        tokens=row["tokens"],
        tokens_sha256=row["tokens_sha256"],
        codec=row["codec"],
        packed=row["packed"],
        shape=(row["shape"][0], row["shape"][1]),
        pins=unpack_pins(row["pins"]),
        verdict=Verdict(**row["verdict"]),
        key=None,
        readable=readable,
    )


def recited_row(heard: Checked) -> Row:
    """A recited chunk as a row of RECITED."""
    recited, comparison = heard
    return {
        "chunk": recited.chunk_id,
        "verdict": asdict(recited.verdict),
        "text": recited.text,
        "tokens": list(recited.tokens),
        "corrections": list(recited.corrections),
        "written_margin": recited.written_margin,
        "device": recited.device,
        "comparison": None if comparison is None else asdict(comparison),
    }


def recited_from_row(row: Row) -> Checked:
    """The recited chunk in a row of RECITED."""
    recited = Reconstructed(
        chunk_id=row["chunk"],
        verdict=Verdict(**row["verdict"]),
        text=row["text"],
        tokens=tuple(row["tokens"]),
        corrections=tuple(row["corrections"]),
        written_margin=row["written_margin"],
        device=row["device"],
    )
    return recited, None if row["comparison"] is None else Comparison(**row["comparison"])


@dataclass(frozen=True, slots=True)
class RowShelf:
    """Some chunks of a store on another machine: a `Shelf`."""

    manifest: Mapping[str, str]
    rows: Mapping[str, Row]

    def record(self, chunk_id: str) -> Record:
        """A chunk as the store keeps it."""
        return record_from_row(self.rows[chunk_id])

    def text(self, chunk_id: str) -> str | None:
        """The text of a chunk, None if it was not kept."""
        return self.rows[chunk_id]["text"]
