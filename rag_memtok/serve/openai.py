"""OpenAI's API: chat completions, completions, models. The question is the last user message.

Answers are greedy and from the store alone, with its sources as annotations and in a field of ours,
`rag_memtok`.
"""

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from secrets import token_hex
from typing import Any, Literal

from fastapi import APIRouter, Request

from rag_memtok.errors import NoUsableMemory
from rag_memtok.serve import schemas
from rag_memtok.serve.engine import Question, Reply
from rag_memtok.serve.openai_schemas import (
    MODEL,
    Annotation,
    ChatReply,
    ChatRequest,
    Choice,
    Citation,
    CompletionRequest,
    Extension,
    Model,
    Models,
    ReplyMessage,
    TextChoice,
    TextReply,
    Usage,
)
from rag_memtok.serve.refusals import refusal_of
from rag_memtok.serve.schemas import ERRORS
from rag_memtok.serve.serving import CurrentServing
from rag_memtok.serve.streams import (
    EVENTS,
    AnswerStream,
    format_event,
    stream_response,
    wait_or_cancel,
)

router = APIRouter(prefix="/v1", tags=["OpenAI"], responses=ERRORS)


# --- routes


@router.get("/models")
async def models() -> Models:
    """The one model: the store that is served."""
    return Models(data=[Model()])


@router.get("/models/{name}")
async def model(name: str) -> Model:
    """The one model, by whatever name it is asked for."""
    return Model(id=name)


STREAMS: dict[int | str, dict[str, Any]] = {
    200: {"description": "The answer; with `stream` as events.", "content": {EVENTS: {}}}
}


@router.post("/chat/completions", response_model=ChatReply, responses=STREAMS)
async def chat(request: Request, body: ChatRequest, serving: CurrentServing) -> Any:
    """Answers the last user message from the store, with sources as annotations."""
    return await _complete(request, serving, body, body.question)


@router.post("/completions", response_model=TextReply, responses=STREAMS)
async def completions(request: Request, body: CompletionRequest, serving: CurrentServing) -> Any:
    """Answers the prompt from the store."""
    return await _complete(request, serving, body, body.question)


@dataclass(frozen=True, slots=True)
class Outcome:
    """The end of a reply: its text, why it ended, usage, and our extension."""

    text: str
    finish: Literal["stop", "length"]
    usage: Usage
    extension: Extension


def outcome_of(reply: Reply, ignored: list[str]) -> Outcome:
    """The outcome of a question that was answered."""
    answer = reply.answer
    positions = answer.prompt_positions
    fields = schemas.Answer.model_validate(answer).model_dump()
    return Outcome(
        answer.answer,
        "stop" if reply.complete else "length",
        Usage(
            prompt_tokens=positions,
            completion_tokens=reply.tokens,
            total_tokens=positions + reply.tokens,
        ),
        Extension(**fields, ignored=ignored),
    )


def outcome_of_nothing(error: NoUsableMemory, ignored: list[str]) -> Outcome:
    """The outcome where the store has nothing to say: that, as an answer without sources."""
    return Outcome(
        f"{error} ({error.remedy})" if error.remedy else str(error),
        "stop",
        Usage(prompt_tokens=0, completion_tokens=0, total_tokens=0),
        Extension.empty(ignored),
    )


def annotations_of(outcome: Outcome, base: str) -> list[Annotation]:
    """The sources as annotations of the whole answer; `base` is the server's address."""
    return [
        Annotation(
            url_citation=Citation(
                start_index=0,
                end_index=len(outcome.text),
                title=f"{source.name} {source.lines}".strip(),
                url=f"{base}chunks/{source.chunk}",
            )
        )
        for source in outcome.extension.sources
    ]


async def _complete(
    request: Request,
    serving: CurrentServing,
    body: ChatRequest | CompletionRequest,
    question: Question,
) -> Any:
    stream, ignored = AnswerStream(serving.engine, question), body.ignored
    chat = isinstance(body, ChatRequest)
    writer = ReplyWriter(
        chat, ("chatcmpl-" if chat else "cmpl-") + token_hex(12), str(request.base_url)
    )
    nothing = None
    try:
        await wait_or_cancel(request, stream, stream.begin() if body.stream else stream.reply())
    except NoUsableMemory as error:
        nothing = outcome_of_nothing(error, ignored)
    if body.stream:
        usage = bool(body.stream_options and body.stream_options.include_usage)
        return stream_response(stream, writer.events(stream, ignored, nothing, usage=usage))
    return writer.whole(nothing or outcome_of(await stream.reply(), ignored))


@dataclass(frozen=True, slots=True)
class ReplyWriter:
    """Writes one reply in OpenAI's shape: a `chat` completion or a plain one."""

    chat: bool
    id: str
    base: str
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, outcome: Outcome) -> ChatReply | TextReply:
        """The reply at once."""
        head: dict[str, Any] = {
            "id": self.id,
            "created": self.created,
            "usage": outcome.usage,
            "rag_memtok": outcome.extension,
        }
        if not self.chat:
            choice = TextChoice(text=outcome.text, finish_reason=outcome.finish)
            return TextReply(**head, choices=[choice])
        message = ReplyMessage(content=outcome.text, annotations=annotations_of(outcome, self.base))
        return ChatReply(**head, choices=[Choice(message=message, finish_reason=outcome.finish)])

    async def events(
        self, stream: AnswerStream, ignored: list[str], nothing: Outcome | None, *, usage: bool
    ) -> AsyncIterator[str]:
        """Yields the reply as it is made; an error in the middle is the last event but one."""
        if self.chat:
            yield self._piece({"role": "assistant", "content": ""})
        try:
            if nothing is None:
                async for text in stream.texts():
                    yield self._piece({"content": text})
                outcome = outcome_of(await stream.reply(), ignored)
            else:
                outcome = nothing
                yield self._piece({"content": outcome.text})
        except Exception as error:
            yield format_event(refusal_of(error)[1])
        else:
            annotations = [
                annotation.model_dump() for annotation in annotations_of(outcome, self.base)
            ]
            extension = {"rag_memtok": outcome.extension.model_dump()}
            yield self._piece({"annotations": annotations}, outcome.finish, **extension)
            if usage:
                yield self._event([], usage=outcome.usage.model_dump())
        yield format_event("[DONE]")

    def _piece(self, delta: dict[str, Any], finish: str | None = None, **more: Any) -> str:
        choice: dict[str, Any] = {"index": 0, "logprobs": None, "finish_reason": finish}
        content = {"delta": delta} if self.chat else {"text": delta.get("content", "")}
        return self._event([choice | content], **more)

    def _event(self, choices: list[dict[str, Any]], **more: Any) -> str:
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        head = {"id": self.id, "object": kind, "created": self.created, "model": MODEL}
        return format_event({**head, "choices": choices, **more})
