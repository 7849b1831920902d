"""What makes a memory readable.

It is that the frozen model, asked about it, answers as it does when it reads the text.

Of every chunk questions are made by rule (synthetic_questions.py). The model answers them once from
the text; the memory is then moved until the model's next words, word for word of those answers, are
as likely with the memory in the text's place. Nobody else's question is ever seen.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rag_memtok.errors import ChunkDoesNotFit
from rag_memtok.memory.batch import Request, Task, laid_out
from rag_memtok.memory.synthetic_questions import cues
from rag_memtok.model.generate import Continuation
from rag_memtok.model.inject import greedy
from rag_memtok.model.lm import LM
from rag_memtok.model.prompts import Frame, frame

TOP = 20  # words of the teacher's distribution that are kept
POOL = 64  # cues of a chunk
TOGETHER = 64  # cues that the teacher answers at a time
LONGEST = 16  # tokens of its answers


@dataclass(frozen=True, slots=True, eq=False)
class Taught:
    """A question, and the teacher's answer, end included unless it was cut.

    At each position of the answer stand the TOP likeliest words and their shares.
    """

    question: tuple[int, ...]
    answer: tuple[int, ...]
    words: Int[Tensor, "A K"]
    shares: Float[Tensor, "A K"]


def likeliest(logits: Float[Tensor, "P V"]) -> tuple[Int[Tensor, "P K"], Float[Tensor, "P K"]]:
    """The TOP likeliest words at each position, and their shares, which sum to 1.

    They are what is to be learned.
    """
    best = logits.topk(min(TOP, logits.shape[-1]))
    return best.indices, best.values.softmax(-1)


def told(
    run: Continuation, frame: Frame, longest: int
) -> list[tuple[tuple[int, ...], Int[Tensor, "A K"], Float[Tensor, "A K"]]]:
    """What the model says in each row of `run`, and the `likeliest` words there.

    The end is included where it came within `longest` tokens.

    Cost: that of `greedy`.
    """
    answers: list[list[int]] = [[] for _ in run.logits]
    best: list[list[tuple[Tensor, Tensor]]] = [[] for _ in run.logits]
    for going, tokens, logits in greedy(run, frame, longest):
        words, shares = likeliest(logits)
        for row in going:
            token = tokens[row]
            answers[row].append(frame.end if token is None else token)
            best[row].append((words[row], shares[row]))
    found = (
        (torch.stack(words), torch.stack(shares))
        for words, shares in (zip(*some, strict=True) for some in best)
    )
    return [
        (tuple(answer), words, shares)
        for answer, (words, shares) in zip(answers, found, strict=True)
    ]


def divergence(
    known: Float[Tensor, "P V"], words: Int[Tensor, "P K"], shares: Float[Tensor, "P K"]
) -> Float[Tensor, " P"]:
    """KL(teacher || student) in nats over the teacher's `words`.

    `known` are the student's log-probabilities.
    """
    return torch.xlogy(shares, shares).sum(-1) - (shares * known.gather(1, words)).sum(-1)


def distances(
    lm: LM, requests: Sequence[tuple[Request, Taught]], vectors: Float[Tensor, "R M d"]
) -> Float[Tensor, " N"]:
    """The divergence KL(teacher || model with memory) of each request, in nats.

    It is the mean over the positions of its answer.

    Cost: one forward pass over the requests, and V logits for each position of an answer.
    """
    layout = laid_out(lm, [request for request, _ in requests])
    known = lm.logits(lm.hidden(layout.inputs(vectors))[layout.scored]).log_softmax(-1)
    words = torch.cat([one.words for _, one in requests])
    shares = torch.cat([one.shares for _, one in requests])
    return layout.means(divergence(known, words, shares))


@dataclass(eq=False)
class Teacher:
    """The model that reads the text.

    What it says to a chunk's cues is found out once and kept until the chunk is written.
    """

    lm: LM
    seed: int
    pools: dict[str, list[Taught]] = field(default_factory=dict)

    @cached_property
    def frame(self) -> Frame:
        """The frame in which it is asked; a model that is only to recite never needs one."""
        return frame(self.lm)

    def pool(self, task: Task) -> list[Taught]:
        """The cues of a chunk with the model's answers. Cost, once: POOL greedy answers."""
        if task.key not in self.pools:
            asked = [
                self.lm.encode(cue) for cue in cues(self.lm.decode(task.tokens), POOL, self.seed)
            ]
            self._require_room(task, max(map(len, asked), default=0))
            self.pools[task.key] = self.answers(task.tokens, asked)
        return self.pools[task.key]

    def _require_room(self, task: Task, longest: int) -> None:
        frame = self.frame
        needed = (
            len(frame.opening)
            + len(task.tokens)
            + len(frame.question)
            + longest
            + len(frame.closing)
            + LONGEST
        )
        if needed > self.lm.context:
            what = (
                f"a chunk of {len(task.tokens)} tokens and a question about it take {needed} "
                "positions"
            )
            raise ChunkDoesNotFit(
                f"{what}; {self.lm.identity.id} has {self.lm.context}",
                remedy=f"--chunk-tokens {max(4, len(task.tokens) - needed + self.lm.context - 8)} "
                "or fewer",
            )

    def answers(self, passage: Sequence[int], asked: Sequence[Sequence[int]]) -> list[Taught]:
        """What the model says to each question, with the tokens of `passage` before it.

        These are taken in once for TOGETHER questions.
        """
        shared = self.lm.embed([*self.frame.opening, *passage])
        return [
            one
            for start in range(0, len(asked), TOGETHER)
            for one in self._told(shared, asked[start : start + TOGETHER])
        ]

    def _told(self, shared: Float[Tensor, "_ d"], asked: Sequence[Sequence[int]]) -> list[Taught]:
        prompts = [
            self.lm.embed([*self.frame.question, *question, *self.frame.closing])
            for question in asked
        ]
        found = told(Continuation(self.lm, prompts, shared), self.frame, LONGEST)
        return [Taught(tuple(question), *one) for question, one in zip(asked, found, strict=True)]

    def drawn(self, task: Task, step: int, each: int) -> list[Taught]:
        """The cues of a step, at most `each`; every one comes once before any comes twice."""
        pool = self.pool(task)
        turns = range(step * each, step * each + min(each, len(pool)))
        orders = {
            number: self._order(task, number, len(pool))
            for number in {turn // len(pool) for turn in turns}
        }
        return [pool[orders[turn // len(pool)][turn % len(pool)]] for turn in turns]

    def _order(self, task: Task, number: int, count: int) -> list[int]:
        return random.Random(f"{self.seed}:{task.key}:{number}").sample(range(count), count)

    def forget(self, task: Task) -> None:
        """Lets go of a task that is written."""
        self.pools.pop(task.key, None)


@dataclass(frozen=True, slots=True)
class Reading:
    """The readable half of the writer's objective.

    It says how far the answers of `lm` from the memories are from the teacher's.

    `each`: cues of a row in a step. `lm` may be a draft of the teacher's model.
    """

    lm: LM
    teacher: Teacher
    each: int = 2

    def __call__(
        self, rows: Mapping[int, tuple[Task, int]], vectors: Float[Tensor, "R M d"]
    ) -> Float[Tensor, ""]:
        """The sum over rows of each row's mean divergence, in nats.

        Args:
            rows: index in `vectors` -> (task, the step it is at): which cues are drawn depends on
                nothing else.
        """
        drawn = {i: self.teacher.drawn(task, step, self.each) for i, (task, step) in rows.items()}
        asked = [
            (self._request(i, rows[i][0], one), one) for i, some in drawn.items() for one in some
        ]
        if not asked:
            return vectors.sum() * 0
        shares = torch.tensor(
            [1 / len(some) for some in drawn.values() for _ in some], device=vectors.device
        )
        return (distances(self.lm, asked, vectors) * shares).sum()

    def _request(self, row: int, task: Task, one: Taught) -> Request:
        frame = self.teacher.frame
        return Request(
            row,
            task.vectors,
            self.lm.embed(frame.opening),
            (*frame.question, *one.question, *frame.closing),
            one.answer,
        )
