"""Question -> Answer: a reader puts the hits' memories into the prompt, the frozen LM goes on.

Several passages stand together in one prompt, or apart in one each, where the surest answer is
kept: what is better depends on the model. An adapter (lora.py) may help to read memories. It is on
while an answer is made and at no other time: `decode` decodes without it.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import PurePosixPath

from rag_memtok.datatypes import Answer, Hit, Source
from rag_memtok.errors import NoUsableMemory, StoreDamaged, UsageError
from rag_memtok.model.inject import Sourced, fitting, inject, surest
from rag_memtok.model.lm import LM
from rag_memtok.model.prompts import Frame, declines, frame, source_line
from rag_memtok.pipeline.citation import source_of
from rag_memtok.pipeline.first_words import nothing_found, require_answerable
from rag_memtok.pipeline.grounding import before_circles, circle_at_end, grounded
from rag_memtok.pipeline.readers import (
    Readable,
    Session,
    read,
    reader_of,
    reads_apart,
    words_of,
)
from rag_memtok.retrieval.search import content_words, search

FOLLOW_UP = 2  # content words: a question of no more may lean on the one before it


@dataclass(frozen=True, slots=True)
class Response:
    """What was said: its tokens, the passages that were read for it, and those it is from.

    `positions` are those of all prompts.
    """

    tokens: tuple[int, ...]
    used: Sequence[Readable]
    cited: Sequence[Readable]
    positions: int


def looked_for(question: str, before: str) -> str:
    """What to search for when `question` is asked.

    A question with few words of its own ("And its price?") is looked for together with the one
    before it.
    """
    return (
        f"{before} {question}" if before and len(content_words(question)) <= FOLLOW_UP else question
    )


def answer(
    session: Session,
    question: str,
    on_text: Callable[[str], None] = lambda text: None,
    before: str = "",
) -> Answer:
    """Answers `question` from the store; `on_text` gets the answer piece by piece.

    Args:
        before: the question before this one in a dialogue: it may help to find memories, the model
            never sees it.

    Raises:
        UsageError: the question is empty, too long, or no text (bytes that are not UTF-8).
        NoUsableMemory: nothing relevant is in the store, nothing of it could be read, or it is no
            question about what is (first_words.py).
    """
    began = time.monotonic()
    asked = _asked(session, question)
    require_answerable(session.store, question)
    wanted = looked_for(question, before)
    hits = search(session.store, session.index, session.embedder, wanted, session.config.retrieve)
    if not hits:
        raise nothing_found(session.store)
    reader, reason = reader_of(session)
    readable = read(session, hits, reader)
    if not readable:
        raise NoUsableMemory(
            "none of the memories found could be read",
            remedy="rag-memtok verify names what is damaged",
        )
    return _generated(session, asked, readable, (reader, reason), began, on_text)


def _asked(session: Session, question: str) -> list[int]:
    limit = session.config.ask.max_question_tokens
    try:
        question.encode()
    except UnicodeEncodeError:
        raise UsageError(
            "the question is not valid UTF-8",
            remedy="save the questions, or set the terminal, as UTF-8",
        ) from None
    tokens = session.lm.encode(question.strip())
    if not 0 < len(tokens) <= limit:
        raise UsageError(
            f"the question has {len(tokens)} tokens; valid: 1 to {limit}",
            remedy="ask one thing, in a sentence",
        )
    return tokens


def _generated(
    session: Session,
    asked: Sequence[int],
    readable: Sequence[Readable],
    reader: tuple[str, str],
    began: float,
    on_text: Callable[[str], None],
) -> Answer:
    lm = session.reading or session.lm
    apart = reads_apart(session) and len(readable) > 1
    response = (_apart if apart else _together)(session, lm, asked, readable, on_text)
    said = lm.decode(response.tokens).strip()
    refused = declines(said)
    cited = () if refused else response.cited
    texts = tuple(words_of(session, one) for one in cited)
    places = (one.hit.occurrences[0] for one in cited)
    standing = grounded(said, zip(texts, places, strict=True))
    return Answer(
        answer=said,
        sources=()
        if refused
        else tuple(
            source_of(session.store, one.hit, one.record.verdict.kind) for one in response.cited
        ),
        reader=f"{reader[0]} + adapter" if session.reading else reader[0],
        reader_reason=reader[1],
        passages="apart" if apart else "together",
        context_positions=sum(len(one.passage) for one in response.used),
        prompt_positions=response.positions,
        text_positions=sum(one.record.tokens or len(one.passage) for one in response.used),
        seconds=time.monotonic() - began,
        refused="model" if refused else "",
        grounded=None if refused else standing is not None,
        stands_in=standing,
        texts=texts,
    )


def _together(
    session: Session,
    lm: LM,
    asked: Sequence[int],
    readable: Sequence[Readable],
    on_text: Callable[[str], None],
) -> Response:
    """One prompt with all that fit, the best one last.

    What stands nearest to the question is read best.
    """
    words, limit = frame(session.lm), session.config.ask.max_new_tokens
    passages = [sourced(lm, words, one) for one in readable]
    fit = fitting(session.engine.context, words, passages, asked, limit)
    _tell_what_fits(session, fit, len(readable))
    used = readable[:fit]
    prompt = inject(lm, words, passages[:fit][::-1], asked)
    tokens: list[int] = []
    shown = ""
    for token in session.engine.tokens(words, prompt, limit):
        tokens.append(token)
        if circle_at_end(tokens, lm.decode):
            break
        text = lm.decode(tokens)
        if not text.endswith("\ufffd"):  # half a character: wait for the rest
            on_text(text[len(shown) :])
            shown = text
    said = said_of(lm, tokens)
    on_text(lm.decode(said)[len(shown) :])
    return Response(said, used, used, len(prompt))


def _apart(
    session: Session,
    lm: LM,
    asked: Sequence[int],
    readable: Sequence[Readable],
    on_text: Callable[[str], None],
) -> Response:
    """A prompt for each; the surest answer is kept, and cited is what it was read from."""
    words, limit = frame(session.lm), session.config.ask.max_new_tokens
    passages = [sourced(lm, words, one) for one in readable]
    fit = [bool(fitting(session.engine.context, words, [one], asked, limit)) for one in passages]
    used = list(compress(readable, fit))
    _tell_what_fits(session, len(used), len(readable))
    prompts = [inject(lm, words, [one], asked) for one in compress(passages, fit)]
    said = session.engine.batch(words, prompts, limit)
    tokens = [said_of(lm, one.tokens) for one in said]
    answers = [lm.decode(one) for one in tokens]
    kept = surest([(text, one.sureness) for text, one in zip(answers, said, strict=True)])
    on_text(answers[kept])
    return Response(tokens[kept], used, [used[kept]], sum(map(len, prompts)))


def said_of(lm: LM, tokens: Sequence[int]) -> tuple[int, ...]:
    """An answer without the circles it goes in, and without half a character at its end."""
    kept = list(tokens[: before_circles(tokens, lm.decode)])
    while kept and lm.decode(kept).endswith("\ufffd"):
        kept.pop()
    return tuple(kept)


def sourced(lm: LM, words: Frame, one: Readable) -> Sourced:
    """A passage behind the name of its file, where the frame has a place for that."""
    line = source_line(lm, words, PurePosixPath(one.hit.occurrences[0].path).name)
    return Sourced(line, one.passage)


def _tell_what_fits(session: Session, fit: int, found: int) -> None:
    if not fit:
        raise NoUsableMemory(
            "not even one memory fits into the context",
            remedy="fewer --max-new-tokens or a shorter question",
        )
    if fit < found:
        session.on_warning(
            f"only {fit} of {found} memories fit into the context of {session.engine.context} "
            "positions"
        )


def quotations(session: Session, question: str) -> list[tuple[str, Source]]:
    """The chunks that have to do with a question, best first, as text with citations.

    The text is the kept text, else what the memory decodes to.
    """
    hits = search(session.store, session.index, session.embedder, question, session.config.retrieve)
    found = []
    for hit in hits:
        for one in read(session, [hit], "decode" if _kept(session, hit) is None else "text"):
            text = _kept(session, hit) or session.lm.decode(list(one.passage))
            found.append((text, _source(session, one)))
    return found


def _kept(session: Session, hit: Hit) -> str | None:
    try:
        return session.store.text(hit.chunk_id)
    except StoreDamaged:
        return None


def _source(session: Session, one: Readable) -> Source:
    return source_of(session.store, one.hit, one.record.verdict.kind)
