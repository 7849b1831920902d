"""Chunks to write, laid out as one batch of input embeddings: where vectors stand, what is scored, and how vectors start."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rag_memtok.lm import LM
from rag_memtok.nouns import sha256_of_text
from rag_memtok.prompts import Template


@dataclass(frozen=True, slots=True)
class Task:
    """A chunk to write: `tokens` without BOS or end, `vectors` the number of its memory tokens, `key` whatever tells it apart (its id)."""

    key: str
    tokens: tuple[int, ...]
    vectors: int


def task_of(key: str, tokens: tuple[int, ...], tokens_per_vector: int) -> Task:
    """The task of writing `tokens`: a vector for every `tokens_per_vector` of them, rounded up, and one at least."""
    return Task(key, tokens, max(1, -(-len(tokens) // tokens_per_vector)))


@dataclass(frozen=True, slots=True, eq=False)
class Lesson:
    """What is asked of a memory: what stands `before` it and `after` it, then `answer`, of which every token is predicted.

    `row` says whose memory it is, `vectors` how many it has. Before it may stand words and other memories, hence embeddings.
    """

    row: int
    vectors: int
    before: Float[Tensor, "_ d"]
    after: tuple[int, ...]
    answer: tuple[int, ...]

    @property
    def length(self) -> int:
        """Positions it takes: the last token of the answer is only predicted."""
        return len(self.before) + self.vectors + len(self.after) + len(self.answer) - 1


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """Lessons as one right-padded batch.

    `slot` says which vector of row `owner` stands where (`is_memory`), `scored` which (lesson, position) are predicted; the `weights` of a
    lesson sum to 1.
    """

    fixed: Float[Tensor, "B S d"]
    owner: Int[Tensor, " B"]
    slot: Int[Tensor, "B S"]
    is_memory: Bool[Tensor, "B S"]
    scored: tuple[Int[Tensor, " P"], Int[Tensor, " P"]]
    targets: Int[Tensor, " P"]
    weights: Float[Tensor, " P"]

    def inputs(self, vectors: Float[Tensor, "R M d"]) -> Float[Tensor, "B S d"]:
        """The input embeddings with the rows' `vectors` in their places."""
        placed = vectors[self.owner].gather(1, self.slot[..., None].expand(-1, -1, vectors.shape[-1]))
        return torch.where(self.is_memory[..., None], placed.to(self.fixed.dtype), self.fixed)


def lay_out(lm: LM, template: Template, tasks: Sequence[Task]) -> Layout:
    """Lays `tasks` out to be recited: the position before each token predicts it, the last one predicts the end."""
    before = lm.embed(template.prefix)
    return laid_out(
        lm, [Lesson(row, task.vectors, before, template.suffix, (*task.tokens, template.end)) for row, task in enumerate(tasks)]
    )


def laid_out(lm: LM, lessons: Sequence[Lesson]) -> Layout:
    """Lays `lessons` out for teacher forcing."""
    device, length = lm.device, max(lesson.length for lesson in lessons)
    slot = torch.zeros(len(lessons), length, dtype=torch.long)
    is_memory = torch.zeros_like(slot, dtype=torch.bool)
    fixed = torch.zeros(len(lessons), length, lm.width, dtype=lm.table.dtype, device=device)
    rows: list[int] = []
    places: list[int] = []
    targets: list[int] = []
    weights: list[float] = []
    for index, lesson in enumerate(lessons):
        start = len(lesson.before)
        end = start + lesson.vectors
        slot[index, start:end] = torch.arange(lesson.vectors)
        is_memory[index, start:end] = True
        fixed[index, :start] = lesson.before
        fixed[index, end : lesson.length] = lm.embed((*lesson.after, *lesson.answer[:-1]))
        answer = len(lesson.answer)
        rows += [index] * answer
        places += range(lesson.length - answer, lesson.length)
        targets += lesson.answer
        weights += [1 / answer] * answer
    where = (torch.tensor(rows, device=device), torch.tensor(places, device=device))
    owner = torch.tensor([lesson.row for lesson in lessons], device=device)
    words, shares = torch.tensor(targets, device=device), torch.tensor(weights, device=device)
    return Layout(fixed, owner, slot.to(device), is_memory.to(device), where, words, shares)


def pooled(lm: LM, task: Task) -> Float[Tensor, "M d"]:
    """The chunk's own token embeddings, averaged over `task.vectors` stretches of equal length."""
    embedded = lm.embed(task.tokens).float()
    bounds = [round(i * len(task.tokens) / task.vectors) for i in range(task.vectors + 1)]
    return torch.stack([embedded[min(a, len(task.tokens) - 1) : max(b, a + 1)].mean(0) for a, b in zip(bounds, bounds[1:], strict=False)])


def random_start(lm: LM, task: Task, seed: int) -> Float[Tensor, "M d"]:
    """Standard normal vectors in the embedding table's scale, seeded by (seed, chunk), never by order."""
    generator = torch.Generator().manual_seed(int(sha256_of_text(f"{seed}:{task.key}")[:15], 16))
    return (torch.randn(task.vectors, lm.width, generator=generator) * lm.table.float().std().cpu()).to(lm.device)


def mean_start(lm: LM, task: Task) -> Float[Tensor, "M d"]:
    """The mean of all embeddings, for every vector: where transformers puts a token that is added to a vocabulary."""
    return lm.table.float().mean(0).expand(task.vectors, -1).clone()
