"""What is done with a store that exists: listed, looked into, exported and imported, migrated; and where its settings come from."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rag_memtok import binding, browse, bundle, prepare
from rag_memtok import migrate as migration
from rag_memtok.browse import ListedChunk, ListedDocument, Shown
from rag_memtok.bundle import Bundled
from rag_memtok.check import Summary
from rag_memtok.config import Config, dials, origins, value_of
from rag_memtok.disk import DATABASE, collections_of
from rag_memtok.errors import UsageError
from rag_memtok.ingest import Standing
from rag_memtok.migrate import Migrated
from rag_memtok.pipeline import store_folder
from rag_memtok.prepare import Say, quiet
from rag_memtok.store import open_store


@dataclass(frozen=True, slots=True)
class Collection:
    """One of several stores under a folder."""

    name: str
    model: str
    summary: Summary


@dataclass(frozen=True, slots=True)
class Setting:
    """A dial's effective value and where it comes from: flag, variable, file, store (the dial leaves it open) or default."""

    dial: str
    value: object
    origin: str


def documents(config: Config) -> tuple[ListedDocument, ...]:
    """The store's documents. Loads no model."""
    with open_store(store_folder(config), write=False) as store, store.snapshot():
        return tuple(browse.documents_of(store))


def chunks(config: Config) -> tuple[ListedChunk, ...]:
    """The store's chunks. Loads no model."""
    with open_store(store_folder(config), write=False) as store, store.snapshot():
        return tuple(browse.chunks_of(store))


def collections(config: Config) -> tuple[Collection, ...]:
    """The stores under the folder `config.store`, by name.

    Raises:
        UsageError: the folder is a store itself.
    """
    root = Path(config.store)
    if (root / DATABASE).exists():
        raise UsageError(f"{root} is a store itself; it holds no collections", remedy="rag-memtok list says what is in it")
    found = []
    for name in collections_of(root):
        with open_store(root / name, write=False) as store:
            manifest = store.manifest
            found.append(Collection(name, f"{manifest.get('model')} {manifest.get('revision', '')}".strip(), store.summary()))
    return tuple(found)


def show(prefix: str, config: Config) -> Shown:
    """Decodes the memory whose chunk id begins with `prefix`.

    Raises:
        UsageError: not the beginning of one chunk's id.
        WrongModel, ...: see errors.py.
    """
    with open_store(store_folder(config), write=False) as store:
        browse.find(store, prefix)  # before a model is loaded for nothing
        model, template = prepare.decoder(store.manifest, config)
        return browse.show(store, model, template, prefix)


def effective(flags: Mapping[str, object], environment: Mapping[str, str], folder: Path, config: Config) -> Sequence[Setting]:
    """Every dial; what `config` leaves open is filled in from the store, if there is one. Loads no model."""
    store, manifest = store_folder(config), dict[str, str]()
    if (store / DATABASE).exists():
        with open_store(store, write=False) as opened:
            manifest = opened.manifest
    whole, found = binding.completed(config, manifest), origins(flags, environment, folder)
    settings = []
    for dial in dials():
        value = value_of(whole, dial)
        filled_in = bool(manifest) and value != value_of(config, dial)
        settings.append(Setting(dial, value, "store" if filled_in else found[dial]))
    return settings


def export(file: Path, config: Config) -> Bundled:
    """Writes the store into one file.

    Raises:
        UsageError: there is a file of that name.
    """
    with open_store(store_folder(config), write=False) as store:
        return bundle.export(store, file)


def import_(file: Path, config: Config, trusted: bool = False) -> Bundled:
    """Makes a store from an exported file.

    Raises:
        InputRefused: it is not what was exported.
        UsageError: there is a store already.
    """
    return bundle.import_(file, store_folder(config), trusted)


def migrate(config: Config, drop_old: bool = False, on_progress: Callable[[Standing], None] = quiet, say: Say = quiet) -> Migrated:
    """Rewrites every memory for the model that `config` names. Run again, it goes on where it was.

    Raises:
        WrongModel, StoreDamaged, UsageError, ...: see `migrate.migrate`.
    """
    return migration.migrate(store_folder(config), config, drop_old, prepare.load, on_progress, say)
