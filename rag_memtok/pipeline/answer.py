"""Question -> Answer: a reader puts the hits' memories into the prompt, the frozen LM goes on.

Several passages stand together in one prompt, or apart in one each, where the surest answer is
kept: what is better depends on the model. An adapter (lora.py) may help to read memories. It is on
while an answer is made and at no other time: `decode` decodes without it.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import compress, groupby, islice
from pathlib import PurePosixPath

from jaxtyping import Float
from torch import Tensor

from rag_memtok.config import Retrieve
from rag_memtok.datatypes import Answer, Hit, Source
from rag_memtok.errors import NoUsableMemory, StoreDamaged, UsageError
from rag_memtok.model.copying import Copied, copied_from
from rag_memtok.model.engine import Engine
from rag_memtok.model.inject import (
    BATCH,
    Generation,
    Sourced,
    count_fitting,
    inject,
    most_confident,
)
from rag_memtok.model.lm import LM
from rag_memtok.model.prompts import QAPrompt, is_no_answer, qa_prompt, source_line
from rag_memtok.pipeline.citation import source_of
from rag_memtok.pipeline.first_words import nothing_found_error, require_answerable
from rag_memtok.pipeline.grounding import (
    complete_answer,
    count_before_loop,
    find_standing,
    loop_at_end,
)
from rag_memtok.pipeline.readers import Readable, known_text, passage_text, read
from rag_memtok.pipeline.session import Session, reader_of, reads_per_passage
from rag_memtok.retrieval.relevance import relevance
from rag_memtok.retrieval.search import search, search_query

Prompts = tuple[list[Readable], list[Float[Tensor, "_ d"]]]  # what is read, and the prompts of it


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prepared:
    """A question ready for the LM: what is read for it, and the prompts of that.

    One prompt holds all of `used`, or each has its own (`per_passage`); `copied` are the texts that
    the answer to each prompt is copied from, None: it is free. `on_text` gets the answer
    piece by piece, `cancelled` says whether nobody wants it any more. `limit` is in tokens.
    """

    question: str
    used: Sequence[Readable]
    prompts: Sequence[Float[Tensor, "_ d"]]
    copied: Sequence[Copied | None]
    per_passage: bool
    reader: tuple[str, str]
    limit: int
    began: float
    on_text: Callable[[str], None]
    cancelled: Callable[[], bool]


@dataclass(frozen=True, slots=True)
class Response:
    """The LM's answer to a question: its tokens, and the passages that they are from.

    `complete`: it ended by itself, and not because it may not be longer.
    """

    tokens: tuple[int, ...]
    cited: Sequence[Readable]
    complete: bool


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
    prepared = prepare(session, question, before, on_text=on_text)
    (response,) = respond(session, [prepared])
    return finish(session, prepared, response)


def prepare(
    session: Session,
    question: str,
    before: str = "",
    *,
    retrieve: Retrieve | None = None,
    limit: int = 0,
    on_text: Callable[[str], None] = lambda text: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Prepared:
    """Retrieves and reads the passages for `question`, and builds its prompts.

    Args:
        retrieve: how it is found; None: as the session finds.
        limit: tokens of the answer, at most those of the session; 0: those.

    Raises:
        UsageError, NoUsableMemory: see `answer`.
    """
    began = time.monotonic()
    question_ids = _encode_question(session, question)
    require_answerable(session.store, question)
    query = search_query(question, before)
    settings = retrieve or session.config.retrieve
    hits = search(session.store, session.index, session.embedder, query, settings)
    if not hits:
        raise nothing_found_error(session.store)
    reader = reader_of(session)
    apart = reads_per_passage(session)
    readable = read(session, hits, reader[0], query, apart=apart)
    if not readable:
        raise NoUsableMemory(
            "none of the memories found could be read",
            remedy="rag-memtok verify names what is damaged",
        )
    most = session.config.ask.max_new_tokens
    limit = min(limit or most, most)
    per_passage = apart and len(readable) > 1
    used, prompts = (_prompt_per_passage if per_passage else _one_prompt)(
        session, question_ids, readable, limit
    )
    return Prepared(
        question=question,
        used=used,
        prompts=prompts,
        copied=_texts_to_copy(session, used, per_passage=per_passage),
        per_passage=per_passage,
        reader=reader,
        limit=limit,
        began=began,
        on_text=on_text,
        cancelled=cancelled,
    )


def _texts_to_copy(
    session: Session, used: Sequence[Readable], *, per_passage: bool
) -> list[Copied | None]:
    """What the answer to each prompt is copied from: every text of it, or it is free."""
    texts = [one.text for one in used]
    whole = texts if per_passage else ["\n".join(texts) if all(texts) else ""]
    return [copied_from(session.lm, text) if text else None for text in whole]


def _encode_question(session: Session, question: str) -> list[int]:
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


def _one_prompt(
    session: Session, question: Sequence[int], readable: Sequence[Readable], limit: int
) -> Prompts:
    """One prompt with all passages that fit, the best one last.

    What stands nearest to the question is read best.
    """
    lm, frame = session.reading or session.lm, qa_prompt(session.lm)
    passages = [with_source_line(lm, frame, passage) for passage in readable]
    fit = count_fitting(session.engine.context, frame, passages, question, limit)
    _warn_what_fits(session, fit, len(readable))
    return list(readable[:fit]), [inject(lm, frame, passages[:fit][::-1], question)]


def _prompt_per_passage(
    session: Session, question: Sequence[int], readable: Sequence[Readable], limit: int
) -> Prompts:
    """A prompt for each passage that fits."""
    lm, frame = session.reading or session.lm, qa_prompt(session.lm)
    passages = [with_source_line(lm, frame, passage) for passage in readable]
    fit = [
        bool(count_fitting(session.engine.context, frame, [passage], question, limit))
        for passage in passages
    ]
    used = list(compress(readable, fit))
    _warn_what_fits(session, len(used), len(readable))
    return used, [inject(lm, frame, [passage], question) for passage in compress(passages, fit)]


def respond(session: Session, questions: Sequence[Prepared]) -> list[Response]:
    """Lets the engine answer several questions in shared passes, at most BATCH prompts at a time.

    Each is answered as it would be alone, but for what a batch changes in the last bits of logits.
    """
    lm, frame, engine = session.lm, qa_prompt(session.lm), session.engine
    per_passage = [question for question in questions if question.per_passage]
    one_prompt = sorted(
        (question for question in questions if not question.per_passage),
        key=lambda question: question.limit,
    )
    responses = dict(
        zip(map(id, per_passage), _answer_per_passage(engine, lm, frame, per_passage), strict=True)
    )
    for _, alike in groupby(one_prompt, key=lambda question: question.limit):
        while batch := list(islice(alike, BATCH)):
            responses |= dict(
                zip(map(id, batch), _stream_answers(engine, lm, frame, batch), strict=True)
            )
    return [responses[id(question)] for question in questions]


def _stream_answers(
    engine: Engine, lm: LM, frame: QAPrompt, questions: Sequence[Prepared]
) -> list[Response]:
    """Generates the answers to questions of one limit with a prompt each, streaming their text."""
    tokens: list[list[int]] = [[] for _ in questions]
    shown, ended = [""] * len(questions), set[int]()
    prompts, copied = zip(*((one.prompts[0], one.copied[0]) for one in questions), strict=True)

    def silent(row: int) -> bool:
        return row in ended or questions[row].cancelled()

    for row, token in engine.rows(frame, prompts, questions[0].limit, silent, copied):
        tokens[row].append(token)
        if loop_at_end(tokens[row], lm.decode):
            ended.add(row)
            continue
        text = lm.decode(tokens[row])
        if not text.endswith("\ufffd"):  # half a character: wait for the rest
            questions[row].on_text(text[len(shown[row]) :])
            shown[row] = text
        if len(tokens[row]) == questions[row].limit:
            ended.add(row)
    responses = []
    for row, question in enumerate(questions):
        trimmed = trim_answer(lm, tokens[row])
        question.on_text(lm.decode(trimmed)[len(shown[row]) :])
        responses.append(Response(trimmed, question.used, len(tokens[row]) < question.limit))
    return responses


def _answer_per_passage(
    engine: Engine, lm: LM, frame: QAPrompt, questions: Sequence[Prepared]
) -> list[Response]:
    """Generates an answer from each passage, and keeps the most confident of each question."""
    rows = [
        (question, prompt, copied)
        for question in questions
        for prompt, copied in zip(question.prompts, question.copied, strict=True)
    ]
    rows.sort(key=lambda row: row[0].limit)  # those of one limit stand together
    generations: dict[int, list[Generation]] = {id(question): [] for question in questions}
    for limit, alike in groupby(rows, key=lambda row: row[0].limit):
        while batch := list(islice(alike, BATCH)):
            asking, prompts, copied = map(list, zip(*batch, strict=True))
            cancelled = partial(_is_cancelled, asking)
            answers = engine.batch(frame, prompts, limit, cancelled, copied)
            for question, generation in zip(asking, answers, strict=True):
                generations[id(question)].append(generation)
    return [
        _respond_most_confident(lm, question, generations[id(question)]) for question in questions
    ]


def _is_cancelled(questions: Sequence[Prepared], row: int) -> bool:
    return questions[row].cancelled()


def _respond_most_confident(
    lm: LM, question: Prepared, generations: Sequence[Generation]
) -> Response:
    tokens = [trim_answer(lm, generation.tokens) for generation in generations]
    texts = [lm.decode(ids) for ids in tokens]
    sureness = [generation.mean_logprob for generation in generations]
    fits = [relevance(question.question, known_text(lm, readable)) for readable in question.used]
    best = most_confident(list(zip(texts, sureness, strict=True)), fits)
    question.on_text(texts[best])
    return Response(
        tokens[best], [question.used[best]], len(generations[best].tokens) < question.limit
    )


def finish(session: Session, prepared: Prepared, response: Response) -> Answer:
    """The answer to a question, with its sources and what it cost."""
    shown = session.lm.decode(response.tokens)
    refused = is_no_answer(shown.strip())
    cited = () if refused else response.cited
    texts = tuple(passage_text(session, readable) for readable in cited)
    whole = complete_answer(prepared.question, shown, texts)
    if whole != shown:
        prepared.on_text(whole[len(shown) :])
    text = whole.strip()
    places = (readable.hit.occurrences[0] for readable in cited)
    standing = find_standing(text, zip(texts, places, strict=True))
    return Answer(
        answer=text,
        sources=tuple(_source(session, readable) for readable in cited),
        reader=f"{prepared.reader[0]} + adapter" if session.reading else prepared.reader[0],
        reader_reason=prepared.reader[1],
        passages="apart" if prepared.per_passage else "together",
        context_positions=sum(len(readable.passage) for readable in prepared.used),
        prompt_positions=sum(map(len, prepared.prompts)),
        text_positions=sum(
            readable.record.tokens or len(readable.passage) for readable in prepared.used
        ),
        seconds=time.monotonic() - prepared.began,
        refused="model" if refused else "",
        grounded=None if refused else standing is not None,
        stands_in=standing,
        texts=texts,
    )


def trim_answer(lm: LM, tokens: Sequence[int]) -> tuple[int, ...]:
    """An answer's tokens without repetition loops, and without half a character at its end."""
    trimmed = list(tokens[: count_before_loop(tokens, lm.decode)])
    while trimmed and lm.decode(trimmed).endswith("\ufffd"):
        trimmed.pop()
    return tuple(trimmed)


def with_source_line(lm: LM, frame: QAPrompt, readable: Readable) -> Sourced:
    """A passage after a line with its file's name, where the frame has a place for that."""
    line = source_line(lm, frame, PurePosixPath(readable.hit.occurrences[0].path).name)
    return Sourced(line, readable.passage)


def _warn_what_fits(session: Session, fit: int, count: int) -> None:
    if not fit:
        raise NoUsableMemory(
            "not even one memory fits into the context",
            remedy="fewer --max-new-tokens or a shorter question",
        )
    if fit < count:
        session.on_warning(
            f"only {fit} of {count} memories fit into the context of {session.engine.context} "
            "positions"
        )


def quotations(
    session: Session, question: str, retrieve: Retrieve | None = None
) -> list[tuple[str, Source]]:
    """The chunks relevant to a question, best first, as text with citations.

    The text is the kept text, else what the memory decodes to. `retrieve` is how they are found;
    None: as the session finds.
    """
    settings = retrieve or session.config.retrieve
    hits = search(session.store, session.index, session.embedder, question, settings)
    quoted = []
    for hit in hits:
        kept_text = _kept_text(session, hit)
        for readable in read(session, [hit], "decode" if kept_text is None else "text"):
            text = kept_text or session.lm.decode(list(readable.passage))
            quoted.append((text, _source(session, readable)))
    return quoted


def _kept_text(session: Session, hit: Hit) -> str | None:
    try:
        return session.store.text(hit.chunk_id)
    except StoreDamaged:
        return None


def _source(session: Session, readable: Readable) -> Source:
    return source_of(session.store, readable.hit, readable.record.verdict.kind)
