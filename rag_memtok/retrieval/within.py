"""A path -> the documents of a store that stand in it."""

import os

from rag_memtok.datatypes import StoredDocument
from rag_memtok.documents.names import joined, located, name_of, told_apart
from rag_memtok.errors import UsageError
from rag_memtok.store.store import Store


def documents_within(store: Store, path: str) -> list[StoredDocument]:
    """The documents of a file or of all files in a folder.

    `path` may be a name that `list` gives, too, or the beginning of such names up to a "/".

    Raises:
        UsageError: the store has nothing of that path.
    """
    papers = store.documents(skip_damaged=True)
    found = [
        one for one in papers if _is_in(joined(one.root, one.file), name_of(located(path)))
    ] or _named(papers, path)
    if not found:
        raise UsageError(
            f"the store has nothing of {path}", remedy="rag-memtok list names what it has"
        )
    return found


def _is_in(name: str, folder: str) -> bool:
    return name == folder or name.startswith(folder.rstrip("/") + "/")


def _named(papers: tuple[StoredDocument, ...], path: str) -> list[StoredDocument]:
    names = told_apart([(one.root, one.path) for one in papers])
    wanted = os.path.normpath(path).replace(os.sep, "/")
    return [
        one
        for one in papers
        if _is_in(names[one.root, one.path], wanted) or _is_in(one.file, wanted)
    ]
