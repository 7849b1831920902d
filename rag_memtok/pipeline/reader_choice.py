"""Which reader reads a store, and why: what was measured decides, unless one is asked for."""

from collections.abc import Mapping

from rag_memtok.config import Ask
from rag_memtok.pipeline.adapters import SHIPPED, Adapter, Adapters
from rag_memtok.pipeline.manifest import keeps_text
from rag_memtok.pipeline.readable import (
    ENOUGH,
    WINDOW,
    find_vector_reader,
    measured_shares,
    measured_unfolded,
    measured_zooms,
)


def choose_reader(
    settings: Ask, manifest: Mapping[str, str], adapters: Adapters, k: int
) -> tuple[str, str]:
    """The reader and why.

    `auto` reads vectors only where that was measured to be good enough: the readable ones of a
    chunk, with its best sentence as text where it is kept and the chunk alone, or without, else
    those made for a question where a chunk is alone, else its memory's own for so many (`k`) in a
    prompt, alone or among others.
    """
    zoomed, made = _what_zoomed_reached(settings.zoom, adapters.vectors)
    if settings.read == "zoomed":
        return "zoomed", f"asked for: {made}"
    if settings.read != "auto":
        return settings.read, "asked for"
    if reader := find_vector_reader(manifest, adapters):
        window = int(manifest[WINDOW])
        unfolded = dict(measured_unfolded(reader)).get(window, 0.0)
        if unfolded >= ENOUGH and k == 1 and keeps_text(manifest) is not False:
            return "unfolded", (
                f"vectors of {window} tokens each on average, the best sentence as text, "
                f"measured {unfolded:.0%} of reading text"
            )
        return _choose_by_share(window, dict(measured_shares(reader)))
    if zoomed >= ENOUGH and k == 1:
        return "zoomed", made
    adapter = adapters.memory
    if manifest.get("write") != "readable" and (adapter is None or adapter.folder in SHIPPED):
        return "decode", (
            f"{made}, under {ENOUGH:.0%}; --read zoomed reads them"
            if 0 < zoomed < ENOUGH
            else "these memories were written to be decoded, not to be read: the frozen model "
            "cannot use them directly"
        )
    if adapter is None:
        return (
            "decode",
            "how well these memories are read directly was not measured: rag-memtok adapt does; "
            "--read memory reads them",
        )
    share = adapter.manifest.dev.get("share_alone" if k == 1 else "share", 0.0)
    among = "one memory" if k == 1 else "memories among others"
    measured = (
        f"with the adapter in {adapter.folder} reading {among} directly measured "
        f"{share:.0%} of reading the text"
    )
    return (
        ("memory", measured) if share >= ENOUGH else ("decode", f"{measured}, under {ENOUGH:.0%}")
    )


def _what_zoomed_reached(window: int, reader: Adapter | None) -> tuple[float, str]:
    """The share of the text's score that vectors made for a question reach, and as words."""
    vectors = f"vectors of {window} tokens each on average, made for the question"
    share = dict(measured_zooms(reader)).get(window, 0.0)
    measured = f"measured {share:.0%} of reading text" if share else "were not measured"
    return share, f"{vectors}, {measured}"


def _choose_by_share(window: int, measured: Mapping[int, float]) -> tuple[str, str]:
    """The reader for vectors of `window` tokens, by what reading them was measured to reach."""
    vectors = f"reading vectors of {window} tokens each"
    if window not in measured:
        return "decode", f"{vectors} was not measured; --read memory reads them"
    share = f"{vectors} measured {measured[window]:.0%} of reading text"
    if measured[window] >= ENOUGH:
        return "memory", share
    return "decode", f"{share}, under {ENOUGH:.0%}; --read memory reads them"


def vector_reader(reader: str, manifest: Mapping[str, str], adapters: Adapters) -> Adapter | None:
    """The adapter that reads an encoder's vectors, where `reader` reads such."""
    if reader == "zoomed":
        return adapters.vectors
    reads_stored = reader in ("memory", "unfolded")
    return find_vector_reader(manifest, adapters) if reads_stored else None
