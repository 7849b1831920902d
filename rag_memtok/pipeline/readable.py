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
from rag_memtok.pipeline.adapters import Adapter, Adapters, encoder_of, find
from rag_memtok.pipeline.progress import Reporter, quiet
from rag_memtok.pipeline.recite import Recited, Shelf, recite
from rag_memtok.pipeline.resources import store_folder
from rag_memtok.store.store import Store

ENOUGH = 0.9  # of what the text reaches: from there on vectors are what --read auto takes
SAME = "same"
TOGETHER = 64  # chunks written in a transaction
WINDOW, ENCODER = "readable", "encoder_sha256"  # in a store's manifest


@dataclass(frozen=True, slots=True, eq=False)
class Encoding:
    """An encoder, and how many tokens a vector is to stand for."""

    encoder: Encoder
    window: int

    @property
    def manifest(self) -> dict[str, str]:
        """What a store says of it."""
        return {WINDOW: str(self.window), ENCODER: self.encoder.digest}

    def of(self, tokens: Sequence[int]) -> ReadableVectors:
        """The vectors of a chunk."""
        return encode_readable(self.encoder, tokens, self.window)


def encoding(
    lm: LM, template: Template, config: Config, manifest: Mapping[str, str]
) -> Encoding | None:
    """How readable vectors are made for a store; None: it gets none.

    As told; else as the store has them; for a new store in the widest window that the reader, the
    one named by the settings or the model's own, was measured to read well enough.

    Raises:
        UsageError: they are asked for, and there is no encoder for this model.
    """
    told = config.memorize.readable
    adapter = _reader(lm, template, config)
    window = told if told >= 0 else int(manifest.get(WINDOW, -1))
    if window < 0:
        window = 0 if manifest else widest(adapter)
    if window == 0:
        return None
    encoder = encoder_of(adapter, lm)
    if encoder is None and told > 0:
        raise UsageError(
            f"there is no encoder for {lm.identity.id}: --readable cannot be had",
            remedy="leave it out: ask decodes memories to text first",
        )
    return Encoding(encoder, window) if encoder else None


def _reader(lm: LM, template: Template, config: Config) -> Adapter | None:
    return find(config.ask.adapter, store_folder(config), lm, template.digest, quiet).text


def encoder_for(
    lm: LM, template: Template, config: Config, manifest: Mapping[str, str]
) -> Encoder | None:
    """The encoder that a store's readable vectors are of; None: it has none, or it is not here."""
    adapter = _reader(lm, template, config) if ENCODER in manifest else None
    if adapter is None or manifest.get(ENCODER) != adapter.bond.encoder_sha256:
        return None
    return encoder_of(adapter, lm)


def widest(adapter: Adapter | None) -> int:
    """The widest window that an adapter was measured to read well enough; 0: none."""
    return max((window for window, share in shares(adapter) if share >= ENOUGH), default=0)


def shares(adapter: Adapter | None) -> Iterator[tuple[int, float]]:
    """Windows, and what reading their vectors was measured to reach of reading the text."""
    for name, value in (adapter.bond.dev if adapter else {}).items():
        if name.startswith("share_"):
            yield int(name.removeprefix("share_")), value


def reads_vectors(manifest: Mapping[str, str], found: Adapters) -> Adapter | None:
    """The adapter that reads a store's readable vectors, if it has such and there is one."""
    adapter, window = found.text, int(manifest.get(WINDOW, 0))
    if adapter is None or not window or not adapter.bond.encoder_sha256:
        return None
    return adapter if adapter.bond.encoder_sha256 == manifest.get(ENCODER) else None


def renew(store: Store, lm: LM, template: Template, made: Encoding, on_progress: OnProgress) -> int:
    """Gives every chunk without vectors of this encoder its own; returns to how many.

    Cost: the encoder's layers over each, and a decode where no text is kept. What is done is
    committed some at a time.
    """
    lacking = store.lacking_readables(made.encoder.digest, made.window)
    reporter = Reporter(on_progress, len(lacking), "readable vectors")
    count = 0
    for start in range(0, len(lacking), TOGETHER):
        vectors = {}
        for chunk_id in lacking[start : start + TOGETHER]:
            tokens = _tokens_of(store, lm, template, chunk_id)
            if tokens:
                vectors[chunk_id] = made.of(tokens)
            reporter.advance()
        if vectors:
            store.put_readables(vectors)
        count += len(vectors)
    for key, value in made.manifest.items():
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
        text = recite(store, lm, template, chunk_id).text
    return lm.encode(text) if text else []


@dataclass(frozen=True, slots=True)
class Comparison:
    """What the audit found of a chunk's vectors: SAME, "mismatch" or "incomparable"; and why."""

    kind: str
    reason: str = ""


def compared(
    store: Shelf, lm: LM, encoder: Encoder | None, found: Iterable[Recited]
) -> Iterator[tuple[str, Comparison]]:
    """Compares chunks' vectors with those of the texts that their memories decode to.

    Left out are chunks without such vectors, and those whose memory does not give its text back:
    there is nothing to compare with.
    """
    for one in found:
        with suppress(StoreDamaged):  # told by the chunk's own verdict
            stored = store.record(one.chunk_id).readable
            if stored is not None and one.text is not None:
                yield one.chunk_id, _comparison(encoder, lm.encode(one.text), stored)


def _comparison(
    encoder: Encoder | None, tokens: Sequence[int], stored: ReadableVectors
) -> Comparison:
    if encoder is None or encoder.digest != stored.encoder:
        return Comparison(
            "incomparable",
            f"its readable vectors are of the encoder {stored.encoder[:12]}, which is not here",
        )
    try:
        apart = distance(encoder, tokens, stored)
    except (StoreDamaged, UsageError) as error:
        return Comparison("mismatch", f"its readable vectors cannot be read: {error}")
    if apart <= TOLERANCE:
        return Comparison(SAME)
    return Comparison(
        "mismatch",
        f"its readable vectors are not those of its text: {apart:.2g} of a vector's length apart "
        f"(up to {TOLERANCE} is arithmetic)",
    )
