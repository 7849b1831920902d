"""An ingest under way: chunks are committed when they are judged, files when all of theirs are."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace

import numpy as np

from rag_memtok.config import Memorize
from rag_memtok.datatypes import Record
from rag_memtok.documents.names import join_name
from rag_memtok.documents.scan import Skipped, SourceFile, is_outdated
from rag_memtok.pipeline.plan import (
    PlannedFile,
    make_tasks,
    places_of,
    stored_document,
    tell_of_former,
)
from rag_memtok.pipeline.readable import Encoding
from rag_memtok.pipeline.writer import Writer, text_only_record
from rag_memtok.retrieval.embedder import Embedder
from rag_memtok.store.store import Store


@dataclass(slots=True, eq=False, kw_only=True)
class Ingest:
    """An ingest under way: what each file still waits for, and the results so far.

    `waiting` are the chunks that a file lacks, by its index in `files`; `waiters` the files that
    lack a chunk, by its id. `before` is what the store has under each name. `unfinished` are the
    ids of all chunks of the files that were given up.
    """

    writer: Writer
    embedder: Embedder
    encoding: Encoding | None = None
    files: dict[int, PlannedFile] = field(default_factory=dict)
    waiting: dict[int, set[str]] = field(default_factory=dict)
    waiters: dict[str, list[int]] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    before: dict[str, set[tuple[str, str, str]]] = field(default_factory=dict)
    over_limit: list[Skipped] = field(default_factory=list)
    failed: list[Skipped] = field(default_factory=list)
    unfinished: set[str] = field(default_factory=set)
    files_done: int = 0
    positions: int = 0
    text_positions: int = 0

    @property
    def store(self) -> Store:
        """The store that is written."""
        return self.writer.store

    @property
    def settings(self) -> Memorize:
        """The settings that memories are written with."""
        return self.writer.config.memorize

    def run(self, files: Sequence[PlannedFile]) -> None:
        """Writes the chunks of `files` that the store lacks; commits each file when it is whole."""
        pieces = {piece.chunk.id: piece for file in files for piece in file.pieces}
        missing = set(self.store.missing(pieces))
        self.files = dict(enumerate(files))
        self.waiting = {
            index: {piece.chunk.id for piece in file.pieces} & missing
            for index, file in self.files.items()
        }
        self.texts = {chunk_id: pieces[chunk_id].chunk.text for chunk_id in missing}
        for index, left in self.waiting.items():
            for chunk_id in left:
                self.waiters.setdefault(chunk_id, []).append(index)
        self.before = self._stored_versions(
            {join_name(file.source.root, file.source.file) for file in files}
        )
        self.writer.expect(len(missing))
        for index in [index for index, left in self.waiting.items() if not left]:
            self._commit_file(index)
        for chunk_id in sorted(missing):
            if pieces[chunk_id].tokens is None:
                self._keep(text_only_record(pieces[chunk_id].chunk, self._key(chunk_id)))
        tasks = make_tasks(
            (pieces[chunk_id] for chunk_id in pieces if chunk_id in missing),
            self.settings.tokens_per_vector,
        )
        with closing(self.writer.write(tasks)) as records:  # whoever works, ends with this
            for record in records:
                self._accept(record)
        for chunk_id, reason in self.writer.unwritten.items():
            self.failed += self._give_up(chunk_id, f"a chunk could not be written: {reason}")

    def _accept(self, record: Record) -> None:
        """Keeps what was written, unless it needs more pins than the user allows."""
        needed, allowed = record.verdict.corrections, self.settings.max_pins
        if 0 <= allowed < needed:
            reason = f"a chunk needs {needed} correction pins; --max-pins is {allowed}"
            self.over_limit += self._give_up(record.chunk_id, reason)
            return
        self.positions += record.shape[0]
        self.text_positions += record.tokens
        vectors = None
        if self.encoding:
            tokens = self.writer.lm.encode(self.texts[record.chunk_id])
            vectors = record.readable or self.encoding.of(tokens)
        self._keep(replace(record, key=self._key(record.chunk_id), readable=vectors))

    def _keep(self, record: Record) -> None:
        """Commits a chunk, and every file that waited for nothing else."""
        text = self.texts.pop(record.chunk_id)
        self.writer.keep(record, text if self.settings.keep_text else None)
        for index in self.waiters.pop(record.chunk_id, ()):
            if left := self.waiting.get(index):
                left.discard(record.chunk_id)
                if not left:
                    self._commit_file(index)
        self.writer.tell()

    def _give_up(self, chunk_id: str, reason: str) -> Iterator[Skipped]:
        """Gives up and yields every file with the chunk: the store keeps what it had of them."""
        for index in self.waiters.pop(chunk_id, ()):
            if self.waiting.pop(index, None) is None:
                continue
            self.unfinished.update(piece.chunk.id for piece in self.files[index].pieces)
            source = self.files[index].source
            given_up = Skipped(source.root, source.file, reason)
            is_stored = join_name(source.root, source.file) in self.before
            yield tell_of_former(given_up) if is_stored else given_up

    def _commit_file(self, index: int) -> None:
        file = self.files[index]
        documents = [
            stored_document(file.source, document, pieces) for document, pieces in file.documents
        ]
        places = [
            place for document, pieces in file.documents for place in places_of(document, pieces)
        ]
        self.store.replace_file(
            file.source.root, file.source.file, documents, places, self._outdated_files(file.source)
        )
        self.files_done += 1
        del self.waiting[index]

    def _stored_versions(self, names: set[str]) -> dict[str, set[tuple[str, str, str]]]:
        """The files that the store has under `names`, of whatever root: (root, file, sha256)."""
        stored: dict[str, set[tuple[str, str, str]]] = {}
        with self.store.snapshot():
            for document in self.store.each_document(skip_damaged=True):
                if (name := join_name(document.root, document.file)) in names:
                    # what an older version read is not what is in the file, changed or not
                    read = "" if is_outdated(document.extractor) else document.file_sha256
                    stored.setdefault(name, set()).add((document.root, document.file, read))
        return stored

    def _outdated_files(self, source: SourceFile) -> list[tuple[str, str]]:
        """The same file as it was when it was ingested with another folder.

        Its old text must not answer any more.
        """
        return [
            (root, file)
            for root, file, sha256 in self.before.get(join_name(source.root, source.file), ())
            if root != source.root and sha256 != source.sha256
        ]

    def _key(self, chunk_id: str) -> np.ndarray:
        return self.embedder.encode([self.texts[chunk_id]], query=False)[0]  # [e]


def leave_out_namesakes(
    files: Sequence[PlannedFile], store: Store
) -> tuple[list[PlannedFile], list[Skipped]]:
    """Leaves out each file with a document of the name that another's has.

    That is of one before it or in the store, as a file "t.jsonl#L1" beside "t.jsonl".
    """
    names = {(one.root, one.path) for file in files for one, _ in file.documents}
    with store.snapshot():
        owners = {
            (one.root, one.path): one.file
            for one in store.each_document(skip_damaged=True)
            if (one.root, one.path) in names
        }
    kept: list[PlannedFile] = []
    skipped: list[Skipped] = []
    for file in files:
        root, name = file.source.root, file.source.file
        paths = [document.path for document, _ in file.documents]
        taken = [path for path in paths if owners.get((root, path), name) != name]
        if taken:
            reason = (
                f"its name is that of a part of {owners[root, name]}"
                if taken == [name]
                else f"its part {taken[0]} has the name of a file"
            )
            skipped.append(Skipped(root, name, f"{reason}: rename one of them"))
        else:
            owners |= {(root, path): name for path in paths}
            kept.append(file)
    return kept, skipped
