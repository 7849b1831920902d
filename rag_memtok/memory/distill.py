"""Readability objective: context distillation.

The frozen model's answers from the text are the targets for its answers from the memory.

Questions about every chunk are made by rule (synthetic_questions.py). The model answers them once
from the text; the memory is then moved until the model's next-token distributions along those
answers are the same with the memory in the text's place. No other question is ever seen.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rag_memtok.errors import ChunkDoesNotFit
from rag_memtok.memory.batch import Request, Task, lay_out_requests
from rag_memtok.memory.synthetic_questions import make_questions
from rag_memtok.model.generate import KVDecoder
from rag_memtok.model.inject import decode_greedily
from rag_memtok.model.lm import LM
from rag_memtok.model.prompts import QAPrompt, qa_prompt

TOP = 20  # tokens of the teacher's distribution that are kept
POOL = 64  # synthetic questions about a chunk
BATCH = 64  # questions that the teacher answers at a time
LONGEST = 16  # tokens of its answers


@dataclass(frozen=True, slots=True, eq=False)
class TeacherAnswer:
    """A question and the teacher's answer, end included unless it was cut.

    `token_ids` and `probs`: the TOP most probable tokens at each position of the answer.
    """

    question: tuple[int, ...]
    answer: tuple[int, ...]
    token_ids: Int[Tensor, "A K"]
    probs: Float[Tensor, "A K"]


def top_probs(logits: Float[Tensor, "P V"]) -> tuple[Int[Tensor, "P K"], Float[Tensor, "P K"]]:
    """The TOP most probable tokens at each position, and their probabilities, which sum to 1.

    They are the targets of the distillation.
    """
    best = logits.topk(min(TOP, logits.shape[-1]))
    return best.indices, best.values.softmax(-1)


def generate(
    decoder: KVDecoder, frame: QAPrompt, limit: int
) -> list[tuple[tuple[int, ...], Int[Tensor, "A K"], Float[Tensor, "A K"]]]:
    """The greedy answer in each row of `decoder`, with the `top_probs` at each of its positions.

    The end is included where it came within `limit` tokens.

    Cost: that of `decode_greedily`.
    """
    answers: list[list[int]] = [[] for _ in decoder.logits]
    best: list[list[tuple[Tensor, Tensor]]] = [[] for _ in decoder.logits]
    for open_rows, tokens, logits in decode_greedily(decoder, frame, limit):
        token_ids, probs = top_probs(logits)
        for row in open_rows:
            token = tokens[row]
            answers[row].append(frame.end if token is None else token)
            best[row].append((token_ids[row], probs[row]))
    stacked = (
        (torch.stack(token_ids), torch.stack(probs))
        for token_ids, probs in (zip(*steps, strict=True) for steps in best)
    )
    return [
        (tuple(answer), token_ids, probs)
        for answer, (token_ids, probs) in zip(answers, stacked, strict=True)
    ]


def kl_divergence(
    log_probs: Float[Tensor, "P V"], token_ids: Int[Tensor, "P K"], probs: Float[Tensor, "P K"]
) -> Float[Tensor, " P"]:
    """KL(teacher || student) in nats over the teacher's `token_ids`.

    `log_probs` are the student's log-probabilities.
    """
    return torch.xlogy(probs, probs).sum(-1) - (probs * log_probs.gather(1, token_ids)).sum(-1)


def kl_per_request(
    lm: LM, requests: Sequence[tuple[Request, TeacherAnswer]], vectors: Float[Tensor, "R M d"]
) -> Float[Tensor, " N"]:
    """The divergence KL(teacher || model with memory) of each request, in nats.

    It is the mean over the positions of its answer.

    Cost: one forward pass over the requests, and V logits for each position of an answer.
    """
    layout = lay_out_requests(lm, [request for request, _ in requests])
    log_probs = lm.logits(lm.hidden(layout.inputs(vectors))[layout.scored]).log_softmax(-1)
    token_ids = torch.cat([answer.token_ids for _, answer in requests])
    probs = torch.cat([answer.probs for _, answer in requests])
    return layout.means(kl_divergence(log_probs, token_ids, probs))


@dataclass(eq=False)
class Teacher:
    """The model that reads the text.

    Its answers to a chunk's questions are generated once and kept until the chunk is done.
    """

    lm: LM
    seed: int
    pools: dict[str, list[TeacherAnswer]] = field(default_factory=dict)

    @cached_property
    def frame(self) -> QAPrompt:
        """The prompt in which it is asked; not needed where memories are only reconstructed."""
        return qa_prompt(self.lm)

    def pool(self, task: Task) -> list[TeacherAnswer]:
        """The questions about a chunk with the model's answers. Cost, once: POOL greedy answers."""
        if task.key not in self.pools:
            questions = [
                self.lm.encode(question)
                for question in make_questions(self.lm.decode(task.tokens), POOL, self.seed)
            ]
            self._require_room(task, max(map(len, questions), default=0))
            self.pools[task.key] = self.answers(task.tokens, questions)
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

    def answers(
        self, passage: Sequence[int], questions: Sequence[Sequence[int]]
    ) -> list[TeacherAnswer]:
        """The model's answer to each question, with the tokens of `passage` before it.

        The passage is run once for every BATCH questions.
        """
        shared = self.lm.embed([*self.frame.opening, *passage])
        return [
            answer
            for start in range(0, len(questions), BATCH)
            for answer in self._generate(shared, questions[start : start + BATCH])
        ]

    def _generate(
        self, shared: Float[Tensor, "_ d"], questions: Sequence[Sequence[int]]
    ) -> list[TeacherAnswer]:
        prompts = [
            self.lm.embed([*self.frame.question, *question, *self.frame.closing])
            for question in questions
        ]
        generated = generate(KVDecoder(self.lm, prompts, shared), self.frame, LONGEST)
        return [
            TeacherAnswer(tuple(question), *answer)
            for question, answer in zip(questions, generated, strict=True)
        ]

    def sample(self, task: Task, step: int, count: int) -> list[TeacherAnswer]:
        """The questions of a step, at most `count`; each comes once before any comes again."""
        pool = self.pool(task)
        turns = range(step * count, step * count + min(count, len(pool)))
        orders = {
            number: self._order(task, number, len(pool))
            for number in {turn // len(pool) for turn in turns}
        }
        return [pool[orders[turn // len(pool)][turn % len(pool)]] for turn in turns]

    def _order(self, task: Task, number: int, count: int) -> list[int]:
        return random.Random(f"{self.seed}:{task.key}:{number}").sample(range(count), count)

    def forget(self, task: Task) -> None:
        """Drops the answers kept for a task."""
        self.pools.pop(task.key, None)


@dataclass(frozen=True, slots=True)
class Distillation:
    """The distillation loss: KL of the answers of `lm` from the memories to the teacher's.

    `questions_per_step`: of each row. `lm` may be a bfloat16 copy of the teacher's model.
    """

    lm: LM
    teacher: Teacher
    questions_per_step: int = 2

    def __call__(
        self, rows: Mapping[int, tuple[Task, int]], vectors: Float[Tensor, "R M d"]
    ) -> Float[Tensor, ""]:
        """The sum over rows of each row's mean divergence, in nats.

        Args:
            rows: index in `vectors` -> (task, the step it is at): which questions are drawn depends
                on nothing else.
        """
        sampled = {
            i: self.teacher.sample(task, step, self.questions_per_step)
            for i, (task, step) in rows.items()
        }
        requests = [
            (self._request(i, rows[i][0], answer), answer)
            for i, answers in sampled.items()
            for answer in answers
        ]
        if not requests:
            return vectors.sum() * 0
        weights = torch.tensor(
            [1 / len(answers) for answers in sampled.values() for _ in answers],
            device=vectors.device,
        )
        return (kl_per_request(self.lm, requests, vectors) * weights).sum()

    def _request(self, row: int, task: Task, answer: TeacherAnswer) -> Request:
        frame = self.teacher.frame
        return Request(
            row=row,
            vectors=task.vectors,
            before=self.lm.embed(frame.opening),
            after=(*frame.question, *answer.question, *frame.closing),
            answer=answer.answer,
        )
