"""Question + memories -> input embeddings, and the greedy answer to them."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from rag_memtok.continuation import Continuation
from rag_memtok.lm import LM
from rag_memtok.prompts import Frame, refuses

Passage = Sequence[int] | Float[np.ndarray, "_ d"]  # of any number of vectors each


def inject(lm: LM, frame: Frame, passages: Sequence[Passage], question: Sequence[int]) -> Float[Tensor, "S d"]:
    """The prompt's input embeddings: `passages`, each as tokens or as soft tokens, in the frame, then the question.

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
    if isinstance(passage, np.ndarray):
        return torch.from_numpy(passage).to(lm.device, lm.table.dtype)
    return lm.embed(list(passage))


def fitting(lm: LM, frame: Frame, passages: Sequence[Passage], question: Sequence[int], answer: int) -> int:
    """How many of `passages`, from the first, leave room in the context for `answer` tokens; 0 if not even one does."""
    room = lm.context - frame.overhead - len(question) - answer
    for index, passage in enumerate(passages):
        room -= len(passage) + (len(frame.between) if index else 0)
        if room < 0:
            return index
    return len(passages)


def answer_tokens(lm: LM, frame: Frame, prompt: Float[Tensor, "S d"], limit: int) -> Iterator[int]:
    """The greedy answer, a token at a time, at most `limit`. Cost: one pass over the prompt, then one cached step a token."""
    stops = lm.stops | {frame.end}
    run = Continuation(lm, [prompt])
    for _ in range(limit):
        token = int(run.logits[0].argmax())
        if token in stops:
            return
        yield token
        run.feed([token])


@dataclass(frozen=True, slots=True)
class Said:
    """An answer's tokens, and how sure the model was: the mean log-probability of its tokens, the end included, in nats."""

    tokens: tuple[int, ...]
    sureness: float


def answer_batch(lm: LM, frame: Frame, prompts: Sequence[Float[Tensor, "_ d"]], limit: int) -> list[Said]:
    """The greedy answers to several prompts at once, each at most `limit` tokens.

    Cost: one pass over as many rows of the longest prompt, then as many cached steps as the longest answer has tokens, each over all rows.
    """
    stops = lm.stops | {frame.end}
    run = Continuation(lm, prompts)
    answers: list[list[int]] = [[] for _ in prompts]
    nats: list[list[float]] = [[] for _ in prompts]
    going = set(range(len(prompts)))
    for position in range(limit):
        best = run.logits.argmax(-1, keepdim=True)
        chosen, known = best[:, 0].tolist(), run.logits.log_softmax(-1).gather(1, best)[:, 0].tolist()
        for row in going:
            nats[row].append(known[row])
        going -= {row for row in going if chosen[row] in stops}
        for row in going:
            answers[row].append(chosen[row])
        if not going or position == limit - 1:
            break
        run.feed(chosen)
    return [Said(tuple(answer), math.fsum(some) / len(some)) for answer, some in zip(answers, nats, strict=True)]


def surest(answers: Sequence[tuple[str, float]]) -> int:
    """Which of `answers` (text, sureness) to the same question to keep, each from a passage of its own, the best passage first.

    The likeliest under p(passage | question) p(answer | passage, question), where the first falls with the passage's rank by Zipf's law (1,
    1/2, 1/3, ...) and the second does without the answer's length. That one passage does not say counts only if none does. Source: Lewis et
    al. 2020, arXiv:2005.11401 (RAG-Sequence).
    """

    def worth(place: int) -> tuple[bool, float]:
        text, sureness = answers[place]
        return not refuses(text), sureness - math.log(1 + place)

    return max(range(len(answers)), key=worth)
