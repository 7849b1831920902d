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
class Layout:
    """Rows as one right-padded batch: `slot` says which vector stands where (`is_memory`), `scored` which (row, position) are predicted."""

    fixed: Float[Tensor, "B S d"]
    slot: Int[Tensor, "B S"]
    is_memory: Bool[Tensor, "B S"]
    scored: tuple[Int[Tensor, " P"], Int[Tensor, " P"]]
    targets: Int[Tensor, " P"]
    weights: Float[Tensor, " P"]

    def inputs(self, vectors: Float[Tensor, "B M d"]) -> Float[Tensor, "B S d"]:
        """The input embeddings with `vectors` in their places."""
        placed = vectors.gather(1, self.slot[..., None].expand(-1, -1, vectors.shape[-1]))
        return torch.where(self.is_memory[..., None], placed.to(self.fixed.dtype), self.fixed)


def lay_out(lm: LM, template: Template, tasks: Sequence[Task]) -> Layout:
    """Lays `tasks` out for teacher forcing; the position before each token predicts it, the last one predicts the end."""
    device = lm.device
    length = max(template.overhead - 1 + task.vectors + len(task.tokens) for task in tasks)
    words = torch.zeros(len(tasks), length, dtype=torch.long)
    slot, is_memory = torch.zeros_like(words), torch.zeros(len(tasks), length, dtype=torch.bool)
    rows: list[int] = []
    places: list[int] = []
    targets: list[int] = []
    weights: list[float] = []
    for row, task in enumerate(tasks):
        memory = range(len(template.prefix), len(template.prefix) + task.vectors)
        filled = [*template.prefix, *[0] * task.vectors, *template.suffix, *task.tokens]
        words[row, : len(filled)] = torch.tensor(filled)
        slot[row, memory.start : memory.stop] = torch.arange(task.vectors)
        is_memory[row, memory.start : memory.stop] = True
        scored = range(len(filled) - len(task.tokens) - 1, len(filled))
        rows += [row] * len(scored)
        places += scored
        targets += [*task.tokens, template.end]
        weights += [1 / len(scored)] * len(scored)
    where = (torch.tensor(rows, device=device), torch.tensor(places, device=device))
    fixed = lm.embed(words)
    return Layout(
        fixed, slot.to(device), is_memory.to(device), where, torch.tensor(targets, device=device), torch.tensor(weights, device=device)
    )


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
