"""Readable vectors in a store: made beside memories, made anew by another encoder, audited.

They are what `ask` injects; the memories beside them are what gives the text back. Because an
encoder makes them of the text alone, the audit makes them again of what a memory decodes to.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from rag_memtok.config import Config
from rag_memtok.datatypes import TEXT_ONLY, OnProgress, ReadableVectors
from rag_memtok.errors import StoreDamaged, UsageError
from rag_memtok.memory.encoder import TOLERANCE, Encoder, distance, encode_readable
from rag_memtok.model.lm import LM
from rag_memtok.model.prompts import Template
from rag_memtok.pipeline.adapters import (
    Adapter,
    Adapters,
    find_adapters,
    load_encoder_of,
    shipped_adapters,
)
from rag_memtok.pipeline.progress import Reporter, quiet
from rag_memtok.pipeline.reconstruction import ChunkSource, Reconstructed, reconstruct
from rag_memtok.pipeline.resources import store_folder
from rag_memtok.store.store import Store

ENOUGH = 0.9  # of what the text reaches: from there on vectors are what --read auto takes
SAME = "same"
BATCH = 64  # chunks written in a transaction
WINDOW, ENCODER = "readable", "encoder_sha256"  # in a store's manifest


@dataclass(frozen=True, slots=True, eq=False)
class Encoding:
    """An encoder, and how many tokens a vector is to stand for."""

    encoder: Encoder
    window: int

    @property
    def manifest(self) -> dict[str, str]:
        """The rows of a store's manifest on it."""
        return {WINDOW: str(self.window), ENCODER: self.encoder.digest}

    def of(self, tokens: Sequence[int]) -> ReadableVectors:
        """The readable vectors of a chunk's tokens."""
        return encode_readable(self.encoder, tokens, self.window)


def choose_encoding(
    lm: LM, template: Template, config: Config, manifest: Mapping[str, str]
) -> Encoding | None:
    """The encoding of a store's readable vectors; None: it gets none.

    It is that of the settings, else the store's. A new store gets the widest window that the
    reader, the one named by the settings or the model's own, was measured to read well enough.

    Raises:
        UsageError: they are wanted, and there is no encoder for this model.
    """
    window_setting = config.memorize.readable
    adapter = _find_encoding_adapter(lm, template, config, manifest)
    window = window_setting if window_setting >= 0 else int(manifest.get(WINDOW, -1))
    if window < 0:
        window = 0 if manifest else widest_readable_window(adapter)
    if window == 0:
        return None
    encoder = load_encoder_of(adapter, lm)
    if encoder is None and window_setting > 0:
        raise UsageError(
            f"there is no encoder for {lm.identity.id}: --readable cannot be had",
            remedy="leave it out: ask decodes memories to text first",
        )
    return Encoding(encoder, window) if encoder else None


def _find_encoding_adapter(
    lm: LM, template: Template, config: Config, manifest: Mapping[str, str]
) -> Adapter | None:
    """The adapter whose encoder a store gets: that of the settings, else the store's as it is."""
    folder = store_folder(config)
    named = find_adapters(config.ask.adapter, folder, lm, template.digest, quiet).vectors
    return named or _find_by_encoder(lm, template, config, manifest.get(ENCODER, ""))


def _find_by_encoder(lm: LM, template: Template, config: Config, digest: str) -> Adapter | None:
    """The adapter with this encoder: named, the store's own or shipped, whichever answers."""
    folder = store_folder(config)
    for setting in dict.fromkeys((config.ask.adapter, "auto")):
        adapter = find_adapters(setting, folder, lm, template.digest, quiet).vectors
        if adapter and digest and adapter.manifest.encoder_sha256 == digest:
            return adapter
    shipped = shipped_adapters(lm, template.digest).vectors
    return shipped if shipped and shipped.manifest.encoder_sha256 == digest else None


def encoder_for(
    lm: LM, template: Template, config: Config, manifest: Mapping[str, str]
) -> Encoder | None:
    """The encoder that a store's readable vectors are of; None: it has none, or it is not here."""
    return load_encoder_of(_find_by_encoder(lm, template, config, manifest.get(ENCODER, "")), lm)


def widest_readable_window(adapter: Adapter | None) -> int:
    """The widest window that an adapter was measured to read well enough; 0: none."""
    return max((window for window, share in measured_shares(adapter) if share >= ENOUGH), default=0)


def measured_shares(adapter: Adapter | None) -> Iterator[tuple[int, float]]:
    """Yields windows with the share of the text's score that reading their vectors reaches."""
    return _measured(adapter, "share_")  # "share_alone" is of a memory's own vectors


def _measured(adapter: Adapter | None, kind: str) -> Iterator[tuple[int, float]]:
    for name, value in (adapter.manifest.dev if adapter else {}).items():
        window = name.removeprefix(kind)
        if window != name and window.isdecimal():
            yield int(window), value


def measured_zooms(adapter: Adapter | None) -> Iterator[tuple[int, float]]:
    """The same of vectors made for a question."""
    return _measured(adapter, "zoom_")


def measured_unfolded(adapter: Adapter | None) -> Iterator[tuple[int, float]]:
    """The same of a chunk's vectors with its best sentence as text."""
    return _measured(adapter, "unfold_")


def find_vector_reader(manifest: Mapping[str, str], adapters: Adapters) -> Adapter | None:
    """The adapter that reads a store's readable vectors, if it has such and there is one."""
    adapter, window = adapters.vectors, int(manifest.get(WINDOW, 0))
    if adapter is None or not window:
        return None
    return adapter if adapter.manifest.encoder_sha256 == manifest.get(ENCODER) else None


def renew(
    store: Store, lm: LM, template: Template, encoding: Encoding, on_progress: OnProgress
) -> int:
    """Gives every chunk without vectors of this encoder its own; returns to how many.

    BATCH chunks are committed at a time.

    Cost: the encoder's layers over each, and a decode where no text is kept.
    """
    lacking = store.lacking_readables(encoding.encoder.digest, encoding.window)
    reporter = Reporter(on_progress=on_progress, total=len(lacking), stage="readable vectors")
    count = 0
    for start in range(0, len(lacking), BATCH):
        vectors = {}
        for chunk_id in lacking[start : start + BATCH]:
            tokens = _tokens_of(store, lm, template, chunk_id)
            if tokens:
                vectors[chunk_id] = encoding.of(tokens)
            reporter.advance()
        if vectors:
            store.put_readables(vectors)
        count += len(vectors)
    for key, value in encoding.manifest.items():
        if store.manifest.get(key) != value:
            store.set_manifest(key, value)
    return count


def _tokens_of(store: Store, lm: LM, template: Template, chunk_id: str) -> list[int]:
    """A chunk's tokens; none where it is text alone, or does not come back."""
    try:
        if store.record(chunk_id).codec == TEXT_ONLY:
            return []
        text = store.text(chunk_id)
    except StoreDamaged:
        return []
    if text is None:
        text = reconstruct(store, lm, template, chunk_id).text
    return lm.encode(text) if text else []


@dataclass(frozen=True, slots=True)
class Comparison:
    """The audit of a chunk's readable vectors: SAME, "mismatch" or "incomparable", and why."""

    kind: str
    reason: str = ""


def compare_readables(
    store: ChunkSource, lm: LM, encoder: Encoder | None, chunks: Iterable[Reconstructed]
) -> Iterator[tuple[str, Comparison]]:
    """Compares chunks' vectors with those of the texts that their memories decode to.

    Left out are chunks without such vectors, and those whose memory does not give its text back:
    there is nothing to compare with.
    """
    for chunk in chunks:
        with suppress(StoreDamaged):  # told by the chunk's own verdict
            stored = store.record(chunk.chunk_id).readable
            if stored is not None and chunk.text is not None:
                yield chunk.chunk_id, _compare(encoder, lm.encode(chunk.text), stored)


def _compare(encoder: Encoder | None, tokens: Sequence[int], stored: ReadableVectors) -> Comparison:
    if encoder is None or encoder.digest != stored.encoder:
        return Comparison(
            "incomparable",
            f"its readable vectors are of the encoder {stored.encoder[:12]}, which is not here",
        )
    try:
        relative = distance(encoder, tokens, stored)
    except (StoreDamaged, UsageError) as error:
        return Comparison("mismatch", f"its readable vectors cannot be read: {error}")
    if relative <= TOLERANCE:
        return Comparison(SAME)
    return Comparison(
        "mismatch",
        f"its readable vectors are not those of its text: {relative:.2g} of a vector's length "
        f"apart (up to {TOLERANCE} is arithmetic)",
    )
