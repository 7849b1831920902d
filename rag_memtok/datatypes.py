"""The values everything else passes around.

They are frozen, without behaviour beyond what follows from their fields.

Shapes, wherever a type names one:
    B  rows of a batch          T  tokens of a chunk (without BOS or end)
    M  vectors of a memory      S  positions of a sequence
    d  width of the LM          V  words of its vocabulary
    e  width of a retrieval key N  anything counted
"""

import hashlib
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from jaxtyping import Float

VerdictKind = Literal[
    "exact", "pinned", "assisted", "text-only", "fragile", "mismatch", "incomparable", "damaged"
]
PROVEN: frozenset[VerdictKind] = frozenset({"exact", "pinned", "assisted", "text-only"})
# the codec of a chunk that the tokenizer would not give back: its bytes are its text
TEXT_ONLY = "text"


def sha256_of_text(text: str) -> str:
    """Returns the hex sha256 of `text` in UTF-8.

    Lone surrogates cannot occur, loaders refuse them.
    """
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def sha256_of_tokens(tokens: Sequence[int]) -> str:
    """Returns the hex sha256 of token ids as little-endian 32-bit numbers."""
    return hashlib.sha256(np.asarray(tokens, dtype="<u4").tobytes()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where long work stands: `done` of `total` of what it counts.

    `stage` says what is being done where that changes. `facts` are what else is worth a word, by
    name: how many are exact, the step, the loss. `seconds` are those since the start;
    `seconds_left` an estimate, None while there is none.
    """

    done: int
    total: int
    stage: str = ""
    facts: Mapping[str, int | float] = field(default_factory=dict)
    seconds: float = 0.0
    seconds_left: float | None = None


OnProgress = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class Segment:
    """A place in a document's text, and where the reader finds it in the file.

    From character `start` of the text on, that is at `locator` of the file ("line 12").
    """

    start: int
    locator: str


@dataclass(frozen=True, slots=True)
class Document:
    """One source file (or a line of JSONL, an event) as text; this text is what "lossless" means.

    `file` is relative to `root`, POSIX style. `path` is `file`, or `file#L3` where a file holds
    several documents; (root, path) is the document's identity. `segments` are in ascending order,
    the first at 0. `extractor` names how the text was got ("text/1": the file's own characters, so
    that writing the text gives the file back). `headings` are those that the text itself does not
    show any more: where each begins, how deep it is, what it says.
    """

    root: str
    file: str
    path: str
    text: str
    segments: tuple[Segment, ...]
    extractor: str
    headings: tuple[tuple[int, int, str], ...] = ()

    @classmethod
    def of_text(cls, text: str, file: str = "text.txt") -> "Document":
        """A text as the document that a file of nothing else would be."""
        return cls(
            "",
            file=file,
            path=file,
            text=text,
            segments=(Segment(0, "line 1"),),
            extractor="text/1",
        )

    @property
    def sha256(self) -> str:
        """Hex digest of the text."""
        return sha256_of_text(self.text)

    def locate(self, position: int) -> str:
        """Returns the locator of the character at `position`."""
        index = bisect_right(self.segments, position, key=lambda segment: segment.start) - 1
        return self.segments[max(index, 0)].locator


@dataclass(frozen=True, slots=True)
class Chunk:
    """A stretch of a document, `text == document.text[start:end]`.

    Its id is its content: equal texts are one memory.
    """

    text: str
    start: int
    end: int
    locator: str

    @property
    def id(self) -> str:
        """Hex sha256 of the text."""
        return sha256_of_text(self.text)


@dataclass(frozen=True, slots=True)
class Pin:
    """Token `token` is given, not decoded, at `position`.

    0 is the first token; T is the end token.

    A correction says that the memory was wrong there; a safety pin that it was right by too small a
    margin to survive other numerics.
    """

    position: int
    token: int
    kind: Literal["correction", "safety"]


@dataclass(frozen=True, slots=True, eq=False)
class Memory:
    """Soft tokens from which the frozen LM decodes a chunk, with pins.

    The pins make the decode exact.
    """

    vectors: Float[np.ndarray, "M d"]
    pins: tuple[Pin, ...] = ()


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the judge found.

    `margin` is the smallest lead, in logits, of a right token at an unpinned position (inf if there
    is none).
    """

    kind: VerdictKind
    tokens: int
    corrections: int = 0
    safeties: int = 0
    margin: float = float("inf")
    reason: str = ""

    @property
    def proven(self) -> bool:
        """Whether the chunk's text is known to come back exactly."""
        return self.kind in PROVEN


@dataclass(frozen=True, slots=True)
class ReadableVectors:
    """What an encoder made of a chunk's text, for a model to read: a vector for `window` tokens.

    `encoder` is the hex sha256 of the encoder; `packed` and `shape` are as `codec` has them.
    """

    encoder: str
    window: int
    codec: str
    packed: bytes
    shape: tuple[int, int]


@dataclass(frozen=True, slots=True, eq=False)
class Record:
    """A chunk as the store keeps it, but for its text, which travels beside it.

    What decodes a record has never seen the text.

    A text-only chunk has codec "text", its UTF-8 bytes as `packed` and shape (0, 0).
    """

    chunk_id: str
    tokens: int
    tokens_sha256: str
    codec: str
    packed: bytes
    shape: tuple[int, int]
    pins: tuple[Pin, ...]
    verdict: Verdict
    key: Float[np.ndarray, " e"] | None
    readable: ReadableVectors | None = None


@dataclass(frozen=True, slots=True)
class Occurrence:
    """Where a chunk stands: the `ordinal`-th of its document, characters `start` to `end`.

    `headings` are those above it, joined with " > ".
    """

    root: str
    path: str
    ordinal: int
    chunk_id: str
    start: int
    end: int
    locator: str
    headings: str = ""


@dataclass(frozen=True, slots=True)
class StoredDocument:
    """What the store knows of a document.

    That is enough to see that the document is unchanged and to prove that it comes back. `size` is
    its file's in bytes, `modified` the file's time in nanoseconds since 1970; -1: not known.
    """

    root: str
    file: str
    path: str
    sha256: str
    file_sha256: str
    chunks: int
    characters: int
    extractor: str
    size: int = -1
    modified: int = -1


@dataclass(frozen=True, slots=True)
class Hit:
    """A retrieved chunk with every place it occurs in.

    `score` is the fused one, `cosine` the dense one (None: found by words alone).
    """

    chunk_id: str
    score: float
    cosine: float | None
    occurrences: tuple[Occurrence, ...]


@dataclass(frozen=True, slots=True)
class Source:
    """One citation of an answer.

    `score` is the fused rank's, to sort by; `relevance` the cosine of question and chunk, 0 to 1,
    to read (None: it was found by its words alone). `name` is the path with as much of `root`, the
    folder that was ingested, as tells it from others of the store. `file` says whether the file is
    "gone" or "changed" since; "": it is as it was read, or that cannot be told.
    """

    path: str
    lines: str
    span: tuple[int, int]
    score: float
    chunk: str
    verdict: VerdictKind
    relevance: float | None = None
    root: str = ""
    name: str = ""
    file: Literal["", "gone", "changed"] = ""


@dataclass(frozen=True, slots=True)
class Found:
    """A chunk that was found, with its text ("": the store keeps none)."""

    source: Source
    text: str


@dataclass(frozen=True, slots=True)
class Standing:
    """Where an answer stands in a document: characters `span` of it, at `lines`, as `quote`."""

    path: str
    lines: str
    span: tuple[int, int]
    quote: str


@dataclass(frozen=True, slots=True, repr=False)
class Answer:
    """An answer with its sources and what it cost.

    `context_positions` are the positions the retrieved memories took in the prompt,
    `text_positions` those their text takes; `prompt_positions` is the whole prompt. Where passages
    are read `apart` these are sums over the prompts, and the one source is that of the answer kept.
    `refused` by the "model": it was told what was found and says that this does not say; nothing is
    cited then. `grounded` says whether the answer stands word for word in a passage that was read
    (of vectors: in the text they stand for), and `stands_in` where; None: it was refused. `texts`
    are the words of the sources, "" where there are none. `seconds` is wall clock.
    """

    answer: str
    sources: tuple[Source, ...]
    reader: str
    reader_reason: str
    passages: Literal["together", "apart"]
    context_positions: int
    prompt_positions: int
    text_positions: int
    seconds: float
    refused: Literal["", "model"] = ""
    grounded: bool | None = None
    stands_in: Standing | None = None
    texts: tuple[str, ...] = ()

    def __repr__(self) -> str:
        cited = ", ".join(f"{one.path} {one.lines}" for one in self.sources)
        saved = f"{self.context_positions} positions instead of {self.text_positions}"
        return f"Answer({self.answer!r}, [{cited}], {self.reader}, {saved}, {self.seconds:.1f} s)"
