"""A file's documents and where their chunks stand, put in at once; files by their hashes."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from rag_memtok.datatypes import Occurrence, StoredDocument
from rag_memtok.store.database import Database
from rag_memtok.store.formats import COLUMNS, PARTS
from rag_memtok.store.integrity import find_problems
from rag_memtok.store.removal import UNPURGED, Files, drop_file
from rag_memtok.store.schema import describe_problem, files_of_chunk, name_bytes
from rag_memtok.store.words import refresh_names


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
    for place in occurrences:
        places[place.path].append(place)
    for document in documents:
        require_whole(document, places[document.path])
        if (document.root, document.file) != (root, file):
            raise ValueError(f"{document.path!a} is not of {file!a}")
    with db.writing():
        left = {chunk for names in ((root, file), *outdated) for chunk in drop_file(db, *names)}
        placed = {
            chunk
            for document in documents
            for chunk in insert_document(db, document, places[document.path])
        }
        refresh_names(db.connection, left | placed)
        if left:  # not here: it costs the whole index, whatever the file
            db.insert("manifest", (UNPURGED, "names"))


def require_whole(document: StoredDocument, places: Sequence[Occurrence]) -> None:
    """Refuses places that are not those of all the document's chunks.

    Raises:
        ValueError: they are not, a bug of the caller.
    """
    ordinals = sorted(place.ordinal for place in places)
    if ordinals != list(range(document.chunks)):
        raise ValueError(f"{document.path!a} is not whole")


def add_document(db: Database, document: StoredDocument, places: Sequence[Occurrence]) -> None:
    """See `Store.add_document`."""
    require_whole(document, places)
    if any((place.root, place.path) != (document.root, document.path) for place in places):
        raise ValueError(f"{document.path!a} has places of another")
    with db.writing():
        refresh_names(db.connection, insert_document(db, document, places))


def insert_document(
    db: Database, document: StoredDocument, places: Sequence[Occurrence]
) -> set[int]:
    """Writes a document and its places; returns the numbers of its chunks."""
    number, chunks = db.next_number("documents"), set()
    values = (getattr(document, name) for name in COLUMNS["documents"][1:])
    db.insert("documents", (number, *values))
    for place in places:
        chunk = db.row("chunks", "id = ?", place.chunk_id)[0]
        chunks.add(chunk)
        columns = (place.start, place.end, place.locator, place.headings)
        db.insert("occurrences", (number, place.ordinal, chunk, *columns))
    return chunks


def read_occurrences(
    db: Database, where: str, value: object, *, skip_damaged: bool = False
) -> list[Occurrence]:
    """The occurrences `where`; within a transaction.

    Raises:
        StoreDamaged: a row of it is damaged; with `skip_damaged` it is left out.
    """
    occurrences: list[Occurrence] = []
    for document, ordinal, chunk, *place in db.rows(
        "occurrences", where, value, skip_damaged=skip_damaged
    ):
        for _, chunk_id, *_ in db.rows("chunks", "number = ?", chunk, skip_damaged=skip_damaged):
            occurrences += [
                Occurrence(root, path, ordinal, chunk_id, *place)
                for _, root, _, path, *_ in db.rows(
                    "documents", "number = ?", document, skip_damaged=skip_damaged
                )
            ]
    return occurrences


def read_document_chunks(db: Database, root: str, path: str) -> list[Occurrence]:
    """See `Store.document_chunks`."""
    with db.reading():
        document = db.row("documents", "root = ? AND path = ?", name_bytes(root), name_bytes(path))
        number, chunks = document[0], StoredDocument(*document[1:]).chunks
        places = read_occurrences(db, "document = ? ORDER BY ordinal", number)
        if [place.ordinal for place in places] != list(range(chunks)):
            row = (number, *map(name_bytes, document[1:3]))
            lost = f"it lost some of its {chunks} chunks"
            raise db.damage(describe_problem(db.connection, "documents", row, lost))
    return places


def chunk_numbers_of_files(db: Database, files: Files) -> set[int]:
    """The numbers of the chunks that stand in `files`."""
    query = (
        "SELECT chunk FROM occurrences JOIN documents ON document = number "
        "WHERE root = ? AND file = ?"
    )
    return {
        chunk
        for root, file in files
        for (chunk,) in db.execute(query, (name_bytes(root), name_bytes(file)))
    }


def damaged_files(db: Database) -> Iterator[str]:
    """See `Store.damaged_files`; within a transaction."""
    for problem in find_problems(db.connection, db.store_id, structural=False):
        if problem.file:
            yield problem.file
        if problem.table in ("chunks", *PARTS):  # several files may share the chunk
            yield from files_of_chunk(db.connection, problem.row)


def each_file(db: Database) -> Iterator[tuple[str, str]]:
    """See `Store.each_file`; within a transaction."""
    query = "SELECT DISTINCT root, file FROM documents ORDER BY root, file"
    for names in db.execute(query):
        root, file = (name.decode("utf-8", "surrogateescape") for name in names)
        yield root, file


@dataclass(frozen=True, slots=True, eq=False)
class FileHashes(Mapping[str, str]):
    """See `Store.file_hashes`: nothing of it is in memory but the names of `damaged` files."""

    db: Database
    root: str
    damaged: frozenset[str]

    def __getitem__(self, file: str) -> str:
        # +path: the index by root and path, which has that order, is searched by the root alone
        where, names = "root = ? AND file = ? ORDER BY +path", (self.root, file)
        with self.db.reading():
            rows = self.db.rows("documents", where, *map(name_bytes, names), skip_damaged=True)
        if not rows or f"{self.root}/{file}" in self.damaged:
            raise KeyError(file)
        return rows[-1][5]

    def __iter__(self) -> Iterator[str]:
        last = None
        with self.db.reading():
            of_root = "root = ? ORDER BY file"
            for row in self.db.each("documents", of_root, name_bytes(self.root), skip_damaged=True):
                if row[2] != last and f"{self.root}/{row[2]}" not in self.damaged:
                    yield row[2]
                last = row[2]

    def __len__(self) -> int:
        return sum(1 for _ in self)
