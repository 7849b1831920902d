"""Question + memories -> input embeddings, and the greedy answer to them."""

import math
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from rag_memtok.model.copying import Copied
from rag_memtok.model.generate import KVDecoder
from rag_memtok.model.lm import LM
from rag_memtok.model.prompts import QAPrompt, is_refusal

BATCH = 16  # prompts answered at a time
RELEVANCE = 2.0  # nats that a passage's relevance of 1 counts, beside how sure its answer is
# of a passage: tokens or soft tokens, any number of each
Content = Sequence[int] | Float[np.ndarray, "_ d"]


@dataclass(frozen=True, slots=True, eq=False)
class Sourced:
    """A passage behind the line that says where it is from (`prompts.source_line`)."""

    line: Sequence[int]
    content: Content

    def __len__(self) -> int:
        """The positions it takes."""
        return len(self.line) + len(self.content)


Passage = Content | Sourced


def inject(
    lm: LM, frame: QAPrompt, passages: Sequence[Passage], question: Sequence[int]
) -> Float[Tensor, "S d"]:
    """The prompt's input embeddings: `passages` in the prompt, then the question.

    Args:
        passages: one or more, in this order, each as tokens or as soft tokens.
        question: its tokens.
    """
    stretches: list[Passage] = [frame.opening]
    for index, passage in enumerate(passages):
        stretches += [frame.between, passage] if index else [passage]
    stretches += [frame.question, question, frame.closing]
    return torch.cat([embed(lm, stretch) for stretch in stretches])


def embed(lm: LM, passage: Passage) -> Float[Tensor, "_ d"]:
    """A passage as input embeddings."""
    if isinstance(passage, Sourced):
        return torch.cat([lm.embed(list(passage.line)), embed(lm, passage.content)])
    if isinstance(passage, np.ndarray):
        return torch.from_numpy(passage).to(lm.device, lm.table.dtype)
    return lm.embed(list(passage))


def count_fitting(
    context: int, frame: QAPrompt, passages: Sequence[Passage], question: Sequence[int], answer: int
) -> int:
    """The number of `passages`, from the first, that fit in a context of so many positions.

    They leave room for `answer` tokens; 0 if not even one does.
    """
    room = context - frame.overhead - len(question) - answer
    for index, passage in enumerate(passages):
        room -= len(passage) + (len(frame.between) if index else 0)
        if room < 0:
            return index
    return len(passages)


def never(_: int) -> bool:
    """Ends no row early."""
    return False


def decode_greedily(
    decoder: KVDecoder,
    frame: QAPrompt,
    limit: int,
    ended: Callable[[int], bool] = never,
    copied: Sequence[Copied | None] = (),
) -> Iterator[tuple[list[int], list[int | None], Float[Tensor, "B V"]]]:
    """Greedy decoding of every row of `decoder` to its end, at most `limit` tokens.

    Yields at each position the rows that are not done, every row's next token (None: the end), and
    the logits. A row that has `ended` is done, whatever would follow.

    Args:
        copied: what each row's answer is copied from; None, or nothing at all: it may say anything.

    Cost: a cached step a token but the first, each over all rows.
    """
    stops = decoder.lm.stop_tokens | {frame.end}
    open_rows = list(range(len(decoder.logits)))
    said: list[list[int]] = [[] for _ in open_rows]
    for position in range(limit):
        chosen = decoder.logits.argmax(-1).tolist()
        for row in open_rows:
            source = copied[row] if copied else None
            if source is not None:
                chosen[row] = _copy(decoder.logits[row], source, said[row], stops)
            said[row].append(chosen[row])
        yield open_rows, [None if token in stops else token for token in chosen], decoder.logits
        open_rows = [row for row in open_rows if chosen[row] not in stops and not ended(row)]
        if not open_rows or position == limit - 1:
            return
        decoder.feed(chosen)


def _copy(logits: Float[Tensor, " V"], source: Copied, said: Sequence[int], stops: Set[int]) -> int:
    """The likeliest token that goes on as `source` does."""
    tokens, may_end = source.after(said)
    allowed = [*tokens, *(sorted(stops) if may_end or not tokens else ())]
    return allowed[int(logits[allowed].argmax())]


def answer_rows(
    lm: LM,
    frame: QAPrompt,
    prompts: Sequence[Float[Tensor, "_ d"]],
    limit: int,
    ended: Callable[[int], bool] = never,
    copied: Sequence[Copied | None] = (),
) -> Iterator[tuple[int, int]]:
    """The greedy answers to several prompts at once, as they are made: (row, token) each.

    Cost: that of `answer_batch`.
    """
    decoder = KVDecoder(lm, prompts)
    for open_rows, tokens, _ in decode_greedily(decoder, frame, limit, ended, copied):
        for row in open_rows:
            if (token := tokens[row]) is not None:
                yield row, token


@dataclass(frozen=True, slots=True)
class Generation:
    """A generated answer: its tokens and their mean log-probability.

    The mean is over the answer's tokens, the end included, in nats.
    """

    tokens: tuple[int, ...]
    mean_logprob: float


def answer_batch(
    lm: LM,
    frame: QAPrompt,
    prompts: Sequence[Float[Tensor, "_ d"]],
    limit: int,
    ended: Callable[[int], bool] = never,
    copied: Sequence[Copied | None] = (),
) -> list[Generation]:
    """The greedy answers to several prompts at once, each at most `limit` tokens.

    What is `copied` is as sure as the model is of it, whatever else may not be said.

    Cost: one pass over as many rows of the longest prompt, then as many cached steps as the longest
        answer has tokens, each over all rows.
    """
    answers: list[list[int]] = [[] for _ in prompts]
    logprobs: list[list[float]] = [[] for _ in prompts]
    decoder, stops = KVDecoder(lm, prompts), sorted(lm.stop_tokens | {frame.end})
    for open_rows, tokens, logits in decode_greedily(decoder, frame, limit, ended, copied):
        all_logprobs = logits.log_softmax(-1)
        for row in open_rows:
            token = tokens[row]
            said = all_logprobs[row, stops if token is None else [token]]
            logprobs[row].append(float(said.max()))
            if token is not None:
                answers[row].append(token)
    return [
        Generation(tuple(answer), math.fsum(row_logprobs) / len(row_logprobs))
        for answer, row_logprobs in zip(answers, logprobs, strict=True)
    ]


def most_confident(
    answers: Sequence[tuple[str, float]], relevances: Sequence[float] | None = None
) -> int:
    """The index of the answer (text, mean_logprob) to one question that is to be kept.

    Each is from a passage of its own, the best passage first.

    The likeliest under p(passage | question) p(answer | passage, question), where the first falls
    with the passage's rank by Zipf's law (1, 1/2, 1/3, ...) and grows with how many of the
    question's words one of its sentences has, and the second does without the answer's length. That
    one passage does not say counts only if none does. Source: Lewis et al. 2020, arXiv:2005.11401
    (RAG-Sequence).

    Args:
        relevances: of the passages (retrieval/relevance.py); None: they are alike.
    """
    fits = relevances or [0.0] * len(answers)

    def score(rank: int) -> tuple[bool, float]:
        text, mean_logprob = answers[rank]
        return not is_refusal(text), mean_logprob - math.log(1 + rank) + RELEVANCE * fits[rank]

    return max(range(len(answers)), key=score)
