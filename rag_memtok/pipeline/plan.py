"""What there is to do: files that are new or changed.

They are read and cut into chunks with their tokens.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path

from rag_memtok.config import Config
from rag_memtok.datatypes import Chunk, Document, Occurrence, StoredDocument
from rag_memtok.documents.encodings import BLANK, EMPTY, encoding_in
from rag_memtok.documents.headings import headings_above
from rag_memtok.documents.names import at_or_above, is_gone, join_name, name_of
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

TEXTLESS = frozenset({EMPTY, BLANK})


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """The files that are new or changed, and how many are not.

    `vanished` are (root, file) of those that are gone, or have no text any more. `stored` are the
    whole names of the others that the store has a text of, and that are changed or skipped.
    `outdated` of the changed
    ones have the same bytes, and were read by an older version of this program. `ignored` files are
    left out because of a .gitignore.
    """

    changed: tuple[SourceFile, ...]
    unchanged: int
    vanished: tuple[tuple[str, str], ...]
    skipped: tuple[Skipped, ...]
    stored: frozenset[str] = frozenset()
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
    """A file, read and split into chunks."""

    source: SourceFile
    documents: tuple[tuple[Document, tuple[Piece, ...]], ...]

    @property
    def pieces(self) -> Iterator[Piece]:
        """The chunks of all its documents, in order."""
        return (piece for _, pieces in self.documents for piece in pieces)


def survey_store(scanned: Scan, paths: Sequence[Path], store: Store, config: Config) -> Survey:
    """Compares the files found under `paths` with those in the store: see `survey`."""
    folders = [name_of(os.path.realpath(path)) for path in paths if path.is_dir()]
    encoding_named = bool(config.documents.encoding)
    with store.snapshot():
        damaged = store.damaged_files()  # once, however many roots there are
        documents = store.each_document(skip_damaged=True)
        return survey(
            scanned,
            folders,
            lambda root: store.file_hashes(root, damaged),
            store.each_file(),
            documents,
            encoding_named=encoding_named,
        )


def survey(
    scan: Scan,
    folders: Iterable[str],
    hashes_of: Callable[[str], Mapping[str, str]],
    files: Iterable[tuple[str, str]] = (),
    documents: Iterable[StoredDocument] = (),
    *,
    encoding_named: bool = False,
) -> Survey:
    """Compares the files found with those in the store.

    A file that was not looked at, as it is excluded now, has not vanished.

    Args:
        folders: those ingested; only files that stood in them, whatever their roots, can be called
            vanished.
        hashes_of: root -> {file: sha256 of its bytes}, as stored.
        files: the (root, file) of all that is stored, damaged or not.
        documents: those stored, to see which an older version of this program read.
        encoding_named: whether the user says what encoding texts are in: what was read in another
            is read again.
    """
    stored = {root: hashes_of(root) for root in {file.root for file in scan.files}}
    readings, older = {}, set()
    for document in documents:
        if encoding_named:
            readings[document.root, document.file] = document.extractor
        if is_outdated(document.extractor):
            older.add((document.root, document.file))
    same = {
        (file.root, file.file): file.encoding
        for file in scan.files
        if stored[file.root].get(file.file) == file.sha256
    }
    again = same.keys() & older
    reread = {
        place
        for place, encoding in same.items()
        if encoding_named and encoding and encoding_in(readings.get(place, "")) != encoding
    }
    unchanged = same.keys() - again - reread
    changed = tuple(file for file in scan.files if (file.root, file.file) not in unchanged)
    files = list(files)
    vanished = tuple(_find_vanished(scan, set(folders), files))
    found = {join_name(file.root, file.file) for file in changed}
    found |= {join_name(one.root, one.path) for one in scan.skipped}
    stored_names = {join_name(*names) for names in files} & found
    stored_names -= {join_name(*names) for names in vanished}
    return Survey(
        changed=changed,
        unchanged=len(unchanged),
        vanished=vanished,
        skipped=tuple(
            tell_of_former(one) if join_name(one.root, one.path) in stored_names else one
            for one in scan.skipped
        ),
        stored=frozenset(stored_names),
        outdated=len(again),
        ignored=len(scan.ignored),
    )


def survey_new(scan: Scan) -> Survey:
    """The survey of a store that is not there yet: every file is new."""
    return Survey(
        changed=scan.files,
        unchanged=0,
        vanished=(),
        skipped=scan.skipped,
        ignored=len(scan.ignored),
    )


def _find_vanished(
    scan: Scan, folders: Set[str], files: Iterable[tuple[str, str]]
) -> Iterator[tuple[str, str]]:
    """Yields those of the stored `files` that are gone from `folders`.

    Whole names are compared: a file may have been found in another folder, above or below. One that
    may still be there, unreadable, or in a folder that is, has not vanished. One without text has.
    """
    seen = {join_name(file.root, file.file) for file in scan.files}
    hidden = {next(at_or_above(join_name(one.root, one.path))) for one in scan.skipped}
    emptied = {join_name(file.root, file.file) for file in scan.files if not file.size}
    emptied |= {join_name(one.root, one.path) for one in scan.skipped if one.reason in TEXTLESS}
    for root, file in files:
        name = join_name(root, file)
        if name in emptied or (
            name not in seen
            and not folders.isdisjoint(at_or_above(name))
            and hidden.isdisjoint(at_or_above(name))
            and is_gone(root, file)
        ):
            yield root, file


def plan_or_refuse(
    lm: LM, sources: Iterable[Path | str], todo: Survey, settings: Config
) -> tuple[list[PlannedFile], list[Skipped]]:
    """The plan of new and changed files, and what of them cannot be read.

    Raises:
        InputRefused: nothing can, and there are no others.
    """
    planned, skipped = plan(lm, todo.changed, settings, todo.stored)
    if not planned and not todo.unchanged:
        raise nothing_to_read(sources, (*todo.skipped, *skipped), todo.ignored)
    return planned, skipped


def tell_of_former(skipped: Skipped) -> Skipped:
    """What is skipped, and says that the store goes on answering from what it was."""
    return replace(skipped, reason=f"{skipped.reason} (its former text is still in the store)")


def plan(
    lm: LM, files: Sequence[SourceFile], config: Config, stored: Set[str] = frozenset()
) -> tuple[list[PlannedFile], list[Skipped]]:
    """Reads `files` and splits them into chunks; what cannot be read is returned, never raised.

    Args:
        stored: the whole names of those that the store has a text of already.
    """
    planned: list[PlannedFile] = []
    skipped: list[Skipped] = []
    for source in files:
        reading = read(source, config.documents)
        unread = list(reading.skipped)
        cut = tuple(
            (document, _pieces(lm, document, config.documents.chunk_tokens))
            for document in reading.documents
        )
        lossy = any(piece.tokens is None for _, pieces in cut for piece in pieces)
        if lossy and not config.memorize.keep_text:
            unread.append(
                Skipped(
                    source.root,
                    source.file,
                    "the tokenizer does not give its text back, and --no-text keeps none",
                )
            )
        elif cut:
            planned.append(PlannedFile(source, cut))
            skipped += unread
            continue
        is_stored = join_name(source.root, source.file) in stored
        skipped += map(tell_of_former, unread) if is_stored else unread
    return planned, skipped


def _pieces(lm: LM, document: Document, capacity: int) -> tuple[Piece, ...]:
    chunks = split(document, capacity, lambda text: len(lm.encode(text)))
    encoded = [(chunk, lm.encode(chunk.text)) for chunk in chunks]
    return tuple(
        Piece(chunk, tuple(tokens) if lm.decode(tokens) == chunk.text else None)
        for chunk, tokens in encoded
    )


def assumed_encodings(planned: Iterable["PlannedFile"]) -> tuple[Assumed, ...]:
    """The files whose encoding nothing says, and the encodings in which they are read."""
    sources = [file.source for file in planned if file.source.assumed]
    return tuple(Assumed(file.root, file.file, file.encoding) for file in sources)


def make_tasks(pieces: Iterable[Piece], tokens_per_vector: int) -> list[Task]:
    """The tasks of `pieces`, each text once; those that are text alone have none."""
    tasks = {
        piece.chunk.id: make_task(piece.chunk.id, piece.tokens, tokens_per_vector)
        for piece in pieces
        if piece.tokens is not None
    }
    return list(tasks.values())


def planned_tokens(planned: Sequence[PlannedFile]) -> list[tuple[int, ...]]:
    """The tokens of every planned chunk, each text once."""
    chunks = {
        piece.chunk.id: piece.tokens for file in planned for piece in file.pieces if piece.tokens
    }
    return list(chunks.values())


def stored_document(
    source: SourceFile, document: Document, pieces: Sequence[Piece]
) -> StoredDocument:
    """A document as the store keeps it, without its chunks."""
    return StoredDocument(
        root=document.root,
        file=document.file,
        path=document.path,
        sha256=document.sha256,
        file_sha256=source.sha256,
        chunks=len(pieces),
        characters=len(document.text),
        extractor=document.extractor,
        size=source.size,
        modified=source.modified,
    )


def places_of(document: Document, pieces: Sequence[Piece]) -> list[Occurrence]:
    """The occurrences of a document's chunks, with the headings above them."""
    starts = [piece.chunk.start for piece in pieces]
    headings = headings_above(document.file, document.text, starts, document.headings)
    return [
        Occurrence(
            root=document.root,
            path=document.path,
            ordinal=ordinal,
            chunk_id=piece.chunk.id,
            start=piece.chunk.start,
            end=piece.chunk.end,
            locator=piece.chunk.locator,
            headings=above,
        )
        for ordinal, (piece, above) in enumerate(zip(pieces, headings, strict=True))
    ]
