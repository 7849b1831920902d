"""The reconstruction audit: every memory and every document, compared by hash.

The memories are decoded from vectors and pins alone, the documents rejoined.

No chunk's verdict depends on the kept text, or on what the store says of the chunk; of the text it
is checked that it is there and whole.
"""

import math
import random
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TypeVar

from rag_memtok.datatypes import (
    PROVEN,
    OnProgress,
    StoredDocument,
    sha256_of_text,
)
from rag_memtok.errors import StoreDamaged, UsageError
from rag_memtok.memory.encoder import Encoder
from rag_memtok.model.lm import LM
from rag_memtok.model.prompts import Template
from rag_memtok.pipeline.manifest import REQUIRED
from rag_memtok.pipeline.progress import Reporter, quiet
from rag_memtok.pipeline.readable import SAME, Comparison, compared
from rag_memtok.pipeline.recite import (
    REFERENCE,
    Recited,
    Shelf,
    profile_of,
    recite_all,
    weakened,
)
from rag_memtok.store.store import Store

T = TypeVar("T")
Heard = tuple[Recited, Comparison | None]  # a chunk, and its readable vectors if it has any


@dataclass(frozen=True, slots=True)
class Reciting:
    """How memories are decoded.

    `batch` chunks together, without drafts, if that is more than 1; `reference`: each token by
    token at batch 1. Else the kept text is a draft, which changes the time and no verdict.
    `encoder`: what the store's readable vectors are to be of.
    """

    batch: int = 1
    reference: bool = False
    encoder: Encoder | None = None


DRAFTED = Reciting()
Recite = Callable[[Store, LM, Template, Sequence[str], Reciting], Iterator[Sequence[Heard]]]


def heard(
    store: Shelf, lm: LM, template: Template, chunk_ids: Sequence[str], how: Reciting
) -> Iterator[list[Heard]]:
    """Recites chunks in this process, some at a time, and compares their readable vectors."""
    for found in recite_all(store, lm, template, chunk_ids, how.batch, how.reference):
        comparisons = dict(compared(store, lm, how.encoder, found))
        yield [(one, comparisons.get(one.chunk_id)) for one in found]


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not proven: what, where, and why."""

    kind: str
    subject: str
    reason: str


@dataclass(frozen=True, slots=True, repr=False)
class Audit:
    """What was checked and found.

    `counts` are chunks by verdict; `sample` says how they were drawn, "" if all were.

    `decodes`: whether memories were to be decoded, or only structure and checksums looked at.

    `readable` are chunks with readable vectors, by whether these are those of what their memory
    decodes to: "same", "mismatch", or "incomparable" without their encoder.

    `recited` are the checked chunks without their texts; `proofs` says of each document whether it
    came back, None if that is not known.
    """

    counts: Mapping[str, int]
    chunks: int
    checked: int
    documents: int
    documents_checked: int
    documents_proven: int
    findings: tuple[Finding, ...]
    profile: str
    sample: str
    seconds: float
    interrupted: bool = False
    decodes: bool = True
    recited: tuple["Recited", ...] = ()
    proofs: tuple[tuple[StoredDocument, bool | None], ...] = ()
    readable: Mapping[str, int] = field(default_factory=dict)

    @property
    def sentence(self) -> str:
        """The audit in a sentence. It never says "all" unless all were decoded."""
        if self.interrupted:
            return f"INTERRUPTED after {self.checked} of {self.chunks} chunks; run verify again"
        if any(one.kind != "fragile" for one in self.findings):
            return (
                f"NOT PROVEN: {len(self.findings)} finding{'' if len(self.findings) == 1 else 's'}"
            )
        if not self.checked:
            return (
                "nothing was decoded; structure and checksums are whole"
                if self.chunks
                else "the store is empty: nothing to prove"
            )
        if self.checked < self.chunks:
            return f"{self.checked} of {self.chunks} chunks proven, none failed"
        return "all chunks and all documents come back exactly from their memories"

    @property
    def ok(self) -> bool:
        """Whether all that was asked for is proven."""
        return self.exit_code == 0

    def __repr__(self) -> str:
        proven = f"{self.documents_proven} of {self.documents} documents"
        return f"Audit({self.sentence!r}, {dict(self.counts)}, {proven}, {self.seconds:.1f} s)"

    @property
    def exit_code(self) -> int:
        """The exit code: 0 all that was asked for is proven.

        13 damaged; 5 mismatch; 6 not everything was, or could be, proved.
        """
        kinds = {finding.kind for finding in self.findings}
        if kinds & {"damaged", "mismatch"}:
            return 13 if "damaged" in kinds else 5
        partly = (
            self.interrupted or not self.chunks or (self.decodes and self.checked < self.chunks)
        )
        return 6 if partly or kinds - {"fragile"} else 0


def drawn(chunk_ids: Sequence[str], share: float, seed: int) -> list[str]:
    """A share of the chunks, at least one, drawn with `seed`, in their order."""
    if not 0 < share <= 1:
        raise UsageError(f"--sample is {share:.0%}; valid: over 0% to 100%")
    count = min(len(chunk_ids), max(1, math.ceil(share * len(chunk_ids))))
    chosen = set(random.Random(seed).sample(sorted(chunk_ids), count))
    return [chunk_id for chunk_id in chunk_ids if chunk_id in chosen]


def audit(
    store: Store,
    lm: LM,
    template: Template,
    share: float = 1.0,
    seed: int = 0,
    on_progress: OnProgress = quiet,
    how: Reciting = DRAFTED,
    recite: Recite = heard,
) -> Audit:
    """Proves the chunks and documents of the store as it is now.

    That is every chunk (or a sample) and every document whose chunks were all checked.

    While it runs another may write: what is new is left for the next audit, what is gone is left
    out.

    Args:
        how: the audit names the profile it was held in.
        recite: decodes the memories, wherever that is done.

    Cost: a pass in fp32 a chunk, and one of the encoder where it has readable vectors; T + 1 cached
        steps where there is no right draft. An interrupt ends it early with what was found so far.
    """
    began = time.monotonic()
    documents: Sequence[StoredDocument]
    with store.snapshot():
        everything, documents = placed(store), list(store.documents(skip_damaged=True))
    chosen = drawn(everything, share, seed)
    tau = float(store.manifest.get("tau", 0))
    reporter = Reporter(on_progress, len(chosen))
    recited, kinds = dict[str, Recited](), Counter[str]()
    comparisons, interrupted = dict[str, Comparison](), False
    try:
        for found in recite(store, lm, template, chosen, how):
            recited |= {one.chunk_id: weakened(one, tau) for one, _ in found}
            comparisons |= {one.chunk_id: same for one, same in found if same is not None}
            kinds.update(recited[one.chunk_id].verdict.kind for one, _ in found)
            reporter.advance(len(found), **kinds)
    except KeyboardInterrupt:
        interrupted = True
    with store.snapshot():
        everything, documents = (
            _still(everything, placed(store)),
            _still(documents, store.documents(skip_damaged=True)),
        )
        recited = {chunk_id: recited[chunk_id] for chunk_id in _still(recited, everything)}
        comparisons = {one: comparisons[one] for one in _still(comparisons, recited)}
        verdicts = {document: proven_document(store, document, recited) for document in documents}
    damaged = {chunk_id for chunk_id, one in recited.items() if one.verdict.kind == "damaged"}
    findings = [*_structure(store, damaged), *_chunk_findings(store, recited.values())]
    findings += [
        Finding(one.kind, _where(store, chunk_id), one.reason)
        for chunk_id, one in comparisons.items()
        if one.kind != SAME
    ]
    findings += [
        Finding("mismatch", document.path, "its chunks joined are not the document")
        for document, ok in verdicts.items()
        if ok is False
    ]
    return Audit(
        counts=dict(Counter(one.verdict.kind for one in recited.values())),
        chunks=len(everything),
        checked=len(recited),
        documents=len(documents),
        documents_checked=sum(ok is not None for ok in verdicts.values()),
        documents_proven=sum(ok is True for ok in verdicts.values()),
        findings=tuple(dict.fromkeys(findings)),
        profile=f"{profile_of(how.batch, how.reference)}, {lm.device.type}",
        sample=sampled(share, seed, len(chosen)),
        seconds=time.monotonic() - began,
        interrupted=interrupted,
        recited=tuple(replace(one, text=None) for one in recited.values()),
        proofs=tuple(verdicts.items()),
        readable=dict(Counter(one.kind for one in comparisons.values())),
    )


def _still(then: Iterable[T], now: Iterable[T]) -> list[T]:
    """What there was and still is, in its order."""
    left = set(now)
    return [one for one in then if one in left]


def sampled(share: float, seed: int, count: int) -> str:
    """Says how chunks were drawn.

    It also says what no failure among them would prove (the rule of three).
    """
    if share >= 1 or not count:
        return ""
    return (
        f"{share:.1%} drawn with seed {seed}; 0 failures in {count} means under {3 / count:.1%} in "
        "all, at 95 % confidence"
    )


def placed(store: Store) -> list[str]:
    """The chunks that some document has, in the order they were stored."""
    with store.snapshot():
        return list(_each_placed(store))


def _each_placed(store: Store) -> Iterator[str]:
    """As `placed`, one after the other; within a snapshot."""
    for chunk_id in store.each_chunk_id():
        if store.occurrences([chunk_id])[chunk_id]:
            yield chunk_id


def _counted(store: Store) -> tuple[int, int]:
    """How many chunks are placed, and how many documents there are."""
    with store.snapshot():
        documents = sum(1 for _ in store.each_document(skip_damaged=True))
        return sum(1 for _ in _each_placed(store)), documents


def proven_document(
    store: Store, document: StoredDocument, recited: Mapping[str, Recited]
) -> bool | None:
    """Whether the document's recited chunks, joined, are its text.

    It is None if not all of them were checked or came back.
    """
    try:
        chunks = [place.chunk_id for place in store.document_chunks(document.root, document.path)]
    except StoreDamaged:
        return None  # `_structure` names it
    if any(chunk_id not in recited or recited[chunk_id].text is None for chunk_id in chunks):
        return None
    return (
        sha256_of_text("".join(recited[chunk_id].text or "" for chunk_id in chunks))
        == document.sha256
    )


def _structure(store: Store, told: Collection[str] = ()) -> Iterator[Finding]:
    """What is damaged, but for the chunks that `told` names already."""
    for problem in store.check():
        if problem.chunk_id not in told:
            yield Finding("damaged", problem.file or "store.db", str(problem))
    with suppress(StoreDamaged):  # told above
        if lost := sorted(REQUIRED - store.manifest.keys()):
            yield Finding("damaged", "store.db", f"the manifest lost {', '.join(lost)}")


def _chunk_findings(store: Store, recited: Iterable[Recited]) -> Iterator[Finding]:
    for one in recited:
        if one.verdict.kind not in PROVEN:
            yield Finding(one.verdict.kind, _where(store, one.chunk_id), one.verdict.reason)


def _where(store: Store, chunk_id: str) -> str:
    places = store.occurrences([chunk_id])[chunk_id]
    return ", ".join(f"{place.path} {place.locator}" for place in places[:3]) or chunk_id[:12]


def quick(store: Store) -> Audit:
    """Checks structure and checksums alone, without a model.

    Damage is found, but nothing is proved to decode.
    """
    began = time.monotonic()
    chunks, documents = _counted(store)
    findings, seconds = tuple(_structure(store)), time.monotonic() - began
    return Audit(
        {},
        chunks,
        0,
        documents,
        0,
        0,
        findings,
        "structure and checksums only",
        "",
        seconds,
        decodes=False,
    )


def incomparable(store: Store, reasons: Sequence[str]) -> Audit:
    """The audit that cannot be held.

    The model at hand is not the one the memories were written for.
    """
    chunks, documents = _counted(store)
    finding = Finding("incomparable", store.manifest.get("model", ""), "; ".join(reasons))
    return Audit(
        {"incomparable": chunks}, chunks, 0, documents, 0, 0, (finding,), REFERENCE, "", 0.0
    )
