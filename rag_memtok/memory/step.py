"""One optimization step of a batch: forward pass, per-row loss, update.

Each row has its own optimiser state, its own clock and its own end. A row's result does not depend
on its neighbours beyond rounding.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from rag_memtok.memory.batch import Layout, Task, lay_out, mean_start, pooled, random_start
from rag_memtok.memory.codec import Codec
from rag_memtok.memory.distill import Reading
from rag_memtok.memory.recipes import Recipe, memory_word_entropy
from rag_memtok.model.lm import LM
from rag_memtok.model.prompts import Template

UNMEASURED = (1 << 30, 0.0)
RESTARTS = 2  # after a loss that is not a number
# root mean square of a row: float16 ends at 65,504, and what is longer holds no more
LONGEST = 1024.0


@dataclass(frozen=True, slots=True, eq=False)
class Written:
    """The best vectors measured for a task.

    They have the fewest wrong tokens (end included), then the largest smallest margin (logits).
    """

    task: Task
    vectors: Float[np.ndarray, "M d"]
    wrong: int
    margin: float
    steps: int
    seconds: float


@dataclass(slots=True, eq=False)
class Row:
    """A task being written: where its optimiser stands, and what it has reached.

    The latter is the share of its tokens that are wrong, and the best it has had.

    `best`: wrong tokens, minus the smallest margin; `improved`: the step at which they last got
    fewer.
    """

    task: Task
    vectors: Float[Tensor, "M d"]
    first: Float[Tensor, "M d"]
    second: Float[Tensor, "M d"]
    step: int = 0
    seconds: float = 0.0
    restarts: int = 0
    improved: int = 0
    wrong: float = 1.0
    best: tuple[int, float] = UNMEASURED
    best_vectors: Float[Tensor, "M d"] | None = None

    def note(self, wrong: int, margin: float, measured: Float[Tensor, "M d"]) -> None:
        """Keeps `measured` if it is the best so far."""
        if (wrong, -margin) < self.best:
            self.best, self.best_vectors = (wrong, -margin), measured.clone()

    def from_best(self) -> "Row":
        """Goes on from the best vectors, to be measured anew.

        What a draft measured does not count.
        """
        if self.best_vectors is not None:
            self.vectors = self.best_vectors
        self.best, self.best_vectors = UNMEASURED, None
        return self

    def written(self) -> Written:
        """What has come of it."""
        vectors = self.vectors if self.best_vectors is None else self.best_vectors
        return Written(
            self.task, vectors.cpu().numpy(), self.best[0], -self.best[1], self.step, self.seconds
        )


def started(lm: LM, recipe: Recipe, task: Task, seed: int) -> Row:
    """A row at its start."""
    starts = {
        "pooled": lambda: pooled(lm, task),
        "mean": lambda: mean_start(lm, task),
        "random": lambda: random_start(lm, task, seed),
    }
    vectors = starts[recipe.start]()
    return Row(task, vectors, torch.zeros_like(vectors), torch.zeros_like(vectors))


BeforeStep = Callable[[Row], None]


def untouched(row: Row) -> None:
    """Leaves a row as it is."""


@dataclass(slots=True, eq=False)
class Batch:
    """The rows that share a forward pass, and how a step is taken.

    At most `steps` of a row are taken, and `seconds` (0: no bound).

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
    reading: Reading | None = None
    before_step: BeforeStep = untouched
    rows: list[Row] = field(default_factory=list)
    layout: Layout | None = None
    unit: float = 1.0

    def __post_init__(self) -> None:
        if self.recipe.unit == "table":
            self.unit = float(self.lm.table.float().std())

    def step(self) -> list[Row]:
        """Measures every row, moves those that are not done, and returns those that are.

        It lets go of those that it returns.
        """
        began = time.monotonic()
        if self.layout is None:
            self.layout = lay_out(self.lm, self.template, [row.task for row in self.rows])
        for row in self.rows:
            self.before_step(row)
        measured, gradients, margins = self._measure(self.layout)
        per_row = margins.cpu().split([len(row.task.tokens) + 1 for row in self.rows])
        done = []
        for index, (row, found) in enumerate(zip(self.rows, per_row, strict=True)):
            row.step += 1
            self._note(row, found, measured[index, : row.task.vectors])
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

    def _measure(
        self, layout: Layout
    ) -> tuple[Float[Tensor, "B M d"], Float[Tensor, "B M d"], Float[Tensor, " P"]]:
        """Vectors, the gradient of each row's own mean loss, and the margins, by position."""
        widest = max(row.task.vectors for row in self.rows)
        each = [self.codec.rounded(row.vectors) if self.codec else row.vectors for row in self.rows]
        vectors = torch.stack(
            [torch.nn.functional.pad(one, (0, 0, 0, widest - len(one))) for one in each]
        )
        vectors.requires_grad_(True)
        hidden = self.lm.hidden(layout.inputs(vectors))[layout.scored]
        spent = torch.tensor([self._spent(row) for row in self.rows], device=self.lm.device)[
            layout.scored[0]
        ]
        if self.recipe.memory_word:
            present = torch.tensor(
                [[slot < row.task.vectors for slot in range(widest)] for row in self.rows],
                device=self.lm.device,
            )
            own, there = vectors[layout.scored[0]], present[layout.scored[0]]
            losses, margins = memory_word_entropy(self.lm, hidden, layout.targets, own, there)
        else:
            losses, margins = self.recipe.objective(self.lm, hidden, layout.targets, spent)
        loss = (losses * layout.weights).sum()
        if self.reading:
            asked = {index: (row.task, row.step) for index, row in enumerate(self.rows)}
            loss = loss + self.recipe.reading * self.reading(asked, vectors)
        (gradient,) = torch.autograd.grad(loss, vectors)
        return vectors.detach(), gradient, margins.nan_to_num(-torch.inf)

    def _spent(self, row: Row) -> float:
        """The share of its budget, steps or seconds, that a row has used."""
        return min(
            1.0, max(row.step / self.steps, row.seconds / self.seconds if self.seconds else 0.0)
        )

    def expected_steps(self, row: Row) -> int:
        """How many steps a row will have had at its end.

        They are all or as many as its seconds allow: what the learning rate falls over.

        Where the seconds suffice for all steps the clock has no say in what is written.
        """
        return round(row.step / self._spent(row))

    def _note(self, row: Row, margins: Float[Tensor, " T"], measured: Float[Tensor, "M d"]) -> None:
        """Keeps what was measured if it is the best so far.

        Of readable memories that hold alike it keeps the last, which was read the most.
        """
        wrong, smallest = int((margins <= 0).sum()), float(margins.min())
        row.wrong = wrong / len(margins)
        row.improved = row.step if wrong < row.best[0] else row.improved
        if self.reading and (wrong, -min(smallest, self.recipe.margin)) <= (
            row.best[0],
            -min(-row.best[1], self.recipe.margin),
        ):
            row.best = UNMEASURED
        row.note(wrong, smallest, measured)

    def _finished(self, row: Row) -> bool:
        wrong, negative_margin = row.best
        right = wrong == 0 and -negative_margin >= self.recipe.margin
        stuck = 0 < self.recipe.patience <= row.step - row.improved
        return (right and not self.reading) or stuck or self._spent(row) >= 1

    def _move(self, row: Row, gradient: Float[Tensor, "M d"]) -> None:
        if not torch.isfinite(gradient).all():
            self._restart(row)
            return
        if self.recipe.clip:
            gradient = gradient * min(1.0, self.recipe.clip / (float(gradient.norm()) + 1e-12))
        rate = self.recipe.lr_at(row.step - 1, self.expected_steps(row), row.wrong)
        direction = gradient if self.recipe.optimiser == "sgd" else self._adam(row, gradient)
        unit = root_mean_square(row.vectors) if self.recipe.unit == "vectors" else self.unit
        moved = row.vectors * (1 - rate * self.recipe.decay) - rate * unit * direction
        row.vectors = moved * (LONGEST / max(LONGEST, root_mean_square(moved)))

    def _adam(self, row: Row, gradient: Float[Tensor, "M d"]) -> Float[Tensor, "M d"]:
        """Adam's direction. Source: Kingma & Ba 2015, algorithm 1; epsilon 1e-8."""
        one, two = self.recipe.betas
        row.first = one * row.first + (1 - one) * gradient
        row.second = two * row.second + (1 - two) * gradient * gradient
        return (row.first / (1 - one**row.step)) / (
            (row.second / (1 - two**row.step)).sqrt() + 1e-8
        )

    def _restart(self, row: Row) -> None:
        """Goes back to the best vectors, or after RESTARTS times gives the row up.

        What is wrong then is pinned.
        """
        row.restarts += 1
        if row.restarts > RESTARTS:
            row.step = self.steps
        row.vectors = (
            random_start(self.lm, row.task, self.seed + row.restarts)
            if row.best_vectors is None
            else row.best_vectors
        )
        row.first, row.second = torch.zeros_like(row.vectors), torch.zeros_like(row.vectors)


def root_mean_square(vectors: Float[Tensor, "M d"]) -> float:
    """Of all their elements."""
    return float(vectors.square().mean().sqrt())
