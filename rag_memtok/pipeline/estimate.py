"""What an ingest would write and what it would cost here: the dry run."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rag_memtok.config import Config
from rag_memtok.documents.scan import NOTHING, Skipped, scan
from rag_memtok.memory.workers import per_process_config
from rag_memtok.pipeline import resources
from rag_memtok.pipeline.manifest import completed, require_same_settings
from rag_memtok.pipeline.plan import Assumed, Survey, assumed_of, planned_of, surveyed, tokens_in
from rag_memtok.pipeline.resources import store_folder
from rag_memtok.store.files import DATABASE
from rag_memtok.store.store import open_store


@dataclass(frozen=True, slots=True)
class Estimate:
    """What an ingest would write, and what it would cost here.

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
    """What `ingest` would write and how long it would take here. Writes nothing.

    Of three real steps of the writer the second counts.
    """
    folder = store_folder(config)
    found = scan(paths, config.documents, Path(config.store), piped)
    todo, manifest, written = (
        Survey(found.files, 0, (), found.skipped, ignored=len(found.ignored)),
        dict[str, str](),
        set[str](),
    )
    if (folder / DATABASE).exists():
        with open_store(folder, write=False) as store:
            todo, manifest, written = (
                surveyed(found, paths, store, config),
                store.manifest,
                set(store.chunk_ids()),
            )
    if not todo.changed:
        return Estimate(0, todo.unchanged, todo.vanished, todo.skipped, 0, 0.0, todo.ignored)
    require_same_settings(manifest, config)
    settings = per_process_config(completed(config, manifest))
    loaded = resources.load(settings)
    planned, skipped = planned_of(loaded.lm, (*paths, *piped), todo, settings)
    chunks = {piece.chunk.id for file in planned for piece in file.pieces} - written
    each = (
        resources.cost(loaded.lm, loaded.template, tokens_in(planned), settings) if chunks else 0.0
    )
    seconds = each * math.ceil(len(chunks) / settings.memorize.processes)
    unread = (*todo.skipped, *skipped)
    return Estimate(
        len(planned),
        todo.unchanged,
        todo.vanished,
        unread,
        len(chunks),
        seconds,
        todo.ignored,
        assumed_of(planned),
    )
