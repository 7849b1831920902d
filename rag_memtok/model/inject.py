"""Question + memories -> input embeddings, and the greedy answer to them."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from rag_memtok.model.generate import Continuation
from rag_memtok.model.lm import LM
from rag_memtok.model.prompts import Frame, refuses

BATCH = 16  # prompts answered at a time
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
    lm: LM, frame: Frame, passages: Sequence[Passage], question: Sequence[int]
) -> Float[Tensor, "S d"]:
    """The prompt's input embeddings.

    They are `passages`, each as tokens or as soft tokens, in the frame, then the question.

    Args:
        passages: one or more; they stand in this order.
        question: its tokens.
    """
    stretches: list[Passage] = [frame.opening]
    for index, passage in enumerate(passages):
        stretches += [frame.between, passage] if index else [passage]
    stretches += [frame.question, question, frame.closing]
    return torch.cat([embedded(lm, stretch) for stretch in stretches])


def embedded(lm: LM, passage: Passage) -> Float[Tensor, "_ d"]:
    """A passage as input embeddings."""
    if isinstance(passage, Sourced):
        return torch.cat([lm.embed(list(passage.line)), embedded(lm, passage.content)])
    if isinstance(passage, np.ndarray):
        return torch.from_numpy(passage).to(lm.device, lm.table.dtype)
    return lm.embed(list(passage))


def fitting(
    context: int, frame: Frame, passages: Sequence[Passage], question: Sequence[int], answer: int
) -> int:
    """How many of `passages`, from the first, fit in a context of so many positions.

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


def greedy(
    run: Continuation, frame: Frame, limit: int, ended: Callable[[int], bool] = never
) -> Iterator[tuple[list[int], list[int | None], Float[Tensor, "B V"]]]:
    """Lets every row of `run` go on to its end, at most `limit` tokens.

    At each position: the rows that still speak, every row's next token (None: the end), and the
    logits that it is chosen by. A row that has `ended` speaks no more, whatever it would say.

    Cost: a cached step a token but the first, each over all rows.
    """
    stops = run.lm.stops | {frame.end}
    going = list(range(len(run.logits)))
    for position in range(limit):
        chosen = run.logits.argmax(-1).tolist()
        yield going, [None if token in stops else token for token in chosen], run.logits
        going = [row for row in going if chosen[row] not in stops and not ended(row)]
        if not going or position == limit - 1:
            return
        run.feed(chosen)


def answer_tokens(lm: LM, frame: Frame, prompt: Float[Tensor, "S d"], limit: int) -> Iterator[int]:
    """The greedy answer, a token at a time, at most `limit`.

    Cost: one pass over the prompt, then one cached step a token.
    """
    for _, token in answer_rows(lm, frame, [prompt], limit):
        yield token


def answer_rows(
    lm: LM,
    frame: Frame,
    prompts: Sequence[Float[Tensor, "_ d"]],
    limit: int,
    ended: Callable[[int], bool] = never,
) -> Iterator[tuple[int, int]]:
    """The greedy answers to several prompts at once, as they are made: (row, token) each.

    Cost: that of `answer_batch`.
    """
    for going, tokens, _ in greedy(Continuation(lm, prompts), frame, limit, ended):
        for row in going:
            if (token := tokens[row]) is not None:
                yield row, token


@dataclass(frozen=True, slots=True)
class Said:
    """An answer's tokens, and how sure the model was.

    The sureness is the mean log-probability of the answer's tokens, the end included, in nats.
    """

    tokens: tuple[int, ...]
    sureness: float


def answer_batch(
    lm: LM,
    frame: Frame,
    prompts: Sequence[Float[Tensor, "_ d"]],
    limit: int,
    ended: Callable[[int], bool] = never,
) -> list[Said]:
    """The greedy answers to several prompts at once, each at most `limit` tokens.

    Cost: one pass over as many rows of the longest prompt, then as many cached steps as the longest
        answer has tokens, each over all rows.
    """
    answers: list[list[int]] = [[] for _ in prompts]
    nats: list[list[float]] = [[] for _ in prompts]
    for going, tokens, logits in greedy(Continuation(lm, prompts), frame, limit, ended):
        known = logits.log_softmax(-1).amax(-1).tolist()
        for row in going:
            nats[row].append(known[row])
            if (token := tokens[row]) is not None:
                answers[row].append(token)
    return [
        Said(tuple(answer), math.fsum(some) / len(some))
        for answer, some in zip(answers, nats, strict=True)
    ]


def surest(answers: Sequence[tuple[str, float]]) -> int:
    """Which of `answers` (text, sureness) to the same question to keep.

    Each is from a passage of its own, the best passage first.

    The likeliest under p(passage | question) p(answer | passage, question), where the first falls
    with the passage's rank by Zipf's law (1, 1/2, 1/3, ...) and the second does without the
    answer's length. That one passage does not say counts only if none does. Source: Lewis et al.
    2020, arXiv:2005.11401 (RAG-Sequence).
    """

    def worth(place: int) -> tuple[bool, float]:
        text, sureness = answers[place]
        return not refuses(text), sureness - math.log(1 + place)

    return max(range(len(answers)), key=worth)
