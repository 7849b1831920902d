"""One optimization step of a batch: forward pass, per-row loss, update.

Each row has its own optimizer state, its own clock and its own end. A row's result does not depend
on its neighbours beyond rounding. So on a CPU the rows are shared out among torch's threads: they
meet once a step, where threads that share every product would meet some thousand times.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from rag_memtok.memory.batch import (
    Layout,
    Task,
    init_mean,
    init_pooled,
    init_random,
    init_residual,
    lay_out,
    residual_peak,
)
from rag_memtok.memory.codec import Codec
from rag_memtok.memory.distill import Distillation
from rag_memtok.memory.recipes import Recipe, memory_word_entropy
from rag_memtok.model.device import side_by_side
from rag_memtok.model.lm import LM
from rag_memtok.model.prompts import Template

UNMEASURED = (1 << 30, 0.0)
RESTARTS = 2  # after a loss that is not a number
# root mean square of a row: float16 ends at 65,504, and what is longer holds no more
MAX_RMS = 1024.0
# a thread of its own pays for two rows of 135M parameters (an eighth of a step saved), and costs a
# twenty-fifth where a model of 10M hardly keeps it busy; Python serves one thread at a time
ROWS_OF_PART, PARAMETERS_OF_PART = 2, 50_000_000


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class OptimizedMemory:
    """The best vectors found for a chunk, and what finding them took.

    Best: the fewest wrong tokens (end included), then the largest minimum margin (logits).
    """

    task: Task
    vectors: Float[np.ndarray, "M d"]
    wrong: int
    margin: float
    steps: int
    seconds: float


@dataclass(slots=True, eq=False, kw_only=True)
class Row:
    """Optimization state of one chunk: vectors, Adam moments, error rate, best checkpoint.

    `wrong`: share of its tokens that are wrong. `best`: number of wrong tokens, minus the smallest
    margin; `improved`: the step at which that number last fell. `max_rms`: how long its vectors may
    become together.
    """

    task: Task
    vectors: Float[Tensor, "M d"]
    exp_avg: Float[Tensor, "M d"]
    exp_avg_sq: Float[Tensor, "M d"]
    max_rms: float = MAX_RMS
    step: int = 0
    seconds: float = 0.0
    restarts: int = 0
    improved: int = 0
    wrong: float = 1.0
    best: tuple[int, float] = UNMEASURED
    best_vectors: Float[Tensor, "M d"] | None = None

    def keep_if_best(self, wrong: int, margin: float, measured: Float[Tensor, "M d"]) -> None:
        """Keeps `measured` if it is the best so far."""
        if (wrong, -margin) < self.best:
            self.best, self.best_vectors = (wrong, -margin), measured.clone()

    def restart_from_best(self) -> "Row":
        """Continues from the best vectors, to be measured anew.

        What was measured in low precision does not count.
        """
        if self.best_vectors is not None:
            self.vectors = self.best_vectors
        self.best, self.best_vectors = UNMEASURED, None
        return self

    def result(self) -> OptimizedMemory:
        """Best vectors found."""
        vectors = self.vectors if self.best_vectors is None else self.best_vectors
        return OptimizedMemory(
            task=self.task,
            vectors=vectors.cpu().numpy(),
            wrong=self.best[0],
            margin=-self.best[1],
            steps=self.step,
            seconds=self.seconds,
        )


def start_row(lm: LM, recipe: Recipe, task: Task, seed: int) -> Row:
    """The initial state of a chunk.

    From a start at the length of the LM's states its vectors do not outgrow the longest of them:
    the layers have never seen longer ones.
    """
    peak = residual_peak(lm, task.tokens) if recipe.start == "residual" else MAX_RMS
    starts = {
        "pooled": lambda: init_pooled(lm, task),
        "residual": lambda: init_residual(lm, task, seed, peak),
        "mean": lambda: init_mean(lm, task),
        "random": lambda: init_random(lm, task, seed),
    }
    vectors = starts[recipe.start]()
    return Row(
        task=task,
        vectors=vectors,
        exp_avg=torch.zeros_like(vectors),
        exp_avg_sq=torch.zeros_like(vectors),
        max_rms=min(peak, MAX_RMS),
    )


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Rows that share a forward pass, and how they lie in it."""

    rows: Sequence[Row]
    layout: Layout


BeforeStep = Callable[[Row], None]


def leave_unchanged(row: Row) -> None:
    """Leaves a row as it is."""


@dataclass(slots=True, eq=False, kw_only=True)
class Batch:
    """The rows that are written together, and how a step is taken.

    A row gets at most `steps` steps and `seconds` (0: no bound).

    With a `codec` everything is measured on the vectors as they come back from it, and the gradient
    found there moves the unrounded ones.
    Source: the straight-through estimator, Bengio et al. 2013, arXiv:1308.3432.
    """

    lm: LM
    template: Template
    recipe: Recipe
    steps: int
    seconds: float
    seed: int
    codec: Codec | None = None
    distillation: Distillation | None = None
    before_step: BeforeStep = leave_unchanged
    rows: list[Row] = field(default_factory=list)
    parts: Sequence[Part] = ()
    unit: float = 1.0

    def __post_init__(self) -> None:
        if self.recipe.unit == "table":
            self.unit = float(self.lm.table.float().std())

    def step(self) -> list[Row]:
        """One optimization step: forward pass, per-row loss, update.

        Finished rows leave the batch and are returned.
        """
        began = time.monotonic()
        if [row for part in self.parts for row in part.rows] != self.rows:
            self.parts = self._parts()
        for row in self.rows:
            self.before_step(row)
        done = [row for rows in side_by_side(self._step_part, self.parts) for row in rows]
        spent = (time.monotonic() - began) / len(self.rows)
        for row in self.rows:
            row.seconds += spent
        self.rows = [row for row in self.rows if row not in done]
        return done

    def _parts(self) -> list[Part]:
        """The rows, neighbours together, in a part for each of torch's threads that pays.

        The teacher of readable memories is asked by one thread alone.
        """
        pays = self.lm.device.type == "cpu" and self.lm.parameters >= PARAMETERS_OF_PART
        most = len(self.rows) // ROWS_OF_PART if pays and not self.distillation else 1
        size = -(-len(self.rows) // max(1, min(most, torch.get_num_threads())))
        return [
            Part(rows, lay_out(self.lm, self.template, [row.task for row in rows]))
            for rows in (
                self.rows[start : start + size] for start in range(0, len(self.rows), size)
            )
        ]

    def _step_part(self, part: Part) -> list[Row]:
        """The step of a part; returns the rows that are finished."""
        vectors, loss, margins = self._measure(part)
        per_row = margins.cpu().split([len(row.task.tokens) + 1 for row in part.rows])
        for row, row_margins, measured in zip(part.rows, per_row, vectors.detach(), strict=True):
            row.step += 1
            self._keep_if_best(row, row_margins, measured[: row.task.vectors])
        done = [row for row in part.rows if self._is_finished(row)]
        if len(done) < len(part.rows):
            (gradients,) = torch.autograd.grad(loss, vectors)
            for row, gradient in zip(part.rows, gradients, strict=True):
                if row not in done:
                    self._move(row, gradient[: row.task.vectors])
        return done

    def _measure(
        self, part: Part
    ) -> tuple[Float[Tensor, "B M d"], Float[Tensor, ""], Float[Tensor, " P"]]:
        """The vectors measured, the sum of the rows' mean losses, the margins by position."""
        rows, layout = part.rows, part.layout
        widest = max(row.task.vectors for row in rows)
        row_vectors = [
            self.codec.round_trip(row.vectors) if self.codec else row.vectors for row in rows
        ]
        vectors = torch.stack(
            [torch.nn.functional.pad(row, (0, 0, 0, widest - len(row))) for row in row_vectors]
        )  # [B, M, d]
        vectors.requires_grad_(True)
        hidden = self.lm.hidden(layout.inputs(vectors))[layout.scored]
        spent = torch.tensor([self._budget_used(row) for row in rows], device=self.lm.device)[
            layout.scored[0]
        ]
        if self.recipe.memory_word:
            present = torch.tensor(
                [[slot < row.task.vectors for slot in range(widest)] for row in rows],
                device=self.lm.device,
            )
            own, there = vectors[layout.scored[0]], present[layout.scored[0]]
            losses, margins = memory_word_entropy(self.lm, hidden, layout.targets, own, there)
        else:
            losses, margins = self.recipe.objective(self.lm, hidden, layout.targets, spent)
        loss = (losses * layout.weights).sum()
        if self.distillation:
            steps = {index: (row.task, row.step) for index, row in enumerate(rows)}
            loss = loss + self.recipe.distillation * self.distillation(steps, vectors)
        return vectors, loss, margins.nan_to_num(-torch.inf)

    def _budget_used(self, row: Row) -> float:
        """The share of its budget, steps or seconds, that a row has used, 0 to 1."""
        return min(
            1.0, max(row.step / self.steps, row.seconds / self.seconds if self.seconds else 0.0)
        )

    def expected_steps(self, row: Row) -> int:
        """The number of steps a row will have had at its end.

        They are all or as many as its seconds allow: what the learning rate falls over.

        Where the seconds suffice for all steps the clock has no say in what is written.
        """
        return round(row.step / self._budget_used(row))

    def _keep_if_best(
        self, row: Row, margins: Float[Tensor, " T"], measured: Float[Tensor, "M d"]
    ) -> None:
        """Keeps what was measured if it is the best so far.

        Of readable memories that are equally right it keeps the last, distilled the longest.
        """
        wrong, smallest = int((margins <= 0).sum()), float(margins.min())
        row.wrong = wrong / len(margins)
        row.improved = row.step if wrong < row.best[0] else row.improved
        if self.distillation and (wrong, -min(smallest, self.recipe.margin)) <= (
            row.best[0],
            -min(-row.best[1], self.recipe.margin),
        ):
            row.best = UNMEASURED
        row.keep_if_best(wrong, smallest, measured)

    def _is_finished(self, row: Row) -> bool:
        wrong, negative_margin = row.best
        right = wrong == 0 and -negative_margin >= self.recipe.margin
        stuck = 0 < self.recipe.patience <= row.step - row.improved
        return (right and not self.distillation) or stuck or self._budget_used(row) >= 1

    def _move(self, row: Row, gradient: Float[Tensor, "M d"]) -> None:
        if not torch.isfinite(gradient).all():
            self._restart(row)
            return
        if self.recipe.clip:
            gradient = gradient * min(1.0, self.recipe.clip / (float(gradient.norm()) + 1e-12))
        rate = self.recipe.lr_at(row.step - 1, self.expected_steps(row), row.wrong)
        direction = gradient if self.recipe.optimizer == "sgd" else self._adam(row, gradient)
        unit = root_mean_square(row.vectors) if self.recipe.unit == "vectors" else self.unit
        moved = row.vectors * (1 - rate * self.recipe.decay) - rate * unit * direction
        row.vectors = moved * (row.max_rms / max(row.max_rms, root_mean_square(moved)))

    def _adam(self, row: Row, gradient: Float[Tensor, "M d"]) -> Float[Tensor, "M d"]:
        """Adam's direction. Source: Kingma & Ba 2015, algorithm 1; epsilon 1e-8."""
        beta1, beta2 = self.recipe.betas
        row.exp_avg = beta1 * row.exp_avg + (1 - beta1) * gradient
        row.exp_avg_sq = beta2 * row.exp_avg_sq + (1 - beta2) * gradient * gradient
        return (row.exp_avg / (1 - beta1**row.step)) / (
            (row.exp_avg_sq / (1 - beta2**row.step)).sqrt() + 1e-8
        )

    def _restart(self, row: Row) -> None:
        """Goes back to the best vectors, or after RESTARTS times gives the row up.

        Where these are the ones that failed it draws others. What is wrong at the end is pinned.
        """
        row.restarts += 1
        if row.restarts > RESTARTS:
            row.step = self.steps
        best = row.best_vectors
        row.vectors = (
            init_random(self.lm, row.task, self.seed + row.restarts)
            if best is None or torch.equal(best, row.vectors)
            else best
        )
        row.exp_avg, row.exp_avg_sq = torch.zeros_like(row.vectors), torch.zeros_like(row.vectors)


def root_mean_square(vectors: Float[Tensor, "M d"]) -> float:
    """The root mean square of all elements."""
    return float(vectors.square().mean().sqrt())
