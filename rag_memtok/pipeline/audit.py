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
from rag_memtok.pipeline.readable import SAME, Comparison, compare_readables
from rag_memtok.pipeline.reconstruction import (
    REFERENCE,
    ChunkSource,
    Reconstructed,
    mark_fragile,
    profile_of,
    reconstruct_all,
)
from rag_memtok.store.store import Store

T = TypeVar("T")
Checked = tuple[Reconstructed, Comparison | None]  # a chunk, and its readable vectors if it has any


@dataclass(frozen=True, slots=True)
class DecodeOptions:
    """How the memories of an audit are decoded.

    `batch` chunks together, without drafts, if that is more than 1; `reference`: each token by
    token at batch 1. Else the kept text is a draft, which changes the time and no verdict.
    `encoder`: what the store's readable vectors are to be of.
    """

    batch: int = 1
    reference: bool = False
    encoder: Encoder | None = None


DRAFTED = DecodeOptions()
Reconstruct = Callable[
    [Store, LM, Template, Sequence[str], DecodeOptions], Iterator[Sequence[Checked]]
]


def reconstruct_here(
    store: ChunkSource, lm: LM, template: Template, chunk_ids: Sequence[str], options: DecodeOptions
) -> Iterator[list[Checked]]:
    """Reconstructs chunks in this process, some at a time; compares their readable vectors."""
    for batch in reconstruct_all(
        store, lm, template, chunk_ids, batch=options.batch, reference=options.reference
    ):
        comparisons = dict(compare_readables(store, lm, options.encoder, batch))
        yield [
            (replace(chunk, device=lm.device.type), comparisons.get(chunk.chunk_id))
            for chunk in batch
        ]


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not proven: what, where, and why."""

    kind: str
    subject: str
    reason: str


@dataclass(frozen=True, slots=True, repr=False, kw_only=True)
class Audit:
    """The result of a reconstruction audit: what was checked, and what was found.

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
    recited: tuple[Reconstructed, ...] = ()
    proofs: tuple[tuple[StoredDocument, bool | None], ...] = ()
    readable: Mapping[str, int] = field(default_factory=dict)

    @property
    def sentence(self) -> str:
        """The audit in a sentence. It never says "all" unless all were decoded."""
        if self.interrupted:
            return f"INTERRUPTED after {self.checked} of {self.chunks} chunks; run verify again"
        if any(finding.kind != "fragile" for finding in self.findings):
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


def draw_sample(chunk_ids: Sequence[str], share: float, seed: int) -> list[str]:
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
    *,
    share: float = 1.0,
    seed: int = 0,
    on_progress: OnProgress = quiet,
    options: DecodeOptions = DRAFTED,
    reconstruct: Reconstruct = reconstruct_here,
) -> Audit:
    """Proves the chunks and documents of the store as it is now.

    That is every chunk (or a sample) and every document whose chunks were all checked.

    While it runs another may write: what is new is left for the next audit, what is gone is left
    out.

    Args:
        options: the audit names the profile it was held in.
        reconstruct: decodes the memories, wherever that is done.

    Cost: a pass in fp32 a chunk, and one of the encoder where it has readable vectors; T + 1 cached
        steps where there is no right draft. An interrupt ends it early with what was found so far.
    """
    began = time.monotonic()
    documents: Sequence[StoredDocument]
    with store.snapshot():
        everything, documents = placed_chunks(store), list(store.documents(skip_damaged=True))
    chosen = draw_sample(everything, share, seed)
    tau = float(store.manifest.get("tau", 0))
    reporter = Reporter(on_progress=on_progress, total=len(chosen))
    chunks, kinds = dict[str, Reconstructed](), Counter[str]()
    comparisons, interrupted = dict[str, Comparison](), False
    try:
        for batch in reconstruct(store, lm, template, chosen, options):
            chunks |= {chunk.chunk_id: mark_fragile(chunk, tau) for chunk, _ in batch}
            comparisons |= {
                chunk.chunk_id: comparison for chunk, comparison in batch if comparison is not None
            }
            kinds.update(chunks[chunk.chunk_id].verdict.kind for chunk, _ in batch)
            reporter.advance(len(batch), **kinds)
    except KeyboardInterrupt:
        interrupted = True
    with store.snapshot():
        everything, documents = (
            _keep_present(everything, placed_chunks(store)),
            _keep_present(documents, store.documents(skip_damaged=True)),
        )
        chunks = {chunk_id: chunks[chunk_id] for chunk_id in _keep_present(chunks, everything)}
        comparisons = {
            chunk_id: comparisons[chunk_id] for chunk_id in _keep_present(comparisons, chunks)
        }
        proofs = {document: is_proven(store, document, chunks) for document in documents}
    damaged = {chunk_id for chunk_id, chunk in chunks.items() if chunk.verdict.kind == "damaged"}
    findings = (
        *_find_damage(store, damaged),
        *_chunk_findings(store, chunks.values()),
        *_vector_findings(store, comparisons),
        *_document_findings(proofs),
    )
    return Audit(
        counts=dict(Counter(chunk.verdict.kind for chunk in chunks.values())),
        chunks=len(everything),
        checked=len(chunks),
        documents=len(documents),
        documents_checked=sum(ok is not None for ok in proofs.values()),
        documents_proven=sum(ok is True for ok in proofs.values()),
        findings=tuple(dict.fromkeys(findings)),
        profile=_describe_profile(options, chunks.values(), lm),
        sample=describe_sample(share, seed, len(chunks)),
        seconds=time.monotonic() - began,
        interrupted=interrupted,
        recited=tuple(replace(chunk, text=None) for chunk in chunks.values()),
        proofs=tuple(proofs.items()),
        readable=dict(Counter(comparison.kind for comparison in comparisons.values())),
    )


def _describe_profile(options: DecodeOptions, chunks: Iterable[Reconstructed], lm: LM) -> str:
    """The arithmetic and the devices of an audit: a cluster's workers may have other ones."""
    decoded = (chunk for chunk in chunks if chunk.verdict.kind not in ("damaged", "text-only"))
    devices = sorted({chunk.device for chunk in decoded} - {""}) or [lm.device.type]
    return f"{profile_of(options.batch, reference=options.reference)}, {' and '.join(devices)}"


def _keep_present(then: Iterable[T], now: Iterable[T]) -> list[T]:
    """The values of `then` that are still there now, in their order."""
    left = set(now)
    return [value for value in then if value in left]


def describe_sample(share: float, seed: int, count: int) -> str:
    """How chunks were drawn, and what no failure among them would prove (the rule of three)."""
    if share >= 1 or not count:
        return ""
    return (
        f"{share:.1%} drawn with seed {seed}; 0 failures in {count} means under "
        f"{min(1.0, 3 / count):.1%} in all, at 95 % confidence"
    )


def placed_chunks(store: Store) -> list[str]:
    """The chunks that some document has, in the order they were stored."""
    with store.snapshot():
        return list(_iterate_placed(store))


def _iterate_placed(store: Store) -> Iterator[str]:
    """As `placed_chunks`, one after the other; within a snapshot."""
    for chunk_id in store.each_chunk_id():
        if store.occurrences([chunk_id])[chunk_id]:
            yield chunk_id


def _count(store: Store) -> tuple[int, int]:
    """The numbers of placed chunks and of documents."""
    with store.snapshot():
        documents = sum(1 for _ in store.each_document(skip_damaged=True))
        return sum(1 for _ in _iterate_placed(store)), documents


def is_proven(
    store: Store, document: StoredDocument, chunks: Mapping[str, Reconstructed]
) -> bool | None:
    """Whether the document's reconstructed chunks, joined, are its text.

    None: not all of them were checked or came back.
    """
    try:
        chunk_ids = [
            place.chunk_id for place in store.document_chunks(document.root, document.path)
        ]
    except StoreDamaged:
        return None  # `_find_damage` names it
    if any(chunk_id not in chunks or chunks[chunk_id].text is None for chunk_id in chunk_ids):
        return None
    return (
        sha256_of_text("".join(chunks[chunk_id].text or "" for chunk_id in chunk_ids))
        == document.sha256
    )


def _find_damage(store: Store, known_chunks: Collection[str] = ()) -> Iterator[Finding]:
    """Yields what is damaged, but for the chunks that have a finding already."""
    for problem in store.check():
        if problem.chunk_id not in known_chunks:
            yield Finding("damaged", problem.file or "store.db", str(problem))
    with suppress(StoreDamaged):  # told above
        if lost := sorted(REQUIRED - store.manifest.keys()):
            yield Finding("damaged", "store.db", f"the manifest lost {', '.join(lost)}")


def _chunk_findings(store: Store, chunks: Iterable[Reconstructed]) -> Iterator[Finding]:
    for chunk in chunks:
        if chunk.verdict.kind not in PROVEN:
            yield Finding(
                chunk.verdict.kind, _place_of(store, chunk.chunk_id), chunk.verdict.reason
            )


def _vector_findings(store: Store, comparisons: Mapping[str, Comparison]) -> Iterator[Finding]:
    for chunk_id, comparison in comparisons.items():
        if comparison.kind != SAME:
            yield Finding(comparison.kind, _place_of(store, chunk_id), comparison.reason)


def _document_findings(proofs: Mapping[StoredDocument, bool | None]) -> Iterator[Finding]:
    for document, proven in proofs.items():
        if proven is False:
            yield Finding("mismatch", document.path, "its chunks joined are not the document")


def _place_of(store: Store, chunk_id: str) -> str:
    places = store.occurrences([chunk_id])[chunk_id]
    return ", ".join(f"{place.path} {place.locator}" for place in places[:3]) or chunk_id[:12]


def check_structure(store: Store) -> Audit:
    """Checks structure and checksums alone, without a model.

    Damage is found, but nothing is proved to decode.
    """
    began = time.monotonic()
    chunks, documents = _count(store)
    findings, seconds = tuple(_find_damage(store)), time.monotonic() - began
    return Audit(
        counts={},
        chunks=chunks,
        checked=0,
        documents=documents,
        documents_checked=0,
        documents_proven=0,
        findings=findings,
        profile="structure and checksums only",
        sample="",
        seconds=seconds,
        decodes=False,
    )


def incomparable_audit(store: Store, reasons: Sequence[str]) -> Audit:
    """The audit that cannot be held.

    The model at hand is not the one the memories were written for.
    """
    chunks, documents = _count(store)
    finding = Finding("incomparable", store.manifest.get("model", ""), "; ".join(reasons))
    return Audit(
        counts={"incomparable": chunks},
        chunks=chunks,
        checked=0,
        documents=documents,
        documents_checked=0,
        documents_proven=0,
        findings=(finding,),
        profile=REFERENCE,
        sample="",
        seconds=0.0,
    )
