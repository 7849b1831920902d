"""Chunks -> Memories: the vectors from which the frozen LM decodes a chunk.

They are found by gradient descent on the LM's input.

Many chunks share a batch; when a row is done the next chunk takes its place (a step of a batch is
in step.py). Where the hardware computes in bfloat16 most steps are a draft in it; the end is always
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
    by_length,
    fitting,
)
from rag_memtok.memory.codec import codec_named
from rag_memtok.memory.distill import Reading, Teacher
from rag_memtok.memory.recipes import Recipe, recipe_named, recipe_of
from rag_memtok.memory.step import Batch, BeforeStep, Row, Written, started, untouched
from rag_memtok.model.lm import LM
from rag_memtok.model.precision import draft_of, drafted
from rag_memtok.model.prompts import Template

WINDOW = 16  # batches' worth of chunks sorted by length together
# of a chunk's seconds, and of the steps where all are taken; the rest is for the LM's own
# arithmetic
DRAFT_SHARE = 0.9
# of the steps and seconds of what is to be read; the rest is for reciting alone
READING_SHARE = 0.9


@dataclass(frozen=True, slots=True)
class Step:
    """After a step of the batch: rows being written, and how many of those are all right.

    Steps and seconds are those spent since the start.
    """

    rows: int
    right: int
    steps: int
    seconds: float


def memorize(
    lm: LM,
    template: Template,
    tasks: Iterable[Task],
    settings: Memorize,
    on_step: Callable[[Step], None] = lambda step: None,
    recipe: Recipe | None = None,
    before_step: BeforeStep = untouched,
) -> Iterator[Written]:
    """Writes `tasks`, yielding each as it is done, in no fixed order.

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
    Source: Sastre & Rosa 2025, arXiv:2506.15001 (the idea); memory.md, section 5 (the objective).
    """
    recipe = recipe or recipe_named(recipe_of(settings))
    clock, teacher = Clock(on_step), Teacher(lm, settings.seed)
    rows: Iterator[Row] = (
        started(lm, recipe, task, settings.seed)
        for task in by_length(fitting(lm, template, tasks), WINDOW * settings.batch)
    )
    for number, stage in enumerate(stages(lm, template, recipe, settings, teacher, before_step)):
        rows = advanced(stage, map(Row.from_best, rows) if number else rows, settings.batch, clock)
    for row in rows:
        teacher.forget(row.task)
        yield row.written()


def stages(
    lm: LM,
    template: Template,
    recipe: Recipe,
    settings: Memorize,
    teacher: Teacher,
    before_step: BeforeStep = untouched,
) -> Iterator[Batch]:
    """The stages that a row goes through.

    First a draft where the hardware has one, then the LM's own arithmetic; what is to be read is
    recited alone last.

    That last stage starts where the memory reads best, takes small steps, and ends as soon as all
    is right: it costs little of the reading.
    """
    steps, seconds = settings.steps or recipe.steps, settings.seconds_per_chunk
    codec = codec_named(settings.codec) if settings.codec and recipe.through else None

    def stage(one: LM, part: Recipe, of_steps: float, of_seconds: float) -> Batch:
        reading = Reading(one, teacher, part.cues) if part.reading else None
        return Batch(
            one,
            template,
            part,
            max(1, int(of_steps * steps)),
            of_seconds * seconds,
            settings.seed,
            codec,
            reading,
            before_step,
        )

    share = READING_SHARE if recipe.reading else 1.0
    if recipe.draft and drafted(lm, settings.draft):
        yield stage(
            draft_of(lm, settings.draft),
            recipe,
            DRAFT_SHARE * share if recipe.reading else 1.0,
            DRAFT_SHARE * share,
        )
    yield stage(lm, recipe, share, share)
    if recipe.reading:
        yield stage(
            lm, replace(recipe, reading=0.0, lr=recipe.last_lr, warmup=0, cosine=False), 1.0, 1.0
        )


@dataclass(slots=True)
class Clock:
    """Counts steps and seconds over the stages, and tells."""

    on_step: Callable[[Step], None]
    steps: int = 0
    began: float = field(default_factory=time.monotonic)

    def tick(self, rows: Sequence[Row]) -> None:
        """A step was taken."""
        self.steps += 1
        self.on_step(
            Step(
                len(rows),
                sum(row.best[0] == 0 for row in rows),
                self.steps,
                time.monotonic() - self.began,
            )
        )


def advanced(batch: Batch, queue: Iterator[Row], capacity: int, clock: Clock) -> Iterator[Row]:
    """Takes steps until every row of `queue` is done, at most `capacity` at a time.

    Yields each row as it ends.

    Raises:
        OutOfMemory: even one row does not fit.
    """
    while True:
        while len(batch.rows) < capacity and (row := next(queue, None)):
            batch.rows.append(row)
            batch.layout = None
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
            batch.layout = None
            continue
        clock.tick([*batch.rows, *done])
        yield from done
