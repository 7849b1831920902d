"""Chunks -> Memories: the vectors from which the frozen LM decodes a chunk.

They are found by gradient descent on the LM's input.

Many chunks share a batch; when a row is done the next chunk takes its place (a step of a batch is
in step.py). Where the hardware computes in bfloat16 most steps are taken in it; the end is always
measured in the LM's own arithmetic, and on the vectors as the codec will give them back.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain

from rag_memtok.config import Memorize
from rag_memtok.errors import OutOfMemory, out_of_memory
from rag_memtok.memory.batch import (
    Task,
    check_fit,
    sort_by_length,
)
from rag_memtok.memory.codec import codec_named
from rag_memtok.memory.distill import Distillation, Teacher
from rag_memtok.memory.recipes import Recipe, recipe_named, recipe_of
from rag_memtok.memory.step import (
    Batch,
    BeforeStep,
    OptimizedMemory,
    Row,
    leave_unchanged,
    start_row,
)
from rag_memtok.model.lm import LM
from rag_memtok.model.precision import low_precision_copy, uses_low_precision
from rag_memtok.model.prompts import Template

WINDOW = 16  # batches' worth of chunks sorted by length together
# of a chunk's seconds, and of the steps where all are taken; the rest is for the LM's own
# arithmetic
LOW_PRECISION_SHARE = 0.9
# of the steps and seconds of a readable memory; the rest is for reconstruction alone
DISTILLATION_SHARE = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Progress after a step of the batch: rows in it, and how many of those are all right.

    `steps` and `seconds` are counted since the start, `row_steps` each row's by itself.
    """

    rows: int
    right: int
    steps: int
    seconds: float
    row_steps: int = 0


def memorize(
    lm: LM,
    template: Template,
    tasks: Iterable[Task],
    settings: Memorize,
    *,
    on_step: Callable[[Step], None] = lambda step: None,
    recipe: Recipe | None = None,
    before_step: BeforeStep = leave_unchanged,
) -> Iterator[OptimizedMemory]:
    """Optimizes a memory for each of `tasks`, yielding each as it is done, in no fixed order.

    Args:
        recipe: stands for the one that `settings` names.
        before_step: gets each row before each of its steps; what it puts into `row.vectors` is what
            is measured then. With it a variant of the writer is tried without a copy of its loop.

    Raises:
        ChunkDoesNotFit: a task is longer than the context.
        OutOfMemory: even one row does not fit.

    Cost: per row up to `settings.steps` forward and backward passes over overhead + M + T
        positions; about 4 x (parameters in layers) FLOPs a position, plus 2 d V for each scored
        one.
    Source: Sastre & Rosa 2025, arXiv:2506.15001 (the idea); benchmarks/log.md (the rest).
    """
    recipe = recipe or recipe_named(recipe_of(settings))
    clock, teacher = Clock(on_step), Teacher(lm, settings.seed)
    rows: Iterator[Row] = (
        start_row(lm, recipe, task, settings.seed)
        for task in sort_by_length(check_fit(lm, template, tasks), WINDOW * settings.batch)
    )
    for number, phase in enumerate(
        build_phases(
            lm, template, recipe=recipe, settings=settings, teacher=teacher, before_step=before_step
        )
    ):
        rows = run_phase(
            phase, map(Row.restart_from_best, rows) if number else rows, settings.batch, clock
        )
    for row in rows:
        teacher.forget(row.task)
        yield row.result()


def build_phases(
    lm: LM,
    template: Template,
    *,
    recipe: Recipe,
    settings: Memorize,
    teacher: Teacher,
    before_step: BeforeStep = leave_unchanged,
) -> Iterator[Batch]:
    """Phases: bf16 (if supported), full precision, for readable memories reconstruction alone.

    That last phase starts where the memory reads best, takes small steps, and ends as soon as all
    is right: it costs little of the readability.
    """
    steps, seconds = settings.steps or recipe.steps, settings.seconds_per_chunk
    codec = codec_named(settings.codec) if settings.codec and recipe.straight_through else None

    def phase(phase_lm: LM, phase_recipe: Recipe, of_steps: float, of_seconds: float) -> Batch:
        distillation = (
            Distillation(phase_lm, teacher, phase_recipe.questions_per_step)
            if phase_recipe.distillation
            else None
        )
        return Batch(
            lm=phase_lm,
            template=template,
            recipe=phase_recipe,
            steps=max(1, int(of_steps * steps)),
            seconds=of_seconds * seconds,
            seed=settings.seed,
            codec=codec,
            distillation=distillation,
            before_step=before_step,
        )

    share = DISTILLATION_SHARE if recipe.distillation else 1.0
    if recipe.low_precision and uses_low_precision(lm, settings.draft):
        yield phase(
            low_precision_copy(lm, settings.draft),
            recipe,
            LOW_PRECISION_SHARE * share if recipe.distillation else 1.0,
            LOW_PRECISION_SHARE * share,
        )
    yield phase(lm, recipe, share, share)
    if recipe.distillation:
        yield phase(
            lm,
            replace(recipe, distillation=0.0, lr=recipe.last_lr, warmup=0, cosine=False),
            1.0,
            1.0,
        )


@dataclass(slots=True)
class Clock:
    """Counts steps and seconds over the phases, and reports them."""

    on_step: Callable[[Step], None]
    steps: int = 0
    row_steps: int = 0
    began: float = field(default_factory=time.monotonic)

    def tick(self, rows: Sequence[Row]) -> None:
        """Counts a step of `rows` and reports it."""
        self.steps += 1
        self.row_steps += len(rows)
        self.on_step(
            Step(
                rows=len(rows),
                right=sum(row.best[0] == 0 for row in rows),
                steps=self.steps,
                seconds=time.monotonic() - self.began,
                row_steps=self.row_steps,
            )
        )


def run_phase(batch: Batch, queue: Iterator[Row], capacity: int, clock: Clock) -> Iterator[Row]:
    """Continuous batching: steps until `queue` is empty, refilling finished slots.

    Yields each row as it ends; halves the batch when memory runs out.

    Raises:
        OutOfMemory: even one row does not fit.
    """
    while True:
        while len(batch.rows) < capacity and (row := next(queue, None)):
            batch.rows.append(row)
        if not batch.rows:
            return
        try:
            done = batch.step()
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            capacity = len(batch.rows) // 2
            if not capacity:
                raise OutOfMemory(
                    "one chunk does not fit in memory",
                    remedy="fewer --chunk-tokens or a smaller --model",
                ) from error
            queue = chain(batch.rows[capacity:], queue)
            del batch.rows[capacity:]
            continue
        clock.tick([*batch.rows, *done])
        yield from done
