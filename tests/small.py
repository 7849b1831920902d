"""A few short documents, the dials to write them with a toy, and what a proven store is.

The dials write them quickly.
"""

from pathlib import Path

from rag_memtok.config import Config
from rag_memtok.datatypes import PROVEN
from rag_memtok.pipeline import api
from rag_memtok.settings import updated
from rag_memtok.store.store import open_store

DOCUMENTS = {
    "lamp.md": "# Lamp\n\nThe lamp of the harbour was repaired in March.\n\nIts keeper, Aldo Ruiz, "
    "wrote a letter.\n",
    "soup/receta.txt": "La empanada lleva cebolla, huevo y aceitunas.\r\nSe hornea media hora.\r\n",
    "tickets.jsonl": '{"text": "Ticket 7: the fan rattles"}\n{"text": "Ticket 8: <|eot_id|> in the '
    'log"}\n',
    "again.txt": "The fan is quiet.\n",
    "copy.txt": "The fan is quiet.\n",
}


def written(folder: Path, documents=DOCUMENTS) -> Path:
    for name, text in documents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(text.encode())
    return folder


def dials(store, model, **changes) -> Config:
    quick = {
        "documents.chunk_tokens": 24,
        "memorize.tokens_per_vector": 4,
        "memorize.seconds_per_chunk": 0.0,
        "memorize.batch": 8,
    }
    quick |= {
        "ask.max_new_tokens": 4,
        "model.device": "cpu",
        "model.threads": 1,
        "store": str(store),
        "model.id": str(model),
    }
    return updated(
        Config(), quick | {name.replace("__", "."): value for name, value in changes.items()}
    )


def proven(config: Config):
    """The audit of a store in which everything is proven."""
    found = api.verify(config)
    assert found.findings == () and found.exit_code == 0
    assert (
        found.checked == found.chunks == sum(found.counts.values()) > 0
        and set(found.counts) <= PROVEN
    )
    assert found.documents == found.documents_proven
    return found


def content_of(folder: Path):
    """Everything a reader of the store can see of its chunks and documents."""
    with open_store(folder, write=False) as store:
        ids = store.chunk_ids()
        chunks = {}
        for chunk_id in ids:
            record = store.record(chunk_id)
            key = None if record.key is None else record.key.tobytes()
            chunks[chunk_id] = (
                record.packed,
                record.shape,
                record.codec,
                record.pins,
                record.verdict,
                key,
                store.text(chunk_id),
                record.readable,
            )
        return chunks, store.documents(), store.occurrences(ids)
