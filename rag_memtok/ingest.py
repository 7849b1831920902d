"""Files -> chunks -> memories -> store. A chunk is committed when it has been judged, a file when all its chunks are."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from rag_memtok.chunks import split
from rag_memtok.config import Config, Memorize
from rag_memtok.documents import Scan, Skipped, SourceFile, is_gone, joined, read
from rag_memtok.layout import Task, task_of
from rag_memtok.lm import LM
from rag_memtok.memorize import Progress
from rag_memtok.nouns import Chunk, Document, Occurrence, Record, StoredDocument, Verdict, sha256_of_tokens
from rag_memtok.prompts import Template
from rag_memtok.retrieve import Embedder
from rag_memtok.store import Store
from rag_memtok.writing import records

TEXT_ONLY = "text"  # the codec of a chunk that the tokenizer would not give back: its bytes are its text


@dataclass(frozen=True, slots=True)
class Survey:
    """What there is to do: files that are new or changed, how many are not, and (root, file) of those that are gone."""

    changed: tuple[SourceFile, ...]
    unchanged: int
    vanished: tuple[tuple[str, str], ...]
    skipped: tuple[Skipped, ...]


@dataclass(frozen=True, slots=True)
class Piece:
    """A chunk with its tokens; `tokens` is None where the tokenizer's round trip loses something."""

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


@dataclass(frozen=True, slots=True)
class Standing:
    """Where writing stands: chunks to write and done, by verdict, steps of the batch, seconds, and an estimate of those left."""

    chunks: int
    done: int
    verdicts: Mapping[str, int]
    steps: int
    rows: int
    seconds: float
    seconds_left: float | None


def standing(chunks: int, verdicts: Mapping[str, int], steps: int, rows: int, began: float) -> Standing:
    """Where it stands now; `began` is by the monotonic clock, and what is left is taken to cost what is done did."""
    done, seconds = sum(verdicts.values()), time.monotonic() - began
    left = seconds / done * (chunks - done) if done else None
    return Standing(chunks, done, dict(verdicts), steps, rows, seconds, left)


@dataclass(frozen=True, slots=True)
class Ingested:
    """What an ingest did. `positions` are the context positions the new memories take, `text_positions` those of their text."""

    files: int
    unchanged: int
    removed: int
    vanished: tuple[tuple[str, str], ...]
    skipped: tuple[Skipped, ...]
    over_limit: tuple[Skipped, ...]
    chunks: int
    reused: int
    verdicts: Mapping[str, int]
    positions: int
    text_positions: int
    seconds: float
    tokens_per_vector: int


def survey(scan: Scan, roots: Iterable[str], known: Callable[[str], Mapping[str, str]]) -> Survey:
    """Compares the files found with those in the store. A file that was not looked at, as it is excluded now, has not vanished.

    Args:
        roots: the folders given; only under these can a file be called vanished.
        known: root -> {file: sha256 of its bytes}, as stored.
    """
    given = set(roots)
    stored = {root: known(root) for root in {*given, *(file.root for file in scan.files)}}
    changed = tuple(file for file in scan.files if stored[file.root].get(file.file) != file.sha256)
    seen = {(file.root, file.file) for file in scan.files}
    vanished = tuple(
        (root, file)
        for root in sorted(given)
        for file in stored[root]
        if (root, file) not in seen and not _hidden(root, file, scan) and is_gone(root, file)
    )
    return Survey(changed, len(scan.files) - len(changed), vanished, scan.skipped)


def _hidden(root: str, file: str, scan: Scan) -> bool:
    """Whether the file may still be there, unreadable, or in a folder that is."""
    return any(
        root == skipped.root and (skipped.path == "." or file == skipped.path or file.startswith(skipped.path.rstrip("/") + "/"))
        for skipped in scan.skipped
    )


def plan(lm: LM, files: Sequence[SourceFile], config: Config) -> tuple[list[PlannedFile], list[Skipped]]:
    """Reads and cuts `files`; what cannot be read is told, never raised."""
    planned: list[PlannedFile] = []
    skipped: list[Skipped] = []
    for source in files:
        reading = read(source, config.documents)
        skipped += reading.skipped
        cut = tuple((document, _pieces(lm, document, config.documents.chunk_tokens)) for document in reading.documents)
        lossy = any(piece.tokens is None for _, pieces in cut for piece in pieces)
        if lossy and not config.memorize.keep_text:
            skipped.append(Skipped(source.root, source.file, "the tokenizer does not give its text back, and --no-text keeps none"))
        elif cut:
            planned.append(PlannedFile(source, cut))
    return planned, skipped


def _pieces(lm: LM, document: Document, capacity: int) -> tuple[Piece, ...]:
    chunks = split(document, capacity, lambda text: len(lm.encode(text)))
    encoded = [(chunk, lm.encode(chunk.text)) for chunk in chunks]
    return tuple(Piece(chunk, tuple(tokens) if lm.decode(tokens) == chunk.text else None) for chunk, tokens in encoded)


def tasks_of(pieces: Iterable[Piece], tokens_per_vector: int) -> list[Task]:
    """What the writer has to do, each text once."""
    tasks = {piece.chunk.id: task_of(piece.chunk.id, piece.tokens, tokens_per_vector) for piece in pieces if piece.tokens is not None}
    return list(tasks.values())


@dataclass(slots=True, eq=False)
class Ingest:
    """An ingest under way: what each file still waits for, and what has come of the chunks that are done."""

    store: Store
    lm: LM
    template: Template
    embedder: Embedder
    config: Config
    on_progress: Callable[[Standing], None]
    began: float = field(default_factory=time.monotonic)
    files: dict[int, PlannedFile] = field(default_factory=dict)
    waiting: dict[int, set[str]] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    before: dict[str, set[tuple[str, str, str]]] = field(default_factory=dict)
    verdicts: Counter[str] = field(default_factory=Counter)
    over_limit: list[Skipped] = field(default_factory=list)
    total: int = 0
    completed: int = 0
    positions: int = 0
    text_positions: int = 0
    steps: int = 0

    @property
    def settings(self) -> Memorize:
        """How memories are written."""
        return self.config.memorize

    def run(self, files: Sequence[PlannedFile]) -> None:
        """Writes what of `files` the store does not have, and commits each file when it is whole."""
        pieces = {piece.chunk.id: piece for file in files for piece in file.pieces}
        missing = set(self.store.missing(pieces))
        self.files = dict(enumerate(files))
        self.waiting = {index: {piece.chunk.id for piece in file.pieces} & missing for index, file in self.files.items()}
        self.texts = {chunk_id: pieces[chunk_id].chunk.text for chunk_id in missing}
        for one in self.store.documents(skip_damaged=True):
            self.before.setdefault(joined(one.root, one.file), set()).add((one.root, one.file, one.file_sha256))
        self.total = len(missing)
        for index in [index for index, left in self.waiting.items() if not left]:
            self._commit_file(index)
        for chunk_id in sorted(missing):
            if pieces[chunk_id].tokens is None:
                self._keep(text_only_record(pieces[chunk_id].chunk, self._key(chunk_id)))
        tasks = tasks_of((pieces[chunk_id] for chunk_id in pieces if chunk_id in missing), self.settings.tokens_per_vector)
        for record in records(self.lm, self.template, self.config, tasks, self._stepped):
            self._accept(record)

    def _accept(self, record: Record) -> None:
        """Keeps what was written, unless it needs more pins than the user allows."""
        needed, allowed = record.verdict.corrections, self.settings.max_pins
        if 0 <= allowed < needed:
            self._refuse(record.chunk_id, f"a chunk needs {needed} correction pins; --max-pins is {allowed}")
            return
        self.positions += record.shape[0]
        self.text_positions += record.tokens
        self._keep(replace(record, key=self._key(record.chunk_id)))

    def _keep(self, record: Record) -> None:
        """Commits a chunk, and every file that waited for nothing else."""
        self.store.put(record, self.texts.pop(record.chunk_id) if self.settings.keep_text else None)
        self.verdicts[record.verdict.kind] += 1
        for index in [index for index, left in self.waiting.items() if record.chunk_id in left]:
            self.waiting[index].discard(record.chunk_id)
            if not self.waiting[index]:
                self._commit_file(index)
        self._tell(0)

    def _refuse(self, chunk_id: str, reason: str) -> None:
        """Gives up every file that has the chunk: the store keeps what it had of them."""
        for index in [index for index, left in self.waiting.items() if chunk_id in left]:
            source = self.files[index].source
            self.over_limit.append(Skipped(source.root, source.file, reason))
            del self.waiting[index]

    def _commit_file(self, index: int) -> None:
        file = self.files[index]
        documents = [stored_document(file.source, document, pieces) for document, pieces in file.documents]
        places = [place for document, pieces in file.documents for place in places_of(document, pieces)]
        self.store.replace_file(file.source.root, file.source.file, documents, places, self._outdated(file.source))
        self.completed += 1
        del self.waiting[index]

    def _outdated(self, source: SourceFile) -> list[tuple[str, str]]:
        """The same file as it was when it was ingested with another folder: its old text must not answer any more."""
        known = self.before.get(joined(source.root, source.file), ())
        return [(root, file) for root, file, sha256 in known if root != source.root and sha256 != source.sha256]

    def _key(self, chunk_id: str) -> np.ndarray:
        return self.embedder.encode([self.texts[chunk_id]], query=False)[0]

    def _stepped(self, progress: Progress) -> None:
        self.steps = progress.steps
        self._tell(progress.rows)

    def _tell(self, rows: int) -> None:
        self.on_progress(standing(self.total, self.verdicts, self.steps, rows, self.began))


def text_only_record(chunk: Chunk, key: np.ndarray | None) -> Record:
    """A chunk the tokenizer would not give back, kept as its text."""
    return Record(chunk.id, 0, sha256_of_tokens(()), TEXT_ONLY, chunk.text.encode(), (0, 0), (), Verdict("text-only", 0), key)


def stored_document(source: SourceFile, document: Document, pieces: Sequence[Piece]) -> StoredDocument:
    """What the store keeps of a document beside its chunks."""
    return StoredDocument(
        document.root, document.file, document.path, document.sha256, source.sha256, len(pieces), len(document.text), document.extractor
    )


def places_of(document: Document, pieces: Sequence[Piece]) -> list[Occurrence]:
    """Where a document's chunks stand."""
    return [
        Occurrence(document.root, document.path, ordinal, piece.chunk.id, piece.chunk.start, piece.chunk.end, piece.chunk.locator)
        for ordinal, piece in enumerate(pieces)
    ]
