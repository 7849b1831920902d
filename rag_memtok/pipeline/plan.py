"""What there is to do: files that are new or changed.

They are read and cut into chunks with their tokens.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rag_memtok.config import Config
from rag_memtok.datatypes import Chunk, Document, Occurrence, StoredDocument
from rag_memtok.documents.encodings import encoding_in
from rag_memtok.documents.headings import headings_above
from rag_memtok.documents.names import is_gone, name_of
from rag_memtok.documents.scan import (
    Scan,
    Skipped,
    SourceFile,
    is_outdated,
    nothing_to_read,
    read,
)
from rag_memtok.documents.split import split
from rag_memtok.memory.batch import Task, make_task
from rag_memtok.model.lm import LM
from rag_memtok.store.store import Store


@dataclass(frozen=True, slots=True)
class Survey:
    """What there is to do: files that are new or changed.

    It also has how many are not, and (root, file) of those that are gone. `outdated` of the changed
    ones have the same bytes, and were read by an older version of this program. `ignored` files are
    left out because of a .gitignore.
    """

    changed: tuple[SourceFile, ...]
    unchanged: int
    vanished: tuple[tuple[str, str], ...]
    skipped: tuple[Skipped, ...]
    outdated: int = 0
    ignored: int = 0


@dataclass(frozen=True, slots=True)
class Assumed:
    """A file that does not say its encoding, and the likeliest, in which it was read."""

    root: str
    path: str
    encoding: str


@dataclass(frozen=True, slots=True)
class Piece:
    """A chunk with its tokens.

    `tokens` is None where the tokenizer's round trip loses something.
    """

    chunk: Chunk
    tokens: tuple[int, ...] | None


@dataclass(frozen=True, slots=True, eq=False)
class PlannedFile:
    """A file, read and cut."""

    source: SourceFile
    documents: tuple[tuple[Document, tuple[Piece, ...]], ...]

    @property
    def pieces(self) -> Iterator[Piece]:
        """All its chunks in order."""
        return (piece for _, pieces in self.documents for piece in pieces)


def surveyed(found: Scan, paths: Sequence[Path], store: Store, config: Config) -> Survey:
    """Compares the files found under `paths` with those in the store: see `survey`."""
    roots = [name_of(os.path.realpath(path)) for path in paths if path.is_dir()]
    asked = bool(config.documents.encoding)
    with store.snapshot():
        papers = store.each_document(skip_damaged=True)
        return survey(found, roots, store.file_hashes, papers, asked)


def survey(
    scan: Scan,
    roots: Iterable[str],
    known: Callable[[str], Mapping[str, str]],
    documents: Iterable[StoredDocument] = (),
    asked: bool = False,
) -> Survey:
    """Compares the files found with those in the store.

    A file that was not looked at, as it is excluded now, has not vanished.

    Args:
        roots: the folders given; only under these can a file be called vanished.
        known: root -> {file: sha256 of its bytes}, as stored.
        documents: those stored, to see which an older version of this program read.
        asked: whether the user says what encoding texts are in: what was read in another is read
            again.
    """
    given = set(roots)
    stored = {root: known(root) for root in {*given, *(file.root for file in scan.files)}}
    readings, older = {}, set()
    for one in documents:
        if asked:
            readings[one.root, one.file] = one.extractor
        if is_outdated(one.extractor):
            older.add((one.root, one.file))
    same = {
        (file.root, file.file): file.encoding
        for file in scan.files
        if stored[file.root].get(file.file) == file.sha256
    }
    again = same.keys() & older
    reread = {
        place
        for place, encoding in same.items()
        if asked and encoding and encoding_in(readings.get(place, "")) != encoding
    }
    unchanged = same.keys() - again - reread
    changed = tuple(file for file in scan.files if (file.root, file.file) not in unchanged)
    seen = {(file.root, file.file) for file in scan.files}
    vanished = tuple(
        (root, file)
        for root in sorted(given)
        for file in stored[root]
        if (root, file) not in seen and not _hidden(root, file, scan) and is_gone(root, file)
    )
    return Survey(changed, len(unchanged), vanished, scan.skipped, len(again), len(scan.ignored))


def _hidden(root: str, file: str, scan: Scan) -> bool:
    """Whether the file may still be there, unreadable, or in a folder that is."""
    return any(
        root == skipped.root
        and (
            skipped.path == "."
            or file == skipped.path
            or file.startswith(skipped.path.rstrip("/") + "/")
        )
        for skipped in scan.skipped
    )


def planned_of(
    lm: LM, given: Iterable[Path | str], todo: Survey, settings: Config
) -> tuple[list[PlannedFile], list[Skipped]]:
    """What is written of new and changed files, and what cannot be read of them.

    Raises:
        InputRefused: nothing can, and there are no others.
    """
    planned, skipped = plan(lm, todo.changed, settings)
    if not planned and not todo.unchanged:
        raise nothing_to_read(given, (*todo.skipped, *skipped), todo.ignored)
    return planned, skipped


def plan(
    lm: LM, files: Sequence[SourceFile], config: Config
) -> tuple[list[PlannedFile], list[Skipped]]:
    """Reads and cuts `files`; what cannot be read is told, never raised."""
    planned: list[PlannedFile] = []
    skipped: list[Skipped] = []
    for source in files:
        reading = read(source, config.documents)
        skipped += reading.skipped
        cut = tuple(
            (document, _pieces(lm, document, config.documents.chunk_tokens))
            for document in reading.documents
        )
        lossy = any(piece.tokens is None for _, pieces in cut for piece in pieces)
        if lossy and not config.memorize.keep_text:
            skipped.append(
                Skipped(
                    source.root,
                    source.file,
                    "the tokenizer does not give its text back, and --no-text keeps none",
                )
            )
        elif cut:
            planned.append(PlannedFile(source, cut))
    return planned, skipped


def _pieces(lm: LM, document: Document, capacity: int) -> tuple[Piece, ...]:
    chunks = split(document, capacity, lambda text: len(lm.encode(text)))
    encoded = [(chunk, lm.encode(chunk.text)) for chunk in chunks]
    return tuple(
        Piece(chunk, tuple(tokens) if lm.decode(tokens) == chunk.text else None)
        for chunk, tokens in encoded
    )


def assumed_of(planned: Iterable["PlannedFile"]) -> tuple[Assumed, ...]:
    """The files whose encoding nothing says, and what they are read in."""
    sources = [one.source for one in planned if one.source.assumed]
    return tuple(Assumed(one.root, one.file, one.encoding) for one in sources)


def tasks_of(pieces: Iterable[Piece], tokens_per_vector: int) -> list[Task]:
    """What the writer has to do, each text once."""
    tasks = {
        piece.chunk.id: make_task(piece.chunk.id, piece.tokens, tokens_per_vector)
        for piece in pieces
        if piece.tokens is not None
    }
    return list(tasks.values())


def tokens_in(planned: Sequence[PlannedFile]) -> list[tuple[int, ...]]:
    """The tokens of every planned chunk, each text once."""
    chunks = {
        piece.chunk.id: piece.tokens for file in planned for piece in file.pieces if piece.tokens
    }
    return list(chunks.values())


def stored_document(
    source: SourceFile, document: Document, pieces: Sequence[Piece]
) -> StoredDocument:
    """What the store keeps of a document beside its chunks."""
    return StoredDocument(
        document.root,
        document.file,
        document.path,
        document.sha256,
        source.sha256,
        len(pieces),
        len(document.text),
        document.extractor,
        source.size,
        source.modified,
    )


def places_of(document: Document, pieces: Sequence[Piece]) -> list[Occurrence]:
    """Where a document's chunks stand, and under which headings."""
    starts = [piece.chunk.start for piece in pieces]
    headings = headings_above(document.file, document.text, starts, document.headings)
    return [
        Occurrence(
            document.root,
            document.path,
            ordinal,
            piece.chunk.id,
            piece.chunk.start,
            piece.chunk.end,
            piece.chunk.locator,
            above,
        )
        for ordinal, (piece, above) in enumerate(zip(pieces, headings, strict=True))
    ]
