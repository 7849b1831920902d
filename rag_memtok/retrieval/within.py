"""A path -> the documents of a store that stand in it."""

import os

from rag_memtok.datatypes import StoredDocument
from rag_memtok.documents.names import distinct_names, join_name, name_of, resolve_path
from rag_memtok.errors import UsageError
from rag_memtok.store.store import Store


def documents_within(store: Store, path: str) -> list[StoredDocument]:
    """The documents of a file or of all files in a folder.

    `path` may be a name that `list` gives, too, or the beginning of such names up to a "/".

    Raises:
        UsageError: the store has nothing of that path.
    """
    documents = store.documents(skip_damaged=True)
    folder = name_of(resolve_path(path))
    within = [
        document
        for document in documents
        if _is_in(join_name(document.root, document.file), folder)
    ] or _within_name(documents, path)
    if not within:
        raise UsageError(
            f"the store has nothing of {path}", remedy="rag-memtok list names what it has"
        )
    return within


def _is_in(name: str, folder: str) -> bool:
    return name == folder or name.startswith(folder.rstrip("/") + "/")


def _within_name(documents: tuple[StoredDocument, ...], path: str) -> list[StoredDocument]:
    names = distinct_names([(document.root, document.path) for document in documents])
    wanted = os.path.normpath(path).replace(os.sep, "/")
    return [
        document
        for document in documents
        if _is_in(names[document.root, document.path], wanted) or _is_in(document.file, wanted)
    ]
