"""Which adapter answers, if any.

It is the one that is named, else the store's own, else the one shipped with the model.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rag_memtok.errors import InputRefused
from rag_memtok.model.lm import EMBEDDED, LM
from rag_memtok.model.lora import Bond, bond_of, mismatches
from rag_memtok.store.files import ADAPTER, STALE

SHIPPED = EMBEDDED.parent / "reader"  # there may be none


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter's folder, and what it is bound to."""

    folder: Path
    bond: Bond

    def reads(self, reader: str) -> bool:
        """Whether it is on when `reader` is."""
        return reader == "memory" if self.bond.kind == "memory" else reader in ("text", "decode")


def find(
    wanted: str, store: Path, lm: LM, template_sha256: str, say: Callable[[str], None]
) -> Adapter | None:
    """The adapter that `wanted` means for a store: "none", a folder, or "auto".

    "auto" takes only one that fits and is not stale.

    Raises:
        InputRefused: the folder named holds none.
    """
    if wanted == "none":
        return None
    if wanted != "auto":
        bond = bond_of(Path(wanted))
        if bond is None:
            raise InputRefused(
                f"there is no adapter in {wanted}",
                remedy="rag-memtok adapt trains one; --adapter none asks without",
            )
        return Adapter(Path(wanted), bond)
    for folder in (store / ADAPTER, SHIPPED):
        try:
            bond = bond_of(folder)
        except InputRefused as error:
            say(f"{error}; asking without it")
            continue
        if bond is None:
            continue
        different = mismatches(bond, lm, template_sha256)
        if folder != SHIPPED and (different or is_stale(folder)):
            why = different[0] if different else "chunks it was trained on have been removed"
            say(f"the store's adapter is left out: {why}; rag-memtok adapt trains a new one")
        elif not different:
            return Adapter(folder, bond)
    return None


def is_stale(folder: Path) -> bool:
    """Whether an adapter was trained on what its store has no longer."""
    return (folder / STALE).exists()


def described(folder: Path) -> str:
    """A store's adapter in a phrase; "" if there is none."""
    try:
        bond = bond_of(folder)
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
