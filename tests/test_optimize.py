"""The writer: what it writes is exact, and the LM stays as it is.

A row knows nothing of its neighbours.
"""

import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch
import toy
from hypothesis import given
from hypothesis import settings as quick
from hypothesis import strategies as st

from rag_memtok.config import Memorize
from rag_memtok.datatypes import Memory
from rag_memtok.errors import ChunkDoesNotFit, UsageError
from rag_memtok.memory import step
from rag_memtok.memory.batch import Task, init_pooled, lay_out, residual_peak, sort_by_length
from rag_memtok.memory.calibrate import seconds_per_chunk
from rag_memtok.memory.codec import CODECS
from rag_memtok.memory.optimize import Step, memorize
from rag_memtok.memory.recipes import RECIPES, SETTLED, cross_entropy, recipe_named
from rag_memtok.memory.reconstruct import judge
from rag_memtok.memory.step import Batch, root_mean_square, start_row
from rag_memtok.model.prompts import TEMPLATES, template_named


def settings(**changes):
    return Memorize(**{"seconds_per_chunk": 0.0, "draft": "float32", **changes})


def tokens_of(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(len(toy.SPECIAL), 380, (count,), generator=generator).tolist())


def task_of(count, vectors, seed=0):
    return Task(
        hashlib.sha256(f"{seed} {count}".encode()).hexdigest(), tokens_of(count, seed), vectors
    )


def by_key(written):
    written = list(written)
    found = {one.task.key: one for one in written}
    assert len(found) == len(written), "a task was written twice"
    return found


# --- it works


@pytest.mark.parametrize("draft", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", list(toy.MODELS))
def test_random_tokens_and_text_are_written_exactly_and_judged_so_from_their_bytes(kind, draft):
    one = toy.lm_of(kind)
    template = template_named("bare", one)
    text = tuple(one.encode("The keeper wrote, 7 March: ¿dónde?"))
    tasks = [task_of(16, 4), Task("text", text, -(-len(text) // 4)), task_of(1, 1)]
    for name, codec in CODECS.items():
        for written in memorize(one, template, tasks, settings(draft=draft, codec=name)):
            assert written.wrong == 0 and written.margin > 0 and written.steps > 1
            stored = codec.unpack(codec.pack(written.vectors), written.vectors.shape)
            _, verdict = judge(one, template, Memory(stored), written.task.tokens, 0.0)
            assert verdict.kind == "exact" and abs(verdict.margin - written.margin) < 0.01


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize(
    "recipe", [pytest.param(one, marks=[pytest.mark.slow] * (one == "readable")) for one in RECIPES]
)
def test_every_recipe_writes_in_every_template(toy_lm, recipe, template):
    # at its rate of 5.0 the toy needs 2000 steps for 6 tokens
    task = task_of(1 if recipe == "sastre2025-code" else 6, 2)
    (written,) = memorize(toy_lm, template_named(template, toy_lm), [task], settings(recipe=recipe))
    assert (
        written.task == task
        and written.vectors.shape == (2, toy.WIDTH)
        and written.vectors.dtype == np.float32
    )
    _, verdict = judge(
        toy_lm, template_named(template, toy_lm), Memory(written.vectors), task.tokens, 0.0
    )
    assert (written.wrong, verdict.kind) == (0, "exact")


def test_a_row_that_gets_no_better_ends_where_its_recipe_has_no_patience(toy_lm):
    template, short = template_named("bare", toy_lm), replace(RECIPES["margin"], patience=15)
    (long,) = memorize(toy_lm, template, [task_of(60, 1)], settings(steps=300))
    (written,) = memorize(toy_lm, template, [task_of(60, 1)], settings(steps=300), recipe=short)
    assert long.steps == 300 and 15 < written.steps < 250 and written.wrong > 0


def test_what_does_not_fit_into_its_vectors_is_told_as_wrong(toy_lm):
    template = template_named("bare", toy_lm)
    (written,) = memorize(toy_lm, template, [task_of(60, 1)], settings(steps=15))
    memory, verdict = judge(toy_lm, template, Memory(written.vectors), written.task.tokens, 0.0)
    assert written.wrong > 0 and written.margin <= 0 and written.steps <= 16
    assert verdict.corrections == written.wrong == len(memory.pins)


def test_the_frozen_model_is_bit_identical_afterwards(any_lm, monkeypatch):
    for name, recipe in RECIPES.items():
        monkeypatch.setitem(RECIPES, name, replace(recipe, steps=3))
    template, tasks = template_named("bare", any_lm), [task_of(8, 2), task_of(5, 1)]
    before = {name: value.clone() for name, value in any_lm.model.state_dict().items()}
    attention = any_lm.model.config._attn_implementation
    for recipe in RECIPES:
        for draft in ("float32", "bfloat16"):
            assert (
                len(list(memorize(any_lm, template, tasks, settings(recipe=recipe, draft=draft))))
                == 2
            )
    after = any_lm.model.state_dict()
    assert before.keys() == after.keys() and all(
        torch.equal(before[name], after[name]) for name in before
    )
    assert all(
        parameter.grad is None and not parameter.requires_grad
        for parameter in any_lm.model.parameters()
    )
    assert any_lm.model.config._attn_implementation == attention


# --- rows are strangers


@given(
    shapes=st.lists(st.tuples(st.integers(1, 12), st.integers(1, 4)), min_size=2, max_size=4),
    recipe=st.sampled_from(list(RECIPES)),
)
@quick(max_examples=30)
def test_the_gradient_of_a_row_is_the_same_alone_and_in_a_batch(toy_lm, shapes, recipe):
    template = template_named("cue", toy_lm)
    tasks = [task_of(count, vectors, seed) for seed, (count, vectors) in enumerate(shapes)]

    def gradients(some):
        widest = max(task.vectors for task in some)
        rows = [
            torch.nn.functional.pad(init_pooled(toy_lm, task), (0, 0, 0, widest - task.vectors))
            for task in some
        ]
        vectors = torch.stack(rows).requires_grad_(True)
        layout = lay_out(toy_lm, template, some)
        hidden = toy_lm.hidden(layout.inputs(vectors))[layout.scored]
        losses, _ = recipe_named(recipe).objective(
            toy_lm, hidden, layout.targets, torch.zeros(len(layout.targets))
        )
        (found,) = torch.autograd.grad((losses * layout.weights).sum(), vectors)
        return found

    together = gradients(tasks)
    for index, task in enumerate(tasks):
        alone = gradients([task])[0]
        here, padding = together[index, : task.vectors], together[index, task.vectors :]
        assert (here - alone).norm() <= 1e-5 * alone.norm() + 1e-9
        assert not padding.any()


def test_a_few_steps_are_the_same_alone_in_a_batch_and_in_another_order(toy_lm):
    template = template_named("bare", toy_lm)
    tasks = [
        task_of(count, vectors, seed)
        for seed, (count, vectors) in enumerate([(12, 3), (12, 1), (7, 2), (20, 4), (3, 1)])
    ]
    alone = by_key(memorize(toy_lm, template, tasks, settings(steps=4, batch=1)))
    for order in (tasks, tasks[::-1], tasks[2:] + tasks[:2]):
        for key, written in by_key(
            memorize(toy_lm, template, order, settings(steps=4, batch=3))
        ).items():
            assert (written.wrong, written.steps) == (alone[key].wrong, alone[key].steps)
            assert np.abs(written.vectors - alone[key].vectors).max() < 1e-3


def test_more_tasks_than_rows_are_each_written_once(toy_lm):
    tasks = [task_of(1 + seed % 5, 1, seed) for seed in range(9)]
    seen = []
    found = by_key(
        memorize(
            toy_lm,
            template_named("bare", toy_lm),
            iter(tasks),
            settings(batch=2),
            on_step=seen.append,
        )
    )
    assert found.keys() == {task.key for task in tasks} and all(
        one.wrong == 0 for one in found.values()
    )
    assert all(isinstance(progress, Step) and 1 <= progress.rows <= 2 for progress in seen)
    assert [progress.steps for progress in seen] == list(range(1, len(seen) + 1))
    assert sum(one.steps for one in found.values()) == sum(progress.rows for progress in seen)


def test_what_the_hook_puts_into_a_row_is_what_is_measured_and_kept(toy_lm):
    """`before_step` sees every row before each of its steps, the first one too."""
    template, steps = template_named("bare", toy_lm), {}

    def hold(row):
        steps.setdefault(row.task.key, []).append(row.step)
        row.vectors = row.vectors / row.vectors.norm(dim=-1, keepdim=True)

    tasks = [task_of(3, 2, seed) for seed in range(3)]
    held = by_key(memorize(toy_lm, template, tasks, settings(batch=2, steps=9), before_step=hold))
    free = by_key(memorize(toy_lm, template, tasks, settings(batch=2, steps=9)))
    for key, one in held.items():
        assert np.allclose(np.linalg.norm(one.vectors, axis=-1), 1, atol=1e-5)
        assert not np.allclose(np.linalg.norm(free[key].vectors, axis=-1), 1, atol=1e-2)
        assert steps[key] == sorted(steps[key]) and steps[key][0] == 0
        assert len(steps[key]) == one.steps


def test_no_tasks_are_no_work(toy_lm):
    assert list(memorize(toy_lm, template_named("bare", toy_lm), [], settings())) == []


@given(lengths=st.lists(st.integers(0, 30), max_size=40), window=st.integers(1, 10))
def test_sorting_by_length_loses_nothing_and_waits_for_a_window_only(lengths, window):
    tasks = [Task(str(number), (7,) * length, 1) for number, length in enumerate(lengths)]
    given_out = list(sort_by_length(tasks, window))
    assert sorted(given_out, key=lambda task: int(task.key)) == tasks
    for start in range(0, len(tasks), window):
        part = given_out[start : start + window]
        assert {task.key for task in part} == {task.key for task in tasks[start : start + window]}
        assert [len(task.tokens) for task in part] == sorted(
            (len(task.tokens) for task in part), reverse=True
        )


# --- starts and seeds


@pytest.mark.parametrize("recipe", RECIPES)
def test_alone_and_on_one_thread_it_is_bit_identical_every_time(toy_lm, recipe):
    assert torch.get_num_threads() == 1
    once, again = (
        by_key(
            memorize(
                toy_lm,
                template_named("bare", toy_lm),
                [task_of(9, 2)],
                settings(batch=1),
                recipe=replace(RECIPES[recipe], steps=30),
            )
        )
        for _ in range(2)
    )
    for key, written in once.items():
        assert np.array_equal(written.vectors, again[key].vectors)
        assert (written.wrong, written.margin, written.steps) == (
            again[key].wrong,
            again[key].margin,
            again[key].steps,
        )


def test_rows_that_threads_share_out_are_written_as_in_one_part(toy_lm, monkeypatch, take_threads):
    take_threads(2)
    tasks = [task_of(length, 2, seed) for seed, length in enumerate((9, 12, 7, 10, 8))]
    recipe, sizes, lay_out_rows = replace(RECIPES["margin"], steps=5), [], step.lay_out

    def note_size(lm, template, rows):
        sizes.append(len(rows))
        return lay_out_rows(lm, template, rows)

    def written():
        sizes.clear()
        counted = []
        found = by_key(
            memorize(
                toy_lm,
                template_named("bare", toy_lm),
                tasks,
                settings(batch=4),
                recipe=recipe,
                on_step=counted.append,
            )
        )
        assert counted[-1].row_steps == sum(one.steps for one in found.values()) == 25
        return found, sizes.copy()

    monkeypatch.setattr(step, "lay_out", note_size)
    together, in_one = written()
    monkeypatch.setattr(step, "PARAMETERS_OF_PART", 0)
    (apart, in_parts), (again, _) = written(), written()
    assert in_one == [4, 1] and in_parts == [2, 2, 1]
    for key, one in apart.items():
        assert np.array_equal(one.vectors, again[key].vectors), "it depends on who came first"
        np.testing.assert_allclose(one.vectors, together[key].vectors, rtol=1e-2, atol=1e-3)
        assert (one.wrong, one.steps) == (together[key].wrong, together[key].steps)


def test_a_random_start_is_of_the_seed_and_the_chunk(toy_lm, monkeypatch):
    monkeypatch.setitem(RECIPES, "one step", replace(RECIPES["kuratov2025"], steps=1))

    def start(task, seed, neighbours=()):
        found = by_key(
            memorize(
                toy_lm,
                template_named("bare", toy_lm),
                [*neighbours, task],
                settings(recipe="one step", seed=seed),
            )
        )
        return found[task.key].vectors

    one, other = task_of(6, 2, seed=1), task_of(6, 2, seed=2)
    assert np.array_equal(start(one, 0), start(one, 0, neighbours=[other, task_of(9, 3)]))
    assert not np.allclose(start(one, 0), start(other, 0))
    assert not np.allclose(start(one, 0), start(one, 1)), "the seed changes nothing"
    assert np.isclose(start(one, 0).std(), float(toy_lm.table.std()), rtol=0.2)


@pytest.mark.parametrize("kind", list(toy.MODELS))
def test_the_longest_state_is_that_of_a_layer_the_embeddings_among_them(kind):
    one, seen = toy.lm_of(kind), []
    tokens = tokens_of(12)

    def watch(module, inputs, output):
        state = output[0] if isinstance(output, tuple) else output
        seen.append(float(state[0].square().mean(-1).max().sqrt()))

    layers = [module for name, module in one.model.named_modules() if name.split(".")[-1] == "0"]
    handles = [layer.register_forward_hook(watch) for layer in layers[:1]]
    peak = residual_peak(one, tokens)
    for handle in handles:
        handle.remove()
    assert seen and peak >= max(seen) - 1e-5
    assert peak >= float(one.embed(tokens).square().mean(-1).max().sqrt()) - 1e-5


def test_a_row_starts_at_a_sixteenth_of_the_longest_state_and_never_outgrows_it(toy_lm):
    task, template = task_of(24, 3), template_named("bare", toy_lm)
    peak = residual_peak(toy_lm, task.tokens)
    row = start_row(toy_lm, RECIPES["margin"], task, seed=0)
    assert root_mean_square(row.vectors) == pytest.approx(peak / 16, rel=0.2)
    longest = []
    recipe = replace(RECIPES["margin"], margin=float("inf"))
    batch = Batch(
        lm=toy_lm,
        template=template,
        recipe=recipe,
        steps=300,
        seconds=0.0,
        seed=0,
        before_step=lambda row: longest.append(root_mean_square(row.vectors)),
        rows=[row],
    )
    while batch.rows:
        batch.step()
    assert max(longest) == pytest.approx(peak, rel=1e-4), "it grew, and ended at the bound"


@given(count=st.integers(1, 20), vectors=st.integers(1, 25))
def test_a_pooled_start_has_a_vector_for_every_slot_within_the_range_of_the_tokens(
    toy_lm, count, vectors
):
    task = Task("x", tokens_of(count), vectors)
    found, embedded = init_pooled(toy_lm, task), toy_lm.embed(task.tokens)
    assert found.shape == (vectors, toy.WIDTH) and torch.isfinite(found).all()
    assert (found <= embedded.max(0).values + 1e-6).all() and (
        found >= embedded.min(0).values - 1e-6
    ).all()
    if vectors == count:
        assert torch.allclose(found, embedded)
    if vectors == 1:
        assert torch.allclose(found[0], embedded.mean(0), atol=1e-6)


# --- bounds and refusals


def test_the_time_bound_ends_a_chunk(toy_lm):
    (written,) = memorize(
        toy_lm, template_named("bare", toy_lm), [task_of(60, 1)], settings(seconds_per_chunk=1e-9)
    )
    assert written.steps <= 2 and written.wrong > 0


def test_the_step_bound_ends_a_chunk(toy_lm):
    (written,) = memorize(
        toy_lm, template_named("bare", toy_lm), [task_of(60, 1)], settings(steps=5)
    )
    assert written.steps <= 6 and written.wrong > 0


def nan_for_token_fifty(one, hidden, targets, spent):
    losses, margins = cross_entropy(one, hidden, targets, spent)
    broken = torch.where(targets == 50, torch.nan, 0.0)
    return losses + broken, margins + broken


def test_a_loss_that_is_no_number_ends_the_task_and_no_other(toy_lm, monkeypatch):
    monkeypatch.setitem(
        RECIPES, "broken", replace(RECIPES["cross-entropy"], objective=nan_for_token_fifty)
    )
    good = Task("good", tuple(token for token in tokens_of(9) if token != 50), 3)
    found = by_key(
        memorize(
            toy_lm,
            template_named("bare", toy_lm),
            [Task("bad", (60, 50, 70), 2), good],
            settings(recipe="broken"),
        )
    )
    assert found["good"].wrong == 0
    assert found["bad"].wrong > 0 and found["bad"].steps <= RECIPES["margin"].steps
    assert np.isfinite(found["bad"].vectors).all()


def nan_at_first(one, hidden, targets, spent):
    losses, margins = cross_entropy(one, hidden, targets, spent)
    return losses * torch.where(spent == 0, torch.nan, 1.0), margins


def test_vectors_whose_gradient_is_no_number_are_not_tried_again(toy_lm, monkeypatch):
    monkeypatch.setitem(
        RECIPES, "broken", replace(RECIPES["cross-entropy"], objective=nan_at_first)
    )
    seen = []
    (written,) = memorize(
        toy_lm, template_named("bare", toy_lm), [task_of(6, 3)],
        settings(recipe="broken", draft="float32"),
        before_step=lambda row: seen.append(row.vectors.clone()),
    )  # fmt: skip
    assert not torch.equal(seen[0], seen[1]) and written.wrong == 0


def test_a_chunk_must_fit_into_the_context_with_its_memory(toy_lm):
    template = template_named("bare", toy_lm)
    longest = toy.CONTEXT - template.overhead - 4
    (written,) = memorize(toy_lm, template, [Task("fits", (70,) * longest, 4)], settings(steps=1))
    assert written.vectors.shape[0] == 4
    judge(toy_lm, template, Memory(written.vectors), written.task.tokens, 0.0)
    with pytest.raises(
        ChunkDoesNotFit, match=f"{toy.CONTEXT + 1} positions.*{toy.CONTEXT}"
    ) as refused:
        list(
            memorize(
                toy_lm, template, [Task("too long", (70,) * (longest + 1), 4)], settings(steps=1)
            )
        )
    assert "--chunk-tokens" in refused.value.remedy and refused.value.exit_code == 2


def test_an_unknown_recipe_is_refused_with_those_there_are(toy_lm):
    with pytest.raises(UsageError, match="soup.*margin.*sastre2025"):
        list(
            memorize(
                toy_lm, template_named("bare", toy_lm), [task_of(3, 1)], settings(recipe="soup")
            )
        )


# --- the layout


@given(
    shapes=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 4)), min_size=1, max_size=4),
    name=st.sampled_from(list(TEMPLATES)),
)
def test_a_row_of_the_layout_is_prefix_memory_suffix_text(toy_lm, shapes, name):
    template = template_named(name, toy_lm)
    tasks = [task_of(count, vectors, seed) for seed, (count, vectors) in enumerate(shapes)]
    layout = lay_out(toy_lm, template, tasks)
    widest = max(task.vectors for task in tasks)
    memories = torch.randn(
        len(tasks), widest, toy.WIDTH, generator=torch.Generator().manual_seed(0)
    )
    inputs, (rows, places) = layout.inputs(memories), layout.scored
    for row, task in enumerate(tasks):
        parts = [
            toy_lm.embed(template.prefix),
            memories[row, : task.vectors],
            toy_lm.embed(template.suffix),
            toy_lm.embed(task.tokens),
        ]
        expected = torch.cat(parts)
        assert torch.equal(inputs[row, : len(expected)], expected)
        mine = rows == row
        assert layout.targets[mine].tolist() == [*task.tokens, template.end]
        assert places[mine].tolist() == list(
            range(len(expected) - len(task.tokens) - 1, len(expected))
        )
        assert torch.isclose(layout.weights[mine].sum(), torch.tensor(1.0))


def test_strides_shrink_with_the_share_of_wrong_tokens(toy_lm):
    """Of two rows, the one with a quarter of its tokens wrong moves half as far.

    Both are at the same place with the same gradient.
    """
    recipe = replace(recipe_named("margin"), warmup=0, clip=0.0)
    batch = Batch(
        lm=toy_lm,
        template=template_named("bare", toy_lm),
        recipe=recipe,
        steps=100,
        seconds=0.0,
        seed=0,
    )
    moved = {}
    for wrong in (1.0, 0.25, 0.0):
        row = start_row(toy_lm, recipe, task_of(8, 2, 0), 0)
        row.step, row.wrong, before = 1, wrong, row.vectors.clone()
        batch._move(row, torch.ones_like(row.vectors))
        moved[wrong] = float((row.vectors - before).norm())
    assert moved[0.25] == pytest.approx(moved[1.0] / 2, rel=1e-4) and moved[0.0] == pytest.approx(
        SETTLED * moved[1.0], rel=1e-4
    )
    assert recipe.lr_at(90, 100, wrong=0.5) == recipe.lr_at(90, 100)  # the clock's is less by then
    assert replace(recipe, settle=False).lr_at(1, 100, wrong=0.0) == recipe.lr_at(1, 100)


def test_the_rate_falls_over_the_steps_that_the_seconds_allow(toy_lm):
    recipe = RECIPES["margin"]
    batch = Batch(
        lm=toy_lm,
        template=template_named("bare", toy_lm),
        recipe=recipe,
        steps=300,
        seconds=2.0,
        seed=0,
    )
    row = start_row(toy_lm, recipe, task_of(8, 2), 0)
    row.step, row.seconds = 20, 1.0  # a twentieth of a second each: 40 in all
    assert batch.expected_steps(row) == 40
    row.seconds = 0.1  # 400 would fit
    assert batch.expected_steps(row) == 300
    row.step, row.seconds = 50, 2.5  # already over
    assert batch.expected_steps(row) == 50


def test_what_a_chunk_will_cost_grows_with_its_steps_and_is_bounded(toy_lm):
    template = template_named("bare", toy_lm)
    few, many = (
        seconds_per_chunk(toy_lm, template, [70, 71, 72], 1, steps, settings(batch=2))
        for steps in (1, 1000)
    )
    assert 0 < few < many
    assert (
        seconds_per_chunk(toy_lm, template, [70, 71, 72], 1, 10**9, settings(seconds_per_chunk=7.0))
        == 7.0
    )
