"""The store on disk: one SQLite file with everything that was memorised, in a private folder.

What exists in it is whole.

    DIR/ 0700   store.db     the only truth (formats.py); every file is 0600
                lock         held by the one writer, names it (files.py)
                index.faiss  a cache (index.py)
                lines.keys   a cache (line_keys.py)
                adapter/     an optional reader (lora.py)
                uploads/     files that a server was sent (serve/uploads.py)
                .gitignore   keeps the folder out of git: memories are the documents' text

A verb is one transaction (database.py). Readers never look at the lock; while a writer commits
(milliseconds) they wait for SQLite, up to 30 s. Every verb raises StoreDamaged if a row it reads is
not what was written (unless it says that it leaves such rows out), DiskFailure or PermissionRefused
if the system refuses, StoreLocked if SQLite was busy for too long. A chunk's `number` is its
integer row id and its FAISS id, and is never used again.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from rag_memtok.datatypes import Occurrence, ReadableVectors, Record, StoredDocument
from rag_memtok.errors import StoreDamaged
from rag_memtok.store.chunks import read_record, write_record
from rag_memtok.store.database import RESERVED, Database, create, open_database
from rag_memtok.store.files import ADAPTER, INDEX, store_errors
from rag_memtok.store.integrity import (
    Summary,
    check_checksums,
    find_problems,
    summarize,
    word_index_fault,
)
from rag_memtok.store.keys import read_keys, replace_keys
from rag_memtok.store.line_keys import Encode, LineKeys, load_line_keys
from rag_memtok.store.places import (
    FileHashes,
    add_document,
    chunk_numbers_of_files,
    damaged_files,
    each_file,
    read_document_chunks,
    read_occurrences,
    replace_file,
)
from rag_memtok.store.readables import lacking_readables, put_readables
from rag_memtok.store.removal import Files, collect
from rag_memtok.store.schema import Problem, name_bytes
from rag_memtok.store.words import reset_all, search_index

__all__ = ["ADAPTER", "INDEX", "Problem", "Store", "Summary", "create", "open_store"]


@contextmanager
def open_store(folder: Path, *, write: bool) -> Iterator["Store"]:
    """Opens the store. With `write`, this is the one writer until it is closed.

    Raises:
        NoStore, StoreLocked, StoreDamaged, FormatMismatch: see `open_database`.
    """
    with open_database(folder, write=write) as db:
        yield Store(db)


class Store:
    """An open store. One thread at a time, whichever; made by `open_store`."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self.folder, self.writable, self.store_id = db.folder, db.writable, db.store_id

    # --- what the store is

    @property
    def manifest(self) -> dict[str, str]:
        """The manifest: what the store is bound to, and its "store_id", "format" and "state"."""
        with self._db.reading():
            return dict(self._db.rows("manifest"))

    @property
    def state(self) -> str:
        """Changes with every committed write; caches are bound to it."""
        with self._db.reading():
            return self._db.row("manifest", "key = ?", "state")[1]

    @property
    def generation(self) -> int:
        """Grows by one with every committed write."""
        return int(self.state.partition(" ")[0])

    def set_manifest(self, key: str, value: str) -> None:
        """Binds the store to one thing more."""
        assert key not in RESERVED, key
        with self._db.writing():
            self._db.insert("manifest", (key, value))

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """A read transaction: what is read within is of one generation; no writer can commit."""
        with self._db.reading():
            yield

    @contextmanager
    def together(self) -> Iterator[None]:
        """A write transaction: all that is written within, or nothing."""
        with self._db.writing():
            yield

    def summary(self) -> Summary:
        """Counts chunks, documents and bytes.

        A damaged verdict counts as "damaged". Cost: reads every row once.
        """
        with self._db.reading():
            return summarize(self._db.connection, self.store_id)

    def check(self) -> tuple[Problem, ...]:
        """Every problem that can be seen without a model; damage is never raised here.

        Cost: reads the whole database twice.
        """
        with store_errors(self.folder):
            return tuple(find_problems(self._db.connection, self.store_id))

    # --- documents

    def documents(self, *, skip_damaged: bool = False) -> tuple[StoredDocument, ...]:
        """Every document, by root and path."""
        with self.snapshot():
            return tuple(self.each_document(skip_damaged=skip_damaged))

    def each_document(self, *, skip_damaged: bool = False) -> Iterator[StoredDocument]:
        """As `documents`, one after the other; within a `snapshot`."""
        for row in self._db.each(
            "documents", "TRUE ORDER BY root, path", skip_damaged=skip_damaged
        ):
            yield StoredDocument(*row[1:])

    def each_file(self) -> Iterator[tuple[str, str]]:
        """The (root, file) of every file, damaged or not; within a `snapshot`."""
        return each_file(self._db)

    def documents_at(self, path: str) -> tuple[StoredDocument, ...]:
        """The documents of this path, of whatever root; damaged ones are left out."""
        with self._db.reading():
            rows = self._db.rows("documents", "path = ?", name_bytes(path), skip_damaged=True)
        return tuple(StoredDocument(*row[1:]) for row in rows)

    def damaged_documents(self) -> tuple[Problem, ...]:
        """Problems of the documents that `documents` leaves out if it skips damaged ones."""
        with self._db.reading():
            return tuple(check_checksums(self._db.connection, self.store_id, "documents"))

    def damaged_files(self) -> frozenset[str]:
        """The paths on disk of the files of which any row is damaged.

        Cost: reads every row of the store, about a second per GB.
        """
        with self._db.reading():
            return frozenset(damaged_files(self._db))

    def file_hashes(self, root: str, damaged: frozenset[str] | None = None) -> Mapping[str, str]:
        """The sha256 of each file under `root` as ingested, read when it is asked for.

        A file of which any row is damaged is left out: to ingest it again mends it.

        Args:
            damaged: these files, where `damaged_files` was asked before.

        Cost: that of `damaged_files`, and reads every document of `root` once to go over it.
        """
        return FileHashes(self._db, root, self.damaged_files() if damaged is None else damaged)

    def document_chunks(self, root: str, path: str) -> tuple[Occurrence, ...]:
        """The document's chunks in their order.

        Raises:
            StoreDamaged: one is missing or damaged, or there is no such document.
        """
        return tuple(read_document_chunks(self._db, root, path))

    def occurrences(self, chunk_ids: Iterable[str]) -> dict[str, tuple[Occurrence, ...]]:
        """Every place of each chunk, by root, path and ordinal.

        There is none for a chunk no document has. Damaged rows are logged and left out.
        """
        where = "chunk = (SELECT number FROM chunks WHERE id = ?)"
        with self._db.reading():
            by_chunk = {
                chunk_id: read_occurrences(self._db, where, chunk_id, skip_damaged=True)
                for chunk_id in chunk_ids
            }
        return {
            chunk_id: tuple(
                sorted(places, key=lambda place: (place.root, place.path, place.ordinal))
            )
            for chunk_id, places in by_chunk.items()
        }

    def replace_file(
        self,
        root: str,
        file: str,
        documents: Sequence[StoredDocument],
        occurrences: Sequence[Occurrence],
        outdated: Files = (),
    ) -> None:
        """Puts a file's new documents and their chunks' places in, at once.

        They take the place of its old ones, and of those of `outdated`, of which something stays
        until `collect`.

        Raises:
            ValueError, KeyError: a document without exactly its chunks 0, 1, ..., or the other way
                round (a bug of the caller).
            StoreDamaged: a chunk that is not stored.
        """
        replace_file(
            self._db, root, file, documents=documents, occurrences=occurrences, outdated=outdated
        )

    def add_document(self, document: StoredDocument, places: Sequence[Occurrence]) -> None:
        """Puts a new document in, beside others of its file.

        Raises:
            ValueError: not exactly its chunks 0, 1, ... are there.
            StoreDamaged: a chunk that is not stored.
        """
        add_document(self._db, document, places)

    def remove_file(self, root: str, file: str) -> None:
        """Removes a file's documents; their chunks, and words of its name, stay until `collect`."""
        self.replace_file(root, file, (), ())

    # --- chunks

    def missing(self, chunk_ids: Iterable[str]) -> tuple[str, ...]:
        """The `chunk_ids` that are not stored, or damaged: `put` writes these."""
        with self._db.reading():
            return tuple(
                chunk_id for chunk_id in dict.fromkeys(chunk_ids) if not self._is_whole(chunk_id)
            )

    def put(self, record: Record, text: str | None) -> None:
        """Stores a chunk whole, in one transaction.

        Does nothing if it is stored, and mends it if it is damaged. `text` None keeps none.
        """
        if self.missing([record.chunk_id]):
            write_record(self._db, record, text)

    def record(self, chunk_id: str) -> Record:
        """Reads a chunk, never its text.

        Raises:
            StoreDamaged: it is not there, or one of its rows is not what was written. Other chunks
                can still be read.
        """
        with self._db.reading():
            return read_record(self._db, chunk_id)

    def text(self, chunk_id: str) -> str | None:
        """A chunk's text, None if it was not kept."""
        with self._db.reading():
            number, *_, worded = self._db.row("chunks", "id = ?", chunk_id)
            return self._db.part("texts", number)[1] if worded else None

    def chunk_ids(self) -> tuple[str, ...]:
        """The ids of all chunks, orphans too, in the order they were stored.

        Damaged rows are logged and left out.
        """
        with self.snapshot():
            return tuple(self.each_chunk_id())

    def each_chunk_id(self) -> Iterator[str]:
        """As `chunk_ids`, one after the other; within a `snapshot`."""
        for row in self._db.each("chunks", "TRUE ORDER BY number", skip_damaged=True):
            yield row[1]

    def put_readables(self, vectors: Mapping[str, ReadableVectors]) -> None:
        """Gives chunks, by their ids, other readable vectors, in one transaction.

        Raises:
            StoreDamaged: a chunk that is not stored; nothing is written.
        """
        put_readables(self._db, vectors)

    def lacking_readables(self, encoder: str, window: int) -> tuple[str, ...]:
        """The ids of the chunks without whole vectors of this encoder and window.

        They are in the order they were stored. Cost: reads all such vectors once.
        """
        return lacking_readables(self._db, encoder, window)

    def collect(self, files: Files = (), keep: Collection[str] = ()) -> int:
        """Removes the documents of `files` (root, file) and every chunk without an occurrence.

        The files themselves stay, but for those that a server was sent. Returns how many chunks
        went.

        It is one transaction, so that a kill leaves all of them or, in the store's files, nothing.

        Args:
            keep: the ids of chunks that stay all the same: their file is not whole yet.

        Raises:
            StoreDamaged: an occurrence is damaged: what it hides must not be taken for an orphan.

        Cost: if any went, all of the database is written anew, with as much free disk again.
        """
        return collect(self._db, files, keep)

    # --- search

    def keys(self) -> tuple[Int[np.ndarray, " N"], Float[np.ndarray, "N e"]]:
        """The numbers and keys of all chunks that have a place, by number.

        Damaged rows are logged and left out.
        """
        return read_keys(self._db)

    def set_keys(
        self, keys: Mapping[str, Float[np.ndarray, " e"]], manifest: Mapping[str, str]
    ) -> None:
        """Gives chunks other keys, and the manifest these rows, in one transaction."""
        replace_keys(self._db, keys, manifest)

    def line_keys(self, maker: str, encode: Encode, most: int) -> LineKeys:
        """The keys of all lines: of a file's name with the headings above a chunk.

        They come from the cache beside the database, as far as `maker` made it; the others are
        encoded, if they are `most` at most, and cached then.

        Cost: where the store has changed since, reads all places, twice if any is encoded.
        """
        return load_line_keys(self._db, maker, encode, most)

    def ids_of(self, numbers: Iterable[int]) -> dict[int, str]:
        """The chunk ids of `numbers`; those that are gone or damaged are left out."""
        with self._db.reading():
            return {
                row[0]: row[1]
                for number in numbers
                for row in self._db.rows("chunks", "number = ?", number, skip_damaged=True)
            }

    def numbers_of(self, files: Files) -> set[int]:
        """The numbers of the chunks that stand in files (root, file)."""
        with self._db.reading():
            return chunk_numbers_of_files(self._db, files)

    def search_words(self, words: Sequence[str], limit: int) -> dict[int, float]:
        """The numbers of the chunks with any of `words`, the best first, with their BM25.

        Only chunks that have a place and whose text was kept.
        """
        with self._db.reading():
            return search_index(self._db.connection, "words", words, limit)

    def search_names(self, words: Sequence[str], limit: int) -> dict[int, float]:
        """As `search_words`, in the names of files and in headings; none in format 1."""
        with self._db.reading():
            return search_index(self._db.connection, "names", words, limit)

    def mend_words(self) -> str:
        """Makes the word indexes anew where they are damaged or made by other rules.

        Returns what was wrong, "" if nothing was. Cost: reads all texts and places.
        """
        with store_errors(self.folder):
            wrong = word_index_fault(self._db.connection)
        if wrong:
            with self._db.writing():
                for row in reset_all(self._db.connection):
                    self._db.insert("manifest", row)
        return wrong

    # --- within

    def _is_whole(self, chunk_id: str) -> bool:
        if not self._db.scalar("SELECT count(*) FROM chunks WHERE id = ?", chunk_id):
            return False
        try:
            self.record(chunk_id)
            self.text(chunk_id)
        except StoreDamaged:
            return False
        return True
