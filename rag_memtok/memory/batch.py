"""Chunks to optimize, laid out as one batch of input embeddings.

The layout says where vectors stand, what is scored, and how vectors start.
"""

import heapq
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rag_memtok.datatypes import sha256_of_text
from rag_memtok.errors import ChunkDoesNotFit
from rag_memtok.model.lm import LM
from rag_memtok.model.prompts import Template


@dataclass(frozen=True, slots=True)
class Task:
    """A chunk whose memory is to be optimized.

    `tokens` is without BOS or end, `vectors` the number of its memory tokens, `key` whatever tells
    it apart (its id).
    """

    key: str
    tokens: tuple[int, ...]
    vectors: int


def make_task(key: str, tokens: tuple[int, ...], tokens_per_vector: int) -> Task:
    """The task of one chunk: ceil(T / tokens_per_vector) vectors, at least one."""
    return Task(key, tokens, max(1, -(-len(tokens) // tokens_per_vector)))


def check_fit(lm: LM, template: Template, tasks: Iterable[Task]) -> Iterator[Task]:
    """Yields the tasks, each checked to fit in the context.

    Raises:
        ChunkDoesNotFit: overhead + M + T exceeds the LM's context.
    """
    for task in tasks:
        needed = template.overhead + task.vectors + len(task.tokens)
        if needed > lm.context:
            room = lm.context - template.overhead - task.vectors - 8
            raise ChunkDoesNotFit(
                f"{len(task.tokens)} tokens and {task.vectors} vectors take {needed} positions; "
                f"{lm.identity.id} has {lm.context}",
                remedy=f"--chunk-tokens {max(4, room)} or fewer",
            )
        yield task


def sort_by_length(tasks: Iterable[Task], window: int) -> Iterator[Task]:
    """Yields the tasks sorted by length, longest first, within windows of `window`.

    Neighbours then pad little, and the first result still comes soon.
    """
    heap: list[tuple[int, int, Task]] = []
    for order, task in enumerate(tasks):
        heapq.heappush(heap, (-len(task.tokens), order, task))
        if len(heap) >= window:
            yield from (heapq.heappop(heap)[2] for _ in range(len(heap)))
    yield from (heapq.heappop(heap)[2] for _ in range(len(heap)))


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Request:
    """A teacher-forced sequence around one memory: `before`, its vectors, `after`, `answer`.

    Every token of `answer` is predicted. `row` is the memory's index in the batch, `vectors` its
    length. `before` may hold tokens and other memories, hence embeddings.
    """

    row: int
    vectors: int
    before: Float[Tensor, "_ d"]
    after: tuple[int, ...]
    answer: tuple[int, ...]

    @property
    def length(self) -> int:
        """Number of positions: the last token of the answer is only predicted."""
        return len(self.before) + self.vectors + len(self.after) + len(self.answer) - 1


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Layout:
    """Requests as one right-padded batch.

    `fixed` are the input embeddings, zero at memory positions. At those (`is_memory`) stands vector
    `slot` of row `owner`. `scored` are the (request, position) pairs that are predicted; the
    `weights` of a request sum to 1.
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
        placed = vectors[self.owner].gather(
            1, self.slot[..., None].expand(-1, -1, vectors.shape[-1])
        )
        return torch.where(self.is_memory[..., None], placed.to(self.fixed.dtype), self.fixed)

    def means(self, values: Float[Tensor, " P"]) -> Float[Tensor, " B"]:
        """The mean of each request's values, one for each predicted position."""
        return torch.zeros(len(self.fixed), device=values.device).index_add(
            0, self.scored[0], self.weights * values
        )


def lay_out(lm: LM, template: Template, tasks: Sequence[Task]) -> Layout:
    """Lays `tasks` out to be reconstructed.

    The position before each token predicts it, the last one predicts the end.
    """
    before = lm.embed(template.prefix)
    return lay_out_requests(
        lm,
        [
            Request(
                row=row,
                vectors=task.vectors,
                before=before,
                after=template.suffix,
                answer=(*task.tokens, template.end),
            )
            for row, task in enumerate(tasks)
        ],
    )


def lay_out_requests(lm: LM, requests: Sequence[Request]) -> Layout:
    """Lays `requests` out for teacher forcing."""
    device, length = lm.device, max(request.length for request in requests)
    slot = torch.zeros(len(requests), length, dtype=torch.long)  # [B, S]
    is_memory = torch.zeros_like(slot, dtype=torch.bool)
    fixed = torch.zeros(len(requests), length, lm.width, dtype=lm.table.dtype, device=device)
    rows: list[int] = []
    places: list[int] = []
    targets: list[int] = []
    weights: list[float] = []
    for index, request in enumerate(requests):
        start = len(request.before)
        end = start + request.vectors
        slot[index, start:end] = torch.arange(request.vectors)
        is_memory[index, start:end] = True
        fixed[index, :start] = request.before
        fixed[index, end : request.length] = lm.embed((*request.after, *request.answer[:-1]))
        answer = len(request.answer)
        rows += [index] * answer
        places += range(request.length - answer, request.length)
        targets += request.answer
        weights += [1 / answer] * answer
    where = (torch.tensor(rows, device=device), torch.tensor(places, device=device))
    owner = torch.tensor([request.row for request in requests], device=device)
    return Layout(
        fixed=fixed,
        owner=owner,
        slot=slot.to(device),
        is_memory=is_memory.to(device),
        scored=where,
        targets=torch.tensor(targets, device=device),
        weights=torch.tensor(weights, device=device),
    )


def init_pooled(lm: LM, task: Task) -> Float[Tensor, "M d"]:
    """Initial vectors: the chunk's token embeddings, averaged over spans of equal length."""
    embedded = lm.embed(task.tokens).float()
    bounds = [round(i * len(task.tokens) / task.vectors) for i in range(task.vectors + 1)]
    return torch.stack(
        [
            embedded[min(a, len(task.tokens) - 1) : max(b, a + 1)].mean(0)
            for a, b in zip(bounds, bounds[1:], strict=False)
        ]
    )


def init_random(lm: LM, task: Task, seed: int) -> Float[Tensor, "M d"]:
    """Initial vectors: standard normal, scaled to the embedding table's standard deviation.

    Seeded by (seed, chunk), never by order.
    """
    return _standard_normal(lm, task, seed) * lm.table.float().std()


def residual_peak(lm: LM, tokens: Sequence[int]) -> float:
    """The longest state of the LM's residual stream over `tokens`, as its root mean square.

    In many models that is a massive activation at the first position.

    Cost: a forward pass over `tokens`.
    Source: Sun et al. 2024, arXiv:2402.17762 (massive activations).
    """
    with torch.no_grad():
        states = lm.model.base_model(
            inputs_embeds=lm.embed(tokens)[None], use_cache=False, output_hidden_states=True
        ).hidden_states
    stream = states[:-1]  # the last is normalized
    return max(float(state[0].float().square().mean(-1).max().sqrt()) for state in stream)


def init_residual(lm: LM, task: Task, seed: int, peak: float) -> Float[Tensor, "M d"]:
    """Initial vectors: standard normal, a sixteenth as long as the longest state of the LM, `peak`.

    Good vectors are some thousand times as long as embeddings. From there, steps relative to a
    vector's length would spend two fifths of their number on growing (benchmarks/log.md).

    Seeded by (seed, chunk), never by order.
    """
    return _standard_normal(lm, task, seed) * (peak / 16)


def _standard_normal(lm: LM, task: Task, seed: int) -> Float[Tensor, "M d"]:
    """The same numbers on every device."""
    generator = torch.Generator().manual_seed(int(sha256_of_text(f"{seed}:{task.key}")[:15], 16))
    return torch.randn(task.vectors, lm.width, generator=generator).to(lm.device)


def init_mean(lm: LM, task: Task) -> Float[Tensor, "M d"]:
    """Initial vectors: the mean of all embeddings, for every vector.

    This is where transformers puts a token that is added to a vocabulary.
    """
    return lm.table.float().mean(0).expand(task.vectors, -1).clone()
