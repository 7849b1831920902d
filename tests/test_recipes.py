"""What the public recipes are, held against torch's own optimisers and schedules.

They are held against transformers' own models, too.
"""

import copy

import pytest
import torch
from transformers import get_scheduler

from rag_memtok.config import Memorize
from rag_memtok.memory.batch import Task
from rag_memtok.memory.optimize import memorize
from rag_memtok.memory.recipes import RECIPES, margin_hinge, memory_word_entropy
from rag_memtok.memory.reconstruct import ONE_PASS_ERROR, is_decided
from rag_memtok.memory.step import Batch, start_row
from rag_memtok.model.prompts import template_named

TOKENS = (70, 31, 200, 45, 99, 301, 8, 122, 17, 260)
STEPS = 4


def batch_of(one, name, *tasks):
    recipe = RECIPES[name]
    template = template_named(recipe.template, one)
    return Batch(
        lm=one,
        template=template,
        recipe=recipe,
        steps=recipe.steps,
        seconds=0.0,
        seed=0,
        rows=[start_row(one, recipe, task, 0) for task in tasks],
    )


def vectors_after(one, name, task, steps):
    batch = batch_of(one, name, task)
    for _ in range(steps):
        assert not batch.step()
    return batch.rows[0].vectors


# --- the schedules


@pytest.mark.parametrize(
    "name, rates",
    [
        ("sastre2025", {0: 0.2, 50: 0.6, 100: 1.0, 2999: 1.0}),
        ("sastre2025-code", {0: 5.0, 2999: 5.0}),
        ("kuratov2025", {0: 0.01, 4999: 0.01}),
        ("cramming2026", {0: 0.05, 49: 2.5, 99: 5.0, 5050: 2.525, 10_000: 0.05}),
    ],
)
def test_the_learning_rate_is_the_published_one(name, rates):
    recipe = RECIPES[name]
    for step, rate in rates.items():
        assert recipe.lr_at(step, recipe.steps) == pytest.approx(rate)


def test_the_papers_rate_rises_as_torchs_linear_schedule():
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = torch.optim.lr_scheduler.LinearLR(
        optimiser, start_factor=0.2, end_factor=1.0, total_iters=100
    )
    for step in range(120):
        assert RECIPES["sastre2025"].lr_at(step, 3000) == pytest.approx(schedule.get_last_lr()[0])
        optimiser.step()
        schedule.step()


def test_crammings_rate_falls_as_transformers_cosine_and_is_theirs_in_embeddings_of_theirs():
    recipe, optimiser = (
        RECIPES["cramming2026"],
        torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1),
    )
    schedule = get_scheduler(
        "cosine_with_min_lr", optimiser, 100, 400, scheduler_specific_kwargs={"min_lr": 1e-3}
    )
    for step in range(400):
        schedule_step = step + 1 if step < 100 else step  # theirs begins with a step of rate 0
        rate = 0.1 * schedule.lr_lambdas[0](schedule_step)
        assert 0.02 * recipe.lr_at(step, 400) == pytest.approx(rate), step
    assert recipe.lr * recipe.decay == pytest.approx(0.1 * 0.01)  # what a step shrinks a vector by


def test_limits_starts_and_templates_are_the_published_ones(toy_lm):
    assert {name: RECIPES[name].steps for name in RECIPES if "20" in name} == {
        "sastre2025": 3000, "sastre2025-code": 3000, "kuratov2025": 5000, "cramming2026": 10_000,
    }  # fmt: skip
    for name in ("sastre2025", "sastre2025-code"):
        template = template_named(RECIPES[name].template, toy_lm)
        assert (template.prefix, template.suffix, template.end) == ((), (), toy_lm.eos)
        start = start_row(toy_lm, RECIPES[name], Task("x", TOKENS, 2), 0).vectors
        assert torch.allclose(start, toy_lm.table.mean(0).expand(2, -1))
    random = start_row(toy_lm, RECIPES["kuratov2025"], Task("x", TOKENS, 8), 0).vectors
    assert random.std() == pytest.approx(float(toy_lm.table.std()), rel=0.1)
    assert all(
        RECIPES[name].margin == 0 and not RECIPES[name].clip and not RECIPES[name].low_precision
        for name in RECIPES
        if "20" in name
    )


# --- the steps


def optimisers(name, memory, std):
    if name == "sastre2025":
        optimiser = torch.optim.SGD([memory], lr=1.0)
        return optimiser, torch.optim.lr_scheduler.LinearLR(
            optimiser, start_factor=0.2, end_factor=1.0, total_iters=100
        )
    if name == "kuratov2025":
        optimiser = torch.optim.AdamW([memory], lr=0.01, betas=(0.9, 0.9), weight_decay=0.01)
        return optimiser, torch.optim.lr_scheduler.ConstantLR(optimiser, 1.0)
    scale = std / 0.02
    optimiser = torch.optim.AdamW(
        [memory], lr=0.1 * scale, betas=(0.9, 0.9), weight_decay=0.01 / scale
    )
    schedule = get_scheduler(
        "cosine_with_min_lr",
        optimiser,
        100,
        10_000,
        scheduler_specific_kwargs={"min_lr": 1e-3 * scale},
    )
    schedule.step()
    return optimiser, schedule


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
@pytest.mark.parametrize("name", ["sastre2025", "kuratov2025", "cramming2026"])
def test_a_few_steps_are_those_of_torchs_own_optimiser(any_lm, name):
    task = Task("x", TOKENS, 2)
    memory = start_row(any_lm, RECIPES[name], task, 0).vectors.clone().requires_grad_()
    optimiser, schedule = optimisers(name, memory, float(any_lm.table.std()))
    for _ in range(STEPS):
        inputs = torch.cat([memory, any_lm.embed(TOKENS)])
        logits = any_lm.model(inputs_embeds=inputs[None]).logits[0, 1:]
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(logits, torch.tensor([*TOKENS, any_lm.eos])).backward()
        optimiser.step()
        schedule.step()
    found = vectors_after(any_lm, name, task, STEPS)
    assert (found - memory.detach()).norm() < 1e-3 * (
        found - start_row(any_lm, RECIPES[name], task, 0).vectors
    ).norm()


def with_an_added_word(one, tokens, steps):
    """What the public code does: a word is added to the model, and SGD moves its row alone.

    Returns the row and the last logits.
    """
    model, word = copy.deepcopy(one.model), one.table.shape[0]
    model.resize_token_embeddings(word + 1, mean_resizing=False)
    table, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    with torch.no_grad():
        for matrix in (table, head):
            matrix[word] = matrix[:word].mean(0)
    table.requires_grad_(True)
    optimiser, mask = torch.optim.SGD([table], lr=5.0), torch.zeros_like(table)
    mask[word] = 1
    for _ in range(steps):
        optimiser.zero_grad()
        logits = model(torch.tensor([[word, *tokens]])).logits[0]
        torch.nn.functional.cross_entropy(logits, torch.tensor([*tokens, one.eos])).backward()
        table.grad *= mask
        optimiser.step()
    return table[word].detach(), logits.detach()


def test_the_codes_steps_are_those_of_a_model_with_an_added_word(any_lm):
    expected, logits = with_an_added_word(any_lm, TOKENS, STEPS)
    batch = batch_of(any_lm, "sastre2025-code", Task("x", TOKENS, 1))
    start = batch.rows[0].vectors
    for _ in range(STEPS - 1):
        batch.step()
    batch.rows[0].best = (1 << 30, 0.0)
    batch.step()
    assert (batch.rows[0].vectors[0] - expected).norm() < 1e-3 * (expected - start[0]).norm()
    targets = torch.tensor([*TOKENS, any_lm.eos])
    assert batch.rows[0].best[0] == int((logits.argmax(-1) != targets).sum())


def test_the_memorys_own_word_is_a_rival_and_padding_is_none(any_lm):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(3, any_lm.width, generator=generator)
    vectors = torch.stack([torch.stack([100 * state, torch.zeros_like(state)]) for state in hidden])
    targets = any_lm.logits(hidden).argmax(-1)
    absent, one, both = (
        torch.tensor(row).expand(3, -1) for row in ([False, False], [True, False], [True, True])
    )
    plain, margins = memory_word_entropy(any_lm, hidden, targets, vectors, absent)
    assert torch.allclose(
        plain, torch.nn.functional.cross_entropy(any_lm.logits(hidden), targets, reduction="none")
    )
    assert (margins > 0).all()
    losses, leads = memory_word_entropy(any_lm, hidden, targets, vectors, one)
    assert (losses > plain).all() and bool((leads < 0).all()) == any_lm.is_tied
    more, _ = memory_word_entropy(any_lm, hidden, targets, vectors, both)
    assert (more > losses).all() or any_lm.is_tied  # a tied row of zeros has the logit 0


def test_rows_of_different_width_do_not_see_each_others_words(toy_lm):
    one, other = Task("x", TOKENS, 1), Task("y", TOKENS[::-1], 3)
    together = batch_of(toy_lm, "sastre2025-code", one, other)
    together.step()
    for task, row in zip((one, other), together.rows, strict=True):
        assert torch.allclose(
            row.vectors, vectors_after(toy_lm, "sastre2025-code", task, 1), rtol=1e-3, atol=1e-3
        )


# --- the stop


@pytest.mark.parametrize("name", ["sastre2025", "kuratov2025"])
def test_writing_stops_at_the_first_step_where_every_argmax_is_right(toy_lm, name):
    seen = []
    template = template_named(RECIPES[name].template, toy_lm)
    task, settings = Task("x", TOKENS[:3], 1), Memorize(seconds_per_chunk=0.0, recipe=name)
    (written,) = memorize(toy_lm, template, [task], settings, on_step=seen.append)
    assert written.wrong == 0 and written.margin > 0
    assert [progress.right for progress in seen] == [0] * (len(seen) - 1) + [1]
    assert written.steps == len(seen) > 1


# --- ours


@pytest.mark.parametrize("name", ["margin", "readable", "cross-entropy"])
def test_what_ends_a_row_leaves_one_pass_of_the_judge_nothing_open(name):
    """Else a chunk that just came right is audited token by token."""
    margin, tau = RECIPES[name].margin, Memorize().tau
    assert all(is_decided(margin + off, 0.0, tau) for off in (-ONE_PASS_ERROR, ONE_PASS_ERROR))
    assert margin - ONE_PASS_ERROR > tau


@pytest.mark.parametrize(
    "first, exponents",
    [
        (0.7, {0.0: 0.7, 0.05: 1.35, 0.1: 2.0, 0.5: 2.0, 0.8: 2.0, 0.9: 1.5, 1.0: 1.0}),
        (None, {0.0: 2.0, 0.05: 2.0, 0.5: 2.0, 0.9: 1.5, 1.0: 1.0}),
    ],
)
def test_the_hinges_power_rises_over_a_tenth_of_the_budget_and_falls_over_a_fifth(
    any_lm, first, exponents
):
    hidden = torch.randn(12, any_lm.width, generator=torch.Generator().manual_seed(3))
    logits = any_lm.logits(hidden)
    targets = logits.argmax(1)  # right by some lead
    targets[:9] = torch.arange(20, 29)  # and wrong
    rivals = logits.scatter(1, targets[:, None], -torch.inf).amax(1)
    behind = (0.5 - (logits.gather(1, targets[:, None])[:, 0] - rivals)).clamp(min=0)
    assert (behind > 0).sum() >= 9
    for spent, exponent in exponents.items():
        objective = margin_hinge(0.5, 2.0, first)
        losses, margins = objective(any_lm, hidden, targets, torch.full((12,), spent))
        torch.testing.assert_close(losses, behind**exponent, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close((0.5 - margins).clamp(min=0), behind, rtol=1e-3, atol=1e-4)


def test_several_rivals_are_one_whose_logit_is_a_maximum_ever_less_soft(any_lm):
    """The margin that ends a row is over the strongest alone."""
    draw = torch.Generator().manual_seed(3)
    hidden, targets = torch.randn(12, any_lm.width, generator=draw), torch.arange(20, 32)
    logits = any_lm.logits(hidden)
    right = logits.gather(1, targets[:, None])[:, 0]
    others = logits.scatter(1, targets[:, None], -torch.inf)
    strongest = others.topk(3).values
    objective = margin_hinge(9.0, 1.0, rivals=3, temperature=4.0)
    for spent, softness in {0.0: 4.0, 0.5: 2.0, 0.75: 1.0}.items():
        lead = right - softness * (strongest / softness).logsumexp(1)
        losses, margins = objective(any_lm, hidden, targets, torch.full((12,), spent))
        torch.testing.assert_close(losses, (9.0 - lead).clamp(min=0), rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(margins, right - strongest[:, 0], rtol=1e-3, atol=1e-3)
    losses, margins = objective(any_lm, hidden, targets, torch.ones(12))
    torch.testing.assert_close(losses, (9.0 - margins).clamp(min=0), rtol=1e-3, atol=0.02)


def test_a_vocabulary_may_have_fewer_tokens_than_rivals_are_asked_for(any_lm):
    hidden = torch.randn(4, any_lm.width, generator=torch.Generator().manual_seed(3))
    targets, begin = torch.arange(20, 24), torch.zeros(4)
    every = any_lm.logits(hidden).shape[1] - 1
    others = any_lm.logits(hidden).scatter(1, targets[:, None], -torch.inf)
    lead = any_lm.logits(hidden).gather(1, targets[:, None])[:, 0] - others.logsumexp(1)
    for rivals in (every, every + 5):
        losses, _ = margin_hinge(9.0, 1.0, rivals=rivals)(any_lm, hidden, targets, begin)
        torch.testing.assert_close(losses, (9.0 - lead).clamp(min=0), rtol=1e-3, atol=1e-3)


def test_what_is_right_by_more_than_delta_pulls_nothing_whatever_the_power(any_lm):
    """Below 1 the power has no derivative at 0: there must be no gradient that is no number."""
    hidden = torch.randn(4, any_lm.width, generator=torch.Generator().manual_seed(3))
    targets = any_lm.logits(hidden).argmax(1)
    hidden.requires_grad_(True)
    objective = margin_hinge(1e-6, 2.0, 0.7)
    losses, _ = objective(any_lm, hidden, targets, torch.zeros(4))
    (gradient,) = torch.autograd.grad(losses.sum(), hidden)
    assert not losses.any() and not gradient.any()
