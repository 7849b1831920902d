"""Files -> chunks -> memories -> store.

A chunk is committed when it has been judged, a file when all its chunks are.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from rag_memtok.config import Config, Memorize
from rag_memtok.datatypes import OnProgress, Record
from rag_memtok.documents.names import joined
from rag_memtok.documents.scan import NOTHING, Scan, Skipped, SourceFile, outdated, scan
from rag_memtok.errors import StoreDamaged
from rag_memtok.pipeline import resources
from rag_memtok.pipeline.manifest import (
    completed,
    manifest_of,
    require_same,
    require_same_embedder,
    require_same_job,
    require_same_settings,
)
from rag_memtok.pipeline.name_keys import give_keys
from rag_memtok.pipeline.plan import (
    Assumed,
    PlannedFile,
    Survey,
    assumed_of,
    places_of,
    planned_of,
    stored_document,
    surveyed,
    tasks_of,
    tokens_in,
)
from rag_memtok.pipeline.progress import quiet
from rag_memtok.pipeline.readable import Encoding, encoding, renew
from rag_memtok.pipeline.resources import Load, Say, store_folder
from rag_memtok.pipeline.writer import Engine, Writer, processes, text_only_record
from rag_memtok.retrieval.embedder import Embedder
from rag_memtok.retrieval.index import open_index
from rag_memtok.retrieval.lines import EVERY
from rag_memtok.store import ownership
from rag_memtok.store.files import DATABASE
from rag_memtok.store.store import Store, create, open_store


@dataclass(frozen=True, slots=True, repr=False)
class Ingested:
    """What an ingest did.

    `positions` are the context positions the new memories take, `text_positions` those of their
    text; `assumed` the encodings that were not told by the files. `ignored` files were left out
    because of a .gitignore. `failed` files have chunks that no worker of a cluster could write; the
    next ingest tries them again.
    """

    files: int
    unchanged: int
    removed: int
    vanished: tuple[tuple[str, str], ...]
    skipped: tuple[Skipped, ...]
    over_limit: tuple[Skipped, ...] = ()
    chunks: int = 0
    reused: int = 0
    verdicts: Mapping[str, int] = field(default_factory=dict)
    positions: int = 0
    text_positions: int = 0
    seconds: float = 0.0
    tokens_per_vector: int = 0
    ignored: int = 0
    assumed: tuple[Assumed, ...] = ()
    failed: tuple[Skipped, ...] = ()

    def __repr__(self) -> str:
        files = f"{self.files} files written, {self.unchanged} unchanged"
        rest = f"{len(self.skipped)} skipped, {self.seconds:.1f} s"
        return f"Ingested({files}, {self.chunks} chunks: {dict(self.verdicts)}, {rest})"


@dataclass(slots=True, eq=False)
class Ingest:
    """An ingest under way: what each file still waits for.

    It also has what has come of the chunks that are done.
    """

    writer: Writer
    embedder: Embedder
    made: Encoding | None = None
    files: dict[int, PlannedFile] = field(default_factory=dict)
    waiting: dict[int, set[str]] = field(default_factory=dict)
    waiters: dict[str, list[int]] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    before: dict[str, set[tuple[str, str, str]]] = field(default_factory=dict)
    over_limit: list[Skipped] = field(default_factory=list)
    failed: list[Skipped] = field(default_factory=list)
    completed: int = 0
    positions: int = 0
    text_positions: int = 0

    @property
    def store(self) -> Store:
        """Where it all goes."""
        return self.writer.store

    @property
    def settings(self) -> Memorize:
        """How memories are written."""
        return self.writer.config.memorize

    def run(self, files: Sequence[PlannedFile]) -> None:
        """Writes what of `files` the store does not have.

        Commits each file when it is whole.
        """
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
        self.before = self._before({joined(file.source.root, file.source.file) for file in files})
        self.writer.expect(len(missing))
        for index in [index for index, left in self.waiting.items() if not left]:
            self._commit_file(index)
        for chunk_id in sorted(missing):
            if pieces[chunk_id].tokens is None:
                self._keep(text_only_record(pieces[chunk_id].chunk, self._key(chunk_id)))
        tasks = tasks_of(
            (pieces[chunk_id] for chunk_id in pieces if chunk_id in missing),
            self.settings.tokens_per_vector,
        )
        with closing(self.writer.write(tasks)) as records:  # whoever works, ends with this
            for record in records:
                self._accept(record)
        for chunk_id, reason in self.writer.unwritten.items():
            self.failed += self._given_up(chunk_id, f"a chunk could not be written: {reason}")

    def _accept(self, record: Record) -> None:
        """Keeps what was written, unless it needs more pins than the user allows."""
        needed, allowed = record.verdict.corrections, self.settings.max_pins
        if 0 <= allowed < needed:
            reason = f"a chunk needs {needed} correction pins; --max-pins is {allowed}"
            self.over_limit += self._given_up(record.chunk_id, reason)
            return
        self.positions += record.shape[0]
        self.text_positions += record.tokens
        vectors = None
        if self.made:
            tokens = self.writer.lm.encode(self.texts[record.chunk_id])
            vectors = record.readable or self.made.of(tokens)
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

    def _given_up(self, chunk_id: str, reason: str) -> Iterator[Skipped]:
        """Gives up every file that has the chunk: the store keeps what it had of them."""
        for index in self.waiters.pop(chunk_id, ()):
            if self.waiting.pop(index, None) is None:
                continue
            source = self.files[index].source
            yield Skipped(source.root, source.file, reason)

    def _commit_file(self, index: int) -> None:
        file = self.files[index]
        documents = [
            stored_document(file.source, document, pieces) for document, pieces in file.documents
        ]
        places = [
            place for document, pieces in file.documents for place in places_of(document, pieces)
        ]
        self.store.replace_file(
            file.source.root, file.source.file, documents, places, self._outdated(file.source)
        )
        self.completed += 1
        del self.waiting[index]

    def _before(self, wanted: set[str]) -> dict[str, set[tuple[str, str, str]]]:
        """What the store has under these names, of whatever root: (root, file, sha256)."""
        found: dict[str, set[tuple[str, str, str]]] = {}
        with self.store.snapshot():
            for one in self.store.each_document(skip_damaged=True):
                if (name := joined(one.root, one.file)) in wanted:
                    # what an older version read is not what is in the file, changed or not
                    read = "" if outdated(one.extractor) else one.file_sha256
                    found.setdefault(name, set()).add((one.root, one.file, read))
        return found

    def _outdated(self, source: SourceFile) -> list[tuple[str, str]]:
        """The same file as it was when it was ingested with another folder.

        Its old text must not answer any more.
        """
        known = self.before.get(joined(source.root, source.file), ())
        return [
            (root, file)
            for root, file, sha256 in known
            if root != source.root and sha256 != source.sha256
        ]

    def _key(self, chunk_id: str) -> np.ndarray:
        return self.embedder.encode([self.texts[chunk_id]], query=False)[0]


def ingest(
    paths: Sequence[Path],
    config: Config,
    prune: bool = False,
    on_progress: OnProgress = quiet,
    say: Say = quiet,
    load: Load = resources.load,
    piped: Mapping[str, bytes] = NOTHING,
    engine: Engine = processes,
) -> Ingested:
    """Writes a memory for every chunk of every new or changed file under `paths`.

    It judges each memory and stores it.

    What is done is committed chunk by chunk; after an interrupt the same call goes on from there.

    Args:
        piped: what is in no file, by the name it is to have.
        engine: who writes the memories and judges them.

    Raises:
        InputRefused: a path is missing, or nothing readable was found.
        WrongModel: the store was written with another model, tokenizer, template or embedder.
        UsageError: a setting is not the one the store was made with.
        StoreLocked, StoreDamaged, DiskFailure, ...: see errors.py.
    """
    folder = store_folder(config)
    found = scan(paths, config.documents, Path(config.store), piped)
    if not (folder / DATABASE).exists():
        given: tuple[Path | str, ...] = (*paths, *piped)
        return _ingest_into_new(folder, given, found, config, on_progress, say, load, engine)
    with open_store(folder, write=True) as store:
        # of which the texts cannot be read either, as an ingest of their files may mend
        with suppress(StoreDamaged):
            if wrong := store.mend_words():
                say(f"the word index was {wrong}; it was made anew from the kept texts")
        todo = surveyed(found, paths, store, config)
        if not todo.changed:
            removed = _pruned(store, todo) if prune else 0
            store.collect()
            give_keys(store, say)
            if config.memorize.readable > 0:
                _renewed(store, config, load, on_progress, say)
            return Ingested(
                0,
                todo.unchanged,
                removed,
                todo.vanished,
                todo.skipped,
                tokens_per_vector=int(store.manifest.get("tokens_per_vector", 0)),
                ignored=todo.ignored,
            )
        require_same_settings(store.manifest, config)
        settings = completed(config, store.manifest)
        require_same_job(store.manifest, settings)
        loaded = load(settings)
        require_same(store.manifest, loaded.lm, loaded.template)
        require_same_embedder(store.manifest, loaded.embedder)
        if todo.outdated:
            reason = "because an older version of this program had read them"
            say(f"files read again {reason}: {todo.outdated}")
        planned, skipped = planned_of(loaded.lm, (*paths, *piped), todo, settings)
        # not before: what is refused removes nothing
        removed = _pruned(store, todo) if prune else 0
        writer = Writer(store, loaded.lm, loaded.template, settings, on_progress, engine)
        made = encoding(loaded.lm, loaded.template, settings, store.manifest)
        if made:
            renew(store, loaded.lm, loaded.template, made, on_progress)
        work = Ingest(writer, loaded.embedder, made)
        return _written(work, planned, todo, skipped, removed, say)


def _renewed(store: Store, config: Config, load: Load, on_progress: OnProgress, say: Say) -> None:
    """Gives the chunks that are there the readable vectors that are asked for."""
    loaded = load(completed(config, store.manifest))
    require_same(store.manifest, loaded.lm, loaded.template)
    made = encoding(loaded.lm, loaded.template, config, store.manifest)
    if made and (count := renew(store, loaded.lm, loaded.template, made, on_progress)):
        say(f"chunks with new readable vectors: {count}")


def _ingest_into_new(
    folder: Path,
    given: Sequence[Path | str],
    found: Scan,
    config: Config,
    on_progress: OnProgress,
    say: Say,
    load: Load,
    engine: Engine,
) -> Ingested:
    todo = Survey(found.files, 0, (), found.skipped, ignored=len(found.ignored))
    settings = completed(config, {})
    loaded = load(settings)
    model, template, embedder = loaded.lm, loaded.template, loaded.embedder
    planned, skipped = planned_of(model, given, todo, settings)
    chunks = tokens_in(planned)
    calibration = resources.calibrated(model, template, chunks, settings, say)
    settings = replace(
        settings,
        memorize=replace(settings.memorize, tokens_per_vector=calibration.tokens_per_vector),
    )
    if settings.model.id == "mini":
        say(resources.introduction(model, resources.cost(model, template, chunks, settings)))
    made = encoding(model, template, settings, {})
    manifest = manifest_of(model, template, embedder, settings) | {
        "tokens_per_vector_origin": calibration.origin,
        **(made.manifest if made else {}),
    }
    maker = ownership.new_maker()
    if not ownership.is_made_here(maker):
        say(
            f"{ownership.secret_path()} cannot be kept: this store will not be known as made here, "
            "and to ask it takes --trust-store"
        )
    create(folder, manifest | maker)
    with open_store(folder, write=True) as store:
        writer = Writer(store, model, template, settings, on_progress, engine)
        return _written(Ingest(writer, embedder, made), planned, todo, skipped, 0, say)


def _written(
    work: Ingest,
    planned: list[PlannedFile],
    todo: Survey,
    skipped: list[Skipped],
    removed: int,
    say: Say,
) -> Ingested:
    writer = work.writer
    pieces = {piece.chunk.id: piece for file in planned for piece in file.pieces if piece.tokens}
    to_write = [pieces[chunk_id].tokens or () for chunk_id in work.store.missing(pieces)]
    resources.forewarned(writer.lm, writer.template, to_write, writer.config, say)
    work.run(planned)
    work.store.collect()
    open_index(work.store, work.embedder, EVERY)
    chunks = {piece.chunk.id for file in planned for piece in file.pieces}
    reporter = writer.reporter
    return Ingested(
        files=work.completed,
        unchanged=todo.unchanged,
        removed=removed,
        vanished=todo.vanished,
        skipped=(*todo.skipped, *skipped),
        over_limit=tuple(work.over_limit),
        failed=tuple(work.failed),
        chunks=reporter.total,
        reused=len(chunks) - reporter.total,
        verdicts=dict(writer.verdicts),
        positions=work.positions,
        text_positions=work.text_positions,
        seconds=reporter.seconds,
        tokens_per_vector=work.settings.tokens_per_vector,
        ignored=todo.ignored,
        assumed=assumed_of(planned),
    )


def _pruned(store: Store, todo: Survey) -> int:
    for root, file in todo.vanished:
        store.remove_file(root, file)
    return len(todo.vanished)
