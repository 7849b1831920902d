"""The documents, written back from their memories alone."""

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
from rag_memtok.pipeline.audit import placed, proven_document
from rag_memtok.pipeline.progress import Reporter
from rag_memtok.pipeline.recite import Recited, recite_all
from rag_memtok.store.store import Store

UNPROVEN = "not all of its memories decode to its text"


@dataclass(frozen=True, slots=True, repr=False)
class Restored:
    """Files written back, and documents that could not be (path, reason).

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

    Cost: that of `recite_all`.
    """
    everything = placed(store)
    recited: dict[str, Recited] = {}
    reporter = Reporter(on_progress, len(everything))
    for found in recite_all(store, lm, template, everything):
        recited |= {one.chunk_id: one for one in found}
        reporter.advance(len(found))
    documents, lost = store.documents(skip_damaged=True), lost_documents(store)
    done = write_documents(documents, lambda one: _rejoined(store, one, recited), to, lost)
    damaged = any(one.verdict.kind == "damaged" for one in recited.values())
    return replace(done, damaged=done.damaged or damaged)


def lost_documents(store: Store) -> tuple[tuple[str, str], ...]:
    """Documents that the store lost to damage: what is left of a path, and the reason."""
    problems = store.damaged_documents()
    return tuple((one.file or f"document {one.row}", str(one)) for one in problems)


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
    for document in sorted(documents, key=lambda one: not restores_exactly(one.extractor)):
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
        target = _target(to, folder_of(document.root, roots), name)
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
        written.append(_write_new(target, data))
        taken.add(target)
    return Restored(tuple(written), tuple(failed), damaged)


def _rejoined(store: Store, document: StoredDocument, recited: Mapping[str, Recited]) -> str | None:
    """The document's text, None if not all of it came back.

    Raises:
        StoreDamaged: the store no longer knows which chunks are the document's.
    """
    places = store.document_chunks(document.root, document.path)
    if not proven_document(store, document, recited):
        return None
    return "".join(recited[place.chunk_id].text or "" for place in places)


def folder_of(root: str, roots: list[str]) -> str:
    """The folder for a root's documents: "" for the only one, else its last name.

    The name is numbered where two share it.
    """
    if len(roots) == 1:
        return ""
    name = _last_name(root)
    namesakes = [other for other in roots if _last_name(other) == name]
    return name if len(namesakes) == 1 else f"{name}-{namesakes.index(root) + 1}"


def _last_name(root: str) -> str:
    """A root's last name, "root" for one that has none.

    ".." leads out of the folder that is restored into.
    """
    name = Path(root).name
    return "root" if name in ("", ".", "..") else name


def _target(to: Path, folder: str, name: str) -> Path:
    """Where a document goes: into a folder of `to`, never outside it.

    This holds whatever the names say: the store may be somebody else's.
    """
    target = to / folder / os.fsdecode(native_of(name))
    if not _lies_in(target, to.resolve() / folder):
        raise InputRefused(
            f"the document {name!a} would be written outside {to / folder}",
            remedy="do not trust this store",
        )
    return target


def _write_new(target: Path, data: bytes) -> Path:
    """Writes a document, but not over what is something else."""
    if target.is_dir() or (target.exists() and target.read_bytes() != data):
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


def _lies_in(target: Path, folder: Path) -> bool:
    """Whether `target` is in `folder`, links followed; what no file can be called is nowhere."""
    try:
        return folder in target.resolve().parents
    except ValueError:
        return False
