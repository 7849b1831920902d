"""Whole trips: ingest, ask, verify, restore, status, remove. The only file that knows the order of things.

ingest   path -> Document -> Chunk -> Memory -> bytes -> Memory' -> Verdict -> store
ask      question -> Hits -> Memories -> input embeddings -> Answer
verify   store -> Memory' -> Verdict; chunks joined -> document
"""

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from rag_memtok import adapters, binding, lm, prepare, report, retrieve, trust
from rag_memtok.answer import Session, answer, with_adapter
from rag_memtok.audit import Audit, audit, incomparable, quick
from rag_memtok.compare import against, root_for
from rag_memtok.config import Config
from rag_memtok.disk import ADAPTER, DATABASE, folder_of, regular
from rag_memtok.documents import Scan, Skipped, joined, located, name_of, scan
from rag_memtok.errors import StoreDamaged, UsageError
from rag_memtok.ingest import Ingest, Ingested, PlannedFile, Standing, Survey, plan, survey
from rag_memtok.nouns import Answer
from rag_memtok.prepare import Load, Say, quiet
from rag_memtok.prompts import template_named
from rag_memtok.restore import Restored, restore_documents
from rag_memtok.store import Store, Summary, create, open_store
from rag_memtok.writing import of_one


@dataclass(frozen=True, slots=True)
class Estimate:
    """What an ingest would write, and what it would cost here."""

    files: int
    unchanged: int
    vanished: tuple[tuple[str, str], ...]
    skipped: tuple[Skipped, ...]
    chunks: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Status:
    """A store at a glance."""

    summary: Summary
    manifest: Mapping[str, str]
    generation: int
    bytes: int
    adapter: str = ""


def store_folder(config: Config) -> Path:
    """The store's folder.

    Raises:
        UsageError: a store where a folder of collections is meant, or the other way round.
    """
    return folder_of(Path(config.store), config.collection)


# --- ingest


def ingest(
    paths: Sequence[Path],
    config: Config,
    prune: bool = False,
    on_progress: Callable[[Standing], None] = quiet,
    say: Say = quiet,
    load: Load = prepare.load,
) -> Ingested:
    """Writes a memory for every chunk of every new or changed file under `paths`, judges it, and stores it.

    What is done is committed chunk by chunk; after an interrupt the same call goes on from there.

    Raises:
        InputRefused: a path is missing, or nothing readable was found.
        WrongModel: the store was written with another model, tokenizer, template or embedder.
        UsageError: a setting is not the one the store was made with.
        StoreLocked, StoreDamaged, DiskFailure, ...: see errors.py.
    """
    folder = store_folder(config)
    found = scan(paths, config.documents, Path(config.store))
    roots = [os.path.realpath(path) for path in paths if path.is_dir()]
    if not (folder / DATABASE).exists():
        return _ingest_into_new(folder, found, config, on_progress, say, load)
    with open_store(folder, write=True) as store:
        with suppress(StoreDamaged):  # of which the texts cannot be read either, as an ingest of their files may mend
            if store.mend_words():
                say("the word index was damaged; it was made anew from the kept texts")
        todo = survey(found, map(name_of, roots), store.file_hashes)
        if not todo.changed:
            removed = _pruned(store, todo) if prune else 0
            store.collect()
            return _nothing_new(todo, removed, int(store.manifest.get("tokens_per_vector", 0)))
        binding.require_same_settings(store.manifest, config)
        settings = binding.completed(config, store.manifest)
        loaded = load(settings)
        binding.require_same(store.manifest, loaded.lm, loaded.template)
        binding.require_same_embedder(store.manifest, loaded.embedder)
        planned, skipped = plan(loaded.lm, todo.changed, settings)
        removed = _pruned(store, todo) if prune else 0  # not before: what is refused removes nothing
        work = Ingest(store, loaded.lm, loaded.template, loaded.embedder, settings, on_progress)
        return _written(work, planned, todo, skipped, removed)


def _ingest_into_new(folder: Path, found: Scan, config: Config, on_progress: Callable[[Standing], None], say: Say, load: Load) -> Ingested:
    todo = Survey(found.files, 0, (), found.skipped)
    settings = binding.completed(config, {})
    loaded = load(settings)
    model, template, embedder = loaded.lm, loaded.template, loaded.embedder
    planned, skipped = plan(model, todo.changed, settings)
    chunks = prepare.tokens_in(planned)
    calibration = prepare.calibrated(model, template, chunks, settings, say)
    settings = replace(settings, memorize=replace(settings.memorize, tokens_per_vector=calibration.tokens_per_vector))
    if settings.model.id == "mini":
        say(prepare.introduction(model, prepare.cost(model, template, chunks, settings)))
    manifest = binding.manifest_of(model, template, embedder, settings) | {"tokens_per_vector_origin": calibration.origin}
    maker = trust.maker()
    if not trust.made_here(maker):
        say(f"{trust.secret_path()} cannot be kept: this store will not be known as made here, and to ask it takes --trust-store")
    create(folder, manifest | maker)
    with open_store(folder, write=True) as store:
        return _written(Ingest(store, model, template, embedder, settings, on_progress), planned, todo, skipped, 0)


def _written(work: Ingest, planned: list[PlannedFile], todo: Survey, skipped: list[Skipped], removed: int) -> Ingested:
    work.run(planned)
    work.store.collect()
    retrieve.open_index(work.store)
    chunks = {piece.chunk.id for file in planned for piece in file.pieces}
    return Ingested(
        files=work.completed,
        unchanged=todo.unchanged,
        removed=removed,
        vanished=todo.vanished,
        skipped=(*todo.skipped, *skipped),
        over_limit=tuple(work.over_limit),
        chunks=work.total,
        reused=len(chunks) - work.total,
        verdicts=dict(work.verdicts),
        positions=work.positions,
        text_positions=work.text_positions,
        seconds=time.monotonic() - work.began,
        tokens_per_vector=work.settings.tokens_per_vector,
    )


def _pruned(store: Store, todo: Survey) -> int:
    for root, file in todo.vanished:
        store.remove_file(root, file)
    return len(todo.vanished)


def _nothing_new(todo: Survey, removed: int, tokens_per_vector: int) -> Ingested:
    return Ingested(0, todo.unchanged, removed, todo.vanished, todo.skipped, (), 0, 0, {}, 0, 0, 0.0, tokens_per_vector)


def estimate(paths: Sequence[Path], config: Config) -> Estimate:
    """What `ingest` would write and how long it would take here: of three real steps of the writer the second counts. Writes nothing."""
    folder = store_folder(config)
    found = scan(paths, config.documents, Path(config.store))
    roots = [name_of(os.path.realpath(path)) for path in paths if path.is_dir()]
    todo, manifest, written = Survey(found.files, 0, (), found.skipped), dict[str, str](), set[str]()
    if (folder / DATABASE).exists():
        with open_store(folder, write=False) as store:
            todo, manifest, written = survey(found, roots, store.file_hashes), store.manifest, set(store.chunk_ids())
    if not todo.changed:
        return Estimate(0, todo.unchanged, todo.vanished, todo.skipped, 0, 0.0)
    binding.require_same_settings(manifest, config)
    settings = of_one(binding.completed(config, manifest))
    loaded = prepare.load(settings)
    planned, skipped = plan(loaded.lm, todo.changed, settings)
    chunks = {piece.chunk.id for file in planned for piece in file.pieces} - written
    each = prepare.cost(loaded.lm, loaded.template, prepare.tokens_in(planned), settings) if chunks else 0.0
    seconds = each * math.ceil(len(chunks) / settings.memorize.processes)
    return Estimate(len(planned), todo.unchanged, todo.vanished, (*todo.skipped, *skipped), len(chunks), seconds)


# --- ask


@contextmanager
def session(config: Config, say: Say = quiet, trusted: bool = False) -> Iterator[Session]:
    """Opens the store and loads its model, once, for any number of questions.

    Args:
        trusted: read a store that was not made here.

    Raises:
        InputRefused: it was not made here, and is not trusted.
        NoStore, StoreDamaged, FormatMismatch, WrongModel, ModelUnavailable: see errors.py.
    """
    folder = store_folder(config)
    with open_store(folder, write=False) as store:
        manifest = store.manifest
        trust.require_trust(manifest, folder, trusted)
        settings = binding.completed(config, manifest)
        loaded = prepare.load(settings)
        binding.require_same(manifest, loaded.lm, loaded.template)
        binding.require_same_embedder(manifest, loaded.embedder)
        adapter = adapters.find(settings.ask.adapter, folder, loaded.lm, loaded.template.digest, say)
        plain = Session(store, loaded.lm, loaded.template, loaded.embedder, retrieve.open_index(store), settings, say)
        yield with_adapter(plain, adapter)


def ask(question: str, config: Config, on_text: Callable[[str], None] = quiet, say: Say = quiet, trusted: bool = False) -> Answer:
    """Answers one question from the store.

    Raises:
        NoUsableMemory: nothing relevant is in the store.
        UsageError: the question is empty or too long.
        NoStore, ...: see `session`.
    """
    with session(config, say, trusted) as opened:
        return answer(opened, question, on_text)


# --- verify and restore


def verify(
    config: Config,
    structure_only: bool = False,
    share: float = 1.0,
    seed: int = 0,
    folder: Path | None = None,
    on_chunk: Callable[[int, int], None] = lambda done, total: None,
    page: Path | None = None,
    batch: int = 1,
) -> Audit:
    """The reconstruction audit: decodes every memory from vectors and pins alone, rejoins every document, compares.

    Args:
        structure_only: checksums and completeness alone, without a model; proves nothing about decoding.
        share: of the chunks, drawn with `seed`; 1 is all.
        folder: files to compare the documents with, read again: a folder that was ingested, or a copy of the only one.
        batch: chunks decoded together, 1 being the reference profile; several times quicker, and the audit says so.
        page: a file for the audit as HTML; it quotes the documents where something failed.
    """
    if page is not None and not page.parent.is_dir():
        raise UsageError(f"there is no folder {page.parent} for the report", remedy=f"mkdir -p {page.parent}")
    if page is not None and os.path.lexists(page) and not regular(page):
        raise UsageError(f"{page} is in the way of the report, and not a file", remedy="give the report another name")
    files = None if folder is None else scan([folder], config.documents, Path(config.store))
    with open_store(store_folder(config), write=False) as store:
        root = "" if folder is None else root_for(store, folder)
        model, now = None, binding.installed()
        if structure_only:
            found = quick(store)
        else:
            settings = binding.completed(config, store.manifest)
            model = lm.load(settings.model)
            template = template_named(settings.memorize.template, model)
            now |= binding.bound_to(model, template)
            different = binding.differences(store.manifest, model, template)
            found = incomparable(store, different) if different else audit(store, model, template, share, seed, on_chunk, batch)
        if files is not None:
            found = replace(found, findings=(*found.findings, *against(store, root, files, config.documents)))
        if page is not None:
            report.write(page, store, found, now, model)
        return found


def restore(to: Path, config: Config, on_chunk: Callable[[int, int], None] = lambda done, total: None) -> Restored:
    """Writes the documents back from their memories alone. Text formats come back as the very file, others as their text (`NAME.txt`).

    Raises:
        UsageError: a file of that name with other content is in the way.
        WrongModel, ...: see `session`.
    """
    with open_store(store_folder(config), write=False) as store:
        model, template = prepare.decoder(store.manifest, config)
        return restore_documents(store, model, template, to, on_chunk)


# --- the store


def status(config: Config) -> Status:
    """What is in the store. Loads no model."""
    folder = store_folder(config)
    with open_store(folder, write=False) as store:
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        return Status(store.summary(), store.manifest, store.generation, size, adapters.described(folder / ADAPTER))


def remove(path: Path, config: Config) -> tuple[str, ...]:
    """Forgets a file, or all files of a folder: documents, and every memory that no other document has. The files themselves stay.

    Raises:
        UsageError: the store has nothing of that path.
    """
    wanted = name_of(located(os.fspath(path)))
    with open_store(store_folder(config), write=True) as store:
        stored = {(one.root, one.file): joined(one.root, one.file) for one in store.documents(skip_damaged=True)}
        gone = sorted(names for names, whole in stored.items() if whole == wanted or whole.startswith(wanted.rstrip("/") + "/"))
        if not gone:
            raise UsageError(f"the store has nothing of {path}", remedy="rag-memtok list names what it has")
        store.collect(gone)
    return tuple(joined(root, file) for root, file in gone)
