"""The model that answers, as a folder for a server: the LM of a store, its reader merged."""

import shlex
from dataclasses import dataclass
from pathlib import Path

from rag_memtok.config import Config
from rag_memtok.errors import UsageError
from rag_memtok.model import lora, plain
from rag_memtok.model.lm import LM, load
from rag_memtok.model.prompts import template_named
from rag_memtok.model.remote import FLAG
from rag_memtok.pipeline import adapters, api
from rag_memtok.pipeline.adapters import Adapter
from rag_memtok.pipeline.manifest import complete_config
from rag_memtok.pipeline.readable import widest_readable_window
from rag_memtok.pipeline.resources import Say, store_folder
from rag_memtok.pipeline.session import active_adapter
from rag_memtok.store.files import DATABASE


@dataclass(frozen=True, slots=True)
class Exported:
    """The folder, what it was made of, and the line that starts a server on it."""

    folder: str
    adapter: str
    made: plain.Merged
    start: str


def export_reader(to: Path, config: Config, dtype: str, say: Say, *, trusted: bool) -> Exported:
    """Writes the LM that answers questions to a store, its reader merged.

    Where there is no store, it is the one that a new one would be asked with.

    Args:
        dtype: of the weights that are written.
        trusted: read a store that was not made here.

    Raises:
        UsageError: there is no adapter to merge, or something in the folder.
        WrongModel, InputRefused, ...: see `api.session`.

    Cost: the weights twice in memory.
    """
    plain.require_new(to)
    if (store_folder(config) / DATABASE).exists():
        with api.session(config, say, trusted=trusted) as session:
            return _write(to, session.lm, active_adapter(session), dtype)
    settings = complete_config(config, {})
    lm = load(settings.model)
    template = template_named(settings.memorize.template, lm)
    setting = settings.ask.adapter
    available = adapters.find_adapters(setting, store_folder(config), lm, template.digest, say)
    reads_vectors = settings.ask.read == "zoomed" or (
        settings.ask.read in ("auto", "memory", "unfolded")
        and widest_readable_window(available.vectors)
    )
    adapter = available.vectors if reads_vectors else available.text or available.memory
    return _write(to, lm, adapter, dtype)


def _write(to: Path, lm: LM, adapter: Adapter | None, dtype: str) -> Exported:
    if adapter is None:
        raise UsageError(
            "there is no adapter to merge: the model answers as it is",
            remedy="serve the model's own folder, or name an adapter: --adapter DIR",
        )
    reader = lora.load_adapter(lm, adapter.folder)
    merged = plain.write_merged(
        to, reader, lm, manifest=adapter.manifest, dtype=dtype, card=adapter.folder / plain.CARD
    )
    return Exported(str(to), str(adapter.folder), merged, server_command(to, merged))


def server_command(folder: Path, merged: plain.Merged) -> str:
    """The line that starts a server; the name it gives the model tells one export from another."""
    return (
        f"vllm serve {shlex.quote(str(folder.absolute()))} --served-model-name {merged.name} "
        f"--dtype {merged.dtype} {FLAG}"
    )
