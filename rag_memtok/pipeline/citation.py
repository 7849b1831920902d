"""The citation of a chunk: where it stands, what its file is called, whether that changed since.

A file is as it was read if its size and time are. Where its time alone is another its bytes are
hashed: a copy or a checkout is no edit. A store of format 1 knows neither: there they always are.
"""

from pathlib import Path
from typing import Literal

from rag_memtok.datatypes import Hit, Source, StoredDocument, VerdictKind
from rag_memtok.documents.names import distinct_names, is_gone, join_name, native_of
from rag_memtok.packages import sha256_of
from rag_memtok.store.ownership import is_made_here
from rag_memtok.store.store import Store

LARGEST = 20_000_000  # bytes of a file that is read to see whether it changed
UNKNOWN = -1  # a size that the store does not know


def source_of(store: Store, hit: Hit, kind: VerdictKind) -> Source:
    """The citation of a chunk: its first place; the others are in the store.

    Cost: a stat of the file; reads it where its time is another, if it is at most LARGEST.
    """
    place = hit.occurrences[0]
    documents = store.documents_at(place.path)
    names = distinct_names([(document.root, document.path) for document in documents])
    same_root = [document for document in documents if document.root == place.root]
    return Source(
        path=place.path,
        lines=place.locator,
        span=(place.start, place.end),
        score=hit.score,
        chunk=hit.chunk_id,
        verdict=kind,
        relevance=None if hit.cosine is None else round(min(max(hit.cosine, 0.0), 1.0), 4),
        root=place.root,
        name=names.get((place.root, place.path), place.path),
        file=file_state(same_root[0], is_own=is_made_here(store.manifest)) if same_root else "",
    )


def file_state(document: StoredDocument, *, is_own: bool) -> Literal["", "gone", "changed"]:
    """Whether a document's file is still what was read.

    Of a folder that never was on this machine nothing is said: one of a store that is not our
    own, or that nothing here has held.
    """
    root = Path(native_of(document.root))
    if not root.is_dir():
        return "gone" if is_own and _was_here(root) else ""
    if is_gone(document.root, document.file):
        return "gone"
    path = Path(native_of(join_name(document.root, document.file)))
    try:
        status = path.stat()
        if (status.st_size, status.st_mtime_ns) == (document.size, document.modified):
            return ""
        if document.size not in (status.st_size, UNKNOWN):
            return "changed"
        unchanged = status.st_size > LARGEST or sha256_of(path) == document.file_sha256
    except OSError:
        return ""
    return "" if unchanged else "changed"


def _was_here(root: Path) -> bool:
    """Whether a folder that held `root` is there, so that it was moved or removed.

    Those that most machines have, / and what stands in it, tell nothing of what was deeper.
    """
    nearest = next((parent for parent in root.parents if parent.is_dir()), Path("/"))
    return len(nearest.parts) > (1 if nearest == root.parent else 2)
