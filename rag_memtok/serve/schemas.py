"""What is sent and told, as JSON: the shapes of every request and reply. The only home of pydantic.

JSON has no infinity: the margin of a memory that has none is null.
"""

import math
from dataclasses import asdict
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from rag_memtok.datatypes import VerdictKind
from rag_memtok.pipeline import inspect

LONGEST = 20_000  # characters of a question; how many tokens it may have is ask.max_question_tokens
MOST = 50  # passages for a question


class RequestModel(BaseModel):
    """Base of what a client sends; a field that is not known is refused."""

    model_config = ConfigDict(extra="forbid", strict=True)


class ReplyModel(BaseModel):
    """Base of what the server replies, read from our own values."""

    model_config = ConfigDict(from_attributes=True)


def none_if_infinite(value: Any) -> Any:
    """None in place of a number that JSON does not have."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def int_if_whole(value: Any) -> Any:
    """A number without a fraction as an integer: JSON does not tell 2.0 from 2."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Int = Annotated[int, BeforeValidator(int_if_whole)]
Logits = Annotated[float | None, BeforeValidator(none_if_infinite)]


# --- errors


class Error(BaseModel):
    """What happened, and what to do next (`remedy`). `code` is that of the program's errors."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None
    remedy: str = ""


class ErrorReply(BaseModel):
    """An error in OpenAI's shape."""

    error: Error


# --- questions


class Search(RequestModel):
    """What to look for, where, and how many passages."""

    question: str = Field(min_length=1, max_length=LONGEST, description="Words, or a question.")
    k: Int | None = Field(None, ge=1, le=MOST, description="Passages, at most.")
    within: str | None = Field(
        None, max_length=4096, description="A folder or file of the store: search only that."
    )


class Ask(Search):
    """A question to the store."""

    before: str = Field(
        "", max_length=LONGEST, description="The question before this one in a dialogue."
    )
    max_tokens: Int | None = Field(None, ge=1, description="Tokens of the answer, at most.")
    stream: bool = Field(False, description="Tell the answer as it is made, as server-sent events.")


class Source(ReplyModel):
    """One citation: the chunk, where it stands in which file, and its verdict."""

    path: str
    lines: str
    span: tuple[int, int] = Field(description="Characters of the document.")
    score: float
    chunk: str
    verdict: VerdictKind
    relevance: float | None
    root: str
    name: str
    file: Literal["", "gone", "changed"]


class Standing(ReplyModel):
    """Where an answer stands in a document: characters `span` of it, at `lines`, as `quote`."""

    path: str
    lines: str
    span: tuple[int, int]
    quote: str


class Answer(ReplyModel):
    """An answer with its sources and what it cost.

    `texts` are the words of the sources; `stands_in` is where the answer stands in them, word for
    word, in characters of the document: less the source's `span[0]` it is those of the text.
    `context_positions` are what the memories took, `text_positions` what their text takes.
    """

    answer: str
    sources: list[Source]
    reader: str
    reader_reason: str
    passages: Literal["together", "apart"]
    context_positions: int
    prompt_positions: int
    text_positions: int
    seconds: float
    refused: Literal["", "model"]
    grounded: bool | None
    stands_in: Standing | None
    texts: list[str]


class Found(ReplyModel):
    """A passage that was found, with its citation."""

    source: Source
    text: str


class FoundReply(BaseModel):
    """What was found, best first."""

    found: list[Found]


# --- the store


class Verdict(ReplyModel):
    """What the judge found of a chunk."""

    kind: VerdictKind
    tokens: int
    corrections: int
    safeties: int
    margin: Logits
    reason: str


class Place(ReplyModel):
    """Where a chunk stands."""

    root: str
    path: str
    ordinal: int
    start: int
    end: int
    locator: str
    headings: str


class Token(ReplyModel):
    """A token of a memory: its lead in logits over the best other word, and whether it is pinned.

    `pin` is "correction", "safety" or "".
    """

    text: str
    margin: Logits
    pin: str


class Chunk(ReplyModel):
    """One memory, decoded now, token by token; the last token is the end."""

    chunk_id: str
    codec: str
    shape: tuple[int, int] = Field(description="Vectors, and numbers in each.")
    verdict: Verdict
    text: str
    tokens: list[Token]
    places: list[Place]
    bytes: dict[str, int]


class ListedChunk(ReplyModel):
    """A chunk as it was judged when it was written, and its first place.

    `place` is null for a chunk of an unfinished ingest.
    """

    chunk_id: str
    verdict: Verdict
    vectors: int
    places: int
    place: Place | None


class ChunksReply(BaseModel):
    """Some of so many chunks."""

    chunks: list[ListedChunk]
    total: int


class Document(ReplyModel):
    """A document of the store with the verdicts of its chunks; (root, path) is its identity."""

    name: str
    root: str
    file: str
    path: str
    sha256: str
    chunks: int
    characters: int
    extractor: str
    verdicts: dict[str, int]

    @classmethod
    def of(cls, listed: inspect.ListedDocument) -> "Document":
        """A document as the store lists it."""
        return cls(name=listed.name, verdicts=dict(listed.verdicts), **asdict(listed.document))


class Lost(BaseModel):
    """A document that the store lost to damage: what is left of its path, and the reason."""

    path: str
    reason: str


class DocumentsReply(BaseModel):
    """The store's documents, and those that it lost to damage."""

    documents: list[Document]
    lost: list[Lost]


class Restore(RequestModel):
    """Which document is to be decoded, as `GET /documents` names it."""

    root: str = Field(max_length=LONGEST)
    path: str = Field(max_length=LONGEST)


class Summary(ReplyModel):
    """Counts."""

    chunks: int
    orphans: int
    documents: int
    verdicts: dict[str, int]
    readable: int
    bytes: dict[str, int]


class Status(ReplyModel):
    """A store at a glance."""

    summary: Summary
    manifest: dict[str, str]
    generation: int
    bytes: int
    adapter: str
    outdated: int


class Health(BaseModel):
    """Whether the server answers, and how many questions wait."""

    status: Literal["ok", "ending"]
    version: str
    store: bool = Field(description="Whether there is a store to ask.")
    waiting: int


# --- what may go wrong

DESCRIPTIONS = {
    400: "The request is not as it should be",
    401: "The token is missing, or another",
    403: "The Host or the Origin is not the server's own",
    404: "There is nothing of that kind",
    405: "No such method",
    408: "The body did not arrive in time",
    409: "Another process writes to the store",
    413: "The body is too large",
    415: "The body is neither JSON nor a named file",
    429: "There is no place; Retry-After says when there may be one",
    500: "A mistake of the server's, or a damaged store",
    503: "The model is not at hand, or memory is short",
    507: "The disk is full",
}
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorReply, "description": description}
    for status, description in DESCRIPTIONS.items()
}
