"""What OpenAI's API is sent and tells, as JSON.

What a client sends to steer a sampler is accepted, and named as ignored; what it would miss (tools,
n > 1, logprobs) is refused by name.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from rag_memtok.errors import UsageError
from rag_memtok.serve import schemas
from rag_memtok.serve.engine import Question
from rag_memtok.serve.schemas import LONGEST

MODEL = "rag-memtok"


def refuse_value(value: Any) -> None:
    """Refuses a value that asks for what is not there.

    Raises:
        PydanticCustomError: it does.
    """
    if value is not None and value is not False and value not in ("", [], {}, "none"):
        raise PydanticCustomError(
            "unsupported", "not supported: answers are greedy, one at a time, from the store"
        )


Unsupported = Annotated[None, BeforeValidator(refuse_value)]
OnlyOne = Annotated[int | None, Field(ge=1, le=1)]


class Part(BaseModel):
    """A part of a message's content; only text is read."""

    type: Literal["text"]
    text: str


class Message(BaseModel):
    """A message of a conversation."""

    model_config = ConfigDict(extra="allow")

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[Part] | None = None

    @property
    def text(self) -> str:
        """The content as text."""
        if isinstance(self.content, list):
            return "\n".join(part.text for part in self.content)
        return self.content or ""


class StreamOptions(BaseModel):
    """Whether the last event has the usage."""

    model_config = ConfigDict(extra="allow")

    include_usage: bool | None = None


class CompletionBase(BaseModel):
    """What both kinds of completion share.

    Whatever else OpenAI's API knows (temperature, top_p, seed, ...) is accepted and named in
    `ignored`, as is the name of another model.
    """

    model_config = ConfigDict(extra="allow")

    model: str = Field(max_length=1000)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1)
    n: OnlyOne = None

    @property
    def ignored(self) -> list[str]:
        """The names of what was sent and changes nothing."""
        extra = [name for name, value in (self.model_extra or {}).items() if value is not None]
        return sorted([*extra, *(["model"] if self.model != MODEL else [])])


class ChatRequest(CompletionBase):
    """OpenAI's chat completion; the last user message is the question."""

    messages: list[Message] = Field(min_length=1, max_length=1000)
    max_completion_tokens: int | None = Field(None, ge=1)
    tools: Unsupported = None
    tool_choice: Unsupported = None
    functions: Unsupported = None
    function_call: Unsupported = None
    logprobs: Unsupported = None
    top_logprobs: Unsupported = None
    audio: Unsupported = None

    @property
    def question(self) -> Question:
        """The last user message; the one before it may help to find memories.

        Raises:
            UsageError: there is none.
        """
        questions = [
            message.text
            for message in self.messages
            if message.role == "user" and message.text.strip()
        ]
        if not questions:
            raise UsageError(
                "messages has no text of a user", remedy="ask in a message of role user"
            )
        require_short(questions[-1])
        limit = self.max_completion_tokens or self.max_tokens or 0
        before = questions[-2][:LONGEST] if len(questions) > 1 else ""
        return Question(text=questions[-1], before=before, limit=limit)

    @property
    def ignored(self) -> list[str]:
        """Also the messages of the system: answers follow the documents alone."""
        has_system = any(message.role in ("system", "developer") for message in self.messages)
        return sorted([*super().ignored, *(["messages.system"] if has_system else [])])


class CompletionRequest(CompletionBase):
    """OpenAI's completion; the prompt is the question."""

    prompt: str | Annotated[list[str], Field(min_length=1, max_length=1)]
    best_of: OnlyOne = None
    echo: Unsupported = None
    suffix: Unsupported = None
    logprobs: Unsupported = None

    @property
    def question(self) -> Question:
        """The prompt."""
        text = self.prompt if isinstance(self.prompt, str) else self.prompt[0]
        require_short(text)
        return Question(text=text, limit=self.max_tokens or 0)


def require_short(text: str) -> None:
    """Refuses a question that is too long by far.

    Raises:
        UsageError: it is.
    """
    if len(text) > LONGEST:
        raise UsageError(
            f"the question has {len(text)} characters; valid: at most {LONGEST}",
            remedy="ask one thing, in a sentence; documents go to POST /ingest",
        )


# --- replies


class Citation(BaseModel):
    """Where a chunk can be seen; the characters are those of the answer."""

    start_index: int
    end_index: int
    title: str
    url: str


class Annotation(BaseModel):
    """A source, as OpenAI cites them."""

    type: Literal["url_citation"] = "url_citation"
    url_citation: Citation


class Extension(schemas.Answer):
    """The answer as `POST /ask` has it, and the names of what the client sent in vain.

    `refused` is "retrieval" if nothing of the store has to do with the question.
    """

    refused: Literal["", "model", "retrieval"]  # type: ignore[assignment]
    ignored: list[str]

    @classmethod
    def empty(cls, ignored: list[str]) -> "Extension":
        """The extension where nothing was found."""
        return cls(
            answer="",
            sources=[],
            reader="",
            reader_reason="",
            passages="together",
            context_positions=0,
            prompt_positions=0,
            text_positions=0,
            seconds=0.0,
            refused="retrieval",
            grounded=None,
            stands_in=None,
            texts=[],
            ignored=ignored,
        )


class Usage(BaseModel):
    """Positions of the prompts, tokens of the answer."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ReplyMessage(BaseModel):
    """The answer."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None
    annotations: list[Annotation] = []


class Choice(BaseModel):
    """The one answer there is."""

    index: int = 0
    message: ReplyMessage
    logprobs: None = None
    finish_reason: Literal["stop", "length"]


class TextChoice(BaseModel):
    """The one answer there is."""

    index: int = 0
    text: str
    logprobs: None = None
    finish_reason: Literal["stop", "length"]


class Completion(BaseModel):
    """What both kinds of reply share."""

    id: str
    created: int
    model: str = MODEL
    usage: Usage
    rag_memtok: Extension


class ChatReply(Completion):
    """OpenAI's chat completion, with sources."""

    object: Literal["chat.completion"] = "chat.completion"
    choices: list[Choice]


class TextReply(Completion):
    """OpenAI's completion, with sources."""

    object: Literal["text_completion"] = "text_completion"
    choices: list[TextChoice]


class Model(BaseModel):
    """A model that can be asked: the store."""

    id: str = MODEL
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = MODEL


class Models(BaseModel):
    """Every model there is."""

    object: Literal["list"] = "list"
    data: list[Model]
