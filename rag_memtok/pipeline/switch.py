"""A migrated store takes the place of the old one, by renaming; the old one may be removed."""

import os
import shlex
import shutil
from pathlib import Path

from rag_memtok.errors import UsageError
from rag_memtok.store.files import DATABASE, sibling, sync_folder
from rag_memtok.store.store import Store, open_store

MIGRATING, OLD = ".migrating", ".old"
PROVED = "migrated_from"  # in the manifest of a new store that is proved: it may be switched to
REPLACED = "migrated_from_store"  # beside it: the id of the store whose place it takes


def mark_proved(new: Store, old: Store) -> None:
    """Writes into the manifest of a proved store which one it was made from."""
    new.set_manifest(REPLACED, old.manifest["store_id"])
    new.set_manifest(PROVED, f"{old.manifest['model']} {old.manifest.get('revision', '')}".strip())


def switch(folder: Path) -> None:
    """Puts the proved new store in the place of the old one, which stays beside it."""
    os.rename(folder, sibling(folder, OLD))
    finish_switch(folder)


def finish_switch(folder: Path) -> None:
    """Puts a proved new store in its place, after a kill between the two renames too."""
    new = sibling(folder, MIGRATING)
    if folder.exists() or not (new / DATABASE).exists():
        return
    with open_store(new, write=False) as store:
        proved = PROVED in store.manifest
    if proved:
        os.rename(new, folder)
        sync_folder(folder.absolute().parent)


def remove_old(folder: Path, *, drop: bool) -> str:
    """Removes the old store if `drop`; returns where it still is, "" if nowhere.

    Raises:
        UsageError: what is there is not the store that this one was made from.
    """
    old = sibling(folder, OLD)
    if drop and (old / DATABASE).exists():
        with open_store(folder, write=False) as store, open_store(old, write=False) as other:
            replaced = store.manifest.get(REPLACED) == other.manifest["store_id"]
        if not replaced:
            raise UsageError(
                f"{old} is kept: {folder} was not made from it by a migration",
                remedy=f"remove it yourself if nobody needs it: rm -r {shlex.quote(str(old))}",
            )
        shutil.rmtree(old)
    return str(old) if old.exists() else ""
