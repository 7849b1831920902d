"""Whole trips: ingest, ask, verify, restore, status, remove.

The only file that knows the order of things.

ingest   path -> Document -> Chunk -> Memory -> bytes -> Memory' -> Verdict -> store
ask      question -> Hits -> Memories -> input embeddings -> Answer
verify   store -> Memory' -> Verdict; chunks joined -> document
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from rag_memtok.config import Config
from rag_memtok.datatypes import Answer, Found, OnProgress
from rag_memtok.documents.names import given_path, join_name
from rag_memtok.documents.scan import scan
from rag_memtok.errors import UsageError
from rag_memtok.model import lm
from rag_memtok.model.prompts import template_named
from rag_memtok.pipeline import adapters, audit_report, bundle, finding, inspect, resources
from rag_memtok.pipeline import migrate as migration
from rag_memtok.pipeline.answer import answer
from rag_memtok.pipeline.audit import (
    Audit,
    DecodeOptions,
    Reconstruct,
    audit,
    check_structure,
    incomparable_audit,
    reconstruct_here,
)
from rag_memtok.pipeline.bundle import Bundled
from rag_memtok.pipeline.compare import compare_with_files, root_for
from rag_memtok.pipeline.engines import with_engine
from rag_memtok.pipeline.estimate import Estimate, estimate
from rag_memtok.pipeline.ingest import Ingested, ingest
from rag_memtok.pipeline.inspect import Collection, ListedChunk, ListedDocument, Setting, Shown
from rag_memtok.pipeline.manifest import (
    bound_values,
    complete_config,
    find_differences,
    installed_versions,
    require_same,
    require_same_embedder,
)
from rag_memtok.pipeline.migrate import Migrated, Rekeyed
from rag_memtok.pipeline.progress import quiet
from rag_memtok.pipeline.readable import encoder_for
from rag_memtok.pipeline.resources import Load, LoadLM, Say, store_folder
from rag_memtok.pipeline.restore import Restored, lost_documents, restore_documents
from rag_memtok.pipeline.session import Adapt, Session, load_adapted, with_adapters
from rag_memtok.retrieval.embedder import load_embedder
from rag_memtok.retrieval.index import open_index
from rag_memtok.settings import origins
from rag_memtok.store import ownership
from rag_memtok.store.files import ADAPTER, DATABASE
from rag_memtok.store.store import Summary, open_store

__all__ = [
    "Estimate", "Ingested", "Status", "ask", "chunks", "collections", "documents", "effective",
    "estimate", "export", "import_", "ingest", "lost", "migrate", "rekey", "remove", "restore",
    "search", "session", "show", "status", "store_folder", "verify",
]  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """A store at a glance.

    `outdated` documents were read by an older version of this program, otherwise than now.
    """

    summary: Summary
    manifest: Mapping[str, str]
    generation: int
    bytes: int
    adapter: str = ""
    outdated: int = 0


# --- ask


@contextmanager
def session(
    config: Config,
    say: Say = quiet,
    *,
    trusted: bool = False,
    load: Load = resources.load,
    adapt: Adapt = load_adapted,
) -> Iterator[Session]:
    """Opens the store and loads its model, once, for any number of questions.

    Args:
        trusted: read a store that was not made here.
        load: gives the model, which may be loaded already.
        adapt: gives the same with an adapter on.

    Raises:
        InputRefused: it was not made here, and is not trusted.
        NoStore, StoreDamaged, FormatMismatch, WrongModel, ModelUnavailable: see errors.py.
    """
    folder = store_folder(config)
    with open_store(folder, write=False) as store:
        manifest = store.manifest
        ownership.require_trust(manifest, folder, trusted=trusted)
        settings = complete_config(config, manifest)
        loaded = load(settings)
        require_same(manifest, loaded.lm, loaded.template)
        require_same_embedder(manifest, loaded.embedder)
        available = adapters.find_adapters(
            settings.ask.adapter, folder, loaded.lm, loaded.template.digest, say
        )
        index = open_index(store, loaded.embedder)
        opened = Session(
            store=store,
            lm=loaded.lm,
            template=loaded.template,
            embedder=loaded.embedder,
            index=index,
            state=manifest["state"],
            config=settings,
            on_warning=say,
        )
        yield with_engine(with_adapters(opened, available, adapt))


def ask(
    question: str,
    config: Config,
    on_text: Callable[[str], None] = quiet,
    say: Say = quiet,
    *,
    trusted: bool = False,
) -> Answer:
    """Answers one question from the store.

    Raises:
        NoUsableMemory: nothing relevant is in the store.
        UsageError: the question is empty or too long.
        NoStore, ...: see `session`.
    """
    with session(config, say, trusted=trusted) as opened:
        return answer(opened, question, on_text)


def search(question: str, config: Config) -> list[Found]:
    """The chunks relevant to a question, best first; loads no language model.

    Raises:
        NoUsableMemory: there is none.
        NoStore, StoreDamaged, WrongModel: see errors.py.
    """
    with open_store(store_folder(config), write=False) as store:
        settings = complete_config(config, store.manifest)
        finding_by = settings.retrieve
        embedder = load_embedder(finding_by.embedder, recorded=finding_by.recorded)
        require_same_embedder(store.manifest, embedder)
        return finding.find_chunks(store, embedder, question, finding_by)


# --- verify and restore


def verify(
    config: Config,
    *,
    structure_only: bool = False,
    share: float = 1.0,
    seed: int = 0,
    folder: Path | None = None,
    on_progress: OnProgress = quiet,
    page: Path | None = None,
    batch: int = 1,
    reference: bool = False,
    load_lm: LoadLM = lm.load,
    reconstruct: Reconstruct = reconstruct_here,
) -> Audit:
    """The reconstruction audit: decodes every memory, rejoins every document, compares.

    It decodes from vectors and pins alone.

    Args:
        structure_only: checksums and completeness alone, without a model; proves nothing about
            decoding.
        share: of the chunks, drawn with `seed`; 1 is all.
        folder: files to compare the documents with, read again: a folder that was ingested, or a
            copy of the only one.
        batch: chunks decoded together, without drafts, if that is more than 1.
        reference: every memory decoded token by token, alone; else the kept text is a draft, of
            which nothing is believed.
        reconstruct: decodes the memories, wherever that is done.
        page: a file for the audit as HTML; it quotes the documents where something failed.
    """
    if page is not None:
        audit_report.require_place(page)
    files = None if folder is None else scan([folder], config.documents, Path(config.store))
    with open_store(store_folder(config), write=False) as store:
        root = "" if folder is None else root_for(store, folder)
        model, now = None, installed_versions()
        if structure_only:
            result = check_structure(store)
        else:
            settings = complete_config(config, store.manifest)
            model = load_lm(settings.model)
            template = template_named(settings.memorize.template, model)
            now |= bound_values(model, template)
            different = find_differences(store.manifest, model, template)
            if different:
                result = incomparable_audit(store, different)
            else:
                encoder = encoder_for(model, template, settings, store.manifest)
                result = audit(
                    store,
                    model,
                    template,
                    share=share,
                    seed=seed,
                    on_progress=on_progress,
                    options=DecodeOptions(batch=batch, reference=reference, encoder=encoder),
                    reconstruct=reconstruct,
                )
        if files is not None:
            result = replace(
                result,
                findings=(
                    *result.findings,
                    *compare_with_files(store, root, files, config.documents),
                ),
            )
        if page is not None:
            audit_report.write(page, store, result, now, model)
        return result


def restore(
    to: Path, config: Config, on_progress: OnProgress = quiet, load_lm: LoadLM = lm.load
) -> Restored:
    """Writes the documents back from their memories alone.

    Text formats come back as the very file, others as their text (`NAME.txt`).

    Raises:
        UsageError: a file of that name with other content is in the way.
        WrongModel, ...: see `session`.
    """
    with open_store(store_folder(config), write=False) as store:
        model, template = resources.load_decoder(store.manifest, config, load_lm)
        return restore_documents(store, model, template, to, on_progress)


# --- the store


def status(config: Config) -> Status:
    """The store at a glance. Loads no model."""
    folder = store_folder(config)
    with open_store(folder, write=False) as store:
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        return Status(
            summary=store.summary(),
            manifest=store.manifest,
            generation=store.generation,
            bytes=size,
            adapter=adapters.describe(folder / ADAPTER),
            outdated=inspect.count_outdated(store),
        )


def remove(path: Path, config: Config) -> tuple[str, ...]:
    """Forgets a file, or all files of a folder; `path` may be a name that `list` gives, too.

    Documents go, and every memory that no other has. Files stay, but for those in `uploads/`.

    Raises:
        UsageError: the path is empty, the store has nothing of it, or it is a part of a file.
    """
    with open_store(store_folder(config), write=True) as store:
        gone = inspect.find_files(store, os.fspath(given_path(path)))
        if not gone:
            raise UsageError(
                f"the store has nothing of {path}", remedy="rag-memtok list names what it has"
            )
        store.collect(gone)
    return tuple(join_name(root, file) for root, file in gone)


def documents(config: Config) -> tuple[ListedDocument, ...]:
    """The store's documents. Loads no model."""
    with open_store(store_folder(config), write=False) as store, store.snapshot():
        return tuple(inspect.list_documents(store))


def lost(config: Config) -> tuple[tuple[str, str], ...]:
    """Documents that `documents` leaves out, for damage: path and reason. Loads no model."""
    with open_store(store_folder(config), write=False) as store:
        return lost_documents(store)


def chunks(config: Config) -> tuple[ListedChunk, ...]:
    """The store's chunks. Loads no model."""
    with open_store(store_folder(config), write=False) as store, store.snapshot():
        return tuple(inspect.list_chunks(store))


def collections(config: Config) -> tuple[Collection, ...]:
    """The stores under the folder `config.store`, by name.

    Raises:
        UsageError: the folder is a store itself, or a file.
    """
    root = Path(config.store)
    if (root / DATABASE).exists():
        raise UsageError(
            f"{root} is a store itself; it holds no collections",
            remedy="rag-memtok list says what is in it",
        )
    return tuple(inspect.list_collections(root))


def show(prefix: str, config: Config) -> Shown:
    """Decodes the memory whose chunk id begins with `prefix`.

    Raises:
        UsageError: not the beginning of one chunk's id.
        WrongModel, ...: see errors.py.
    """
    with open_store(store_folder(config), write=False) as store:
        inspect.find_chunk(store, prefix)  # before a model is loaded for nothing
        model, template = resources.load_decoder(store.manifest, config)
        return inspect.show(store, model, template, prefix)


def effective(
    flags: Mapping[str, object], environment: Mapping[str, str], folder: Path, config: Config
) -> Sequence[Setting]:
    """Every setting; what `config` leaves open is filled in from the store, if there is one.

    Loads no model.
    """
    store, manifest = store_folder(config), dict[str, str]()
    if (store / DATABASE).exists():
        with open_store(store, write=False) as opened:
            manifest = opened.manifest
    return inspect.effective_settings(config, manifest, origins(flags, environment, folder))


def export(file: Path, config: Config) -> Bundled:
    """Writes the store into one file.

    Raises:
        UsageError: there is a file of that name.
    """
    with open_store(store_folder(config), write=False) as store:
        return bundle.export(store, file)


def import_(file: Path, config: Config, *, trusted: bool = False) -> Bundled:
    """Makes a store from an exported file.

    Raises:
        InputRefused: it is not what was exported.
        UsageError: there is a store already.
    """
    return bundle.import_(file, store_folder(config), trusted=trusted)


def migrate(
    config: Config,
    *,
    drop_old: bool = False,
    on_progress: OnProgress = quiet,
    say: Say = quiet,
) -> Migrated:
    """Rewrites every memory for the model that `config` names. Run again, it goes on where it was.

    Raises:
        WrongModel, StoreDamaged, UsageError, ...: see `migrate.migrate`.
    """
    return migration.migrate(
        store_folder(config),
        config,
        drop_old=drop_old,
        load=resources.load,
        on_progress=on_progress,
        say=say,
    )


def rekey(config: Config, on_progress: OnProgress = quiet) -> Rekeyed:
    """Gives every chunk a key of the embedder that `config` names; touches no memory.

    Raises:
        ModelUnavailable, InputRefused, StoreDamaged: see `migrate.rekey`.
    """
    return migration.rekey(store_folder(config), config, on_progress)
