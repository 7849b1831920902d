"""The documents, written back from their memories alone."""

import errno
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rag_memtok.datatypes import OnProgress, StoredDocument
from rag_memtok.documents.encodings import UTF8, encoding_in
from rag_memtok.documents.names import native_of
from rag_memtok.documents.scan import restores_exactly
from rag_memtok.errors import InputRefused, StoreDamaged, UsageError
from rag_memtok.model.lm import LM
from rag_memtok.model.prompts import Template
from rag_memtok.pipeline.audit import is_proven, placed_chunks
from rag_memtok.pipeline.progress import Reporter
from rag_memtok.pipeline.reconstruction import Reconstructed, reconstruct_all
from rag_memtok.store.store import Store

# what a system says to a name, as that of a text of its own is longer than the file's
UNNAMEABLE = (errno.ENAMETOOLONG, errno.EILSEQ)
UNPROVEN = "not all of its memories decode to its text"


@dataclass(frozen=True, slots=True, repr=False)
class Restored:
    """The result of a restore: files written, and documents that failed (path, reason).

    `damaged`: some of those could not because the store is.
    """

    written: tuple[Path, ...]
    failed: tuple[tuple[str, str], ...]
    damaged: bool = False

    def __repr__(self) -> str:
        failed = "".join(f", {path}: {reason}" for path, reason in self.failed)
        return f"Restored({len(self.written)} files written{failed})"

    @property
    def exit_code(self) -> int:
        """The exit code: 0 all are written; 13 the store is damaged; else 5.

        5: some do not come back, or not to a place of their own.
        """
        return StoreDamaged.exit_code if self.damaged else 5 * bool(self.failed)


def restore_documents(
    store: Store, lm: LM, template: Template, to: Path, on_progress: OnProgress
) -> Restored:
    """Writes every proven document under `to`, as `write_documents` does.

    Cost: that of `reconstruct_all`.
    """
    everything = placed_chunks(store)
    chunks: dict[str, Reconstructed] = {}
    reporter = Reporter(on_progress=on_progress, total=len(everything))
    for batch in reconstruct_all(store, lm, template, everything):
        chunks |= {chunk.chunk_id: chunk for chunk in batch}
        reporter.advance(len(batch))
    documents, lost = store.documents(skip_damaged=True), lost_documents(store)
    done = write_documents(documents, lambda document: _rejoin(store, document, chunks), to, lost)
    damaged = any(chunk.verdict.kind == "damaged" for chunk in chunks.values())
    return replace(done, damaged=done.damaged or damaged)


def lost_documents(store: Store) -> tuple[tuple[str, str], ...]:
    """Documents that the store lost to damage: what is left of a path, and the reason."""
    problems = store.damaged_documents()
    return tuple((problem.file or f"document {problem.row}", str(problem)) for problem in problems)


def write_documents(
    documents: Sequence[StoredDocument],
    text_of: Callable[[StoredDocument], str | None],
    to: Path,
    lost: Sequence[tuple[str, str]] = (),
) -> Restored:
    """Writes documents under `to`, one after the other.

    Text formats are written as the very file, others as their text (`NAME.txt`).

    Documents of several roots go into a folder for each, named after the root. Where two come to
    the same name, the very file has it. Names may be anybody's: none leads out of `to`.

    Args:
        text_of: gives a document's text as its memories decode, None if not all of them do;
            StoreDamaged if that is for damage.
        lost: documents that the store lost to damage, and why.

    Raises:
        UsageError: a file with other content, or one where a folder has to be, was there before.
        InputRefused: a path leads out of `to`.
    """
    roots = sorted({document.root for document in documents})
    written: list[Path] = []
    failed, damaged = list(lost), bool(lost)
    taken: set[Path] = set()
    for document in sorted(
        documents, key=lambda document: not restores_exactly(document.extractor)
    ):
        try:
            text = text_of(document)
        except StoreDamaged as error:
            damaged = True
            failed.append((document.path, str(error)))
            continue
        if text is None:
            failed.append((document.path, UNPROVEN))
            continue
        exact = restores_exactly(document.extractor)
        name = document.path if exact else document.path + ".txt"
        target = _target(to, folder_for_root(document.root, roots), name)
        if target in taken or not taken.isdisjoint(target.parents):
            failed.append(
                (
                    document.path,
                    f"another document is restored as {target}, or as a folder that it would be in",
                )
            )
            continue
        encoding = encoding_in(document.extractor) if exact else UTF8
        try:
            data = text.encode(encoding)
        except UnicodeEncodeError:  # a store of somebody else's may say anything
            failed.append((document.path, f"its text cannot be written in {encoding}"))
            continue
        try:
            written.append(_write_new(target, data))
        except OSError as error:
            if error.errno not in UNNAMEABLE:
                raise
            failed.append((document.path, f"no file can be called {target.name}: {error.strerror}"))
            continue
        taken.add(target)
    return Restored(tuple(written), tuple(failed), damaged)


def _rejoin(
    store: Store, document: StoredDocument, chunks: Mapping[str, Reconstructed]
) -> str | None:
    """The document's text, None if not all of it came back.

    Raises:
        StoreDamaged: the store no longer knows which chunks are the document's.
    """
    places = store.document_chunks(document.root, document.path)
    if not is_proven(store, document, chunks):
        return None
    return "".join(chunks[place.chunk_id].text or "" for place in places)


def folder_for_root(root: str, roots: list[str]) -> str:
    """The folder for a root's documents: "" for the only one, else its last name.

    Roots that share a last name are numbered.
    """
    if len(roots) == 1:
        return ""
    name = _last_name(root)
    namesakes = [candidate for candidate in roots if _last_name(candidate) == name]
    return name if len(namesakes) == 1 else f"{name}-{namesakes.index(root) + 1}"


def _last_name(root: str) -> str:
    """A root's last name; "root" for one without, as ".." would lead out of the target."""
    name = Path(root).name
    return "root" if name in ("", ".", "..") else name


def _target(to: Path, folder: str, name: str) -> Path:
    """The path of a document under `to`.

    Raises:
        InputRefused: its names lead out of there; the store may be somebody else's.
    """
    target = to / folder / os.fsdecode(native_of(name))
    if not _is_inside(target, to.resolve() / folder):
        raise InputRefused(
            f"the document {name!a} would be written outside {to / folder}",
            remedy="do not trust this store",
        )
    return target


def _write_new(target: Path, data: bytes) -> Path:
    """Writes a document, but not over other content.

    A beginning of it is what a restore that was cut short has left, and is completed.

    Raises:
        UsageError: other content, or a file in place of a folder, is in the way.
    """
    if target.is_dir() or (target.exists() and not data.startswith(target.read_bytes())):
        raise UsageError(
            f"{target} is in the way and has other content", remedy="restore into a new folder"
        )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UsageError(
            f"{target.parent} cannot be a folder: a file is in the way",
            remedy="restore into a new folder",
        ) from None
    target.write_bytes(data)
    return target


def _is_inside(target: Path, folder: Path) -> bool:
    """Whether `target` is in `folder`, links followed; what no file can be called is nowhere."""
    try:
        return folder in target.resolve().parents
    except ValueError:
        return False
