"""A file's documents and where their chunks stand, put in at once."""

from collections.abc import Sequence

from rag_memtok.datatypes import Occurrence, StoredDocument
from rag_memtok.store.database import Database
from rag_memtok.store.formats import COLUMNS
from rag_memtok.store.removal import Files, drop_file
from rag_memtok.store.schema import name_bytes
from rag_memtok.store.words import forget, refresh_names


def replace_file(
    db: Database,
    root: str,
    file: str,
    documents: Sequence[StoredDocument],
    occurrences: Sequence[Occurrence],
    outdated: Files,
) -> None:
    """See `Store.replace_file`."""
    places: dict[str, list[Occurrence]] = {document.path: [] for document in documents}
    for one in occurrences:
        places[one.path].append(one)
    for document in documents:
        ordinals = sorted(one.ordinal for one in places[document.path])
        whole = list(range(document.chunks))
        if (document.root, document.file, ordinals) != (root, file, whole):
            raise ValueError(f"{document.path!a} is not whole, or not of {file!a}")
    with db.writing():
        left = {chunk for names in ((root, file), *outdated) for chunk in drop_file(db, *names)}
        taken = {
            chunk
            for document in documents
            for chunk in insert_document(db, document, places[document.path])
        }
        refresh_names(db.connection, left | taken)
        if left:
            forget(db.connection, "names")


def insert_document(
    db: Database, document: StoredDocument, places: Sequence[Occurrence]
) -> set[int]:
    """Writes a document and its places; returns the numbers of its chunks."""
    number, chunks = db.next_number("documents"), set()
    values = (getattr(document, name) for name in COLUMNS["documents"][1:])
    db.insert("documents", (number, *values))
    for one in places:
        chunk = db.row("chunks", "id = ?", one.chunk_id)[0]
        chunks.add(chunk)
        place = (one.start, one.end, one.locator, one.headings)
        db.insert("occurrences", (number, one.ordinal, chunk, *place))
    return chunks


def chunks_of_files(db: Database, files: Files) -> set[int]:
    """The numbers of the chunks that stand in these files."""
    query = (
        "SELECT chunk FROM occurrences JOIN documents ON document = number "
        "WHERE root = ? AND file = ?"
    )
    return {
        chunk
        for root, file in files
        for (chunk,) in db.execute(query, (name_bytes(root), name_bytes(file)))
    }
