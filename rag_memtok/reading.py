"""What makes a memory readable: that the frozen model, asked about it, answers as it does when it reads the text.

Of every chunk questions are made by rule (cues.py). The model answers them once from the text; the memory is then moved until the model's
next words, word for word of those answers, are as likely with the memory in the text's place. Nobody else's question is ever seen.
"""

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rag_memtok.cues import cues
from rag_memtok.layout import Request, Task, laid_out
from rag_memtok.lm import LM
from rag_memtok.prompts import Frame

TOP = 20  # words of the teacher's distribution that are kept
POOL = 32  # cues of a chunk
TOGETHER = 8  # cues that the teacher answers in one pass


@dataclass(frozen=True, slots=True, eq=False)
class Taught:
    """A question, its answer (end included), and at each of its positions the teacher's TOP words and their shares (sum 1)."""

    question: tuple[int, ...]
    answer: tuple[int, ...]
    words: Int[Tensor, "A K"]
    shares: Float[Tensor, "A K"]


def likeliest(logits: Float[Tensor, "P V"]) -> tuple[Int[Tensor, "P K"], Float[Tensor, "P K"]]:
    """The TOP likeliest words at each position and their shares, which sum to 1: what a student is to learn."""
    best = logits.topk(min(TOP, logits.shape[-1]))
    return best.indices, best.values.softmax(-1)


def divergence(known: Float[Tensor, "P V"], words: Int[Tensor, "P K"], shares: Float[Tensor, "P K"]) -> Float[Tensor, " P"]:
    """KL(teacher || student) in nats over the teacher's `words`; `known` are the student's log-probabilities. 0 where all shares are 0."""
    return torch.xlogy(shares, shares).sum(-1) - (shares * known.gather(1, words)).sum(-1)


@torch.no_grad()
def taught(lm: LM, frame: Frame, passage: Sequence[int], asked: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[Taught]:
    """What `lm` says to each (question, answer) with the tokens of `passage` in the frame, the answer's words fed.

    Cost: one forward pass over frame, passage, question and answer for each.
    """
    before = lm.embed((*frame.opening, *passage))
    found: list[Taught] = []
    for start in range(0, len(asked), TOGETHER):
        some = asked[start : start + TOGETHER]
        requests = [Request(0, 0, before, (*frame.question, *q, *frame.closing), (*a, frame.end)) for q, a in some]
        layout = laid_out(lm, requests)
        words, shares = likeliest(lm.logits(lm.hidden(layout.fixed)[layout.scored]))
        sizes = [len(request.answer) for request in requests]
        pieces = zip(some, requests, words.split(sizes), shares.split(sizes), strict=True)
        found += [Taught(tuple(q), request.answer, w, s) for (q, _), request, w, s in pieces]
    return found


def distances(lm: LM, requests: Sequence[tuple[Request, Taught]], vectors: Float[Tensor, "R M d"]) -> Float[Tensor, " N"]:
    """The divergence KL(teacher || model with memory) of each request, in nats: the mean over the positions of its answer.

    Cost: one forward pass over the requests, and V logits for each position of an answer.
    """
    layout = laid_out(lm, [request for request, _ in requests])
    known = lm.logits(lm.hidden(layout.inputs(vectors))[layout.scored]).log_softmax(-1)
    words = torch.cat([one.words for _, one in requests])
    shares = torch.cat([one.shares for _, one in requests])
    return layout.means(divergence(known, words, shares))


class Reading:
    """The readable half of the writer's objective: draws cues for the rows of a batch, step by step, and says how far the memories are."""

    def __init__(self, lm: LM, frame: Frame, seed: int, each: int = 2) -> None:
        """`each`: cues of a row in a step."""
        self.lm, self.frame, self.seed, self.each = lm, frame, seed, each
        self.pools: dict[str, list[Taught]] = {}

    def __call__(self, rows: Mapping[int, tuple[Task, int]], vectors: Float[Tensor, "R M d"]) -> Float[Tensor, ""]:
        """The sum over rows of each row's mean divergence, in nats.

        Args:
            rows: index in `vectors` -> (task, the step it is at): which cues are drawn depends on nothing else.
        """
        requests = [(self._request(index, task, one), one) for index, (task, step) in rows.items() for one in self._drawn(task, step)]
        if not requests:
            return vectors.sum() * 0
        return distances(self.lm, requests, vectors).sum() / self.each

    def forget(self, tasks: Iterable[Task]) -> None:
        """Lets go of tasks that are written."""
        for task in tasks:
            self.pools.pop(task.key, None)

    def _request(self, row: int, task: Task, one: Taught) -> Request:
        after = (*self.frame.question, *one.question, *self.frame.closing)
        return Request(row, task.vectors, self.lm.embed(self.frame.opening), after, one.answer)

    def _drawn(self, task: Task, step: int) -> list[Taught]:
        if task.key not in self.pools:
            made = cues(self.lm.decode(task.tokens), POOL, self.seed)
            pairs = [(self.lm.encode(cue.question), self.lm.encode(self.frame.lead + cue.answer)) for cue in made]
            self.pools[task.key] = taught(self.lm, self.frame, task.tokens, pairs)
        pool = self.pools[task.key]
        order = random.Random(f"{self.seed}:{task.key}:{step * self.each // max(1, len(pool))}").sample(range(len(pool)), len(pool))
        return [pool[order[(step * self.each + turn) % len(pool)]] for turn in range(min(self.each, len(pool)))]
