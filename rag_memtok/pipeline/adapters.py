"""Which adapters answer, if any: one reads memories, one texts.

They are the one that is named, else the store's own, else those shipped with the model.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path

from rag_memtok.errors import InputRefused
from rag_memtok.memory import encoder as encoders
from rag_memtok.memory.encoder import Encoder
from rag_memtok.model.lm import EMBEDDED, LM
from rag_memtok.model.lora import AdapterManifest, find_mismatches, read_manifest
from rag_memtok.store.files import ADAPTER, STALE

READERS = EMBEDDED.parent.parent / "readers"
SHIPPED = (EMBEDDED.parent / "reader", READERS / "smollm2")  # what does not fit is left alone


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter's folder, and what it is bound to."""

    folder: Path
    bond: AdapterManifest


@dataclass(frozen=True, slots=True)
class Adapters:
    """The adapter that reads memories, and the one that reads texts, kept or decoded."""

    memory: Adapter | None = None
    text: Adapter | None = None

    def of(self, reader: str) -> Adapter | None:
        """The one that is on when `reader` is."""
        return self.memory if reader == "memory" else self.text

    def with_one(self, one: Adapter) -> "Adapters":
        """With `one` too, unless there is one of its kind."""
        if one.bond.kind == "memory":
            return replace(self, memory=self.memory or one)
        return replace(self, text=self.text or one)


def encoder_of(adapter: Adapter | None, lm: LM) -> Encoder | None:
    """The encoder whose vectors an adapter reads; None where it reads none.

    Raises:
        InputRefused: it is not there, or not the one that the adapter was trained with.
        WrongModel: it is of another model.
    """
    if adapter is None or not adapter.bond.encoder_sha256:
        return None
    encoder = encoders.load_encoder(lm, adapter.folder / encoders.FILE)
    if encoder.digest != adapter.bond.encoder_sha256:
        raise InputRefused(
            f"the encoder in {adapter.folder} is not the one its reader was trained with "
            f"({adapter.bond.encoder_sha256[:16]} of the reader, {encoder.digest[:16]} here)",
            remedy="install the package anew; --adapter none asks without",
        )
    return encoder


def find(
    wanted: str, store: Path, lm: LM, template_sha256: str, say: Callable[[str], None]
) -> Adapters:
    """The adapters that `wanted` means for a store: "none", a folder, or "auto".

    "auto" takes only what fits and is not stale.

    Raises:
        InputRefused: the folder named holds none.
    """
    if wanted == "none":
        return Adapters()
    if wanted != "auto":
        bond = read_manifest(Path(wanted))
        if bond is None:
            raise InputRefused(
                f"there is no adapter in {wanted}",
                remedy="rag-memtok adapt trains one; --adapter none asks without",
            )
        return Adapters().with_one(Adapter(Path(wanted), bond))
    own = _own(store / ADAPTER, lm, template_sha256, say)
    return _joined([*own, *_fitting(lm, template_sha256, say)])


def shipped(
    lm: LM, template_sha256: str, say: Callable[[str], None] = lambda message: None
) -> Adapters:
    """Those that ship with the package and fit."""
    return _joined(_fitting(lm, template_sha256, say))


def _joined(found: Iterable[Adapter]) -> Adapters:
    return reduce(Adapters.with_one, found, Adapters())


def _fitting(lm: LM, template_sha256: str, say: Callable[[str], None]) -> Iterator[Adapter]:
    for folder in SHIPPED:
        bond = _bond_or_none(folder, say)
        if bond is not None and not find_mismatches(bond, lm, template_sha256):
            yield Adapter(folder, bond)


def _own(
    folder: Path, lm: LM, template_sha256: str, say: Callable[[str], None]
) -> Iterator[Adapter]:
    """The store's own, if it fits and is not stale; else it is said why it is left out."""
    bond = _bond_or_none(folder, say)
    if bond is None:
        return
    different = find_mismatches(bond, lm, template_sha256)
    if different or is_stale(folder):
        why = different[0] if different else "chunks it was trained on have been removed"
        say(f"the store's adapter is left out: {why}; rag-memtok adapt trains a new one")
    else:
        yield Adapter(folder, bond)


def _bond_or_none(folder: Path, say: Callable[[str], None]) -> AdapterManifest | None:
    """What an adapter is bound to; a damaged one is told, and counts as none."""
    try:
        return read_manifest(folder)
    except InputRefused as error:
        say(f"{error}; asking without it")
        return None


def is_stale(folder: Path) -> bool:
    """Whether an adapter was trained on what its store has no longer."""
    return (folder / STALE).exists()


def described(folder: Path) -> str:
    """A store's adapter in a phrase; "" if there is none."""
    try:
        bond = read_manifest(folder)
    except InputRefused:
        return "damaged"
    if bond is None:
        return ""
    f1 = (
        f"F1 {100 * bond.dev.get('after', 0.0):.1f} reading {bond.kind}, "
        f"{100 * bond.dev.get('text', 0.0):.1f} the text"
    )
    return f"{bond.steps} steps, {f1}" + (
        "; stale: chunks have been removed" if is_stale(folder) else ""
    )
