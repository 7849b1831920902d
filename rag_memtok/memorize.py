"""Chunks -> Memories: the vectors from which the frozen LM decodes a chunk, found by gradient descent on the LM's input.

Many chunks share a batch; each row has its own optimiser state, its own clock and its own end, and the next chunk takes its place. A row's
result does not depend on its neighbours beyond rounding.
"""

import heapq
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rag_memtok.config import Memorize
from rag_memtok.errors import ChunkDoesNotFit, OutOfMemory
from rag_memtok.lm import LM
from rag_memtok.prompts import Template
from rag_memtok.recipes import Recipe, recipe_named

WINDOW = 16  # batches' worth of chunks sorted by length together
RESTARTS = 2  # after a loss that is not a number


@dataclass(frozen=True, slots=True)
class Task:
    """A chunk to write: `tokens` without BOS or end, `vectors` the number of its memory tokens, `key` whatever tells it apart (its id)."""

    key: str
    tokens: tuple[int, ...]
    vectors: int


@dataclass(frozen=True, slots=True, eq=False)
class Written:
    """The best vectors measured for a task: the fewest wrong tokens (end included), then the largest smallest margin (logits)."""

    task: Task
    vectors: Float[np.ndarray, "M d"]
    wrong: int
    margin: float
    steps: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Progress:
    """After a step of the batch: rows being written, how many of those are all right, steps and seconds spent since the start."""

    rows: int
    right: int
    steps: int
    seconds: float


@dataclass(slots=True, eq=False)
class Row:
    """A task being written: where its optimiser stands, and the best it has had."""

    task: Task
    vectors: Float[Tensor, "M d"]
    first: Float[Tensor, "M d"]
    second: Float[Tensor, "M d"]
    step: int = 0
    seconds: float = 0.0
    restarts: int = 0
    best: tuple[int, float] = (1 << 30, 0.0)
    best_vectors: Float[Tensor, "M d"] | None = None

    def note(self, wrong: int, margin: float, measured: Float[Tensor, "M d"]) -> None:
        """Keeps `measured` if it is the best so far."""
        if (wrong, -margin) < self.best:
            self.best, self.best_vectors = (wrong, -margin), measured.clone()

    def written(self) -> Written:
        """What has come of it."""
        vectors = self.vectors if self.best_vectors is None else self.best_vectors
        return Written(self.task, vectors.cpu().numpy(), self.best[0], -self.best[1], self.step, self.seconds)


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
    generator = torch.Generator().manual_seed(int.from_bytes(f"{seed}:{task.key}".encode()[-64:], "big") % (1 << 62))
    return (torch.randn(task.vectors, lm.width, generator=generator) * lm.table.float().std().cpu()).to(lm.device)


@dataclass(slots=True, eq=False)
class Batch:
    """The rows that share a forward pass, and how a step is taken."""

    lm: LM
    template: Template
    recipe: Recipe
    settings: Memorize
    rows: list[Row] = field(default_factory=list)
    layout: Layout | None = None
    unit: float = 1.0

    def __post_init__(self) -> None:
        if self.recipe.scaled:
            self.unit = float(self.lm.table.float().std())

    @property
    def steps(self) -> int:
        """The most steps of a row."""
        return self.recipe.steps or self.settings.steps

    def add(self, task: Task) -> None:
        """Gives `task` a row."""
        start = pooled(self.lm, task) if self.recipe.start == "pooled" else random_start(self.lm, task, self.settings.seed)
        self.rows.append(Row(task, start, torch.zeros_like(start), torch.zeros_like(start)))
        self.layout = None

    def step(self) -> list[Row]:
        """Measures every row, moves those that are not done, and returns (and lets go of) those that are."""
        began = time.monotonic()
        if self.layout is None:
            self.layout = lay_out(self.lm, self.template, [row.task for row in self.rows])
        measured, gradients, margins = self._measure(self.layout)
        per_row = margins.cpu().split([len(row.task.tokens) + 1 for row in self.rows])
        done = []
        for index, (row, found) in enumerate(zip(self.rows, per_row, strict=True)):
            row.step += 1
            row.note(int((found <= 0).sum()), float(found.min()), measured[index, : row.task.vectors])
            if self._finished(row):
                done.append(row)
            else:
                self._move(row, gradients[index, : row.task.vectors])
        spent = (time.monotonic() - began) / len(self.rows)
        for row in self.rows:
            row.seconds += spent
        if done:
            self.rows = [row for row in self.rows if row not in done]
            self.layout = None
        return done

    def _measure(self, layout: Layout) -> tuple[Float[Tensor, "B M d"], Float[Tensor, "B M d"], Float[Tensor, " P"]]:
        """Vectors, the gradient of each row's own mean loss, and the margins, position by position."""
        widest = max(row.task.vectors for row in self.rows)
        vectors = torch.stack([torch.nn.functional.pad(row.vectors, (0, 0, 0, widest - len(row.vectors))) for row in self.rows])
        vectors.requires_grad_(True)
        hidden = self.lm.hidden(layout.inputs(vectors))[layout.scored]
        losses, margins = self.recipe.objective(self.lm, hidden, layout.targets)
        (gradient,) = torch.autograd.grad((losses * layout.weights).sum(), vectors)
        return vectors.detach(), gradient, margins.nan_to_num(-torch.inf)

    def _finished(self, row: Row) -> bool:
        wrong, negative_margin = row.best
        bound = self.settings.seconds_per_chunk
        return (wrong == 0 and -negative_margin >= self.recipe.margin) or row.step >= self.steps or 0 < bound <= row.seconds

    def _move(self, row: Row, gradient: Float[Tensor, "M d"]) -> None:
        if not torch.isfinite(gradient).all():
            self._restart(row)
            return
        if self.recipe.clip:
            gradient = gradient * min(1.0, self.recipe.clip / (float(gradient.norm()) + 1e-12))
        rate = self.recipe.lr_at(row.step - 1, self.steps) * self.unit
        row.vectors = row.vectors - rate * (gradient if self.recipe.optimiser == "sgd" else self._adam(row, gradient))

    def _adam(self, row: Row, gradient: Float[Tensor, "M d"]) -> Float[Tensor, "M d"]:
        """Adam's direction. Source: Kingma & Ba 2015, algorithm 1; epsilon 1e-8."""
        one, two = self.recipe.betas
        row.first = one * row.first + (1 - one) * gradient
        row.second = two * row.second + (1 - two) * gradient * gradient
        return (row.first / (1 - one**row.step)) / ((row.second / (1 - two**row.step)).sqrt() + 1e-8)

    def _restart(self, row: Row) -> None:
        """Goes back to the best vectors, or after RESTARTS times gives the row up: what is wrong then is pinned."""
        row.restarts += 1
        if row.restarts > RESTARTS:
            row.step = self.steps
        row.vectors = random_start(self.lm, row.task, self.settings.seed + row.restarts) if row.best_vectors is None else row.best_vectors
        row.first, row.second = torch.zeros_like(row.vectors), torch.zeros_like(row.vectors)


def fits(lm: LM, template: Template, task: Task) -> None:
    """Refuses a task that is longer than the context.

    Raises:
        ChunkDoesNotFit: overhead + M + T exceeds the LM's context.
    """
    needed = template.overhead + task.vectors + len(task.tokens)
    if needed > lm.context:
        raise ChunkDoesNotFit(
            f"a chunk of {len(task.tokens)} tokens with {task.vectors} vectors takes {needed} positions; {lm.identity.id} has {lm.context}",
            remedy=f"--chunk-tokens {max(4, lm.context - template.overhead - task.vectors - 8)} or fewer",
        )


def by_length(tasks: Iterable[Task], window: int) -> Iterator[Task]:
    """The tasks, sorted by length within windows of `window`: neighbours pad little, and the first result comes soon."""
    heap: list[tuple[int, int, Task]] = []
    for order, task in enumerate(tasks):
        heapq.heappush(heap, (-len(task.tokens), order, task))
        if len(heap) >= window:
            yield from (heapq.heappop(heap)[2] for _ in range(len(heap)))
    yield from (heapq.heappop(heap)[2] for _ in range(len(heap)))


def memorize(
    lm: LM,
    template: Template,
    tasks: Iterable[Task],
    settings: Memorize,
    on_step: Callable[[Progress], None] = lambda progress: None,
) -> Iterator[Written]:
    """Writes `tasks`, yielding each as it is done, in no fixed order.

    Raises:
        ChunkDoesNotFit: a task is longer than the context.
        OutOfMemory: even one row does not fit.

    Cost: per row up to `settings.steps` forward and backward passes over overhead + M + T positions; about
        4 x (parameters in layers) FLOPs a position, plus 2 d V for each scored one.
    Source: Sastre & Rosa 2025, arXiv:2506.15001 (the idea); memory.md, section 5 (the objective).
    """
    queue = by_length(tasks, WINDOW * settings.batch)
    batch = Batch(lm, template, recipe_named(settings.recipe), settings)
    capacity, steps, began = settings.batch, 0, time.monotonic()
    while True:
        while len(batch.rows) < capacity and (task := next(queue, None)):
            fits(lm, template, task)
            batch.add(task)
        if not batch.rows:
            return
        try:
            done = batch.step()
        except (torch.OutOfMemoryError, MemoryError) as error:
            capacity = len(batch.rows) // 2
            if not capacity:
                raise OutOfMemory("one chunk does not fit in memory", remedy="fewer --chunk-tokens or a smaller --model") from error
            queue = _chain([row.task for row in batch.rows[capacity:]], queue)
            del batch.rows[capacity:]
            batch.layout = None
            continue
        steps += 1
        on_step(Progress(len(batch.rows), sum(row.best[0] == 0 for row in batch.rows), steps, time.monotonic() - began))
        yield from (row.written() for row in done)


def _chain(first: Sequence[Task], rest: Iterator[Task]) -> Iterator[Task]:
    yield from first
    yield from rest
