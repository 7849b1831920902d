"""One chunk: its memory decoded from vectors and pins alone, the result compared by hash."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

from rag_memtok.datatypes import TEXT_ONLY, Record, Verdict, sha256_of_text, sha256_of_tokens
from rag_memtok.errors import StoreDamaged
from rag_memtok.memory.reconstruct import (
    Decoded,
    decode,
    decode_checked,
    decode_drafted,
    memory_for,
    verdict_of,
)
from rag_memtok.model.lm import LM
from rag_memtok.model.precision import in_float32, reference_profile
from rag_memtok.model.prompts import Template

BATCH = 16  # chunks without a kept text
REFERENCE = "fp32, eager attention, batch 1, cached, greedy"
PADDED = "padded on the left, cached, greedy; what failed there again at batch 1"


@runtime_checkable
class ChunkSource(Protocol):
    """The source of chunks to reconstruct: a store, or some chunks of one on another machine."""

    @property
    def manifest(self) -> Mapping[str, str]:
        """The manifest: what the store is bound to."""
        ...

    def record(self, chunk_id: str) -> Record:
        """A chunk; StoreDamaged if it is not what was written."""
        ...

    def text(self, chunk_id: str) -> str | None:
        """Its text, None if it was not kept."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconstructed:
    """A reconstructed chunk: its verdict today, and its text if it came back.

    `tokens` and `corrections` (positions) are those of a mismatch or of an assisted chunk;
    `written_margin` is the smallest margin it had when it was written (logits). `device`: what
    decoded it, as an audit tells; "" elsewhere.
    """

    chunk_id: str
    verdict: Verdict
    text: str | None
    tokens: tuple[int, ...] = ()
    corrections: tuple[int, ...] = ()
    written_margin: float = 0.0
    device: str = ""


def reconstruct(
    store: ChunkSource, lm: LM, template: Template, chunk_id: str, *, drafted: bool = False
) -> Reconstructed:
    """Decodes one memory and compares the result with the hashes of its tokens and its text.

    Args:
        drafted: with the kept text as a draft, of which nothing is believed; what it leaves open is
            decoded as without one.

    Cost: one pass in fp32 with a draft that is right, else T + 1 cached steps at batch 1.
    """
    try:
        record = store.record(chunk_id)
        if record.codec == TEXT_ONLY:
            return _compare_text(
                chunk_id, record.packed.decode(errors="replace"), Verdict("text-only", 0)
            )
        memory = memory_for(lm, template, record)
    except StoreDamaged as error:
        verdict = Verdict("damaged", 0, reason=str(error))
        return Reconstructed(chunk_id=chunk_id, verdict=verdict, text=None)
    decoded = None
    if drafted and (draft := draft_of(store, lm, record)) is not None:
        tau = float(store.manifest.get("tau", 0))
        decoded = decode_drafted(lm, template, memory, draft, tau)
    return _compare_tokens(lm, record, decoded or decode(lm, template, memory, record.tokens + 1))


def reconstruct_all(
    store: ChunkSource,
    lm: LM,
    template: Template,
    chunk_ids: Sequence[str],
    *,
    batch: int = 1,
    reference: bool = False,
) -> Iterator[list[Reconstructed]]:
    """Reconstructs chunks, some at a time.

    Args:
        batch: so many are decoded together, without drafts, if that is more than 1.
        reference: each token by token at batch 1. Else with drafts, and those without a kept text
            decoded together.
    """
    lm = in_float32(lm)
    if reference or batch > 1:
        alone, size = (chunk_ids, 1) if reference else ((), batch)
    else:
        alone, size = [chunk_id for chunk_id in chunk_ids if _has_text(store, chunk_id)], BATCH
    for chunk_id in alone:
        yield [reconstruct(store, lm, template, chunk_id, drafted=not reference)]
    done = set(alone)
    rest = [chunk_id for chunk_id in chunk_ids if chunk_id not in done]
    for start in range(0, len(rest), size):
        yield reconstruct_batch(store, lm, template, rest[start : start + size])


def profile_of(batch: int, *, reference: bool) -> str:
    """The arithmetic in which `reconstruct_all` decodes, in words."""
    if reference:
        return REFERENCE
    if batch > 1:
        return f"fp32, eager attention, batch {batch}, {PADDED}"
    return (
        "fp32, eager attention, one pass over the kept text as a draft, what it leaves open cached "
        f"at batch 1 (without a text batch {BATCH})"
    )


def _has_text(store: ChunkSource, chunk_id: str) -> bool:
    try:
        return store.text(chunk_id) is not None
    except StoreDamaged:
        return False


def draft_of(store: ChunkSource, lm: LM, record: Record) -> list[int] | None:
    """The tokens of the kept text, if they are as many as the memory is said to hold."""
    try:
        text = store.text(record.chunk_id)
    except StoreDamaged:
        return None
    tokens = lm.encode(text) if text is not None else ()
    return list(tokens) if len(tokens) == record.tokens and tokens else None


def reconstruct_batch(
    store: ChunkSource, lm: LM, template: Template, chunk_ids: Sequence[str]
) -> list[Reconstructed]:
    """`reconstruct` for several chunks at once: the fast path.

    What does not come back right there is a suspicion, and is decoded alone.
    """
    records, memories = [], []
    for chunk_id in chunk_ids:
        with suppress(StoreDamaged):
            if (record := store.record(chunk_id)).codec != TEXT_ONLY:
                memories.append(memory_for(lm, template, record))
                records.append(record)

    def is_as_good(index: int, decoded_chunk: Decoded) -> bool:
        return (
            is_exact(records[index], decoded_chunk)
            and len(decoded_chunk.corrections) <= records[index].verdict.corrections
        )

    with reference_profile(lm) as exactly:
        decoded = decode_checked(
            exactly, template, memories, [record.tokens for record in records], is_as_good
        )
    chunks = {
        record.chunk_id: _compare_tokens(lm, record, decoded_chunk)
        for record, decoded_chunk in zip(records, decoded, strict=True)
    }
    return [
        chunks.get(chunk_id) or reconstruct(store, lm, template, chunk_id) for chunk_id in chunk_ids
    ]


def is_exact(record: Record, decoded: Decoded) -> bool:
    """Whether a memory decoded to what was stored: the tokens and then the end."""
    return decoded.ended and sha256_of_tokens(decoded.tokens) == record.tokens_sha256


def _compare_tokens(lm: LM, record: Record, decoded: Decoded) -> Reconstructed:
    """Compares decoded tokens with the hashes of a chunk's tokens and text.

    The verdict in the store does not count.
    """
    today = verdict_of(decoded, record.pins)
    if not is_exact(record, decoded):
        reason = (
            f"decodes to {len(decoded.tokens)} tokens that are not the {record.tokens} that "
            "were stored"
        )
        return Reconstructed(
            chunk_id=record.chunk_id,
            verdict=replace(today, kind="mismatch", reason=reason),
            text=None,
            tokens=decoded.tokens,
            corrections=decoded.corrections,
        )
    chunk = replace(
        _compare_text(record.chunk_id, lm.decode(decoded.tokens), today),
        written_margin=record.verdict.margin,
    )
    looked_at = chunk.verdict.kind in ("assisted", "mismatch")
    return (
        replace(chunk, tokens=decoded.tokens, corrections=decoded.corrections)
        if looked_at
        else chunk
    )


def _compare_text(chunk_id: str, text: str, verdict: Verdict) -> Reconstructed:
    if sha256_of_text(text) != chunk_id:
        return Reconstructed(
            chunk_id=chunk_id,
            verdict=replace(
                verdict, kind="mismatch", reason="the text is not the one its id names"
            ),
            text=None,
        )
    return Reconstructed(chunk_id=chunk_id, verdict=verdict, text=text)


def mark_fragile(chunk: Reconstructed, tau: float) -> Reconstructed:
    """Marks a right decode `fragile` if a margin that was above `tau` logits is not any more.

    One written with a smaller `tau` than the store's first chunks never was.
    """
    verdict = chunk.verdict
    if not verdict.proven or not verdict.margin <= tau < chunk.written_margin:
        return chunk
    reason = (
        f"decodes right, but leads by only {verdict.margin:.3f} logits somewhere (by "
        f"{chunk.written_margin:.3f} when it was written)"
    )
    return replace(chunk, verdict=replace(verdict, kind="fragile", reason=reason))
