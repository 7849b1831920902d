"""Files -> chunks -> memories -> store.

A chunk is committed when it has been judged, a file when all its chunks are.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from rag_memtok.config import Config
from rag_memtok.datatypes import OnProgress
from rag_memtok.documents.scan import NOTHING, Scan, Skipped, scan
from rag_memtok.errors import StoreDamaged
from rag_memtok.pipeline import resources
from rag_memtok.pipeline.commit import Ingest, leave_out_namesakes
from rag_memtok.pipeline.manifest import (
    JOB,
    complete_config,
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
    assumed_encodings,
    plan_or_refuse,
    planned_tokens,
    survey_new,
    survey_store,
)
from rag_memtok.pipeline.progress import quiet
from rag_memtok.pipeline.readable import choose_encoding, renew
from rag_memtok.pipeline.resources import Load, Say, store_folder
from rag_memtok.pipeline.writer import Engine, Writer, write_in_processes
from rag_memtok.retrieval.index import open_index
from rag_memtok.retrieval.lines import EVERY
from rag_memtok.store import ownership
from rag_memtok.store.files import DATABASE
from rag_memtok.store.store import Store, create, open_store


@dataclass(frozen=True, slots=True, repr=False, kw_only=True)
class Ingested:
    """The result of an ingest.

    `positions` are the context positions the new memories take, `text_positions` those of their
    text; `vanished` are gone, or have no text any more; `assumed` the encodings that were not told
    by the files. `ignored` files were left out because of a .gitignore. `failed` files have chunks
    that no worker of a cluster could write; the next ingest tries them again.
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


def ingest(
    paths: Sequence[Path],
    config: Config,
    *,
    prune: bool = False,
    on_progress: OnProgress = quiet,
    say: Say = quiet,
    load: Load = resources.load,
    piped: Mapping[str, bytes] = NOTHING,
    engine: Engine = write_in_processes,
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
    scanned = scan(paths, config.documents, Path(config.store), piped)
    if not (folder / DATABASE).exists():
        return _ingest_into_new(
            folder,
            (*paths, *piped),
            scanned,
            config=config,
            on_progress=on_progress,
            say=say,
            load=load,
            engine=engine,
        )
    with open_store(folder, write=True) as store:
        # of which the texts cannot be read either, as an ingest of their files may mend
        with suppress(StoreDamaged):
            if wrong := store.mend_words():
                say(f"the word index was {wrong}; it was made anew from the kept texts")
        todo = survey_store(scanned, paths, store, config)
        if not todo.changed:
            removed = _prune(store, todo) if prune else 0
            store.collect()
            _end_job(store)
            give_keys(store, say)
            if config.memorize.readable > 0:
                _renew_readables(store, config, load, on_progress, say)
            return _nothing_written(store, todo, removed)
        require_same_settings(store.manifest, config)
        settings = complete_config(config, store.manifest)
        require_same_job(store.manifest, settings)
        loaded = load(settings)
        require_same(store.manifest, loaded.lm, loaded.template)
        require_same_embedder(store.manifest, loaded.embedder)
        if todo.outdated:
            reason = "because an older version of this program had read them"
            say(f"files read again {reason}: {todo.outdated}")
        planned, skipped = plan_or_refuse(loaded.lm, (*paths, *piped), todo, settings)
        # not before: what is refused removes nothing
        removed = _prune(store, todo) if prune else 0
        writer = Writer(
            store=store,
            lm=loaded.lm,
            template=loaded.template,
            config=settings,
            on_progress=on_progress,
            engine=engine,
        )
        encoding = choose_encoding(loaded.lm, loaded.template, settings, store.manifest)
        if encoding:
            renew(store, loaded.lm, loaded.template, encoding, on_progress)
        work = Ingest(writer=writer, embedder=loaded.embedder, encoding=encoding)
        return _write(work, planned, todo, skipped=skipped, removed=removed, say=say)


def _nothing_written(store: Store, todo: Survey, removed: int) -> Ingested:
    """The result of an ingest of files that are all unchanged."""
    return Ingested(
        files=0,
        unchanged=todo.unchanged,
        removed=removed,
        vanished=todo.vanished,
        skipped=todo.skipped,
        tokens_per_vector=int(store.manifest.get("tokens_per_vector", 0)),
        ignored=todo.ignored,
    )


def _renew_readables(
    store: Store, config: Config, load: Load, on_progress: OnProgress, say: Say
) -> None:
    """Gives the stored chunks the readable vectors that the settings ask for."""
    loaded = load(complete_config(config, store.manifest))
    require_same(store.manifest, loaded.lm, loaded.template)
    encoding = choose_encoding(loaded.lm, loaded.template, config, store.manifest)
    if encoding and (count := renew(store, loaded.lm, loaded.template, encoding, on_progress)):
        say(f"chunks with new readable vectors: {count}")


def _ingest_into_new(
    folder: Path,
    sources: Sequence[Path | str],
    scanned: Scan,
    *,
    config: Config,
    on_progress: OnProgress,
    say: Say,
    load: Load,
    engine: Engine,
) -> Ingested:
    todo = survey_new(scanned)
    settings = complete_config(config, {})
    loaded = load(settings)
    model, template, embedder = loaded.lm, loaded.template, loaded.embedder
    planned, skipped = plan_or_refuse(model, sources, todo, settings)
    chunks = planned_tokens(planned)
    calibration = resources.choose_calibration(model, template, chunks, settings, say)
    settings = replace(
        settings,
        memorize=replace(settings.memorize, tokens_per_vector=calibration.tokens_per_vector),
    )
    if settings.model.id == "mini":
        say(
            resources.introduce_model(
                model, resources.estimate_seconds(model, template, chunks, settings)
            )
        )
    encoding = choose_encoding(model, template, settings, {})
    manifest = manifest_of(model, template, embedder, settings) | {
        "tokens_per_vector_origin": calibration.origin,
        **(encoding.manifest if encoding else {}),
    }
    maker = ownership.new_maker()
    if not ownership.is_made_here(maker):
        say(
            f"{ownership.secret_path()} cannot be kept: this store will not be known as made here, "
            "and to ask it takes --trust-store"
        )
    create(folder, manifest | maker)
    with open_store(folder, write=True) as store:
        writer = Writer(
            store=store,
            lm=model,
            template=template,
            config=settings,
            on_progress=on_progress,
            engine=engine,
        )
        work = Ingest(writer=writer, embedder=embedder, encoding=encoding)
        return _write(work, planned, todo, skipped=skipped, removed=0, say=say)


def _write(
    work: Ingest,
    planned: list[PlannedFile],
    todo: Survey,
    *,
    skipped: list[Skipped],
    removed: int,
    say: Say,
) -> Ingested:
    writer = work.writer
    planned, namesakes = leave_out_namesakes(planned, work.store)
    pieces = {piece.chunk.id: piece for file in planned for piece in file.pieces if piece.tokens}
    to_write = [pieces[chunk_id].tokens or () for chunk_id in work.store.missing(pieces)]
    resources.warn_if_long(writer.lm, writer.template, to_write, writer.config, say)
    work.run(planned)
    work.store.collect(keep=work.unfinished)  # the next ingest of their files goes on from there
    if not work.failed:
        _end_job(work.store)
    open_index(work.store, work.embedder, EVERY)
    chunks = {piece.chunk.id for file in planned for piece in file.pieces}
    reporter = writer.reporter
    return Ingested(
        files=work.files_done,
        unchanged=todo.unchanged,
        removed=removed,
        vanished=todo.vanished,
        skipped=(*todo.skipped, *skipped, *namesakes),
        over_limit=tuple(work.over_limit),
        failed=tuple(work.failed),
        chunks=writer.verdicts.total(),
        reused=len(chunks) - reporter.total,
        verdicts=dict(writer.verdicts),
        positions=work.positions,
        text_positions=work.text_positions,
        seconds=reporter.seconds,
        tokens_per_vector=work.settings.tokens_per_vector,
        ignored=todo.ignored,
        assumed=assumed_encodings(planned),
    )


def _end_job(store: Store) -> None:
    """Forgets the unfinished work of a cluster, of which nothing is left: see `JOB`."""
    if store.manifest.get(JOB):
        store.set_manifest(JOB, "")


def _prune(store: Store, todo: Survey) -> int:
    for root, file in todo.vanished:
        store.remove_file(root, file)
    return len(todo.vanished)
