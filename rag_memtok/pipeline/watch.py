"""Ingest, and again whenever a file changes. The only home of watchfiles, which is optional."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from rag_memtok.config import Config
from rag_memtok.datatypes import OnProgress
from rag_memtok.errors import InputRefused, RagMemtokError, UsageError
from rag_memtok.pipeline import resources
from rag_memtok.pipeline.ingest import Ingested, ingest
from rag_memtok.pipeline.progress import quiet
from rag_memtok.pipeline.resources import Say

CALM_MS = 400  # nothing changed for so long: a save is over
LONGEST_MS = 5_000  # but never wait longer than this
TICK_MS = 500  # how long it takes until Ctrl-C is seen, or that a folder is another one


def watch(
    paths: Sequence[Path],
    config: Config,
    *,
    prune: bool = False,
    on_begin: Callable[[], None] = lambda: None,
    on_progress: OnProgress = quiet,
    say: Say = quiet,
) -> Iterator[Ingested | RagMemtokError]:
    """Ingests `paths`, and again whenever something under them changes.

    It goes on until the caller stops, and yields what each ingest did, or why it failed.

    The model stays loaded from one change to the next. A failure of the first ingest is raised, a
    later one may pass with the next change. A path that is not there any more is told; what is
    stored of it stays, with `prune`, too, and it is ingested again when it is back.

    Args:
        on_begin: called when an ingest begins; it is under way until its result is yielded.

    Raises:
        UsageError: watchfiles is not installed.
        InputRefused, ...: see `ingest`.
    """
    load = lru_cache(maxsize=1)(resources.load)
    present = list(paths)
    for turn, _ in enumerate(watch_changes(paths, Path(config.store))):
        before, present = present, [path for path in paths if os.path.exists(path)]
        for path in paths:
            if path in before and path not in present:
                say(
                    f"{path} is not there any more: what is stored of it stays; once it is back, "
                    "it is watched again"
                )
            if path in present and path not in before:
                say(f"{path} is there again")
        try:
            if present:
                on_begin()
                yield ingest(
                    present, config, prune=prune, on_progress=on_progress, say=say, load=load
                )
        except RagMemtokError as error:
            if not turn:
                raise
            yield error


def watch_changes(paths: Sequence[Path], store: Path) -> Iterator[None]:
    """Yields each time something under `paths` has changed.

    Before that it yields once, when it has begun to watch. It never ends by itself.

    What changes while the caller works is told at the next turn. The folder `store`, version
    control, environments and editors' drafts do not count. A folder that is moved away, or that
    another one takes the place of, has changed; the new one is watched.

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
    folders = sorted({os.fspath(path if path.is_dir() else path.parent) for path in paths})
    relevant = watchfiles.DefaultFilter(ignore_paths=[os.path.realpath(store)])
    while True:
        before, begun = folder_identities(folders), False
        watched = [os.path.realpath(folder) for folder, identity in before.items() if identity]
        for changed in _watch_ticks(watched, relevant):
            # a folder that was removed may have given its number to the one in its place
            if folder_identities(folders) != before or any(path in watched for _, path in changed):
                break
            if changed or not begun:
                begun = True
                yield


def folder_identities(folders: Sequence[str]) -> dict[str, tuple[int, int] | None]:
    """The identity of each folder by the system's numbers; None: there is none."""
    identities: dict[str, tuple[int, int] | None] = {}
    for folder in folders:
        try:
            status = os.stat(folder)
            identities[folder] = (status.st_dev, status.st_ino)
        except OSError:
            identities[folder] = None
    return identities


def _watch_ticks(folders: Sequence[str], relevant: Any) -> Iterator[set[tuple[Any, str]]]:
    """Yields the changes in the folders, at least every TICK_MS; ends if one of them vanishes."""
    import watchfiles

    while not folders:
        yield set()
        time.sleep(TICK_MS / 1000)
    try:
        yield from watchfiles.watch(
            *sorted(set(folders)),
            watch_filter=relevant,
            debounce=LONGEST_MS,
            step=CALM_MS,
            rust_timeout=TICK_MS,
            yield_on_timeout=True,
        )
    except FileNotFoundError:
        return
