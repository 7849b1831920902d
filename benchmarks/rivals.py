"""The rows of write.py: the published ways of writing a memory, ours, and how each is run.

Imported by it; by itself it does nothing.

As published are the recipes that the package has by name. Beside them, only tuned, stands what the
authors of Progressive Cramming have tried since on top of its optimizer: cross-entropy at a
temperature, a row that ends only when every token leads by half a logit, cross-entropy weighted by
what a token lacks of that lead, and vectors confined to fewer directions.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rag_memtok.config import Memorize
from rag_memtok.errors import UsageError
from rag_memtok.memory.recipes import RECIPES as KNOWN
from rag_memtok.memory.recipes import (
    LossesAndMargins,
    Objective,
    Recipe,
    cross_entropy,
    margins_and_rivals,
)
from rag_memtok.memory.step import BeforeStep, Row, leave_unchanged
from rag_memtok.model.lm import LM

OURS = "margin"
CRAMMING = "cramming2026"
LEAD = 0.5  # logits: the convergence margin
GROWTH = 32  # tokens by which a text grows
DIRECTIONS = 256
PUBLISHED, ENGINE = "published", "engine"  # both with the recipe's own steps
# factors of a recipe's own learning rate; three are tried, more where the best stands at an edge
LADDER = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
RATES = (1.0, 3.0, 10.0)
WARMUPS = (20, 100)  # steps


# --- objectives


def tempered(temperature: float) -> Objective:
    """Cross-entropy of the logits divided by `temperature`: the colder, the nearer to a hinge."""

    def objective(
        lm: LM, hidden: Float[Tensor, "P d"], targets: Int[Tensor, " P"], spent: Float[Tensor, " P"]
    ) -> LossesAndMargins:
        logits = lm.logits(hidden)
        with torch.no_grad():
            margins, _ = margins_and_rivals(logits.clone(), targets)
        losses = torch.nn.functional.cross_entropy(logits / temperature, targets, reduction="none")
        return losses, margins

    return objective


def weighted_by_deficit(lead: float) -> Objective:
    """Cross-entropy, each token weighted by what it lacks of a margin of `lead` logits.

    The weights get no gradient. Not divided by their sum, as the public code does it: AdamW's steps
    hardly depend on a row's scale.
    """

    def objective(
        lm: LM, hidden: Float[Tensor, "P d"], targets: Int[Tensor, " P"], spent: Float[Tensor, " P"]
    ) -> LossesAndMargins:
        losses, margins = cross_entropy(lm, hidden, targets, spent)
        return losses * (lead - margins).clamp(min=0), margins

    return objective


# --- ways of writing


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """A way of writing: a recipe, and what it does beside.

    Args:
        growth: the text grows by so many tokens whenever all of it is right (0: whole at once).
        directions: the vectors stay in so many directions, drawn once (0: in all).
        published: whether it is run with its own steps as well.
    """

    recipe: Recipe
    growth: int = 0
    directions: int = 0
    published: bool = False


def ways() -> dict[str, Way]:
    """Every way but ours, by name."""
    cramming = KNOWN[CRAMMING]
    public = ("sastre2025", "sastre2025-code", "kuratov2025", CRAMMING)
    return {name: Way(recipe=KNOWN[name], published=True) for name in public} | {
        f"{CRAMMING}, growing": Way(recipe=cramming, growth=GROWTH, published=True),
        "temperature 0.25": Way(recipe=replace(cramming, objective=tempered(0.25))),
        "temperature 0.5": Way(recipe=replace(cramming, objective=tempered(0.5))),
        "convergence margin": Way(recipe=replace(cramming, margin=LEAD)),
        "margin deficit": Way(
            recipe=replace(cramming, objective=weighted_by_deficit(LEAD), margin=LEAD)
        ),
        f"{DIRECTIONS} directions": Way(recipe=cramming, directions=DIRECTIONS),
    }


def confined(lm: LM, directions: int, seed: int) -> BeforeStep:
    """Keeps the vectors in `directions` random directions of the embedding space."""
    if not 0 < directions < lm.width:
        return leave_unchanged
    drawn = torch.randn(lm.width, directions, generator=torch.Generator().manual_seed(seed))
    basis = torch.linalg.qr(drawn).Q.to(lm.device)  # [d, r]

    def project(row: Row) -> None:
        row.vectors = row.vectors @ basis @ basis.T

    return project


# --- cells and rows


@dataclass(frozen=True, slots=True)
class Cell:
    """Texts of these lengths (tokens, in turn), each in so many vectors."""

    lengths: tuple[int, ...]
    vectors: int

    @property
    def name(self) -> str:
        """As the command line has it: `32:1`, `2+3+4:1`."""
        return f"{'+'.join(map(str, self.lengths))}:{self.vectors}"

    @property
    def title(self) -> str:
        """For people."""
        lengths = ", ".join(map(str, self.lengths))
        return f"{lengths} tokens in {self.vectors} vector{'s' * (self.vectors > 1)}"


def cells(text: str) -> tuple[Cell, ...]:
    """`32:1,128:4` as cells.

    Raises:
        UsageError: it is something else.
    """
    try:
        found = [part.partition(":") for part in text.split(",")]
        return tuple(
            Cell(tuple(int(one) for one in lengths.split("+")), int(vectors))
            for lengths, _, vectors in found
        )
    except ValueError:
        raise UsageError(
            f"--cells {text!a} is no list of cells", remedy="TOKENS:VECTORS, as 32:1,64:1,128:4"
        ) from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """A row of the table: a way of writing, how it is run, and in which cell."""

    name: str
    variant: str
    cell: Cell
    way: Way
    settings: Memorize

    @property
    def key(self) -> str:
        """The key of its results in the ledger."""
        return f"{self.name}/{self.variant}/{self.cell.name}"

    @property
    def is_alone(self) -> bool:
        """Whether a text is written by itself, in float32."""
        return self.variant == PUBLISHED


def contender(
    base: Memorize, name: str, *, variant: str, cell: Cell, way: Way, steps: int = 0
) -> Contender:
    """The way `name` in one of its variants; at most `steps` steps, if given.

    `base` has the template, the codec, the batch and the seed that rows share.
    """
    alone = variant == PUBLISHED
    recipe = way.recipe if alone else replace(way.recipe, low_precision=True)
    settings = replace(
        base,
        template=recipe.template or base.template,
        batch=1 if alone else base.batch,
        draft="float32" if alone else "auto",
        seconds_per_chunk=0.0,
    )
    return Contender(
        name=name,
        variant=variant,
        cell=cell,
        way=replace(way, recipe=replace(recipe, steps=steps or recipe.steps)),
        settings=settings,
    )


def can_grow(way: Way, cell: Cell) -> bool:
    """Whether the way differs from the whole text at once there."""
    return not way.growth or max(cell.lengths) > way.growth


# --- tuning

Setting = tuple[float, int]
"""A factor of the learning rate, and the steps of the warm-up."""
Score = tuple[int, int, int]
"""Texts exact, minus the tokens wrong, minus the row-steps: more is better."""


def tuned(way: Way, setting: Setting) -> Way:
    """`way` with another learning rate and warm-up."""
    rate, warmup = setting
    recipe = way.recipe
    return replace(
        way,
        recipe=replace(
            recipe,
            lr=rate * recipe.lr,
            first_lr=rate * recipe.first_lr,
            last_lr=rate * recipe.last_lr,
            warmup=warmup,
        ),
    )


def settings_to_try(scores: dict[Setting, Score]) -> list[Setting]:
    """The settings that are tried, given what is known of some.

    Six; and where the best of all stands at the lowest or highest rate, one beyond it, until it
    does not.
    """
    settings = [(rate, warmup) for rate in RATES for warmup in WARMUPS]
    while all(setting in scores for setting in settings):
        beyond = _beyond(best_setting(settings, scores), [rate for rate, _ in settings])
        if beyond is None:
            break
        settings.append(beyond)
    return settings


def best_setting(settings: Sequence[Setting], scores: dict[Setting, Score]) -> Setting:
    """The best of `settings`, all of which have scores; of equals the first."""
    return max(settings, key=lambda setting: scores[setting])


def _beyond(best: Setting, rates: Sequence[float]) -> Setting | None:
    rate, warmup = best
    place = LADDER.index(rate)
    if rate == min(rates) and place > 0:
        return LADDER[place - 1], warmup
    if rate == max(rates) and place + 1 < len(LADDER):
        return LADDER[place + 1], warmup
    return None
