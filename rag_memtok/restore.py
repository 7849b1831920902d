"""The documents, written back from their memories alone."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rag_memtok.audit import Recited, placed, proven_document, recite
from rag_memtok.documents import native_of, restores_exactly
from rag_memtok.errors import InputRefused, UsageError
from rag_memtok.lm import LM
from rag_memtok.prompts import Template
from rag_memtok.store import Store


@dataclass(frozen=True, slots=True)
class Restored:
    """Files written back, and documents that could not be (path, reason)."""

    written: tuple[Path, ...]
    failed: tuple[tuple[str, str], ...]


def restore_documents(store: Store, lm: LM, template: Template, to: Path, on_chunk: Callable[[int, int], None]) -> Restored:
    """Writes every proven document under `to`: text formats as the very file, others as their text (`NAME.txt`).

    Documents of several roots go into a folder for each, named after the root.

    Raises:
        UsageError: a file of that name with other content is in the way.
        InputRefused: a path leads out of `to`.

    Cost: T + 1 cached steps a chunk at batch 1.
    """
    everything = placed(store)
    recited: dict[str, Recited] = {}
    for chunk_id in everything:
        recited[chunk_id] = recite(store, lm, template, chunk_id)
        on_chunk(len(recited), len(everything))
    documents = store.documents(skip_damaged=True)
    roots = sorted({document.root for document in documents})
    written, failed = [], []
    for document in documents:
        if not proven_document(store, document, recited):
            failed.append((document.path, "not all of its memories decode to its text"))
            continue
        text = "".join(recited[place.chunk_id].text or "" for place in store.document_chunks(document.root, document.path))
        name = document.path if restores_exactly(document.extractor) else document.path + ".txt"
        written.append(_write_new(to, folder_of(document.root, roots), name, text.encode()))
    return Restored(tuple(written), tuple(failed))


def folder_of(root: str, roots: list[str]) -> str:
    """The folder for a root's documents: "" for the only one, else its last name, numbered where two share it."""
    if len(roots) == 1:
        return ""
    name = _last_name(root)
    namesakes = [other for other in roots if _last_name(other) == name]
    return name if len(namesakes) == 1 else f"{name}-{namesakes.index(root) + 1}"


def _last_name(root: str) -> str:
    """A root's last name, "root" for one that has none: ".." leads out of the folder that is restored into."""
    name = Path(root).name
    return "root" if name in ("", ".", "..") else name


def _write_new(to: Path, folder: str, name: str, data: bytes) -> Path:
    """Writes a document into a folder of `to`, never outside it, whatever the names say: the store may be somebody else's."""
    target = to / folder / os.fsdecode(native_of(name))
    if not _lies_in(target, to.resolve() / folder):
        raise InputRefused(f"the document {name!a} would be written outside {to / folder}", remedy="do not trust this store")
    if target.exists() and target.read_bytes() != data:
        raise UsageError(f"{target} is in the way and has other content", remedy="restore into a new folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(data)
    return target


def _lies_in(target: Path, folder: Path) -> bool:
    """Whether `target` is in `folder`, links followed; what no file can be called is nowhere."""
    try:
        return folder in target.resolve().parents
    except ValueError:
        return False
