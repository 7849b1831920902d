"""What an ingest would write and what it would cost here: the dry run."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rag_memtok.config import Config
from rag_memtok.documents.scan import NOTHING, Skipped, scan
from rag_memtok.memory.workers import per_process_config
from rag_memtok.pipeline import resources
from rag_memtok.pipeline.manifest import complete_config, require_same_settings
from rag_memtok.pipeline.plan import (
    Assumed,
    assumed_encodings,
    plan_or_refuse,
    planned_tokens,
    survey_new,
    survey_store,
)
from rag_memtok.pipeline.resources import store_folder
from rag_memtok.store.files import DATABASE
from rag_memtok.store.store import open_store


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """The files and chunks that an ingest would write, and the seconds it would take here.

    `assumed`: the encodings that were not told by the files.
    """

    files: int
    unchanged: int
    vanished: tuple[tuple[str, str], ...]
    skipped: tuple[Skipped, ...]
    chunks: int
    seconds: float
    ignored: int = 0
    assumed: tuple[Assumed, ...] = ()


def estimate(
    paths: Sequence[Path], config: Config, piped: Mapping[str, bytes] = NOTHING
) -> Estimate:
    """Estimates what `ingest` would write and how long it would take here. Writes nothing.

    Of three real steps of the writer the second counts.
    """
    folder = store_folder(config)
    scanned = scan(paths, config.documents, Path(config.store), piped)
    todo, manifest, stored = (
        survey_new(scanned),
        dict[str, str](),
        set[str](),
    )
    if (folder / DATABASE).exists():
        with open_store(folder, write=False) as store:
            todo, manifest, stored = (
                survey_store(scanned, paths, store, config),
                store.manifest,
                set(store.chunk_ids()),
            )
    if not todo.changed:
        return Estimate(
            files=0,
            unchanged=todo.unchanged,
            vanished=todo.vanished,
            skipped=todo.skipped,
            chunks=0,
            seconds=0.0,
            ignored=todo.ignored,
        )
    require_same_settings(manifest, config)
    settings = per_process_config(complete_config(config, manifest))
    loaded = resources.load(settings)
    planned, skipped = plan_or_refuse(loaded.lm, (*paths, *piped), todo, settings)
    chunks = {piece.chunk.id for file in planned for piece in file.pieces} - stored
    each = (
        resources.estimate_seconds(loaded.lm, loaded.template, planned_tokens(planned), settings)
        if chunks
        else 0.0
    )
    seconds = each * math.ceil(len(chunks) / settings.memorize.processes)
    return Estimate(
        files=len(planned),
        unchanged=todo.unchanged,
        vanished=todo.vanished,
        skipped=(*todo.skipped, *skipped),
        chunks=len(chunks),
        seconds=seconds,
        ignored=todo.ignored,
        assumed=assumed_encodings(planned),
    )
