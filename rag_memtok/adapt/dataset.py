"""Questions about chunks -> training examples for a reader, and the prompts they are read in.

An example is a question and the answer to be learned: the frozen model's own with the chunk's text
alone before it, or a known one. With it come the model's TOP likeliest tokens at each of its
positions (distillation). Its prompt has the chunk's memory (or text) among others, drawn anew for
every step. A few examples ask what the chunk does not say, and a few have no chunk at all: what
the model says then is to stay as it was.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.numpy import load, save
from torch import Tensor

from rag_memtok.evaluation.metrics import answerable, score
from rag_memtok.memory.batch import Layout, Request, lay_out_requests
from rag_memtok.memory.distill import generate, kl_divergence, top_probs
from rag_memtok.model.adapter_manifest import Kind
from rag_memtok.model.generate import KVDecoder
from rag_memtok.model.inject import BATCH, Passage, inject
from rag_memtok.model.lm import LM
from rag_memtok.model.prompts import MARK, QAPrompt, render

MAX_ANSWER = 32  # tokens, the end included
MAX_CHUNKS = 5  # in a prompt
# share of examples with their own chunk alone, where the model is not one that reads them apart
SINGLE_SHARE = 0.4
NEAR = 8  # chunks before and after in the list, from which half of the distractors are drawn
# shares of examples whose question is about another chunk, and that have no chunk
ABSENT, UNRELATED = 0.08, 0.05

# an answer, the TOP likeliest tokens at each of its positions, and their probabilities
Answer = tuple[tuple[int, ...], Int[Tensor, "A K"], Float[Tensor, "A K"]]


@dataclass(frozen=True, slots=True, eq=False)
class TrainingChunk:
    """A chunk to be asked about: the tokens of its text, and its memory as it is stored."""

    id: str
    tokens: tuple[int, ...]
    vectors: Float[np.ndarray, "M d"]


@dataclass(frozen=True, slots=True)
class ChunkQuestion:
    """A question to be asked with the chunk `chunk_id` in the prompt ("": no chunk).

    `answers` are known to be right. The chunk `excluded` is never in the prompt: it is the one that
    a negative's question is really about ("": none).
    """

    chunk_id: str
    question: str
    answers: tuple[str, ...] = ()
    excluded: str = ""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Example:
    """A training example: a question, the answer's tokens and their teacher probabilities.

    The answer is a known one (`origin` "gold") or the frozen model's own ("model"); it ends with
    the end token unless it was cut. `token_ids` and `probs`: the model's likeliest tokens at each
    of its positions. `f1` is of the model's own answer against the known ones: how well it
    understands what it is to teach (1 where none is known).
    """

    question: ChunkQuestion
    origin: Literal["gold", "model"]
    answer: tuple[int, ...]
    token_ids: Int[np.ndarray, "A K"]
    probs: Float[np.ndarray, "A K"]
    f1: float


def pack_examples(examples: Sequence[Example]) -> bytes:
    """The examples without their questions, as safetensors: see `unpack_examples`."""
    return save(
        {
            "lengths": np.array([len(example.answer) for example in examples], dtype=np.int32),
            "gold": np.array([example.origin == "gold" for example in examples]),
            "answers": np.array(
                [token for example in examples for token in example.answer], dtype=np.int32
            ),
            "token_ids": np.concatenate([example.token_ids for example in examples]),  # [sum A, K]
            "probs": np.concatenate([example.probs for example in examples]),
            "f1": np.array([example.f1 for example in examples], dtype=np.float32),
        }
    )


def unpack_examples(content: bytes, questions: Sequence[ChunkQuestion]) -> list[Example] | None:
    """The examples of `questions` that were packed; None if the content is not whole."""
    try:
        parts = load(content)
        ends = np.cumsum(parts["lengths"]).tolist()
        golds, f1s = parts["gold"].tolist(), parts["f1"].tolist()
        rows = list(zip([0, *ends], ends, golds, f1s, questions, strict=False))
        if len(ends) != len(questions) or {
            len(parts[name]) for name in ("answers", "token_ids", "probs")
        } != {ends[-1]}:
            return None
    except (SafetensorError, KeyError, IndexError):
        return None
    answers, token_ids, probs = parts["answers"].tolist(), parts["token_ids"], parts["probs"]
    return [
        Example(
            question=question,
            origin="gold" if gold else "model",
            answer=tuple(answers[start:end]),
            token_ids=token_ids[start:end],
            probs=probs[start:end],
            f1=f1,
        )
        for start, end, gold, f1, question in rows
    ]


def sample_negatives(
    questions: Sequence[ChunkQuestion], chunk_ids: Sequence[str], seed: int
) -> list[ChunkQuestion]:
    """Negatives: some of `questions`, asked with another of the chunks, or with none.

    They go beside `questions`, as many as ABSENT and UNRELATED say.
    """
    rng = random.Random(f"{seed}:others")
    count = round(ABSENT * len(questions))
    absent = rng.sample(questions, count) if len(chunk_ids) > 1 else []
    unrelated = rng.sample(questions, -(-round(100 * UNRELATED * len(questions)) // 100))
    negatives = []
    for question in absent:
        drawn = rng.sample(chunk_ids, min(8, len(chunk_ids)))
        elsewhere = [chunk_id for chunk_id in drawn if chunk_id != question.chunk_id] or [""]
        negatives.append(
            ChunkQuestion(rng.choice(elsewhere), question.question, excluded=question.chunk_id)
        )
    return [*negatives, *(ChunkQuestion("", question.question) for question in unrelated)]


def encode_answer(lm: LM, frame: QAPrompt, text: str) -> tuple[int, ...]:
    """The tokens of an answer as the model would give it, at most MAX_ANSWER, end included."""
    return (*lm.encode(frame.reply_prefix + text.strip())[: MAX_ANSWER - 1], frame.end)


@dataclass(frozen=True, slots=True, eq=False)
class Teacher:
    """The teacher of the distillation: the frozen model, reading the text; `chunks` by id."""

    lm: LM
    frame: QAPrompt
    chunks: Mapping[str, TrainingChunk]

    def build_prompt(
        self, question: ChunkQuestion, passages: Sequence[Passage]
    ) -> Float[Tensor, "S d"]:
        """The question after `passages`; without any it is a message of its own."""
        tokens = self.lm.encode(question.question.strip())
        if passages:
            return inject(self.lm, self.frame, passages, tokens)
        before, after = (self.lm.encode_frame(part) for part in render(self.lm, MARK).stretches)
        return self.lm.embed([*before, *tokens, *after])

    def make_examples(
        self, questions: Sequence[ChunkQuestion], gold: float, seed: int
    ) -> list[Example]:
        """An example of each question.

        Args:
            gold: share of the questions with known answers that learn the first of them, 0 to 1.

        Cost: a greedy answer to each prompt, and a forward pass over those with a known one, BATCH
            of like length together.
        """
        prompts = [
            self.build_prompt(
                question, [self.chunks[question.chunk_id].tokens] if question.chunk_id else []
            )
            for question in questions
        ]
        order = sorted(range(len(questions)), key=lambda index: -len(prompts[index]))
        examples: dict[int, Example] = {}
        for batch in (order[start : start + BATCH] for start in range(0, len(order), BATCH)):
            answered = self._answer_batch(
                [questions[index] for index in batch],
                [prompts[index] for index in batch],
                gold,
                seed,
            )
            examples |= zip(batch, answered, strict=True)
        return [examples[index] for index in range(len(questions))]

    def _answer_batch(
        self,
        questions: Sequence[ChunkQuestion],
        prompts: Sequence[Float[Tensor, "_ d"]],
        gold: float,
        seed: int,
    ) -> Iterator[Example]:
        generated = generate(KVDecoder(self.lm, prompts), self.frame, MAX_ANSWER)
        golds = {
            row: encode_answer(self.lm, self.frame, question.answers[0])
            for row, question in enumerate(questions)
            if question.answers
            and random.Random(f"{seed}:{question.chunk_id}:{question.question}").random() < gold
        }
        forced = self._force_answers([prompts[row] for row in golds], list(golds.values()))
        gold_answers = dict(zip(golds, forced, strict=True))
        for row, question in enumerate(questions):
            answer, token_ids, probs = gold_answers.get(row, generated[row])
            yield Example(
                question=question,
                origin="gold" if row in gold_answers else "model",
                answer=answer,
                token_ids=token_ids.cpu().numpy().astype(np.int32),
                probs=probs.cpu().numpy(),
                f1=self._f1(question, generated[row][0]),
            )

    @torch.no_grad()
    def _force_answers(
        self, prompts: Sequence[Float[Tensor, "_ d"]], answers: Sequence[tuple[int, ...]]
    ) -> list[Answer]:
        """Each answer with the model's likeliest tokens at its positions, teacher-forced.

        Cost: one forward pass over prompts and answers.
        """
        if not answers:
            return []
        layout = lay_out_answers(self.lm, prompts, answers)
        logits = self.lm.logits(self.lm.hidden(layout.fixed)[layout.scored])  # [P, V]
        token_ids, probs = top_probs(logits)
        sizes = [len(answer) for answer in answers]
        return list(zip(answers, token_ids.split(sizes), probs.split(sizes), strict=True))

    def _f1(self, question: ChunkQuestion, answer: Sequence[int]) -> float:
        """The F1 of an answer against the known ones; 1 where none is known."""
        text = self.lm.decode([token for token in answer if token != self.frame.end]).strip()
        return score(text, answerable(question.answers)).f1 if question.answers else 1.0


def lay_out_answers(
    lm: LM, prompts: Sequence[Float[Tensor, "_ d"]], answers: Sequence[tuple[int, ...]]
) -> Layout:
    """Lays prompts and answers out for teacher forcing."""
    return lay_out_requests(
        lm,
        [
            Request(row=0, vectors=0, before=prompt, after=(), answer=answer)
            for prompt, answer in zip(prompts, answers, strict=True)
        ],
    )


def losses(
    lm: LM, prompts: Sequence[Float[Tensor, "_ d"]], examples: Sequence[Example]
) -> Float[Tensor, " B"]:
    """The loss of each example in nats, the mean over the tokens of its answer.

    It is the cross-entropy, and KL(frozen model with the text || `lm`) over its likeliest tokens.

    Cost: one forward pass over prompts and answers.
    """
    layout = lay_out_answers(lm, prompts, [example.answer for example in examples])
    log_probs = lm.logits(lm.hidden(layout.fixed)[layout.scored]).log_softmax(-1)  # [P, V]
    token_ids = torch.from_numpy(np.concatenate([example.token_ids for example in examples]))
    probs = torch.from_numpy(np.concatenate([example.probs for example in examples]))  # [P, K]
    cross_entropy = -log_probs.gather(1, layout.targets[:, None])[:, 0]
    divergence = kl_divergence(log_probs, token_ids.to(lm.device, torch.long), probs.to(lm.device))
    return layout.means(cross_entropy + divergence)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Dataset:
    """Training examples, and the chunks that may stand in their prompts.

    Which prompt each gets is drawn by (seed, occasion), so that a run can go on anywhere.
    `chunk_ids` has neighbours side by side; `single_share` of the examples have no distractor.
    """

    teacher: Teacher
    chunk_ids: Sequence[str]
    examples: Sequence[Example]
    kind: Kind
    seed: int
    single_share: float = SINGLE_SHARE

    def batch(self, step: int, size: int) -> list[tuple[Example, list[str]]]:
        """The examples of one step, each with the ids of the chunks in its prompt.

        Every example comes once before any comes twice.
        """
        places = range(step * size, (step + 1) * size)
        count = len(self.examples)
        orders = {epoch: self._shuffle(epoch) for epoch in {place // count for place in places}}
        return [
            self.sample(self.examples[orders[place // count][place % count]], f"{step}:{place}")
            for place in places
        ]

    def _shuffle(self, epoch: int) -> list[int]:
        count = len(self.examples)
        return random.Random(f"{self.seed}:{epoch}").sample(range(count), count)

    def sample(self, example: Example, occasion: str) -> tuple[Example, list[str]]:
        """One example with the ids of the chunks in its prompt, shuffled.

        They are its own and up to MAX_CHUNKS - 1 distractors, as far as the context reaches.
        """
        chunk_id, rng = example.question.chunk_id, random.Random(f"{self.seed}:{occasion}")
        if not chunk_id:
            return example, []
        size = 1 if rng.random() < self.single_share else rng.randint(2, MAX_CHUNKS)
        place = self.chunk_ids.index(chunk_id)
        near = self.chunk_ids[max(0, place - NEAR) : place + NEAR + 1]
        chunk_ids = [chunk_id]
        for _ in range(3 * (size - 1)):
            distractor = rng.choice(near if rng.random() < 0.5 else self.chunk_ids)
            if (
                len(chunk_ids) < size
                and distractor not in (*chunk_ids, example.question.excluded)
                and self._fits(example, [*chunk_ids, distractor])
            ):
                chunk_ids.append(distractor)
        rng.shuffle(chunk_ids)
        return example, chunk_ids

    def build_prompt(
        self, example: Example, chunk_ids: Sequence[str], kind: Kind | None = None
    ) -> Float[Tensor, "S d"]:
        """The prompt's input embeddings, with memories or with texts as `kind` says."""
        passages = [self._passage(chunk_id, kind or self.kind) for chunk_id in chunk_ids]
        return self.teacher.build_prompt(example.question, passages)

    def _passage(self, chunk_id: str, kind: Kind) -> Passage:
        chunk = self.teacher.chunks[chunk_id]
        return chunk.vectors if kind == "memory" else chunk.tokens

    def _fits(self, example: Example, chunk_ids: Sequence[str]) -> bool:
        # a token is a byte at least
        frame, question = self.teacher.frame, len(example.question.question.encode())
        chunks = [self.teacher.chunks[chunk_id] for chunk_id in chunk_ids]
        passages = sum(len(chunk.tokens) + len(frame.between) for chunk in chunks)
        return passages + frame.overhead + question + MAX_ANSWER <= self.teacher.lm.context
