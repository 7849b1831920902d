"""One chunk: its memory decoded from vectors and pins alone, what comes out compared by hash."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from rag_memtok.datatypes import TEXT_ONLY, Record, Verdict, sha256_of_text, sha256_of_tokens
from rag_memtok.errors import StoreDamaged
from rag_memtok.memory.reconstruct import Decoded, decode, decode_checked, memory_for, verdict_of
from rag_memtok.model.lm import LM
from rag_memtok.model.precision import reference_profile
from rag_memtok.model.prompts import Template
from rag_memtok.store.store import Store


@dataclass(frozen=True, slots=True)
class Recited:
    """One chunk's verdict today, its text if it came back.

    Of a mismatch or an assisted one it has what came out and where pins corrected it.
    """

    chunk_id: str
    verdict: Verdict
    text: str | None
    tokens: tuple[int, ...] = ()
    corrections: tuple[int, ...] = ()


def recite(store: Store, lm: LM, template: Template, chunk_id: str) -> Recited:
    """Decodes one memory and compares what comes out with the hashes of its tokens and its text."""
    try:
        record = store.record(chunk_id)
        if record.codec == TEXT_ONLY:
            return _compared(
                chunk_id, record.packed.decode(errors="replace"), Verdict("text-only", 0)
            )
        memory = memory_for(lm, template, record)
    except StoreDamaged as error:
        return Recited(chunk_id, Verdict("damaged", 0, reason=str(error)), None)
    return _verified(lm, record, decode(lm, template, memory, record.tokens + 1))


def recite_together(
    store: Store, lm: LM, template: Template, chunk_ids: Sequence[str]
) -> list[Recited]:
    """`recite` for several chunks at once: the fast path.

    What does not come back right there is a suspicion, and is recited alone.
    """
    coded, memories = [], []
    for chunk_id in chunk_ids:
        with suppress(StoreDamaged):
            if (record := store.record(chunk_id)).codec != TEXT_ONLY:
                memories.append(memory_for(lm, template, record))
                coded.append(record)

    def as_good(index: int, one: Decoded) -> bool:
        return (
            came_back(coded[index], one)
            and len(one.corrections) <= coded[index].verdict.corrections
        )

    with reference_profile(lm) as exactly:
        decoded = decode_checked(
            exactly, template, memories, [record.tokens for record in coded], as_good
        )
    found = {
        record.chunk_id: _verified(lm, record, one)
        for record, one in zip(coded, decoded, strict=True)
    }
    return [found.get(chunk_id) or recite(store, lm, template, chunk_id) for chunk_id in chunk_ids]


def came_back(record: Record, decoded: Decoded) -> bool:
    """Whether what came out of a memory is what was stored: the tokens and then the end."""
    return decoded.ended and sha256_of_tokens(decoded.tokens) == record.tokens_sha256


def _verified(lm: LM, record: Record, decoded: Decoded) -> Recited:
    """What came out of a memory, compared with the hashes of its tokens and its text.

    What the store says of it is not asked.
    """
    today = verdict_of(decoded, record.pins)
    if not came_back(record, decoded):
        wrong = (
            f"decodes to {len(decoded.tokens)} tokens that are not the {record.tokens} that "
            "were stored"
        )
        return Recited(
            record.chunk_id,
            replace(today, kind="mismatch", reason=wrong),
            None,
            decoded.tokens,
            decoded.corrections,
        )
    right = _compared(record.chunk_id, lm.decode(decoded.tokens), today)
    looked_at = right.verdict.kind in ("assisted", "mismatch")
    return (
        replace(right, tokens=decoded.tokens, corrections=decoded.corrections)
        if looked_at
        else right
    )


def _compared(chunk_id: str, text: str, verdict: Verdict) -> Recited:
    if sha256_of_text(text) != chunk_id:
        return Recited(
            chunk_id,
            replace(verdict, kind="mismatch", reason="the text is not the one its id names"),
            None,
        )
    return Recited(chunk_id, verdict, text)


def weakened(recited: Recited, tau: float) -> Recited:
    """Marks a right decode `fragile` if a margin that was above `tau` logits is not any more."""
    verdict = recited.verdict
    if not verdict.proven or verdict.margin > tau:
        return recited
    reason = (
        f"decodes right, but leads by only {verdict.margin:.3f} logits somewhere (it was "
        f"written to lead by {tau})"
    )
    return replace(recited, verdict=replace(verdict, kind="fragile", reason=reason))
