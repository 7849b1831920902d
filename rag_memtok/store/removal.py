"""What leaves the store, and that nothing of it stays behind: documents, chunks, caches.

A memory is its text. So what is removed goes with its words, its key, the index made of it and the
file that a server was sent, and the database is written anew without it.
"""

from collections.abc import Collection, Sequence
from pathlib import Path

from rag_memtok.documents.names import join_name
from rag_memtok.store.database import Database
from rag_memtok.store.files import (
    CACHES,
    drop_unfinished,
    drop_uploads,
    mark,
    outdate_adapter,
    store_errors,
)
from rag_memtok.store.formats import PARTS
from rag_memtok.store.line_keys import read_before_removal, rewrite_after_removal
from rag_memtok.store.schema import name_bytes
from rag_memtok.store.words import purge_deleted, refresh_names

Files = Sequence[tuple[str, str]]  # (root, file)
UNPURGED = "unpurged"  # the manifest's key for an index that has yet to be purged, by `collect`


def collect(db: Database, files: Files, keep: Collection[str]) -> int:
    """Removes the documents of `files` and every chunk without an occurrence.

    See `Store.collect`.
    """
    with db.reading():
        nothing = not files and not find_orphans(db, keep)
        purged = not db.rows("manifest", "key = ?", UNPURGED)
    if nothing:
        if not purged:
            with db.writing():
                purge_names(db)
        return 0
    previous = read_before_removal(db)
    drop_caches(db.folder)  # first: no kill may leave it behind
    with db.writing():
        left = {chunk for names in files for chunk in drop_file(db, *names)}
        gone = find_orphans(db, keep)
        refresh_names(db.connection, left.union(gone))
        delete_parts(db, gone)
        db.for_each("DELETE FROM chunks WHERE number = ?", gone)
        purge_deleted(db.connection, "words")
        purge_names(db)
        # last: what fails before has deleted nothing, and after a kill the documents are still
        # there to be removed again
        drop_uploads(db.folder, [join_name(*names) for names in files])
    drop_caches(db.folder)  # again: a reader may have put it back meanwhile
    with store_errors(db.folder):
        db.execute("VACUUM")
    mark("vacuumed")
    rewrite_after_removal(db, previous)
    return len(gone)


def purge_names(db: Database) -> None:
    """Purges the index of names of those that are gone; within a transaction."""
    purge_deleted(db.connection, "names")
    db.execute("DELETE FROM manifest WHERE key = ?", (UNPURGED,))


def drop_file(db: Database, root: str, file: str) -> set[int]:
    """Removes a file's documents and their places; within a transaction.

    Returns the numbers of the chunks that were in these places, for `refresh_names`.
    """
    names = (name_bytes(root), name_bytes(file))
    of_file = "document IN (SELECT number FROM documents WHERE root = ? AND file = ?)"
    chunks = db.execute(f"SELECT chunk FROM occurrences WHERE {of_file}", names).fetchall()
    db.execute(f"DELETE FROM occurrences WHERE {of_file}", names)
    db.execute("DELETE FROM documents WHERE root = ? AND file = ?", names)
    return {chunk for (chunk,) in chunks}


def find_orphans(db: Database, keep: Collection[str]) -> list[int]:
    """The numbers of the chunks without an occurrence, those with an id in `keep` left out.

    Raises:
        StoreDamaged: an occurrence is damaged: what it hides must not be taken for an orphan.
    """
    for _ in db.each("occurrences"):  # raises at the first that is damaged
        pass
    of_id, kept = "SELECT number FROM chunks WHERE id = ?", set[int]()
    for chunk_id in keep:
        kept.update(number for (number,) in db.execute(of_id, (chunk_id,)))
    unplaced = "SELECT number FROM chunks WHERE number NOT IN (SELECT chunk FROM occurrences)"
    return [number for (number,) in db.execute(unplaced) if number not in kept]


def drop_caches(folder: Path) -> None:
    """Deletes the caches of keys, which leak most of their text, and marks the adapter as stale."""
    with store_errors(folder):
        outdate_adapter(folder)
        for name in CACHES:
            (folder / name).unlink(missing_ok=True)
        drop_unfinished(folder)
    mark("index dropped")


def delete_parts(db: Database, numbers: Sequence[int]) -> None:
    """Deletes all rows of these chunks but those in `chunks`; within a transaction."""
    for table in PARTS:
        db.for_each(f"DELETE FROM {table} WHERE chunk = ?", numbers)
    db.for_each("DELETE FROM words WHERE rowid = ?", numbers)
