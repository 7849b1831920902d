"""Ingest, and again whenever a file changes. The only home of watchfiles, which is optional."""

import os
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

from rag_memtok.config import Config
from rag_memtok.datatypes import OnProgress
from rag_memtok.errors import InputRefused, RagMemtokError, UsageError
from rag_memtok.pipeline import resources
from rag_memtok.pipeline.ingest import Ingested, ingest
from rag_memtok.pipeline.progress import quiet
from rag_memtok.pipeline.resources import Say

CALM_MS = 400  # nothing changed for so long: a save is over
LONGEST_MS = 5_000  # but never wait longer than this
TICK_MS = 500  # how long it takes until Ctrl-C is seen


def watch(
    paths: Sequence[Path],
    config: Config,
    prune: bool = False,
    on_progress: OnProgress = quiet,
    say: Say = quiet,
) -> Iterator[Ingested | RagMemtokError]:
    """Ingests `paths`, and again whenever something under them changes.

    It goes on until the caller stops, and yields what each ingest did, or why it failed.

    The model stays loaded from one change to the next. A failure of the first ingest is raised, a
    later one may pass with the next change.

    Raises:
        UsageError: watchfiles is not installed.
        InputRefused, ...: see `ingest`.
    """
    load = lru_cache(maxsize=1)(resources.load)
    for turn, _ in enumerate(changes(paths, Path(config.store))):
        try:
            yield ingest(paths, config, prune, on_progress, say, load)
        except RagMemtokError as error:
            if not turn:
                raise
            yield error


def changes(paths: Sequence[Path], store: Path) -> Iterator[None]:
    """Yields each time something under `paths` has changed.

    Before that it yields once, when it has begun to watch. It never ends by itself.

    What changes while the caller works is told at the next turn. The folder `store`, version
    control, environments and editors' drafts do not count.

    Raises:
        UsageError: watchfiles is not installed.
        InputRefused: a path is missing.
    """
    try:
        import watchfiles
    except ImportError as error:
        raise UsageError(
            "watch needs the package watchfiles", remedy="pip install 'rag-memtok[watch]'"
        ) from error
    if missing := [path for path in paths if not path.exists()]:
        raise InputRefused(f"there is no {missing[0]}", remedy="name files and folders that exist")
    # A file is watched through its folder: editors replace files.
    folders = {os.path.realpath(path if path.is_dir() else path.parent) for path in paths}
    relevant = watchfiles.DefaultFilter(ignore_paths=[os.path.realpath(store)])
    begun = False
    for found in watchfiles.watch(
        *sorted(folders),
        watch_filter=relevant,
        debounce=LONGEST_MS,
        step=CALM_MS,
        rust_timeout=TICK_MS,
        yield_on_timeout=True,
    ):
        if found or not begun:
            begun = True
            yield
