"""Question -> Answer: a reader puts the hits' memories into the prompt, the frozen LM goes on.

Several passages stand together in one prompt, or apart in one each, where the surest answer is
kept: what is better depends on the model. An adapter (lora.py) may help to read memories. It is on
while an answer is made and at no other time: `decode` decodes without it.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import compress, groupby, islice
from pathlib import PurePosixPath
from typing import TypeVar

from jaxtyping import Float
from torch import Tensor

from rag_memtok.config import Retrieve
from rag_memtok.datatypes import Answer, Hit, Source
from rag_memtok.errors import NoUsableMemory, StoreDamaged, UsageError
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
from rag_memtok.pipeline.first_words import nothing_found, require_answerable
from rag_memtok.pipeline.grounding import before_circles, circle_at_end, completed, grounded
from rag_memtok.pipeline.readers import (
    Readable,
    Session,
    read,
    reader_of,
    reads_apart,
    words_of,
)
from rag_memtok.retrieval.search import content_words, search

Prompts = tuple[list[Readable], list[Float[Tensor, "_ d"]]]  # what is read, and the prompts of it
Row = TypeVar("Row")
FOLLOW_UP = 2  # content words: a question of no more may lean on the one before it


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prepared:
    """A question ready for the LM: what is read for it, and the prompts of that.

    One prompt holds all of `used`, or each has its own (`apart`). `on_text` gets the answer piece
    by piece, `cancelled` says whether nobody wants it any more. `limit` is in tokens.
    """

    used: Sequence[Readable]
    prompts: Sequence[Float[Tensor, "_ d"]]
    apart: bool
    reader: tuple[str, str]
    limit: int
    began: float
    on_text: Callable[[str], None]
    cancelled: Callable[[], bool]


@dataclass(frozen=True, slots=True)
class Response:
    """What was said to a question: its tokens, and the passages that they are from.

    `complete`: it ended by itself, and not because it may not be longer.
    """

    tokens: tuple[int, ...]
    cited: Sequence[Readable]
    complete: bool


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
    one = prepare(session, question, before, on_text=on_text)
    (response,) = respond(session, [one])
    return finish(session, one, response)


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
    """Finds and reads what `question` is to be answered from.

    Args:
        retrieve: how it is found; None: as the session finds.
        limit: tokens of the answer, at most those of the session; 0: those.

    Raises:
        UsageError, NoUsableMemory: see `answer`.
    """
    began = time.monotonic()
    asked = _asked(session, question)
    require_answerable(session.store, question)
    wanted = looked_for(question, before)
    how = retrieve or session.config.retrieve
    hits = search(session.store, session.index, session.embedder, wanted, how)
    if not hits:
        raise nothing_found(session.store)
    reader = reader_of(session)
    readable = read(session, hits, reader[0])
    if not readable:
        raise NoUsableMemory(
            "none of the memories found could be read",
            remedy="rag-memtok verify names what is damaged",
        )
    most = session.config.ask.max_new_tokens
    limit = min(limit or most, most)
    apart = reads_apart(session) and len(readable) > 1
    used, prompts = (_apart if apart else _together)(session, asked, readable, limit)
    return Prepared(
        used=used,
        prompts=prompts,
        apart=apart,
        reader=reader,
        limit=limit,
        began=began,
        on_text=on_text,
        cancelled=cancelled,
    )


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


def _together(
    session: Session, asked: Sequence[int], readable: Sequence[Readable], limit: int
) -> Prompts:
    """One prompt with all that fit, the best one last.

    What stands nearest to the question is read best.
    """
    lm, words = session.reading or session.lm, qa_prompt(session.lm)
    passages = [sourced(lm, words, one) for one in readable]
    fit = count_fitting(session.engine.context, words, passages, asked, limit)
    _tell_what_fits(session, fit, len(readable))
    return list(readable[:fit]), [inject(lm, words, passages[:fit][::-1], asked)]


def _apart(
    session: Session, asked: Sequence[int], readable: Sequence[Readable], limit: int
) -> Prompts:
    """A prompt for each that fits."""
    lm, words = session.reading or session.lm, qa_prompt(session.lm)
    passages = [sourced(lm, words, one) for one in readable]
    fit = [
        bool(count_fitting(session.engine.context, words, [one], asked, limit)) for one in passages
    ]
    used = list(compress(readable, fit))
    _tell_what_fits(session, len(used), len(readable))
    return used, [inject(lm, words, [one], asked) for one in compress(passages, fit)]


def respond(session: Session, questions: Sequence[Prepared]) -> list[Response]:
    """Lets the engine answer several questions in shared passes, at most BATCH prompts at a time.

    Each is answered as it would be alone, but for what a batch changes in the last bits of logits.
    """
    lm, words, engine = session.lm, qa_prompt(session.lm), session.engine
    apart = [one for one in questions if one.apart]
    together = [one for one in questions if not one.apart]
    said = dict(zip(map(id, apart), _answers_apart(engine, lm, words, apart), strict=True))
    for start in range(0, len(together), BATCH):
        some = together[start : start + BATCH]
        said |= dict(zip(map(id, some), _streamed(engine, lm, words, some), strict=True))
    return [said[id(one)] for one in questions]


def _streamed(engine: Engine, lm: LM, words: QAPrompt, some: Sequence[Prepared]) -> list[Response]:
    """The answers to questions with a prompt each, told as they are made."""
    tokens: list[list[int]] = [[] for _ in some]
    shown, ended = [""] * len(some), set[int]()
    prompts = [one.prompts[0] for one in some]
    limit = max(one.limit for one in some)

    def silent(row: int) -> bool:
        return row in ended or some[row].cancelled()

    for row, token in engine.rows(words, prompts, limit, silent):
        tokens[row].append(token)
        if circle_at_end(tokens[row], lm.decode):
            ended.add(row)
            continue
        text = lm.decode(tokens[row])
        if not text.endswith("\ufffd"):  # half a character: wait for the rest
            some[row].on_text(text[len(shown[row]) :])
            shown[row] = text
        if len(tokens[row]) == some[row].limit:
            ended.add(row)
    found = []
    for row, one in enumerate(some):
        said = said_of(lm, tokens[row])
        one.on_text(lm.decode(said)[len(shown[row]) :])
        found.append(Response(said, one.used, len(tokens[row]) < one.limit))
    return found


def _answers_apart(
    engine: Engine, lm: LM, words: QAPrompt, some: Sequence[Prepared]
) -> list[Response]:
    """Of a question's answers the surest is kept, and cited is what that was read from."""
    rows = [(one, prompt) for one in some for prompt in one.prompts]
    rows.sort(key=lambda row: row[0].limit)  # those of one limit stand together
    said: dict[int, list[Generation]] = {id(one): [] for one in some}
    for limit, alike in groupby(rows, key=lambda row: row[0].limit):
        for part in batched(alike, BATCH):
            asked = [one for one, _ in part]
            prompts = [prompt for _, prompt in part]
            found = engine.batch(words, prompts, limit, partial(_unwanted, asked))
            for one, answer_to_it in zip(asked, found, strict=True):
                said[id(one)].append(answer_to_it)
    return [_surest(lm, one, said[id(one)]) for one in some]


def _unwanted(asked: Sequence[Prepared], row: int) -> bool:
    return asked[row].cancelled()


def batched(rows: Iterable[Row], size: int) -> Iterator[list[Row]]:
    """`rows` in their order, at most `size` at a time."""
    left = iter(rows)
    while part := list(islice(left, size)):
        yield part


def _surest(lm: LM, one: Prepared, said: Sequence[Generation]) -> Response:
    tokens = [said_of(lm, some.tokens) for some in said]
    texts = [lm.decode(some) for some in tokens]
    kept = most_confident(
        [(text, some.mean_logprob) for text, some in zip(texts, said, strict=True)]
    )
    one.on_text(texts[kept])
    return Response(tokens[kept], [one.used[kept]], len(said[kept].tokens) < one.limit)


def finish(session: Session, one: Prepared, response: Response) -> Answer:
    """What was said to a question, with its sources and what it cost."""
    shown = session.lm.decode(response.tokens)
    refused = is_no_answer(shown.strip())
    cited = () if refused else response.cited
    texts = tuple(words_of(session, some) for some in cited)
    whole = completed(shown, texts)
    if whole != shown:
        one.on_text(whole[len(shown) :])
    said = whole.strip()
    places = (some.hit.occurrences[0] for some in cited)
    standing = grounded(said, zip(texts, places, strict=True))
    return Answer(
        answer=said,
        sources=tuple(_source(session, some) for some in cited),
        reader=f"{one.reader[0]} + adapter" if session.reading else one.reader[0],
        reader_reason=one.reader[1],
        passages="apart" if one.apart else "together",
        context_positions=sum(len(some.passage) for some in one.used),
        prompt_positions=sum(map(len, one.prompts)),
        text_positions=sum(some.record.tokens or len(some.passage) for some in one.used),
        seconds=time.monotonic() - one.began,
        refused="model" if refused else "",
        grounded=None if refused else standing is not None,
        stands_in=standing,
        texts=texts,
    )


def said_of(lm: LM, tokens: Sequence[int]) -> tuple[int, ...]:
    """An answer without the circles it goes in, and without half a character at its end."""
    kept = list(tokens[: before_circles(tokens, lm.decode)])
    while kept and lm.decode(kept).endswith("\ufffd"):
        kept.pop()
    return tuple(kept)


def sourced(lm: LM, words: QAPrompt, one: Readable) -> Sourced:
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


def quotations(
    session: Session, question: str, retrieve: Retrieve | None = None
) -> list[tuple[str, Source]]:
    """The chunks that have to do with a question, best first, as text with citations.

    The text is the kept text, else what the memory decodes to. `retrieve` is how they are found;
    None: as the session finds.
    """
    how = retrieve or session.config.retrieve
    hits = search(session.store, session.index, session.embedder, question, how)
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
