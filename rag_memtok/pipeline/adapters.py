"""Which adapters answer, if any: one reads memories, one texts, one an encoder's vectors.

They are the one that is named, else the store's own, else those shipped with the model.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path

from rag_memtok.errors import InputRefused
from rag_memtok.memory import encoder as encoders
from rag_memtok.memory.encoder import Encoder
from rag_memtok.model.adapter_manifest import SHIPPED_READER, AdapterManifest, read_manifest
from rag_memtok.model.lm import EMBEDDED, LM
from rag_memtok.model.lora import find_mismatches
from rag_memtok.store.files import ADAPTER, STALE

READERS = EMBEDDED.parent.parent / "readers"
# what does not fit is left alone; of several that fit the first reads
SHIPPED = (EMBEDDED.parent / "reader", READERS / "smollm2", READERS / "smollm2-vectors")


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter: its folder, and what it is bound to."""

    folder: Path
    manifest: AdapterManifest


@dataclass(frozen=True, slots=True)
class Adapters:
    """The adapters that read memories, texts (kept or decoded), and vectors of their encoder."""

    memory: Adapter | None = None
    text: Adapter | None = None
    vectors: Adapter | None = None

    def of(self, reader: str) -> Adapter | None:
        """The adapter that is on when `reader` reads."""
        return self.memory if reader == "memory" else self.text

    def with_adapter(self, adapter: Adapter) -> "Adapters":
        """These adapters and `adapter`, for what there is none for yet."""
        if adapter.manifest.kind == "memory":
            return replace(self, memory=self.memory or adapter)
        encodes = adapter if adapter.manifest.encoder_sha256 else None
        return replace(self, text=self.text or adapter, vectors=self.vectors or encodes)


def load_encoder_of(adapter: Adapter | None, lm: LM) -> Encoder | None:
    """The encoder whose vectors an adapter reads; None where it reads none.

    Raises:
        InputRefused: it is not there, or not the one that the adapter was trained with.
        WrongModel: it is of another model.
    """
    if adapter is None or not adapter.manifest.encoder_sha256:
        return None
    encoder = encoders.load_encoder(lm, adapter.folder / encoders.FILE)
    if encoder.digest != adapter.manifest.encoder_sha256:
        raise InputRefused(
            f"the encoder in {adapter.folder} is not the one its reader was trained with "
            f"({adapter.manifest.encoder_sha256[:16]} of the reader, {encoder.digest[:16]} here)",
            remedy="install the package anew; --adapter none asks without",
        )
    return encoder


def find_adapters(
    setting: str, store: Path, lm: LM, template_sha256: str, say: Callable[[str], None]
) -> Adapters:
    """The adapters of a store: those that `setting` names, a folder, "none" or "auto".

    "auto" takes only what fits and is not stale.

    Raises:
        InputRefused: the folder named holds none.
    """
    if setting == "none":
        return Adapters()
    if setting != "auto":
        manifest = read_manifest(Path(setting))
        if manifest is None:
            raise InputRefused(
                f"there is no adapter in {setting}",
                remedy="rag-memtok adapt trains one; --adapter none asks without",
            )
        return Adapters().with_adapter(Adapter(Path(setting), manifest))
    stored = _find_own(store / ADAPTER, lm, template_sha256, say)
    return _merge([*stored, *_find_shipped(lm, template_sha256, say)])


def shipped_adapters(
    lm: LM, template_sha256: str, say: Callable[[str], None] = lambda message: None
) -> Adapters:
    """The adapters that ship with the package and fit."""
    return _merge(_find_shipped(lm, template_sha256, say))


def _merge(adapters: Iterable[Adapter]) -> Adapters:
    return reduce(Adapters.with_adapter, adapters, Adapters())


def _find_shipped(lm: LM, template_sha256: str, say: Callable[[str], None]) -> Iterator[Adapter]:
    for folder in SHIPPED:
        manifest = _manifest_or_none(folder, say)
        if manifest is not None and not find_mismatches(manifest, lm, template_sha256):
            yield Adapter(folder, manifest)


def _find_own(
    folder: Path, lm: LM, template_sha256: str, say: Callable[[str], None]
) -> Iterator[Adapter]:
    """Yields the store's own, if it fits and is not stale; else says why it is left out."""
    manifest = _manifest_or_none(folder, say)
    if manifest is None:
        return
    different = find_mismatches(manifest, lm, template_sha256)
    if different or is_stale(folder):
        why = different[0] if different else "chunks it was trained on have been removed"
        say(f"the store's adapter is left out: {why}; rag-memtok adapt trains a new one")
    else:
        yield Adapter(folder, manifest)


def _manifest_or_none(folder: Path, say: Callable[[str], None]) -> AdapterManifest | None:
    """The manifest of an adapter; a damaged one is reported, and counts as none."""
    try:
        return read_manifest(folder)
    except InputRefused as error:
        say(f"{error}; asking without it")
        return None


def is_stale(folder: Path) -> bool:
    """Whether an adapter was trained on what its store has no longer."""
    return (folder / STALE).exists()


def describe(folder: Path) -> str:
    """A store's adapter in a phrase; "" if there is none."""
    try:
        manifest = read_manifest(folder)
    except InputRefused:
        return "damaged"
    if manifest is None:
        return ""
    text = max(manifest.dev.get(name, 0.0) for name in ("text", SHIPPED_READER))
    f1 = (
        f"F1 {100 * manifest.dev.get('after', 0.0):.1f} reading {manifest.kind}, "
        f"{100 * text:.1f} the text"
    )
    return f"{manifest.steps} steps, {f1}" + (
        "; stale: chunks have been removed" if is_stale(folder) else ""
    )
