"""Questions about chunks -> lessons for a reader.

A lesson is a prompt of memories (or texts), and what the frozen model answers with the text.

A lesson's answer is the frozen model's own with the chunk's text alone before it, or a known one;
with it come the model's TOP likeliest words at each of its positions (distillation). Its prompt has
the chunk among others, drawn anew for every step. A few lessons ask what the chunk does not say,
and a few have no document at all: what the model says then is to stay as it was.
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
from rag_memtok.model.generate import KVDecoder
from rag_memtok.model.inject import BATCH, Passage, inject
from rag_memtok.model.lm import LM
from rag_memtok.model.lora import Kind
from rag_memtok.model.prompts import MARK, QAPrompt, render

LONGEST = 32  # tokens of an answer
MOST = 5  # chunks in a prompt
# of the lessons have no other chunk beside theirs, where the model is not one that reads them apart
ALONE = 0.4
NEAR = 8  # chunks before and after in the list, from which half of the distractors are drawn
# shares of lessons whose question is about another chunk, and that have no document
ABSENT, UNRELATED = 0.08, 0.05


@dataclass(frozen=True, slots=True, eq=False)
class Page:
    """A chunk to be asked about: the tokens of its text, and its memory as it is stored."""

    key: str
    tokens: tuple[int, ...]
    vectors: Float[np.ndarray, "M d"]


@dataclass(frozen=True, slots=True)
class Exercise:
    """A question to be asked with the page `page` in the prompt ("": none).

    It is never asked with `apart`; `answers` are known to be right.
    """

    page: str
    question: str
    answers: tuple[str, ...] = ()
    apart: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Lesson:
    """A training example: an exercise with the answer's tokens and their teacher probabilities.

    That is a known answer (`origin` "gold") or the frozen model's own ("model").

    `answer` ends with the end token unless it was cut; `words` and their `chances` are the model's
    at each token. `f1` is of the model's own answer against the known ones: how well it understands
    what it is to teach (1 where none is known).
    """

    exercise: Exercise
    origin: Literal["gold", "model"]
    answer: tuple[int, ...]
    words: Int[np.ndarray, "A K"]
    chances: Float[np.ndarray, "A K"]
    f1: float


def packed(lessons: Sequence[Lesson]) -> bytes:
    """What `unpacked` needs beside the exercises, to have the lessons again."""
    return save(
        {
            "lengths": np.array([len(lesson.answer) for lesson in lessons], dtype=np.int32),
            "gold": np.array([lesson.origin == "gold" for lesson in lessons]),
            "answers": np.array(
                [token for lesson in lessons for token in lesson.answer], dtype=np.int32
            ),
            "words": np.concatenate([lesson.words for lesson in lessons]),
            "chances": np.concatenate([lesson.chances for lesson in lessons]),
            "f1": np.array([lesson.f1 for lesson in lessons], dtype=np.float32),
        }
    )


def unpacked(content: bytes, exercises: Sequence[Exercise]) -> list[Lesson] | None:
    """The lessons of `exercises`; None if the content is not whole."""
    try:
        parts = load(content)
        ends = np.cumsum(parts["lengths"]).tolist()
        bounds = list(
            zip(
                [0, *ends],
                ends,
                parts["gold"].tolist(),
                parts["f1"].tolist(),
                exercises,
                strict=False,
            )
        )
        if len(parts["lengths"]) != len(exercises) or {
            len(parts[name]) for name in ("answers", "words", "chances")
        } != {ends[-1]}:
            return None
    except (SafetensorError, KeyError, IndexError):
        return None
    answers, words, chances = parts["answers"].tolist(), parts["words"], parts["chances"]
    return [
        Lesson(
            exercise,
            "gold" if gold else "model",
            answer=tuple(answers[start:stop]),
            words=words[start:stop],
            chances=chances[start:stop],
            f1=f1,
        )
        for start, stop, gold, f1, exercise in bounds
    ]


def others(exercises: Sequence[Exercise], keys: Sequence[str], seed: int) -> list[Exercise]:
    """Exercises that ask `exercises` of another of the pages `keys`, or of none.

    They go beside `exercises`, as many as ABSENT and UNRELATED say.
    """
    rng = random.Random(f"{seed}:others")
    absent = rng.sample(exercises, round(ABSENT * len(exercises))) if len(keys) > 1 else []
    unrelated = rng.sample(exercises, -(-round(100 * UNRELATED * len(exercises)) // 100))
    elsewhere = [
        Exercise(
            rng.choice(
                [key for key in rng.sample(keys, min(8, len(keys))) if key != one.page] or [""]
            ),
            one.question,
            (),
            one.page,
        )
        for one in absent
    ]
    return [*elsewhere, *(Exercise("", one.question) for one in unrelated)]


def said_of(lm: LM, frame: QAPrompt, text: str) -> tuple[int, ...]:
    """The tokens with which an answer of these words is said, at most LONGEST, the end included."""
    return (*lm.encode(frame.reply_prefix + text.strip())[: LONGEST - 1], frame.end)


@dataclass(frozen=True, slots=True, eq=False)
class Teacher:
    """The frozen model that answers with the text."""

    lm: LM
    frame: QAPrompt
    pages: Mapping[str, Page]

    def prompt(self, exercise: Exercise, passages: Sequence[Passage]) -> Float[Tensor, "_ d"]:
        """The question after `passages`; without any it is a message of its own."""
        asked = self.lm.encode(exercise.question.strip())
        if passages:
            return inject(self.lm, self.frame, passages, asked)
        before, after = (self.lm.encode_frame(part) for part in render(self.lm, MARK).stretches)
        return self.lm.embed([*before, *asked, *after])

    def lessons(self, exercises: Sequence[Exercise], gold: float, seed: int) -> list[Lesson]:
        """Lessons of `exercises`.

        Of those with known answers the share `gold` learns the first of them.

        Cost: a greedy answer to each prompt, and a forward pass over those with a known one, BATCH
            of like length together.
        """
        made: dict[int, Lesson] = {}
        prompts = [
            self.prompt(one, [self.pages[one.page].tokens] if one.page else []) for one in exercises
        ]
        order = sorted(range(len(exercises)), key=lambda number: -len(prompts[number]))
        for batch in (order[start : start + BATCH] for start in range(0, len(order), BATCH)):
            some = self._some(
                [exercises[number] for number in batch],
                [prompts[number] for number in batch],
                gold,
                seed,
            )
            made |= zip(batch, some, strict=True)
        return [made[number] for number in range(len(exercises))]

    def _some(
        self,
        asked: Sequence[Exercise],
        prompts: Sequence[Float[Tensor, "_ d"]],
        gold: float,
        seed: int,
    ) -> Iterator[Lesson]:
        own = generate(KVDecoder(self.lm, prompts), self.frame, LONGEST)
        golds = {
            place: self.said(one.answers[0])
            for place, one in enumerate(asked)
            if one.answers and random.Random(f"{seed}:{one.page}:{one.question}").random() < gold
        }
        known = dict(
            zip(
                golds,
                self._known([prompts[place] for place in golds], list(golds.values())),
                strict=True,
            )
        )
        for place, one in enumerate(asked):
            answer, words, shares = known.get(place, own[place])
            found = (words.cpu().numpy().astype(np.int32), shares.cpu().numpy())
            yield Lesson(
                one,
                "gold" if place in known else "model",
                answer,
                *found,
                self.understood(one, own[place][0]),
            )

    @torch.no_grad()
    def _known(
        self, prompts: Sequence[Float[Tensor, "_ d"]], answers: Sequence[tuple[int, ...]]
    ) -> list[tuple[tuple[int, ...], Int[Tensor, "A K"], Float[Tensor, "A K"]]]:
        """Each answer with the model's likeliest words at its positions.

        Cost: one forward pass over prompts and answers.
        """
        if not answers:
            return []
        layout = laid(self.lm, prompts, answers)
        words, shares = top_probs(self.lm.logits(self.lm.hidden(layout.fixed)[layout.scored]))
        sizes = [len(answer) for answer in answers]
        return list(zip(answers, words.split(sizes), shares.split(sizes), strict=True))

    def said(self, text: str) -> tuple[int, ...]:
        """An answer as the model would say it, the end included."""
        return said_of(self.lm, self.frame, text)

    def understood(self, exercise: Exercise, said: Sequence[int]) -> float:
        """The F1 of an answer against the known ones; 1 where none is known."""
        text = self.lm.decode([token for token in said if token != self.frame.end]).strip()
        return score(text, answerable(exercise.answers)).f1 if exercise.answers else 1.0


def laid(
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
    lm: LM, prompts: Sequence[Float[Tensor, "_ d"]], lessons: Sequence[Lesson]
) -> Float[Tensor, " B"]:
    """Loss per answer token, one number a lesson.

    The loss is the cross-entropy, and KL(frozen model with the text || `lm`) over its likeliest
    words.
    """
    layout = laid(lm, prompts, [lesson.answer for lesson in lessons])
    known = lm.logits(lm.hidden(layout.fixed)[layout.scored]).log_softmax(-1)
    words = torch.from_numpy(np.concatenate([lesson.words for lesson in lessons])).to(
        lm.device, torch.long
    )
    chances = torch.from_numpy(np.concatenate([lesson.chances for lesson in lessons])).to(lm.device)
    surprise = -known.gather(1, layout.targets[:, None])[:, 0]
    return layout.means(surprise + kl_divergence(known, words, chances))


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """Training examples: lessons with the chunks (pages) they are about.

    Which prompt each gets is drawn by (seed, occasion), so that a run can go on anywhere.
    """

    teacher: Teacher
    keys: Sequence[str]  # of the pages that may stand in a prompt, neighbours side by side
    lessons: Sequence[Lesson]
    kind: Kind
    seed: int
    alone: float = ALONE

    def batch(self, step: int, size: int) -> list[tuple[Lesson, list[str]]]:
        """The examples of one step, each with the chunks of its prompt.

        Every lesson comes once before any comes twice.
        """
        places = range(step * size, (step + 1) * size)
        orders = {
            turn: self._shuffled(turn) for turn in {place // len(self.lessons) for place in places}
        }
        numbers = [
            orders[place // len(self.lessons)][place % len(self.lessons)] for place in places
        ]
        return [
            self.sample(self.lessons[number], f"{step}:{place}")
            for number, place in zip(numbers, places, strict=True)
        ]

    def _shuffled(self, turn: int) -> list[int]:
        return random.Random(f"{self.seed}:{turn}").sample(
            range(len(self.lessons)), len(self.lessons)
        )

    def sample(self, lesson: Lesson, occasion: str) -> tuple[Lesson, list[str]]:
        """One example with the chunks of its prompt, shuffled.

        They are its own and up to MOST - 1 others, as far as the context reaches.

        `alone` is the share of lessons that have none.
        """
        page, rng = lesson.exercise.page, random.Random(f"{self.seed}:{occasion}")
        if not page:
            return lesson, []
        wanted = 1 if rng.random() < self.alone else rng.randint(2, MOST)
        at = self.keys.index(page)
        near = self.keys[max(0, at - NEAR) : at + NEAR + 1]
        pages = [page]
        for _ in range(3 * (wanted - 1)):
            other = rng.choice(near if rng.random() < 0.5 else self.keys)
            if (
                len(pages) < wanted
                and other not in (*pages, lesson.exercise.apart)
                and self._fit(lesson, [*pages, other])
            ):
                pages.append(other)
        rng.shuffle(pages)
        return lesson, pages

    def prompt(
        self, lesson: Lesson, pages: Sequence[str], kind: Kind | None = None
    ) -> Float[Tensor, "_ d"]:
        """The prompt's input embeddings, with memories or with texts."""
        return self.teacher.prompt(
            lesson.exercise, [self._passage(key, kind or self.kind) for key in pages]
        )

    def _passage(self, key: str, kind: Kind) -> Passage:
        page = self.teacher.pages[key]
        return page.vectors if kind == "memory" else page.tokens

    def _fit(self, lesson: Lesson, pages: Sequence[str]) -> bool:
        # a token is a character at least
        frame, asked = self.teacher.frame, len(lesson.exercise.question)
        taken = sum(len(self.teacher.pages[key].tokens) + len(frame.between) for key in pages)
        return taken + frame.overhead + asked + LONGEST <= self.teacher.lm.context
