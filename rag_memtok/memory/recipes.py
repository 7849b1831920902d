"""Recipes: how a memory is optimized.

A recipe is an objective, an initialization, an optimizer and a stop: one row of RECIPES adds one.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rag_memtok.config import Memorize
from rag_memtok.errors import named
from rag_memtok.model.lm import LM

SETTLED = 0.2  # of the learning rate, where all is right
COLDEST = 0.01  # logits: a maximum that is hardly softened


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Objective, initialization, optimizer and stopping rule of an optimization.

    `lr` is in units of the root mean square of the row's own vectors as they are (`unit` "vectors":
    see below), of the embedding table's standard deviation ("table"), or in its own ("one").
    `margin` (logits): a row is done when every right token leads by this; 0 stops at the first step
    where every argmax is right, the default leaves no token so near to a safety pin that one pass
    of the judge does not decide. `settle`: the rate falls with what is left to do, too, see
    `lr_at`.
    `steps` are the most that a row takes where the config says nothing else. `low_precision`:
    whether most of them may be in bfloat16. `straight_through`: whether the loss is that of the
    vectors as they will be stored, so that a row ends right as it comes back. `decay`: AdamW's, a
    vector shrinks by `lr * decay` a step. `patience`: a row ends after so many steps without a
    wrong token less (0: it does not). `memory_word`: each vector is a token of the vocabulary as
    well, see `memory_word_entropy`, which then takes the place of `objective`. `distillation`: the
    weight of the distillation loss (distill.py, `questions_per_step` questions a step) beside the
    reconstruction loss; such a row uses all its steps, the last ones for reconstruction alone at
    `last_lr`.

    A rate relative to the vectors lets them grow as far as they are worth, and they want to: a long
    vector is hardly changed by what the layers add to it, and many more tokens fit. In units of the
    table the same takes a rate, and a warm-up to it, chosen for each length. Source of the idea:
    You et al. 2020, arXiv:1904.00962 (LAMB's trust ratio).
    """

    objective: "Objective"
    start: Literal["pooled", "residual", "random", "mean"] = "pooled"
    optimizer: Literal["adam", "sgd"] = "adam"
    lr: float = 0.85
    unit: Literal["vectors", "table", "one"] = "vectors"
    betas: tuple[float, float] = (0.9, 0.9)
    first_lr: float = 0.0
    last_lr: float = 0.0
    warmup: int = 10
    cosine: bool = True
    settle: bool = False
    clip: float = 1.0
    margin: float = 0.105
    steps: int = 500
    template: str = ""
    low_precision: bool = True
    straight_through: bool = True
    distillation: float = 0.0
    questions_per_step: int = 2
    decay: float = 0.0
    patience: int = 0
    memory_word: bool = False

    def lr_at(self, step: int, steps: int, wrong: float = 1.0) -> float:
        """The learning rate of step `step` (from 0) of `steps`.

        `wrong` is the share of the row's tokens that is wrong.

        By the clock: linear to `lr`, then level or half a cosine to `last_lr`. The first step has
        `first_lr`; if that is 0, which would move nothing, the rate of the second.

        With `settle` also by what is left, whichever is less: `lr` times the root of `wrong`,
        SETTLED at least. The least loss is known, 0, so strides may shrink as it is neared; the
        root of that share falls about as the distance does under a squared hinge. Source of the
        idea: Polyak 1987, Introduction to Optimization (step sizes for a known minimum).
        """
        by_clock = self._by_clock(step, steps)
        return min(by_clock, self.lr * max(SETTLED, math.sqrt(wrong))) if self.settle else by_clock

    def _by_clock(self, step: int, steps: int) -> float:
        if step < self.warmup:
            return (
                self.first_lr
                + (self.lr - self.first_lr) * (step if self.first_lr else step + 1) / self.warmup
            )
        if not self.cosine:
            return self.lr
        share = 0.5 * (1 + math.cos(math.pi * (step - self.warmup) / max(1, steps - self.warmup)))
        return self.last_lr + (self.lr - self.last_lr) * share


LossesAndMargins = tuple[Float[Tensor, " P"], Float[Tensor, " P"]]
Objective = Callable[
    [LM, Float[Tensor, "P d"], Int[Tensor, " P"], Float[Tensor, " P"]], LossesAndMargins
]
"""(lm, hidden, targets, spent) -> loss per position, margin per position.

The margin, detached, is that of each target over the best other token (logits).

`spent` is the share of its steps (or seconds) that the position's row has used, 0 to 1.
"""


def cross_entropy(
    lm: LM, hidden: Float[Tensor, "P d"], targets: Int[Tensor, " P"], spent: Float[Tensor, " P"]
) -> LossesAndMargins:
    """Cross-entropy of the targets in nats, whatever is `spent`."""
    logits = lm.logits(hidden)
    with torch.no_grad():
        margins = margins_and_rivals(logits.clone(), targets)[0]
    return torch.nn.functional.cross_entropy(logits, targets, reduction="none"), margins


def memory_word_entropy(
    lm: LM,
    hidden: Float[Tensor, "P d"],
    targets: Int[Tensor, " P"],
    vectors: Float[Tensor, "P M d"],
    present: Bool[Tensor, "P M"],
) -> LossesAndMargins:
    """Cross-entropy over a vocabulary widened by a token for each memory vector.

    It is as where a `<MEMORY>` token is added to the model.

    Where the embeddings are tied a vector is an output row, too: its logit is `hidden @ vector`,
    and the gradient reaches the vector both ways. Where they are not, the row that was added stays
    what it was made, the mean of all rows; its logit is the mean logit. A decode has no such
    tokens; here they are rivals, for the loss, the margin and so the stop.

    Args:
        vectors: of the position's row; `present` says which of them are not padding.
    """
    logits = lm.logits(hidden)
    memory_logits = (
        torch.einsum("pd,pmd->pm", hidden.float(), vectors)
        if lm.is_tied
        else logits.mean(1, keepdim=True).expand(present.shape)
    )
    logits = torch.cat([logits, memory_logits.masked_fill(~present, -torch.inf)], dim=1)
    margins = margins_and_rivals(logits.detach().clone(), targets)[0]
    return torch.nn.functional.cross_entropy(logits, targets, reduction="none"), margins


def margin_hinge(
    delta: float,
    power: float,
    first: float | None = None,
    rivals: int = 1,
    temperature: float = 1.0,
) -> Objective:
    """The loss `relu(delta - lead) ** p`.

    It is 0 for what is right already, and largest for what is furthest behind. The lead is that
    over the strongest `rivals` tokens together, a maximum softened by `temperature` (logits), which
    falls to nothing with the budget: over the first alone a step pushes that one down and the next
    takes its place, over all of them less is left to give where a text hardly fits.

    `p` rises from `first` (None: from `power`) to `power` over the first tenth of a row's budget.
    Below 1 what is nearly right pulls hardest: at first most tokens are far behind, each with a
    rival of its own, and those that can be had soon pull the rest along. In the end the last ones
    have to come, one by one with p 1, together with 2; a third of all steps are saved. Source of
    the idea: graduated non-convexity, Blake & Zisserman 1987, here begun where it usually ends.

    In the last fifth `p` falls to 1: with 2 the hopeless ones pull hardest, and a row that will not
    hold its text is better off with p 1, which gives them up and gets the others right
    (benchmarks/log.md).

    The rivals are found without gradient; the gradient then needs a few rows of the output layer
    for each position, not all V.
    """
    begun = power if first is None else first

    def objective(
        lm: LM, hidden: Float[Tensor, "P d"], targets: Int[Tensor, " P"], spent: Float[Tensor, " P"]
    ) -> LossesAndMargins:
        with torch.no_grad():
            margins, found = margins_and_rivals(lm.raw_logits(hidden), targets, rivals)
        output_layer = lm.model.get_output_embeddings()
        difference = output_layer.weight[targets][:, None] - output_layer.weight[found]  # [P, R, d]
        leads = torch.einsum("pd,prd->pr", hidden, difference).float()
        if output_layer.bias is not None:
            leads = leads + output_layer.bias[targets][:, None] - output_layer.bias[found]
        softness = (temperature * (1 - spent)).clamp(min=COLDEST)
        lead = -softness * torch.logsumexp(-leads / softness[:, None], dim=1)
        risen = begun + (power - begun) * (spent / 0.1).clamp(0, 1)
        exponent = 1 + (risen - 1) * ((1 - spent) / 0.2).clamp(0, 1)
        return torch.relu(delta - lead) ** exponent, margins

    return objective


def margins_and_rivals(
    logits: Float[Tensor, "P V"], targets: Int[Tensor, " P"], rivals: int = 1
) -> tuple[Float[Tensor, " P"], Int[Tensor, "P R"]]:
    """The margin of the target over the best other token, in logits; and the best `rivals` others.

    `logits` is overwritten: a copy costs more than the search.
    """
    positions = torch.arange(len(targets), device=targets.device)
    right = logits[positions, targets]
    logits[positions, targets] = -torch.inf  # scatter_ in bfloat16 takes longer than the search
    best, index = logits.topk(min(rivals, logits.shape[1] - 1), dim=1)
    return right.float() - best[:, 0].float(), index


# Sastre & Rosa 2025, arXiv:2506.15001, "<MEMORY>{text}<eos>". The paper's schedule, and what its
# public code does: a constant rate, and a token that is added to the vocabulary. Both start where
# transformers puts an added token, at the mean of the embeddings. Two things are ours: the best
# vector measured is kept, not the last one, and the numbers are fp32, not fp16.
SASTRE = Recipe(
    objective=cross_entropy, start="mean", optimizer="sgd", unit="one", lr=1.0, first_lr=0.2,
    warmup=100, cosine=False, clip=0.0, margin=0.0, steps=3000, template="sastre2025",
    low_precision=False, straight_through=False,
)  # fmt: skip

# Kuratov et al. 2025, arXiv:2502.13063, and its public code. There neither the text's first token
# nor its end is scored; here all are, as for every recipe.
KURATOV = Recipe(
    objective=cross_entropy, start="random", unit="one", lr=0.01, warmup=0, cosine=False, clip=0.0,
    margin=0.0, steps=5000, template="kuratov2025", low_precision=False, straight_through=False,
    decay=0.01, patience=2000,
)  # fmt: skip

# Tarasov et al. 2026, Progressive Cramming: its optimizer, on the whole text at once, not on a
# token more at a time. Its lr is 0.1 for embeddings of about 0.02, falling to 0.001, weight decay
# 0.01.
CRAMMING = Recipe(
    objective=cross_entropy, start="random", unit="table", lr=5.0, last_lr=0.05, warmup=100,
    clip=0.0, margin=0.0, steps=10_000, template="kuratov2025", low_precision=False,
    straight_through=False, decay=0.0002,
)  # fmt: skip

RECIPES: dict[str, Recipe] = {
    "margin": Recipe(
        objective=margin_hinge(0.5, power=2.0, first=0.7, rivals=8, temperature=0.5),
        start="residual",
        settle=True,
    ),
    "readable": Recipe(
        objective=margin_hinge(0.5, power=2.0),
        lr=0.5,
        last_lr=0.03,
        distillation=3.0,
        steps=300,
        template="cue",
    ),
    "cross-entropy": Recipe(objective=cross_entropy, start="residual", settle=True),
    "sastre2025": SASTRE,
    "sastre2025-code": replace(SASTRE, lr=5.0, first_lr=0.0, warmup=0, memory_word=True),
    "kuratov2025": KURATOV,
    "cramming2026": CRAMMING,
}


# what --write takes where no recipe is named
DEFAULT_RECIPES = {"exact": "margin", "readable": "readable"}


def recipe_of(settings: Memorize) -> str:
    """The name of the recipe that `settings` ask for."""
    return settings.recipe or DEFAULT_RECIPES[settings.write or "exact"]


def steps_of(settings: Memorize) -> int:
    """The most steps a row takes: as told, else the recipe's own."""
    return settings.steps or recipe_named(recipe_of(settings)).steps


def recipe_named(name: str) -> Recipe:
    """Returns the recipe `name`.

    Raises:
        UsageError: there is none of that name.
    """
    return named("recipe", RECIPES, name)
